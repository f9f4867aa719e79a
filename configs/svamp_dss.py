"""Distilling Step-by-Step on SVAMP, T5-base.

Published test accuracy: 65.50 % (Hsieh et al. 2023, reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/svamp_dss.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("svamp", "dss")
