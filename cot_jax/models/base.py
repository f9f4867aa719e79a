"""The interface of all students, and the reader of config.json that their families share."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from cot_jax.batch import Batch, Tokens, Work
from cot_jax.errors import UserError
from cot_jax.models.decoding import Prompt
from cot_jax.models.weights import Params, Weights


@dataclasses.dataclass(frozen=True)
class Student(abc.ABC):
    """A model that learns views: pure functions of parameters, which are a plain nested dict.

    The defaults are those of students that write text. Dropout is active if `hidden` gets a key.

    Attributes:
      config: the architecture, with `vocab_size` and `dropout_rate`.
      dtype: of the arithmetic.
      unroll: whether `hidden` unrolls its loops over layers.
      remat: what the backward pass of `hidden` recomputes of a layer, one of `choices.REMAT`.
      config_class: the class of `config`.
      hf_class, peft_task: the Transformers class that loads an export, and PEFT's name of its task.
      format: name of the text format, a key of `text.formats.FORMATS`.
      usual: values that `config.model` takes for "the family's own".
      prefix: prefix of tensor names that some files omit.
      aliases, leftovers, optional: tensors of Hugging Face's files, as `pretrained.read` takes them.
      weights: every parameter, by its path.
      outputs: columns of the head: tokens of the vocabulary, or classes.
      labels: names of the classes; () for students that write.
      ends: ids that end a target.
      pad_id: fills the positions after the end.
    """

    config: Any
    dtype: DTypeLike = jnp.float32
    unroll: bool = False
    remat: str = "none"

    config_class: ClassVar[Any]
    peft_task: ClassVar[str]
    format: ClassVar[str]
    usual: ClassVar[Mapping[str, Any]]

    @classmethod
    def unrolls(cls, config: Any, platform: str) -> bool:
        """Whether training on `platform` unrolls loops over layers: slower to compile, faster to run."""
        return platform == "cpu"

    @property
    @abc.abstractmethod
    def hf_class(self) -> str: ...

    @property
    def prefix(self) -> str:
        return ""

    @property
    def aliases(self) -> Mapping[str, str]:
        return {}

    @property
    def leftovers(self) -> tuple[str, ...]:
        return ()

    @property
    def optional(self) -> tuple[str, ...]:
        """The head, if the embedding serves as one."""
        return ("head",) if self.config.tie_word_embeddings else ()

    @property
    @abc.abstractmethod
    def weights(self) -> Weights: ...

    @property
    def outputs(self) -> int:
        return self.config.vocab_size

    @property
    def labels(self) -> tuple[str, ...]:
        return ()

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[int, ...]: ...

    @property
    def pad_id(self) -> int:
        return self.config.pad_token_id

    def architecture(self) -> dict[str, Any]:
        """Hugging Face's config.json, from which `student.build` makes this student again."""
        return self.config.to_json()

    @abc.abstractmethod
    def hidden(self, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> dict[str, jax.Array]:
        """Each view's states (G, Y, D) that predict its target tokens: logits_GYV = hidden_GYD @ head_DV.

        Teacher forcing. Dropout masks depend on the examples' numbers, not on their places in the batch.
        """

    def head(self, params: Params) -> jax.Array:
        """(D, V) float32."""
        return params["embedding"].T if self.config.tie_word_embeddings else params["head"]

    def require_length(self, longest: int) -> None:  # noqa: B027 (by default there is no limit)
        """
        Raises:
          UserError: the student cannot read an input of `longest` tokens.
        """

    @abc.abstractmethod
    def prompt(self, params: Params, inputs: Tokens, most: int, rows: int = 1) -> Prompt:
        """What `decoding` needs to write up to `most` tokens, in `rows` adjacent rows for each input."""

    @abc.abstractmethod
    def flops(self, works: Sequence[Work]) -> np.ndarray:
        """Floating-point operations of the forward pass's matrix products over some views, head included.

        A training step takes three times as many, without what is recomputed to save memory.
        """


def read_fields(cls: Any, json: Mapping[str, Any], needed: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of the dataclass `cls` that a parsed config.json has.

    Only fields whose default is a bool, int, float or str are read; null counts as missing.

    Raises:
      UserError: a needed field is missing or below 1, or a field has the wrong type.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        value, kind = json.get(field.name), type(field.default)
        if kind not in (bool, int, float, str) or value is None:
            continue
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or isinstance(value, bool) != (kind is bool):
            raise UserError(f"config.json: {field.name} is {value!r}, expected {kind.__name__}")
        given[field.name] = value
    for name in needed:
        if name not in given:
            raise UserError(f"config.json: {name} is missing")
        if given[name] < 1:
            raise UserError(f"config.json: {name} is {given[name]}, expected at least 1")
    return given
