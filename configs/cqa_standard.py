"""Standard fine-tuning on CommonsenseQA, T5-base.

Published test accuracy: 62.19 % (reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/cqa_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("cqa", "standard")
