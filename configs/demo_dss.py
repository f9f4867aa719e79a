"""Distilling Step-by-Step on generated word problems: no network, no files.

python -m cot_jax.train --config=configs/demo_dss.py
"""

from cot_jax.configs import common


def get_config():
    return common.demo("dss")
