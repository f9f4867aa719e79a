"""Mutual information and DynSDPB together: DSS with the MI term and self-distillation on both views, SVAMP.

python -m cot_jax.train --config=configs/svamp_mi_dynsdpb.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.self_distilled(common.published("svamp", "mi"), "dynsdpb")
