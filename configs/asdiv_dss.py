"""Distilling Step-by-Step on ASDiv, T5-base, with the published rationales of GPT-3.5 (pot/asdiv).

Five in twelve training problems have a rationale; the others teach their label only.

The student writes equations as in SVAMP. The test set is the authors' fold 4.

    python -m cot_jax.train --config=configs/asdiv_dss.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("asdiv", "dss")
