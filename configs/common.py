"""The base of every experiment: the published recipe of Distilling Step-by-Step.

AdamW at 5e-5 with linear decay to 0 over 10,000 steps, batch 64, dropout 0.1, evaluation every 250
steps (Hsieh et al. 2023, released code). `python -m cot_jax.train --help` lists every key.
"""

from cot_jax.config import default_config


def get_config():
    return default_config()


def published(task: str, method: str):
    """The published recipe on `task`: T5 v1.1 base, gold labels, PaLM 540B's rationales where published."""
    config = default_config()
    config.data.task = task
    config.objective.method = method
    config.model.pretrained = "google/t5-v1_1-base"
    return config


def small_decoder(task: str, method: str):
    """SmolLM2-135M-Instruct with LoRA on `task`; three epochs for SVAMP. The recipe is ours."""
    config = default_config()
    config.data.task = task
    config.objective.method = method
    config.model.pretrained = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.train.batch_size = 16
    config.train.steps = 135
    config.train.eval_every = 45
    config.train.checkpoint_every = 45
    config.train.log_every = 5
    config.optimizer.warmup_steps = 8
    config.evaluation.batch_size = 40
    config.evaluation.max_new_tokens = 160
    return config


def encoder(pretrained: str, task: str, batch_size: int):
    """An encoder on `task` of GLUE or SuperGLUE: three epochs, each followed by an evaluation.

    The usual BERT recipe (Devlin et al. 2019; students of Sun et al. 2019): warm-up over a tenth of the
    steps, weight decay 0.01, 128 tokens.
    """
    config = default_config()
    config.data.task = task
    config.data.max_input_tokens = 128
    config.objective.method = "standard"
    config.model.pretrained = pretrained
    config.optimizer.learning_rate = 5e-5
    config.optimizer.warmup_ratio = 0.1
    config.optimizer.weight_decay = 0.01
    config.train.epochs = 3.0
    config.train.batch_size = batch_size
    config.train.eval_every = 0
    config.train.checkpoint_every = 0
    return config


def demo(method: str):
    """The demo: generated word problems and a tiny T5 from scratch; minutes on two cores."""
    config = default_config()
    config.data.task = "word_problems"
    config.objective.method = method
    config.model.preset = "tiny"
    config.model.dropout_rate = 0.0  # no problem is seen often enough to be memorised
    config.data.word_problems.distractors = 0
    # T5's own optimizer: initial weights differ in size by a factor of 30; relative steps suit all of them.
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 4e-2
    config.optimizer.warmup_steps = 100
    config.train.steps = 2000
    config.train.batch_size = 32
    return config


def self_distilled(config, method: str):
    """Adds self-distillation from the last mini-batch, on every view."""
    config.self_distillation.method = method
    return config
