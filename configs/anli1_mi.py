"""Distilling Step-by-Step with the mutual-information term on ANLI round 1, T5-base.

Published test accuracy: 51.20 % (Chen et al. 2024, max reduction; not reproduced here).

    python -m cot_jax.train --config=configs/anli1_mi.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("anli1", "mi")
