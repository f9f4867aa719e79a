"""Standard fine-tuning on AQuA-RAT, T5-base: the letter of the option is learned.

The human rationales are not; `aqua_dss.py` learns them too.

    python -m cot_jax.train --config=configs/aqua_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("aqua", "standard")
