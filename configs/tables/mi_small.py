"""Methods on four tasks with T5-small, as Chen et al. 2024 compare them.

python -m cot_jax.sweep --table=configs/tables/mi_small.py --seeds=0..3 --output=DIR --config.data.root=DATA
"""

from cot_jax.configs.tables.common import compared

_PUBLISHED = {
    ("standard", "standard"): {"esnli": 82.90, "anli1": 42.00, "cqa": 43.16, "svamp": 45.00},
    ("DSS", "dss"): {"esnli": 83.43, "anli1": 42.90, "cqa": 43.24, "svamp": 48.00},
    ("MI", "mi"): {"esnli": 83.23, "anli1": 43.70, "cqa": 43.90, "svamp": 52.50},
}


def get_table():
    keys = {"model.pretrained": "google/t5-v1_1-small"}
    return compared("Mutual information, T5-small", _PUBLISHED, **keys)
