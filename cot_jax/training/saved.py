"""A trained student as it lies on disk: a run's work directory, or a directory that `export` wrote."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from cot_jax.config import Config, freeze
from cot_jax.data import tokenizer as tokenizers
from cot_jax.data.examples import Example
from cot_jax.data.tokenizer import Tokenizer
from cot_jax.data.views import METHODS, View
from cot_jax.errors import UserError
from cot_jax.models import student as students
from cot_jax.models.student import Params, Student
from cot_jax.training.checkpoints import Checkpoints
from cot_jax.training.evaluation import answer_questions, make_generate
from cot_jax.training.experiment import compute_dtype, encode_questions
from cot_jax.training.sharding import make_mesh, replicated

# Of a run: the student's architecture. Of an export: the run's config.
STUDENT_FILE, CONFIG_FILE = "student.json", "cot_jax.json"


@dataclasses.dataclass(frozen=True)
class Saved:
    """A student ready to answer, and how it was taught."""

    config: Config
    student: Student
    params: Params
    tokenizer: Tokenizer

    @property
    def views(self) -> tuple[View, ...]:
        """Of the method it was trained with; the first one answers."""
        return METHODS[self.config.objective.method]

    def export(self, directory: Path) -> None:
        """Writes weights, config.json and tokenizer for Transformers, and what `load` needs beside them."""
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(directory)
        config = json.dumps(dataclasses.asdict(self.config), indent=2) + "\n"
        (directory / CONFIG_FILE).write_text(config, encoding="utf-8")
        self.student.save(directory, self.params)


def load(path: Path) -> Saved:
    """Reads the best parameters of a run, or an exported student.

    Raises:
      UserError: `path` is neither, or the run has not been evaluated yet.
    """
    for file in (path / CONFIG_FILE, path / "config.json"):
        if file.is_file() and (file.name == CONFIG_FILE or (path / STUDENT_FILE).is_file()):
            config = freeze(_read_json(file))
            break
    else:
        raise UserError(
            f"{path} is neither a run ({STUDENT_FILE}, config.json) nor an exported student ({CONFIG_FILE})"
        )
    dtype = compute_dtype(config.model)
    if file.name == CONFIG_FILE:
        student, params = students.from_pretrained(str(path), dropout_rate=0.0, dtype=dtype)
        return Saved(config, student, params, tokenizers.load(path))
    architecture = _read_json(path / STUDENT_FILE)
    student = students.from_architecture(architecture, dtype=dtype)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    with Checkpoints(path / "checkpoints") as checkpoints:
        if checkpoints.best is None:
            raise UserError(f"{path} has no best parameters yet: train until its first evaluation")
        params = checkpoints.restore_best(like)
    return Saved(config, student, params, tokenizers.load(path / "tokenizer"))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error}); write it again or take another copy") from None
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected an object, found {type(values).__name__}; take another copy")
    return values


class Answerer:
    """Answers questions through one view of a saved student; compiles once for each width."""

    def __init__(self, saved: Saved, view: View, *, batch_size: int, max_new_tokens: int, beams: int):
        """
        Args:
          batch_size: questions at once; rounded up to a multiple of the devices.
          max_new_tokens: longest answer.
          beams: of the search; 1 is greedy.
        """
        self._saved, self._view = saved, view
        self._batch_size = -(-batch_size // jax.device_count()) * jax.device_count()
        self._mesh = make_mesh(self._batch_size)
        self._params = jax.device_put(saved.params, replicated(self._mesh))
        self._generate = make_generate(saved.student, self._mesh, max_new_tokens, beams)
        most = saved.config.data.max_input_tokens
        # Questions come as they come: few widths, and any length fits one.
        self._shapes = [(width,) for width in (32, 64, 128, 256, 512) if width < most] + [(most,)]

    def __call__(self, questions: Sequence[Example]) -> tuple[list[str], str]:
        """Returns what the student writes for each, in their order, and a line that says what was counted."""
        saved = self._saved
        encoded, line = encode_questions(
            self._view, questions, saved.tokenizer, saved.config.data.max_input_tokens
        )
        with jax.set_mesh(self._mesh):
            answers = answer_questions(
                self._generate,
                self._params,
                encoded,
                self._view,
                saved.tokenizer,
                batch_size=self._batch_size,
                shapes=self._shapes,
            )
        return answers, line
