"""Distilling Step-by-Step with the mutual-information term on generated word problems: no network, no files.

python -m cot_jax.train --config=configs/demo_mi.py
"""

from cot_jax.configs import common


def get_config():
    return common.demo("mi")
