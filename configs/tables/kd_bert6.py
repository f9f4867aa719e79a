"""Six layers of BERT, taught by the fine-tuned twelve: the teacher-based rows of Table 2 of Fu et al. 2024.

The student is the first six layers of the pretrained model (Sun et al. 2019); weight, temperature and beta
are the middle of their grids; GKD-CLS's gamma is 1. The teacher-based figures for QQP may be F1; ours are
accuracies. Published but not included here: Hard- and Soft-Action KD, Meta Distill, LGTM, ReAugKD. A column's
teacher is its run of seed 0, which must finish first: use --jobs=1.

python -m cot_jax.sweep --table=configs/tables/kd_bert6.py --seeds=0..2 --output=DIR \\
    --config.data.root=nyu-mll/glue
"""

from cot_jax.configs.tables.common import FU, GKD, KD, PKD, classified, self_distilled, table

_TASKS = {
    "rte": "RTE",
    "mrpc": "MRPC",
    "mnli": "MNLI-m",
    "mnli_mm": "MNLI-mm",
    "sst2": "SST-2",
    "qnli": "QNLI",
    "qqp": "QQP",
}
_TEACHER = {"distillation.teacher": "{runs}/teacher/{column}/seed0"}
_ROWS = {
    "teacher": ({"model.layers": 0, "distillation.teacher": ""}, (69.3, 85.5, 84.1, 83.1, 92.7, 90.5, 89.2)),
    "KD": (_TEACHER | KD, (65.1, 79.8, 82.4, 81.6, 91.4, 86.9, 88.4)),
    "PKD": (_TEACHER | PKD, (65.5, 79.9, 81.5, 81.0, 92.0, 89.0, 88.9)),
    "GKD-CLS": (_TEACHER | GKD, (None, None, 82.6, 81.9, 93.0, 89.5, 71.6)),
    "fine-tuning": ({}, (64.9, 79.2, 81.1, 79.8, 89.5, 86.5, 88.2)),
    "DynSDPB": ({}, (68.2, 82.6, 82.7, 82.2, 91.5, 88.4, 91.0)),
}


def get_table():
    cells = []
    methods = self_distilled(4.0)
    for row, (keys, figures) in _ROWS.items():
        method, epochs = methods.get(row, ("standard", {"train.epochs": 4.0}))
        cells += classified(row, _TASKS, method, figures, **({"model.layers": 6} | epochs | keys))
    return table("A teacher for six layers of BERT", f"{FU}, Table 2", cells)
