"""Distilling Step-by-Step on GSM8K, T5-base, with the human solutions as rationales.

Another teacher's outputs in gsm8k/llm/train_CoT_{k}.json, in row order, replace them.

    python -m cot_jax.train --config=configs/gsm8k_dss.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("gsm8k", "dss")
