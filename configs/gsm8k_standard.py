"""Standard fine-tuning on GSM8K, T5-base: the bare number is learned.

The human solutions are not; `gsm8k_dss.py` learns them too.

    python -m cot_jax.train --config=configs/gsm8k_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("gsm8k", "standard")
