"""BERT-base on a task of GLUE.

python -m cot_jax.train --config=configs/glue.py --config.data.task=rte --config.data.root=DIR
"""

from cot_jax.configs import common


def get_config():
    return common.encoder("google-bert/bert-base-uncased", "rte", batch_size=32)
