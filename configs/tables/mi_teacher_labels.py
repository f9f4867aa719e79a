"""DSS and MI trained on the teacher's labels, T5-base, as reported by Chen et al. 2024.

python -m cot_jax.sweep --table=configs/tables/mi_teacher_labels.py --seeds=0..3 --output=DIR \\
    --config.data.root=DATA
"""

from cot_jax.configs.tables.common import compared

_PUBLISHED = {
    ("DSS", "dss"): {"esnli": 82.65, "anli1": 42.80},
    ("MI", "mi"): {"esnli": 82.81, "anli1": 45.50},
}


def get_table():
    return compared("Teacher's labels, T5-base", _PUBLISHED, **{"data.label_source": "teacher"})
