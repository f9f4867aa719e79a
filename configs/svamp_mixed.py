"""Mixed Distillation on SVAMP, T5-base: PaLM's rationales and Codex's programs (pot/svamp).

Published for LLaMA2-7B and Mistral-7B students only (Li et al. 2024). Of the teachers' samples those are
learned from whose answer is right; evaluate with --samples for the vote of several paths.

    python -m cot_jax.train --config=configs/svamp_mixed.py --config.data.root=DIR
    python -m cot_jax.evaluate --workdir=runs/svamp_mixed --samples=8
"""

from configs import common


def get_config():
    return common.published("svamp", "mixed")
