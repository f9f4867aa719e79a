"""Standard fine-tuning on HellaSwag, T5-base. The question numbers the endings; the label is the number.

Training needs the authors' hellaswag_train.jsonl; the test set is their validation file.

    python -m cot_jax.train --config=configs/hellaswag_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("hellaswag", "standard")
