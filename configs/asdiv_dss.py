"""Distilling Step-by-Step on ASDiv, T5-base, with published rationales of GPT-3.5 (pot/asdiv) where there are any.

The student writes SVAMP's equations; the test set is the authors' fold 4.

    python -m cot_jax.train --config=configs/asdiv_dss.py --config.data.root=DIR
"""

from configs import common


def get_config():
    return common.published("asdiv", "dss")
