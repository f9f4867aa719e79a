"""Standard fine-tuning on GSM8K, T5-base. The label is the bare number.

`gsm8k_dss.py` also learns the human solutions.

    python -m cot_jax.train --config=configs/gsm8k_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("gsm8k", "standard")
