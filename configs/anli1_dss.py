"""Distilling Step-by-Step on ANLI round 1, T5-base.

Published test accuracy: 49.58 % (Hsieh et al. 2023, reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/anli1_dss.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("anli1", "dss")
