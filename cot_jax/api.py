"""The Python API, which `import cot_jax` exposes and the commands call."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_jax.config import Config
from cot_jax.errors import UserError, writing
from cot_jax.files import Row, place, read_json
from cot_jax.metrics.writers import log_answers
from cot_jax.training import answering, assessment, exporting, loop, saved, showing
from cot_jax.training.compiled import keep_compiled
from cot_jax.training.experiment import prepare
from cot_jax.training.result import metric_of
from cot_jax.training.saved import Saved


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained student, in its directory.

    Attributes:
      directory: the run's work directory, or an export.
      result: the content of result.json: steps, accuracy on validation and test, seconds; {} for an export.
    """

    directory: Path
    result: Mapping[str, Any]

    @functools.cached_property
    def saved(self) -> Saved:
        """The student, its parameters and its config; loaded on first use."""
        return saved.load(self.directory)

    def predict(
        self, questions: Iterable[str | Sequence[str] | Mapping[str, Any]], **options: Any
    ) -> list[dict[str, Any]]:
        """Answers questions. Each is a text, a list of parts, or a row {"input", "id"?, "rationale"?}.

        Args:
          options: the flags of `python -m cot_jax.predict`, e.g. explain=True, samples=10.

        Returns:
          One {"id", "input", "label"} per question, in order, plus the fields that the options add.

        Raises:
          UserError: this is no list, or a question or an option does not suit this student.
        """
        if isinstance(questions, str | Mapping):
            raise UserError("predict takes a list of questions, found one: put it in a list, [question]")
        rows = (
            Row(f"question {n}", dict(one) if isinstance(one, Mapping) else {"input": one})
            for n, one in enumerate(questions, start=1)
        )
        return [*answering.predict(self.saved, rows, answering.Options(**options))]

    def show(self, count: int = 3) -> None:
        """Prints the learning curve and some questions of the test set with the student's own answers.

        It also draws curves.png in the directory if Matplotlib is installed. With config.train.wandb it logs
        the answers, as a table, to Weights & Biases.

        Raises:
          UserError: the directory is an export, which has no learning curve.
        """
        if not self.result:
            raise UserError(f"{self.directory}: an export has no learning curve; show its run")
        method = self.saved.config.objective.method
        with writing(self.directory):
            pictures = showing.draw(self.directory, method)
        print("", *showing.learning_curve(self.directory, metric_of(self.result)), *pictures, sep="\n")
        answers = showing.answers(self.saved, count)
        print(*showing.as_text(answers), sep="\n")
        if self.saved.config.train.wandb:
            log_answers(self.directory, dataclasses.asdict(self.saved.config), answers)

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Evaluates the student, writes the files of `python -m cot_jax.evaluate`, prints its summary.

        Args:
          options: the flags of the command, e.g. split="valid", samples=10.

        Returns:
          The content of evaluation.json.

        Raises:
          UserError: an option does not suit this student, or data is missing.
        """
        return assessment.evaluate(assessment.Options(self.directory, **options), self.saved)

    def export(self, output: str | Path, **options: Any) -> None:
        """Writes the student for Transformers to an empty directory, as `python -m cot_jax.export` does.

        Args:
          options: the flags of the command, e.g. license="apache-2.0", push_to_hub="OWNER/NAME".

        Raises:
          UserError: the directory is not empty, or an option does not suit this student.
        """
        exporting.export(self.saved, self.directory, exporting.Options(place(output), **options))


def train(config: Config, workdir: str | Path | None = None, profile_steps: int = 0) -> Trained:
    """Trains a student, or resumes training where `workdir` holds a run of the same config.

    Args:
      workdir: runs/TASK_METHOD by default.
      profile_steps: number of steps to trace to `workdir/profile`.

    Raises:
      UserError: this is no config; data, weights or keys do not fit together; `workdir` holds another run.
      cot_jax.training.loop.Preempted: Ctrl-C or SIGTERM; a checkpoint was saved.
      cot_jax.training.loop.Diverged: a loss is not finite.
    """
    if not isinstance(config, Config):
        name = repr(config) if isinstance(config, str) else "NAME"
        raise UserError(
            f"train takes a config, found {type(config).__name__}: make one with cot_jax.config({name})"
        )
    directory = place(workdir or Path("runs") / f"{config.data.task}_{config.objective.method}")
    keep_compiled()
    experiment = prepare(config)
    with writing(directory):
        return Trained(directory, loop.train(experiment, directory, profile_steps))


def load(directory: str | Path) -> Trained:
    """Loads a trained student from a run's work directory or an export.

    Raises:
      UserError: the directory is neither, or the run has no evaluation yet.
    """
    directory = place(directory)
    file = directory / "result.json"
    trained = Trained(directory, read_json(file) if file.is_file() else {})
    _ = trained.saved  # raises here, not on first use
    return trained
