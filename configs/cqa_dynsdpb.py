"""DynSDPB (Fu et al. 2024), vocabulary map matching, on CQA, T5-base.

Batches overlap by half, so every example is seen twice per epoch. `cqa_standard.py` sees the
examples as often in as many steps: it is the papers' "double fine-tuning", the fair comparison.

    python -m cot_jax.train --config=configs/cqa_dynsdpb.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.self_distilled(common.published("cqa", "standard"), "dynsdpb")
