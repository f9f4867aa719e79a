"""Distilling Step-by-Step with DynSDPB on generated word problems: no network, no files.

python -m cot_jax.train --config=configs/demo_dynsdpb.py
"""

from cot_jax.configs import common


def get_config():
    return common.self_distilled(common.demo("dss"), "dynsdpb")
