"""DeBERTa-v3-large on a task of SuperGLUE.

    python -m cot_jax.train --config=configs/superglue.py --config.data.task=boolq --config.data.root=DIR

Learning rate 1e-5: He et al. 2021 fine-tune large models at 5e-6 to 1e-5.
"""

from cot_jax.configs import common


def get_config():
    config = common.encoder("microsoft/deberta-v3-large", "cb", batch_size=8)
    config.data.max_input_tokens = 256
    config.optimizer.learning_rate = 1e-5
    return config
