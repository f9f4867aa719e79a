"""Methods on four tasks with T5-base, as Chen et al. 2024 compare them.

python -m cot_jax.sweep --table=configs/tables/mi_base.py --seeds=0..3 --output=DIR --config.data.root=DATA
"""

from cot_jax.configs.tables.common import compared

_PUBLISHED = {
    ("standard", "standard"): {"esnli": 88.38, "anli1": 43.58, "cqa": 62.19, "svamp": 62.63},
    ("single task", "single_task"): {"esnli": 88.88, "anli1": 43.50, "cqa": 61.37, "svamp": 63.00},
    ("DSS", "dss"): {"esnli": 89.51, "anli1": 49.58, "cqa": 63.29, "svamp": 65.50},
    ("MI", "mi"): {"esnli": 89.50, "anli1": 51.20, "cqa": 63.88, "svamp": 68.00},
}


def get_table():
    return compared("Mutual information, T5-base", _PUBLISHED)
