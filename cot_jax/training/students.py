"""From a config to a student: its parameters where they are pretrained, and the adapter that LoRA trains."""

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

# Keys of a saved student's architecture: the checksum of the weights that its adapter adapts, and how.
BASE, LORA = "base_crc32", "lora"


def family(config: ModelConfig) -> Any:
    """Returns the class of the configured student.

    Raises:
      UserError: there is no such student.
    """
    return students.family(config.pretrained, config.preset)


def resolved(config: Config) -> Config:
    """Returns the config with what is usual for the family of its student; raises as `family` does."""
    return config.resolved(family(config.model).usual)


def load_student(
    config: ModelConfig, format: Format, *, weights: bool, platform: str = ""
) -> tuple[Student, Params | None, list[str]]:
    """Returns the student, its parameters where they are pretrained, and lines for the user.

    Raises:
      UserError: weights that are missing or malformed, or a tokenizer that does not fit.
    """
    options = Options(
        dropout_rate=config.dropout_rate,
        dtype=compute_dtype(config, platform),
        unroll=(platform or jax.default_backend()) == "cpu",
        remat=config.remat,
    )
    texts = format.texts
    if not config.pretrained:
        if config.layers:
            raise UserError("config.model.layers takes the first layers of a model: name it in pretrained")
        return students.from_scratch(config.preset, texts=texts, options=options), None, []
    params: Params | None = None
    report: list[str] = []
    if weights:
        student, params, report = students.from_pretrained(config.pretrained, options, texts, config.layers)
    else:
        student = students.without_weights(config.pretrained, options, texts, config.layers)
    if student.config.vocab_size < texts.size:
        raise UserError(
            f"{config.pretrained} has {student.config.vocab_size} embedding rows but the tokenizer "
            f"{texts.size} tokens: use the tokenizer that the model was trained with "
            "(--config.model.tokenizer=)"
        )
    return student, params, report


def compute_dtype(config: ModelConfig, platform: str = "") -> jnp.dtype:
    """Returns the dtype of the arithmetic on a platform, e.g. "tpu"; empty is this machine's."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16")


def make_lora(config: ModelConfig, student: Student) -> tuple[Lora | None, Params | None]:
    """Returns what LoRA trains, None where every parameter is trained, and the adapter to start from, if any.

    Raises:
      UserError: an adapter that is missing, malformed or of another model.
    """
    if config.lora_adapter:
        return read_adapter(Path(config.lora_adapter), student.weights)
    if not config.lora_rank:
        return None, None
    if student.format == "classes":
        raise UserError(
            f"config.model.lora_rank={config.lora_rank}: an encoder's weights are all trained, its "
            "fresh head among them; take 0"
        )
    rank, alpha, targets = config.lora_rank, config.lora_alpha, config.lora_targets
    return Lora(student.weights, rank=rank, alpha=alpha, targets=targets), None


def check_lora(config: Config, weights: bool) -> list[str]:
    """Returns a warning where LoRA would learn next to nothing.

    Raises:
      UserError: it would adapt nothing worth adapting, or by steps that B = 0 makes too small.
    """
    if not config.model.has_lora:
        return []
    name = "lora_adapter" if config.model.lora_adapter else "lora_rank"
    key = f"config.model.{name}={getattr(config.model, name)}"
    if weights and not config.model.pretrained:
        raise UserError(f"{key} adapts pretrained weights: give them with --config.model.pretrained=DIR")
    if config.optimizer.name == "adafactor":
        raise UserError(
            f"{key} with config.optimizer.name=adafactor: its steps are relative to the parameters, which "
            "begin at 0; take adamw, whose moments of an adapter are small"
        )
    if (rate := config.optimizer.learning_rate) > 1e-4:
        return []
    return [f"warning: {key} learns little at learning rate {rate:g}; usual is {LORA_LEARNING_RATE:g}"]
