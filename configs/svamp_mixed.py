"""Mixed Distillation on SVAMP, T5-base: correct rationales of PaLM and programs of Codex (pot/svamp).

Published test accuracy of Mistral-7B, several paths: 87.5 % (Li et al. 2024; not reproduced here;
nothing is published for T5).

    python -m cot_jax.train --config=configs/svamp_mixed.py --config.data.root=DIR
    python -m cot_jax.evaluate runs/svamp_mixed --samples=8
"""

from cot_jax.configs import common


def get_config():
    config = common.published("svamp", "mixed")
    config.data.rationales = "right"
    return config
