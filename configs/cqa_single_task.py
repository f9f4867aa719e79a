"""Single-task rationale and label on CommonsenseQA, T5-base.

Published test accuracy: 61.37 % (reported by Chen et al. 2024; not reproduced here).

    python -m cot_jax.train --config=configs/cqa_single_task.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.published("cqa", "single_task")
