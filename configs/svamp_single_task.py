"""Single-task rationale and label on SVAMP, T5-base.

Published test accuracy: 63.00 % (reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/svamp_single_task.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("svamp", "single_task")
