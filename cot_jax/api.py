"""Training and asking students from Python; `import cot_jax` gives what is here, and the commands call it."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_jax.config import Config
from cot_jax.errors import UserError, writing
from cot_jax.files import Row, read_json
from cot_jax.training import answering, assessment, exporting, loop, saved, showing
from cot_jax.training.compiled import keep_compiled
from cot_jax.training.experiment import prepare
from cot_jax.training.result import metric_of
from cot_jax.training.saved import Saved


@dataclasses.dataclass(frozen=True)
class Trained:
    """A student that was trained, in its directory.

    Attributes:
      directory: of the run, or of an export.
      result: what its result.json says: steps, accuracy on validation and test, seconds; {} of an export.
    """

    directory: Path
    result: Mapping[str, Any]

    @functools.cached_property
    def saved(self) -> Saved:
        """The student itself, its parameters and its config; read when it is first asked."""
        return saved.load(self.directory)

    def predict(
        self, questions: Iterable[str | Sequence[str] | Mapping[str, Any]], **options: Any
    ) -> list[dict[str, Any]]:
        """Answers questions: a text each, a list of several parts, or a row {"input", "id"?, "rationale"?}.

        Args:
          options: the flags of `python -m cot_jax.predict`, e.g. explain=True, samples=10.

        Returns:
          {"id", "input", "label"} of each, in their order, and what the options add.

        Raises:
          UserError: a question or an option that is not for this student.
        """
        rows = (
            Row(f"question {n}", dict(one) if isinstance(one, Mapping) else {"input": one})
            for n, one in enumerate(questions, start=1)
        )
        return [*answering.predict(self.saved, rows, answering.Options(**options))]

    def show(self, count: int = 3) -> None:
        """Prints the learning curve and some questions of the test set with the student's own answers.

        It also draws curves.png in the directory if Matplotlib is installed.

        Args:
          count: questions.

        Raises:
          UserError: the directory is an export, which has no learning curve.
        """
        if not self.result:
            raise UserError(f"{self.directory}: an export has no learning curve; show its run")
        method = self.saved.config.objective.method
        with writing(self.directory):
            pictures = showing.draw(self.directory, method)
        print("", *showing.learning_curve(self.directory, metric_of(self.result)), *pictures, sep="\n")
        print(*showing.questions(self.saved, count), sep="\n")

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Measures the student, writes the files of `python -m cot_jax.evaluate`, prints its summary.

        Args:
          options: the flags of the command, e.g. split="valid", samples=10.

        Returns:
          What evaluation.json says.

        Raises:
          UserError: an option that is not for this student, or data that is missing.
        """
        return assessment.evaluate(assessment.Options(self.directory, **options), self.saved)

    def export(self, output: str | Path, **options: Any) -> None:
        """Writes the student for Transformers to an empty directory, as `python -m cot_jax.export` does.

        Args:
          options: the flags of the command, e.g. license="apache-2.0", push_to_hub="OWNER/NAME".

        Raises:
          UserError: the directory is not empty, or an option is not for this student.
        """
        exporting.export(self.saved, self.directory, exporting.Options(Path(output), **options))


def train(config: Config, workdir: str | Path | None = None, profile_steps: int = 0) -> Trained:
    """Trains a student, or resumes where `workdir` holds a run of the same config.

    Args:
      workdir: runs/TASK_METHOD if not said.
      profile_steps: so many steps are traced to `workdir/profile`.

    Raises:
      UserError: data, weights or keys that do not fit, or `workdir` holds another run.
      cot_jax.training.loop.Preempted: stopped by Ctrl-C or SIGTERM, after saving.
      cot_jax.training.loop.Diverged: a loss is not finite.
    """
    directory = Path(workdir or Path("runs") / f"{config.data.task}_{config.objective.method}")
    keep_compiled()
    experiment = prepare(config)
    with writing(directory):
        return Trained(directory, loop.train(experiment, directory, profile_steps))


def load(directory: str | Path) -> Trained:
    """Reads a student that was trained: the work directory of a run, or its export.

    Raises:
      UserError: it is neither, or the run has not been evaluated yet.
    """
    directory = Path(directory)
    file = directory / "result.json"
    trained = Trained(directory, read_json(file) if file.is_file() else {})
    _ = trained.saved  # a mistake is named here
    return trained
