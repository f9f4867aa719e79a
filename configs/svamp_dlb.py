"""Self-distillation from the last mini-batch (DLB; Shen et al. 2022) on SVAMP, T5-base.

Batches overlap by half, so every example is seen twice per epoch. `svamp_standard.py` sees the
examples as often in as many steps: it is the papers' "double fine-tuning", the fair comparison.

    python -m cot_jax.train --config=configs/svamp_dlb.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.self_distilled(common.published("svamp", "standard"), "dlb")
