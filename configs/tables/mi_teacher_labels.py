"""DSS and MI trained on the teacher's labels, T5-base, as Chen et al. 2024 report them.

python -m cot_jax.sweep --table=configs/tables/mi_teacher_labels.py --seeds=0..3 --output=DIR \\
    --config.data.root=DATA
"""

from cot_jax.configs.tables.common import CHEN, cell, table

_PUBLISHED = {
    ("DSS", "dss"): {"esnli": 82.65, "anli1": 42.80},
    ("MI", "mi"): {"esnli": 82.81, "anli1": 45.50},
}


def get_table():
    cells = [
        cell(row, task, method, published, data__label_source="teacher")
        for (row, method), tasks in _PUBLISHED.items()
        for task, published in tasks.items()
    ]
    return table("Teacher's labels, T5-base", CHEN, cells)
