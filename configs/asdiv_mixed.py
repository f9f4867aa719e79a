"""Mixed Distillation on ASDiv, T5-base: rationales and programs of GPT-3.5 (pot/asdiv).

Published for LLaMA2-7B and Mistral-7B students only (Li et al. 2024). Three in eight training problems have a
program; the others teach their label only.

    python -m cot_jax.train --config=configs/asdiv_mixed.py --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    config = common.published("asdiv", "mixed")
    config.data.rationales = "right"
    return config
