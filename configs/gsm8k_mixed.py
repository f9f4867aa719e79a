"""Mixed Distillation on GSM8K, T5-base: your teacher's rationales and programs.

Published for LLaMA2-7B and Mistral-7B students only (Li et al. 2024). The training set comes with human
solutions and without programs, so that a teacher is asked first:

    python -m cot_jax.rationalize --task=gsm8k --root=DIR --kind=both --endpoint=URL --model=M --output=OUT
    python -m cot_jax.train --config=configs/gsm8k_mixed.py --config.data.root=DIR \\
        --config.data.teacher=OUT/teacher.jsonl
"""

from cot_jax.configs import common


def get_config():
    return common.published("gsm8k", "mixed")
