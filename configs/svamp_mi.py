"""Distilling Step-by-Step with the mutual-information term on SVAMP, T5-base.

Published test accuracy: 68.00 % (Chen et al. 2024, max reduction; not reproduced here).

    python -m cot_jax.train --config=configs/svamp_mi.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("svamp", "mi")
