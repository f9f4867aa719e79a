"""What two CPU cores can do: MiniLM-L6 on the small tasks, by every self-distillation and by a teacher.

The student of three layers is the first three of MiniLM; its teacher is the fine-tuned six of the same task
(seed 0, which comes first: --jobs=1). Learning rate 1e-4.

python -m cot_jax.sweep --table=configs/tables/minilm.py --seeds=0..4 --output=DIR \\
    --config.model.pretrained=DIR_OF_MINILM --config.data.root=DATA
"""

from cot_jax.configs.tables.common import classified, self_distilled, table

_TASKS = {"cb": "CB", "copa": "COPA", "rte": "RTE", "cola": "CoLA"}
_SUPERGLUE = ("cb", "copa")
_KD = {"distillation.weight": 0.5, "distillation.temperature": 10.0}
_PKD = _KD | {"distillation.layers": "skip", "distillation.layer_weight": 100.0}


def _cell(row, task, method, keys):
    sizes = {"train.batch_size": 8 if task in _SUPERGLUE else 32, "optimizer.learning_rate": 1e-4}
    return classified(row, task, _TASKS[task], method=method, **sizes, **keys)


def get_table():
    rows = self_distilled(3.0)
    del rows["sequential DLB"]
    rows["dynamic fine-tuning"] = ("standard+dynamic", {"train.epochs": 3.0})
    cells = [_cell(row, task, *rows[row]) for row in rows for task in _TASKS]
    for row, (method, keys) in {
        "3 layers, fine-tuning": ("standard", {}),
        "3 layers, KD": ("standard", _KD),
        "3 layers, PKD": ("standard", _PKD),
        "3 layers, DynSDPB": ("standard+dynsdpb", {}),
    }.items():
        for task, column in _TASKS.items():
            given = {"model.layers": 3, "train.epochs": 3.0} | keys
            if keys:
                given["distillation.teacher"] = f"{{runs}}/fine-tuning/{column}/seed0"
            cells.append(_cell(row, task, method, given))
    return table("MiniLM-L6 on small tasks", "", cells)
