"""Standard fine-tuning on MathQA, T5-base. The label is the option's letter.

Training needs the authors' train.json, dev.json and test.json.

    python -m cot_jax.train --config=configs/mathqa_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("mathqa", "standard")
