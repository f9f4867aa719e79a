"""Mixed Distillation (labels, rationales, programs) on generated word problems: no network, no files.

python -m cot_jax.train --config=configs/demo_mixed.py
python -m cot_jax.evaluate runs/demo_mixed --samples=8
"""

from cot_jax.configs import common


def get_config():
    return common.demo("mixed")
