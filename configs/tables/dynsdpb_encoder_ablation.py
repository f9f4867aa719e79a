"""DynSDPB without distillation: Table 5 of Fu et al. 2024, dynamic fine-tuning of encoders.

Their table also repeats rows of Table 1 (two of them misprinted); see `dynsdpb_glue.py`.

python -m cot_jax.sweep --table=configs/tables/dynsdpb_encoder_ablation.py --seeds=0..2 --output=DIR \\
    --config.data.root=nyu-mll/glue
"""

from cot_jax.configs.tables.common import FU, classified, table
from cot_jax.configs.tables.dynsdpb_glue import _STUDENTS

_TASKS = {"rte": "RTE", "cola": "CoLA"}
# Student, layers -> RTE, CoLA
_PUBLISHED = {
    ("RoBERTa", 6): (61.2, 54.1),
    ("BERT", 6): (64.5, 39.5),
    ("ALBERT", 6): (61.5, 49.9),
    ("RoBERTa", 12): (72.5, 61.1),
    ("BERT", 12): (69.9, 57.8),
    ("ALBERT", 12): (71.3, 57.0),
}


def get_table():
    cells = []
    for (student, layers), figures in _PUBLISHED.items():
        keys = {"model.pretrained": _STUDENTS[student], "model.layers": layers, "train.epochs": 3.0}
        row = f"{student}-{layers}, dynamic fine-tuning"
        cells += classified(row, _TASKS, "standard+dynamic", figures, **keys)
    return table("DynSDPB, dynamic fine-tuning of encoders", f"{FU}, Table 5", cells)
