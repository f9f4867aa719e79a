r"""SVAMP with LoRA on a decoder of 135 M parameters: rationale, then answer.

    python -m cot_jax.train --config=configs/smollm2_svamp.py --config.data.root=DIR
    python -m cot_jax.train --config=configs/smollm2_svamp.py --config.data.root=DIR \
        --config.objective.method=dss
"""

from cot_jax.configs import common


def get_config():
    return common.small_decoder("svamp", "single_task")
