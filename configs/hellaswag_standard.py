"""Standard fine-tuning on HellaSwag, T5-base: endings are numbered in the question, the number is learned.

Training needs the authors' hellaswag_train.jsonl; test is their validation file.

    python -m cot_jax.train --config=configs/hellaswag_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("hellaswag", "standard")
