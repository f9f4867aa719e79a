"""Distilling Step-by-Step on CommonsenseQA, T5-base.

Published test accuracy: 63.29 % (Hsieh et al. 2023, reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/cqa_dss.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("cqa", "dss")
