"""Single-task rationale and label on e-SNLI, T5-base.

Published test accuracy: 88.88 % (reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/esnli_single_task.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("esnli", "single_task")
