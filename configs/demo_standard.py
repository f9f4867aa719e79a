"""Standard fine-tuning on generated word problems: no network, no files.

python -m cot_jax.train --config=configs/demo_standard.py
"""

from cot_jax.configs import common


def get_config():
    return common.demo("standard")
