"""Distilling Step-by-Step with the mutual-information term on e-SNLI, T5-base.

Published test accuracy: 89.50 % (Chen et al. 2024, max reduction; not reproduced here).

    python -m cot_jax.train --config=configs/esnli_mi.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("esnli", "mi")
