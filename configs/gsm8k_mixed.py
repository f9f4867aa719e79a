"""Mixed Distillation on GSM8K, T5-base.

Published for LLaMA2-7B and Mistral-7B students only, with a teacher's rationales and programs (Li et
al. 2024). Without a teacher, the student learns the human solutions and programs made of their
calculator notes. With one:

    python -m cot_jax.rationalize --task=gsm8k --root=DIR --kind=both --endpoint=URL --model=M --output=OUT
    python -m cot_jax.train --config=configs/gsm8k_mixed.py --config.data.root=DIR \\
        --config.data.teacher=OUT/teacher.jsonl
"""

from cot_jax.configs import common


def get_config():
    return common.published("gsm8k", "mixed")
