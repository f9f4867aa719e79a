"""A student on disk: a run's work directory, an export, or a pretrained model."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from cot_jax.answers import programs
from cot_jax.answers.programs import Interpreter
from cot_jax.config import Config, freeze, to_json, with_defaults
from cot_jax.data import prompting
from cot_jax.data.batches import Ragged, stream_shapes
from cot_jax.data.examples import Example
from cot_jax.data.tasks import Splits
from cot_jax.data.views import METHODS, View
from cot_jax.errors import UserError
from cot_jax.files import in_bucket, local_copy, read_json, write_json, write_text
from cot_jax.models import student as students
from cot_jax.models.decoding import Sampling
from cot_jax.models.lora import SETTINGS, Lora, fingerprint, merged, write_adapter
from cot_jax.models.student import Options, Student
from cot_jax.models.weights import Params, shapes
from cot_jax.text import formats
from cot_jax.text.formats import Format
from cot_jax.training.checkpoints import Checkpoints
from cot_jax.training.console import say
from cot_jax.training.encoding import encode_questions
from cot_jax.training.evaluation import (
    Answers,
    answer_questions,
    ask_all,
    make_choose,
    make_generate,
    make_sample,
    make_score,
    require_positions,
)
from cot_jax.training.mesh import abstract, arrangement, by_weights, group_count, spread
from cot_jax.training.students import BASE, LORA, compute_dtype

STUDENT_FILE = "student.json"  # in a run: the student's architecture
CONFIG_FILE = "cot_jax.json"  # in an export: the run's config
ANSWERS_FILE = "answers.json"  # in both: how answers compare, the labels to choose among, TOKENIZER
EXAMPLES = "examples_crc32"  # in STUDENT_FILE; older runs have none
TOKENIZER = "tokenizer_crc32"  # in ANSWERS_FILE; older runs have none


@dataclasses.dataclass(frozen=True)
class Saved:
    """A student ready to answer, and how it was trained.

    Attributes:
      params: sharded over `mesh`, which has all devices.
      by_value: how its answers compare (`data.tasks.Splits`).
      labels: the labels to choose among; None: it writes its answers (config.evaluation.answers).
      adapter: the LoRA adapter, which `params` includes; None: all weights were trained.
      prompted: the view of a pretrained model; None: it was trained on the views of its method.
    """

    config: Config
    student: Student
    params: Params
    mesh: Mesh
    format: Format
    by_value: bool
    labels: tuple[str, ...] | None
    adapter: tuple[Lora, Params] | None = None
    prompted: View | None = None

    @property
    def views(self) -> tuple[View, ...]:
        """The views of its method; the first one answers."""
        return (self.prompted,) if self.prompted else METHODS[self.config.objective.method]

    @property
    def paths(self) -> dict[str, View]:
        """The views that answer questions, by path."""
        return {view.path: view for view in self.views if view.path}

    def choose(self, paths: str | Sequence[str]) -> list[View]:
        """Returns the views of `paths`, a list, or a text with commas as on the command line.

        Raises:
          UserError: the student did not learn one of them.
        """
        paths = paths.split(",") if isinstance(paths, str) else paths
        for path in paths:
            if path not in self.paths:
                method, known = self.config.objective.method, ", ".join(self.paths)
                raise UserError(f"--paths={path}: a student of method={method} has {known} only")
        return [self.paths[path] for path in dict.fromkeys(paths)]

    def most_tokens(self, view: View) -> int:
        """Returns the token limit for `view`: answers are shorter than the rationales of other views."""
        config = self.config
        return config.evaluation.max_new_tokens if view == self.views[0] else config.data.max_target_tokens

    def export(self, directory: Path) -> None:
        """Writes weights, config.json and tokenizer for Transformers, and the files that `load` needs."""
        directory.mkdir(parents=True, exist_ok=True)
        self.format.save(directory)
        write_text(directory / CONFIG_FILE, to_json(self.config))
        write_answers(directory, self.format, self.by_value, self.labels)
        students.save(directory, self.student, merged(self.params))

    def export_adapter(self, directory: Path) -> None:
        """Writes the LoRA adapter, for PEFT.

        Raises:
          UserError: the student has none.
        """
        if self.adapter is None:
            raise UserError(
                "--adapter: this student has no adapter, all its weights were trained: leave it out"
            )
        lora, trained = self.adapter
        write_adapter(directory, lora, trained, self.config.model.pretrained, self.student.peft_task)


def load(path: Path) -> Saved:
    """Loads the best parameters of a run, or an exported student, onto all devices.

    Raises:
      UserError: `path` is neither, or the run has no evaluation yet.
    """
    exported = (path / CONFIG_FILE).is_file()
    if exported and in_bucket(path):
        with local_copy(path) as copy:
            return load(copy)
    file = path / (CONFIG_FILE if exported else "config.json")
    if not exported and not (file.is_file() and (path / STUDENT_FILE).is_file()):
        raise UserError(
            f"{path} is neither a run ({STUDENT_FILE}, config.json) nor an exported student ({CONFIG_FILE})"
        )
    values, added = with_defaults(read_json(file))
    if added:
        print(f"{file} is older than {', '.join(added)}: using their defaults", file=sys.stderr)
    config = freeze(values)
    answers = _read_answers(path / ANSWERS_FILE)
    options = Options(dtype=compute_dtype(config.model))
    if exported:
        student, read, _ = students.from_pretrained(str(path), options)
        mesh, shardings = arrangement(config.mesh, read, student.weights)
        format = _load_format(path, path, student.format)
        return Saved(config, student, spread(read, shardings), mesh, format, *answers)
    architecture = read_json(path / STUDENT_FILE, {f"{LORA}?": SETTINGS, str: object})
    student = students.build(architecture, options)
    mesh, _ = arrangement(config.mesh, shapes(student.weights), student.weights)
    lora = adapter = None
    if LORA in architecture:
        lora = Lora(student.weights, **architecture[LORA])
        _, base, _ = students.from_pretrained(config.model.pretrained, options, layers=config.model.layers)
        refuse_other_base(path / STUDENT_FILE, fingerprint(base), config.model.pretrained)
    trained = lora.weights if lora else student.weights
    like = shapes(trained)
    with Checkpoints(path / "checkpoints") as checkpoints:
        if checkpoints.best is None:
            raise UserError(f"{path} has no best parameters yet: train until its first evaluation")
        params = checkpoints.restore_best(abstract(like, by_weights(mesh, like, trained)))
    if lora:
        adapter = (lora, params)
        params = lora.attach(spread(base, by_weights(mesh, base, student.weights)), params)
    format = _load_format(path / "tokenizer", path, student.format)
    return Saved(config, student, params, mesh, format, *answers, adapter)


def is_pretrained(path: Path) -> bool:
    """Whether `path` is a Hugging Face model, and neither a run nor an export of one."""
    if any((path / file).is_file() for file in (CONFIG_FILE, STUDENT_FILE)):
        return False
    return (path / "config.json").is_file() and "model_type" in read_json(path / "config.json")


def read_pretrained(path: Path, config: Config) -> Saved:
    """Loads a pretrained model onto all devices, unchanged.

    Args:
      path: a Hugging Face directory.
      config: used for data, mesh and evaluation, not for the model.

    Raises:
      UserError: weights or tokenizer are missing or do not fit.
    """
    if in_bucket(path):
        with local_copy(path) as copy:
            return read_pretrained(copy, config)
    options = Options(dtype=compute_dtype(config.model))
    kind = students.family(str(path), "").format
    if kind == "classes":
        raise UserError(f"{path} is an encoder: fine-tune it first, it has no classes yet")
    format = formats.load(path, kind, config.data.chat)
    student, read, _ = students.from_pretrained(str(path), options, format.texts)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=str(path)))
    mesh, shardings = arrangement(config.mesh, read, student.weights)
    return Saved(config, student, spread(read, shardings), mesh, format, by_value=False, labels=None)


def load_pretrained(path: Path, config: Config, splits: Splits, shots: int) -> Saved:
    """Loads a pretrained model as `read_pretrained` does, prompted for the questions of `splits`.

    It writes rationale and answer if training examples have both, else the answer alone; see
    `data.prompting`. The prompt does not count towards max_input_tokens.

    Args:
      path, config: as in `read_pretrained`.
      shots: number of examples to show, the first suitable ones of the training split.

    Raises:
      UserError: as `read_pretrained`, or there are too few examples.
    """
    view = prompting.prompted(splits, shots)
    shown = prompting.examples_of(view, splits, shots)
    saved = read_pretrained(path, config)
    format, config = saved.format.with_shots(shown), saved.config
    around = len(format.inputs(view.prefix, [], config.data.max_input_tokens).prefix)
    evaluation = config.evaluation
    if view.path == "cot":
        evaluation = dataclasses.replace(evaluation, max_new_tokens=config.data.max_target_tokens)
    config = dataclasses.replace(
        config,
        evaluation=evaluation,
        data=dataclasses.replace(config.data, max_input_tokens=config.data.max_input_tokens + around),
        objective=dataclasses.replace(config.objective, method=prompting.method_of(splits)),
    )
    return dataclasses.replace(saved, config=config, format=format, by_value=splits.by_value, prompted=view)


def refuse_other_base(file: Path, found: int, pretrained: str) -> None:
    """
    Raises:
      UserError: the run whose STUDENT_FILE is `file` adapts weights of another checksum than `found`.
    """
    if read_json(file).get(BASE) != found:
        raise UserError(
            f"config.model.pretrained={pretrained}: not the weights that {file.parent} adapts; restore them"
        )


def refuse_other_examples(file: Path, found: int) -> None:
    """
    Raises:
      UserError: the run whose STUDENT_FILE is `file` began with examples of another checksum than `found`.
    """
    recorded = read_json(file).get(EXAMPLES)
    if recorded is None:
        say(f"{file} is older than {EXAMPLES}: cannot check whether the training data has changed")
    elif recorded != found:
        raise UserError(
            f"{file}: the training data has changed since the run began: restore it, or choose another "
            "--workdir"
        )


def write_answers(directory: Path, format: Format, by_value: bool, labels: Sequence[str] | None) -> None:
    """Writes the ANSWERS_FILE of a student with this format."""
    values = {"by_value": by_value, "labels": labels, TOKENIZER: format.tokenizer.fingerprint()}
    write_json(directory / ANSWERS_FILE, values)


def _load_format(directory: Path, student: Path, kind: str) -> Format:
    """
    Raises:
      UserError: as `formats.load`, or the tokenizer in `directory` is not the one `student` was trained with.
    """
    if not directory.is_dir():  # a name such as run/tokenizer could be a repository of the Hub
        raise UserError(f"{directory}: no such directory; restore the tokenizer of {student}")
    with local_copy(directory) as copy:
        format = formats.load(copy, kind)
    recorded = read_json(student / ANSWERS_FILE).get(TOKENIZER)
    if recorded is None:
        print(f"{student / ANSWERS_FILE} is older than {TOKENIZER}: tokenizer not checked", file=sys.stderr)
    elif recorded != format.tokenizer.fingerprint():
        raise UserError(f"{directory}: not the tokenizer that {student} was trained with; restore it")
    return format


def _read_answers(file: Path) -> tuple[bool, tuple[str, ...] | None]:
    values = read_json(file, {"by_value": bool, "labels": ([str], None)})
    if values["labels"] == []:
        raise UserError(f"{file}: labels is [], expected some, or null")
    return values["by_value"], None if values["labels"] is None else tuple(values["labels"])


class _Asker:
    """Asks questions through one view of a saved student; compiles one program per shape."""

    def __init__(self, saved: Saved, view: View, batch_size: int):
        self._saved, self._view = saved, view
        self._batch_size = -(-batch_size // jax.device_count()) * jax.device_count()
        in_group = self._batch_size // group_count(saved.mesh)
        self._shapes = stream_shapes(saved.config.data.max_input_tokens, in_group)

    def _encode(self, questions: Sequence[Example]) -> tuple[Ragged, str]:
        saved = self._saved
        return encode_questions(self._view, questions, saved.format, saved.config.data.max_input_tokens)

    def _encode_labels(self, labels: Sequence[str]) -> Ragged:
        saved = self._saved
        return Ragged(saved.format.targets(self._view.name, labels, saved.config.data.max_target_tokens).ids)


class Answerer(_Asker):
    """Lets a saved student answer, by default as in its evaluation."""

    def __init__(
        self,
        saved: Saved,
        view: View,
        *,
        batch_size: int,
        max_new_tokens: int,
        beams: int = 0,
        samples: int = 0,
        sampling: Sampling | None = None,
        seed: int = 0,
        interpreter: Interpreter = programs.run,
    ):
        """
        Args:
          batch_size: questions per batch; rounded up to a multiple of the number of devices.
          max_new_tokens: longest answer.
          beams: beam width; 1: greedy; 0: as in training, which may mean choosing among labels.
          samples: number of answers to sample per question, in place of a search; 0: none.
          sampling: the sampling distribution; None: the student's own.
          seed: of the samples.
          interpreter: runs the programs that the student writes.
        """
        super().__init__(saved, view, batch_size)
        self._max_new_tokens, self._interpreter = max_new_tokens, interpreter
        where, evaluation = (saved.student, saved.mesh), saved.config.evaluation
        if samples:
            self._generate = make_sample(*where, max_new_tokens, samples, sampling or Sampling(), seed)
        elif beams or saved.labels is None or view != saved.views[0]:
            self._generate = make_generate(*where, max_new_tokens, beams or evaluation.beams)
        else:
            labels = self._encode_labels(saved.labels)
            self._generate = make_choose(*where, labels)

    def __call__(self, questions: Sequence[Example]) -> tuple[Answers, str]:
        """Returns the student's answers, in order, and a line of counts."""
        encoded, line = self._encode(questions)
        with jax.set_mesh(self._saved.mesh):
            answers = answer_questions(
                self._generate,
                self._saved.params,
                encoded,
                self._view,
                self._saved.format,
                student=self._saved.student,
                mesh=self._saved.mesh,
                batch_size=self._batch_size,
                shapes=self._shapes,
                interpreter=self._interpreter,
            )
        if cut := answers.cut.sum():
            line += f"; {cut} of {len(answers.texts)} answers cut at {self._max_new_tokens} tokens"
        if answers.failures:
            counts = ", ".join(f"{why} {count}" for why, count in answers.failures.most_common())
            line += f"; {answers.failures.total()} of {len(answers.texts)} without an answer ({counts})"
        if answers.unmarked:
            line += f"; {answers.unmarked} answers not marked, the last number taken"
        return answers, line


class LabelScorer(_Asker):
    """The log-probability of every label as the answer to a question."""

    def __init__(self, saved: Saved, view: View, labels: Sequence[str], *, batch_size: int):
        """
        Args:
          view: a view that writes the label alone.
          labels: L texts.
          batch_size: questions per batch; rounded up to a multiple of the number of devices.
        """
        super().__init__(saved, view, batch_size)
        self._score = make_score(saved.student, saved.mesh, self._encode_labels(labels))

    def __call__(self, questions: Sequence[Example]) -> np.ndarray:
        """Returns the log-probabilities (N, L) float32 of the labels, each summed over its tokens.

        Raises:
          UserError: a question is longer than the student can read.
        """
        encoded, _ = self._encode(questions)
        require_positions(self._saved.student, encoded)
        with jax.set_mesh(self._saved.mesh):
            return ask_all(
                self._score,
                self._saved.params,
                encoded,
                mesh=self._saved.mesh,
                batch_size=self._batch_size,
                shapes=self._shapes,
                pad_id=self._saved.student.pad_id,
            )
