"""What two CPU cores can do: MiniLM-L6 on small tasks, with every self-distillation and with a teacher.

The three-layer student is the first three layers of MiniLM; its teacher is the fine-tuned MiniLM of the same
task (seed 0, which must finish first: use --jobs=1). Learning rate 1e-4.

python -m cot_jax.sweep --table=configs/tables/minilm.py --seeds=0..4 --output=DIR \\
    --config.model.pretrained=DIR_OF_MINILM --config.data.root=DATA
"""

from cot_jax.configs.tables.common import KD, PKD, classified, self_distilled, table

_EPOCHS = {"train.epochs": 3.0}
_THREE = _EPOCHS | {"model.layers": 3}
_TAUGHT = _THREE | {"distillation.teacher": "{runs}/fine-tuning/{column}/seed0"}


def get_table():
    return make_table(
        "MiniLM-L6 on small tasks", {"cb": "CB", "copa": "COPA"}, {"rte": "RTE", "cola": "CoLA"}
    )


def make_table(title, superglue, glue):
    """Returns the table of tasks of SuperGLUE, in batches of 8, and of GLUE, in batches of 32."""
    rows = self_distilled(3.0)
    del rows["sequential DLB"]
    rows |= {
        "dynamic fine-tuning": ("standard+dynamic", _EPOCHS),
        "3 layers, fine-tuning": ("standard", _THREE),
        "3 layers, KD": ("standard", _TAUGHT | KD),
        "3 layers, PKD": ("standard", _TAUGHT | PKD),
        "3 layers, DynSDPB": ("standard+dynsdpb", _THREE),
    }
    cells = []
    for row, (method, keys) in rows.items():
        for tasks, batch_size in ((superglue, 8), (glue, 32)):
            sizes = {"train.batch_size": batch_size, "optimizer.learning_rate": 1e-4}
            cells += classified(row, tasks, method, **sizes, **keys)
    return table(title, "", cells)
