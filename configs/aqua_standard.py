"""Standard fine-tuning on AQuA-RAT, T5-base. The label is the option's letter.

`aqua_dss.py` also learns the human rationales.

    python -m cot_jax.train --config=configs/aqua_standard.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("aqua", "standard")
