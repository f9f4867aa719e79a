"""Standard fine-tuning on ANLI round 1, T5-base.

Published test accuracy: 43.58 % (reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/anli1_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("anli1", "standard")
