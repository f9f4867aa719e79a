"""Forms of the mutual-information loss on four tasks with T5-base: Chen et al. 2024's and ours.

The exact form of their KL ablation is not published; `kl` is our reading of it. `masked` and `normalized` are
ours and have no published figures.

python -m cot_jax.sweep --table=configs/tables/mi_forms.py --seeds=0..3 --output=DIR --config.data.root=DATA
"""

from cot_jax.configs.tables.common import CHEN, TASKS, cell, table

_PUBLISHED = {
    ("max", "mi", "max"): {"esnli": 89.50, "anli1": 51.20, "cqa": 63.88, "svamp": 68.00},
    ("mean", "mi", "mean"): {"esnli": 89.34, "anli1": 51.40, "cqa": 63.88, "svamp": 66.50},
    ("KL", "mi:kl", "max"): {"esnli": 89.42, "anli1": 42.00, "cqa": 62.49, "svamp": 67.00},
    ("masked", "mi:masked", "max"): {},
    ("normalized", "mi:normalized", "max"): {},
}


def get_table():
    cells = [
        cell(row, task, method, published.get(task), **{"objective.mi_reduction": reduction})
        for (row, method, reduction), published in _PUBLISHED.items()
        for task in TASKS
    ]
    return table("Forms of the mutual-information loss, T5-base", CHEN, cells)
