"""A teacher in the student's step: a run, an export, a fine-tuned model, or a file of its answers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.batch import Batch, Segments
from cot_jax.config import Config
from cot_jax.data.examples import Example
from cot_jax.errors import UserError
from cot_jax.files import local_copy, place, read_json_lines
from cot_jax.losses.soft_targets import Teacher
from cot_jax.models import student as students
from cot_jax.models.lora import merged
from cot_jax.models.student import Options, Student
from cot_jax.models.weights import Params, Weight, Weights
from cot_jax.text import tokenizer
from cot_jax.text.formats import Format
from cot_jax.training import saved

# Of log-probabilities, which are divided by temperatures: far below the overflow of float32.
_LARGEST = 1e30


@dataclasses.dataclass(frozen=True)
class Stored:
    """Stored log-probabilities of a teacher, with the interface of a student.

    Its only parameter is the table (N, K) float32, indexed by example: logits up to a constant, to which
    softmax is invariant.
    """

    weights: Weights

    def hidden(self, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> dict[str, jax.Array]:
        stored_GEK = params["log_probs"][batch.example]
        # A target has one token at most.
        return {name: Segments.of(view.targets).spread(stored_GEK) for name, view in batch.views.items()}

    def head(self, params: Params) -> jax.Array:
        return jnp.eye(params["log_probs"].shape[1])


class Loaded(NamedTuple):
    """A teacher, its parameters as NumPy arrays, and how its answers are matched."""

    student: Student | Stored
    params: Params
    matched: Teacher


def load_teacher(config: Config, student: Any, format: Format, examples: Sequence[Example]) -> Loaded | None:
    """Returns the teacher that `config.distillation` names; None without one.

    Raises:
      UserError: there is no such teacher, it has another tokenizer or other classes, or its file lacks an
        example.
    """
    section = config.distillation
    if section.gradient_weight and (section.layers == "none" or config.train.micro_batches > 1):
        raise UserError(
            f"config.distillation.gradient_weight={section.gradient_weight} matches a teacher's gradients: "
            "use --config.distillation.layers=skip or last, and --config.train.micro_batches=1"
        )
    if not section.teacher:
        if section.layers != "none":
            raise UserError(
                f"config.distillation.layers={section.layers} matches a teacher's layers: name one with "
                "--config.distillation.teacher=DIR"
            )
        return None
    key, path = f"config.distillation.teacher={section.teacher}", place(section.teacher)
    if path.suffix == ".jsonl":
        if student.format != "classes" or section.layers != "none":
            raise UserError(
                f"{key} has log-probabilities of classes: it teaches encoders, with "
                "--config.distillation.layers=none; for other students give the teacher itself"
            )
        table_NK = _read_log_probs(path, student.labels, examples)
        model = Stored({"log_probs": Weight("EC", table_NK.shape, 0, 0.0, "")})
        return Loaded(model, {"log_probs": table_NK}, Teacher(model, section.weight, section.temperature))
    options = Options(dtype=student.dtype, platform=jax.default_backend())
    its = format.tokenizer  # a model's directory may have none
    if saved.is_pretrained(path):
        with local_copy(path) as copy:
            teacher, params, _ = students.from_pretrained(str(copy), options)
            if (copy / "tokenizer_config.json").is_file():
                its = tokenizer.load(copy)
        if teacher.format == "classes" and not (teacher.labels and "classifier" in params):
            raise UserError(f"{key} has no named classes: fine-tune it first")
    else:
        taught = saved.load(path)
        if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(taught.params)):
            raise UserError(f"{key}: with several processes, export the teacher first and give its export")
        teacher, params = taught.student, jax.tree.map(np.asarray, merged(taught.params))
        its = taught.format.tokenizer
    if its.hf.get_vocab() != format.tokenizer.hf.get_vocab():
        raise UserError(f"{key}: its tokenizer differs from the student's; use a teacher with the same one")
    if type(teacher).format != student.format or teacher.config.vocab_size != student.config.vocab_size:
        raise UserError(
            f"{key}: a {type(teacher).__name__} of {teacher.config.vocab_size} embedding rows, the student a "
            f"{type(student).__name__} of {student.config.vocab_size}: they must read the same token ids"
        )
    order = None
    if student.labels != teacher.labels:
        if sorted(student.labels) != sorted(teacher.labels):
            raise UserError(
                f"{key} has the classes {', '.join(teacher.labels) or '(unnamed)'}, the student "
                f"{', '.join(student.labels)}: use a teacher with the same labels"
            )
        order = tuple(teacher.labels.index(label) for label in student.labels)
    layers = _layers(section.layers, student, teacher, key)
    weights = (section.layer_weight, section.gradient_weight)
    matched = Teacher(teacher, section.weight, section.temperature, order, layers, *weights)
    return Loaded(teacher, params, matched)


def _read_log_probs(file: Path, labels: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
    """(N, K) float32, the log-probabilities of each example's labels, as `cot_jax.predict` writes them."""
    stored: dict[str, list[float]] = {}
    for row in read_json_lines(file):
        given = row.values.get("log_probs")
        if not isinstance(given, dict) or given.keys() != set(labels):
            found = ", ".join(map(repr, given)) if isinstance(given, dict) else repr(given)
            raise row.error(f"'log_probs' must map each of {', '.join(labels)} to a number; found {found}")
        for label, number in given.items():
            # Written so that NaN fails too.
            if type(number) not in (int, float) or not abs(number) < _LARGEST:
                raise row.error(f"the log-probability of {label!r} must be a finite number; found {number!r}")
        if (key := row.id()) in stored:
            raise row.error(f"a second row with the id {key!r}")
        stored[key] = [given[label] for label in labels]
    if missing := [example.id for example in examples if example.id not in stored]:
        raise UserError(
            f"{file}: {len(missing)} training examples have no row, {missing[0]} first: write all with "
            "`python -m cot_jax.predict TEACHER --log_probs --split=train`"
        )
    return np.array([stored[example.id] for example in examples], np.float32)


def _layers(kind: str, student: Any, teacher: Any, key: str) -> tuple[tuple[int, int], ...]:
    """Returns the pairs of layers, from 0, whose states are matched: all of the student's but the last."""
    if kind == "none":
        return ()
    if student.format != "classes":
        raise UserError(f"config.distillation.layers={kind} matches states of [CLS]: for encoders only")
    own, its = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    if own < 2 or its < own:
        raise UserError(
            f"{key} has {its} layers, the student {own}: matching layers needs a student of at least 2 and a "
            "teacher of at least as many"
        )
    if student.config.hidden_size != teacher.config.hidden_size:
        raise UserError(
            f"{key} has hidden size {teacher.config.hidden_size}, the student "
            f"{student.config.hidden_size}: use --config.distillation.layers=none"
        )
    spread = {"skip": lambda n: round(n * its / own), "last": lambda n: its - own + n}[kind]
    return tuple((n - 1, spread(n) - 1) for n in range(1, own))
