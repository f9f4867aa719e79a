"""Distilling Step-by-Step with the mutual-information term on CommonsenseQA, T5-base.

Published test accuracy: 63.88 % (Chen et al. 2024, max reduction; not reproduced here).

    python -m cot_jax.train --config=configs/cqa_mi.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("cqa", "mi")
