r"""SVAMP by a decoder of 135 M parameters with LoRA: the rationale, then the answer.

    python -m cot_jax.train --config=configs/smollm2_svamp.py --config.data.root=DIR
    python -m cot_jax.train --config=configs/smollm2_svamp.py --config.data.root=DIR \
        --config.objective.method=dss
"""

from cot_jax.configs import common


def get_config():
    return common.small_decoder("svamp", "single_task")
