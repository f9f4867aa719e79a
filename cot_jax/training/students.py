"""From a config to a student, its pretrained parameters and its LoRA adapter."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cot_jax.config import LORA_LEARNING_RATE, Config, ModelConfig
from cot_jax.errors import UserError
from cot_jax.models import student as students
from cot_jax.models.lora import Lora, read_adapter
from cot_jax.models.student import Options, Student
from cot_jax.models.weights import Params
from cot_jax.text.formats import Format

# Keys of a saved student's architecture: the checksum of the adapted weights, and LoRA's settings.
BASE, LORA = "base_crc32", "lora"


def family(config: ModelConfig) -> Any:
    """Returns the class of the configured student.

    Raises:
      UserError: there is no such student.
    """
    return students.family(config.pretrained, config.preset)


def resolved(config: Config) -> Config:
    """Returns the config with the defaults of its student's family; raises as `family` does."""
    return config.resolved(family(config.model).usual)


def load_student(
    config: ModelConfig, format: Format, *, weights: bool, platform: str = ""
) -> tuple[Student, Params | None, list[str]]:
    """Returns the student, its pretrained parameters (None: from scratch), and lines for the user.

    Raises:
      UserError: weights are missing or malformed, or the tokenizer does not fit.
    """
    options = Options(
        dropout_rate=config.dropout_rate,
        dtype=compute_dtype(config, platform),
        platform=platform or jax.default_backend(),
        remat=config.remat,
    )
    texts = format.texts
    if not config.pretrained:
        if config.layers:
            raise UserError(
                "config.model.layers needs a pretrained model: name it with config.model.pretrained"
            )
        return students.from_scratch(config.preset, texts=texts, options=options), None, []
    where = (config.pretrained, options, texts, config.layers)
    student, params, report = (
        students.from_pretrained(*where) if weights else (students.without_weights(*where), None, [])
    )
    if student.config.vocab_size < texts.size:
        raise UserError(
            f"{config.pretrained} has {student.config.vocab_size} embedding rows but the tokenizer "
            f"{texts.size} tokens: use the model's own tokenizer (--config.model.tokenizer=)"
        )
    return student, params, report


def compute_dtype(config: ModelConfig, platform: str = "") -> jnp.dtype:
    """Returns the compute dtype on a platform, e.g. "tpu"; empty: on this machine's."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16")


def make_lora(config: ModelConfig, student: Student) -> tuple[Lora | None, Params | None]:
    """Returns LoRA (None: all parameters are trained), and the adapter to start from, if any.

    Raises:
      UserError: the student is an encoder, or the adapter is missing, malformed or of another model.
    """
    if not config.has_lora:
        return None, None
    if student.format == "classes":
        raise UserError(
            f"{_lora_key(config)}: encoders train all weights, their head too; leave it out, or use "
            "--config.model.lora_rank=0"
        )
    if config.lora_adapter:
        return read_adapter(Path(config.lora_adapter), student.weights)
    rank, alpha, targets = config.lora_rank, config.lora_alpha, config.lora_targets
    return Lora(student.weights, rank=rank, alpha=alpha, targets=targets), None


def _lora_key(config: ModelConfig) -> str:
    name = "lora_adapter" if config.lora_adapter else "lora_rank"
    return f"config.model.{name}={getattr(config, name)}"


def check_lora(config: Config, weights: bool) -> list[str]:
    """Returns a warning if LoRA would learn almost nothing.

    Raises:
      UserError: there are no pretrained weights to adapt, or the optimizer's steps vanish at B = 0.
    """
    if not config.model.has_lora:
        return []
    key = _lora_key(config.model)
    if weights and not config.model.pretrained:
        raise UserError(f"{key} adapts pretrained weights: give them with --config.model.pretrained=DIR")
    if config.optimizer.name == "adafactor":
        raise UserError(
            f"{key} with config.optimizer.name=adafactor: its steps are relative to the parameters, which "
            "start at 0; use adamw, whose moments are small for an adapter"
        )
    if (rate := config.optimizer.learning_rate) > 1e-4:
        return []
    return [f"warning: {key} learns little at learning rate {rate:g}; usual is {LORA_LEARNING_RATE:g}"]
