"""Distilling Step-by-Step on AQuA-RAT, T5-base, with human rationales. The label is the option's letter.

The student also answers MathQA: python -m cot_jax.evaluate RUN --task=mathqa

    python -m cot_jax.train --config=configs/aqua_dss.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("aqua", "dss")
