"""A teacher that answers in the student's own step: a run, an export, or a fine-tuned model."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cot_jax.config import Config
from cot_jax.errors import UserError
from cot_jax.losses.soft_targets import Teacher
from cot_jax.models import student as students
from cot_jax.models.lora import merged
from cot_jax.models.student import Options, Student
from cot_jax.models.weights import Params
from cot_jax.text.formats import Format
from cot_jax.training import saved
from cot_jax.training.students import compute_dtype


class Loaded(NamedTuple):
    """A teacher, its parameters as NumPy arrays, and how its answers are matched."""

    student: Student
    params: Params
    matched: Teacher


def load_teacher(config: Config, student: Any, format: Format) -> Loaded | None:
    """Returns the teacher that `config.distillation` names; None without one.

    Raises:
      UserError: there is no such teacher, it reads other tokens, or tells other classes apart.
    """
    section = config.distillation
    if not section.teacher:
        if section.layers != "none":
            raise UserError(
                f"config.distillation.layers={section.layers} matches a teacher's layers: name one with "
                "--config.distillation.teacher=DIR"
            )
        return None
    key, path = f"config.distillation.teacher={section.teacher}", Path(section.teacher)
    options = Options(dtype=compute_dtype(config.model), unroll=student.unroll)
    if saved.is_pretrained(path):
        teacher, params, _ = students.from_pretrained(str(path), options)
        if teacher.format == "classes" and not (teacher.labels and "classifier" in params):
            raise UserError(f"{key} tells no named classes apart: fine-tune it first")
    else:
        taught = saved.load(path)
        if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(taught.params)):
            raise UserError(f"{key}: a run of several processes cannot read a run: export the teacher first")
        teacher, params = taught.student, jax.tree.map(np.asarray, merged(taught.params))
        if taught.format.tokenizer.hf.get_vocab() != format.tokenizer.hf.get_vocab():
            raise UserError(f"{key}: it reads other tokens than the student; take one of the same tokenizer")
    if type(teacher).format != student.format or teacher.config.vocab_size != student.config.vocab_size:
        raise UserError(
            f"{key}: a {type(teacher).__name__} of {teacher.config.vocab_size} embedding rows, the student a "
            f"{type(student).__name__} of {student.config.vocab_size}: they must read the same token ids"
        )
    order = None
    if student.labels != teacher.labels:
        if sorted(student.labels) != sorted(teacher.labels):
            raise UserError(
                f"{key} tells {', '.join(teacher.labels) or 'nameless classes'} apart, the student "
                f"{', '.join(student.labels)}: take a teacher of the same labels"
            )
        order = tuple(teacher.labels.index(label) for label in student.labels)
    layers = _layers(section.layers, student, teacher, key)
    matched = Teacher(teacher, section.weight, section.temperature, order, layers, section.layer_weight)
    return Loaded(teacher, params, matched)


def _layers(kind: str, student: Any, teacher: Any, key: str) -> tuple[tuple[int, int], ...]:
    """The pairs of layers, from 0, whose states are matched: all of the student's but the last.

    Raises:
      UserError: they cannot be.
    """
    if kind == "none":
        return ()
    if student.format != "classes":
        raise UserError(f"config.distillation.layers={kind} matches states of [CLS]: for encoders only")
    own, its = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    if own < 2 or its < own:
        raise UserError(f"{key}: {its} layers; patience needs at least the student's {own}, and these 2")
    if student.config.hidden_size != teacher.config.hidden_size:
        raise UserError(
            f"{key}: its states have {teacher.config.hidden_size} numbers, the student's "
            f"{student.config.hidden_size}: take --config.distillation.layers=none"
        )
    spread = {"skip": lambda n: round(n * its / own), "last": lambda n: its - own + n}[kind]
    return tuple((n - 1, spread(n) - 1) for n in range(1, own))
