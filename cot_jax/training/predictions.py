"""What `cot_jax.evaluate` wrote of a run, read again: its answer to every question."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cot_jax.config import with_defaults
from cot_jax.errors import UserError
from cot_jax.files import Row, misfit, read_json, read_json_lines

# How two runs, A and B, answered a question.
OUTCOMES = ("both right", "only A right", "only B right", "both wrong")


class Prediction(NamedTuple):
    """A row of predictions.jsonl."""

    id: str
    question: str
    gold: str
    label: str
    correct: bool
    rationale: str | None
    teacher_rationale: str | None


Pair = tuple[Prediction, Prediction]  # what A and B answered


class Evaluation(NamedTuple):
    """A run's answers to the examples of one split."""

    where: Path
    by_value: bool
    labels: tuple[str, ...]  # empty for open answers
    predictions: list[Prediction]


def read_evaluation(run: Path, split: str, task: str | None) -> Evaluation:
    """Reads the files of `cot_jax.evaluate`; without `task` the run must have been evaluated on one only.

    Raises:
      UserError: there are none or several, or they are something else.
    """
    found = sorted((run / "evaluation").glob(f"{task or '*'}_{split}"))
    if not found:
        asking = _asking(run, split, task)
        raise UserError(f"{run}: no evaluation of {task or 'a task'} on {split}: first {asking}")
    if len(found) > 1:
        tasks = ", ".join(path.name.removesuffix(f"_{split}") for path in found)
        raise UserError(f"{run} has evaluations of {tasks}: choose one with --task")
    values = read_json(found[0] / "evaluation.json")
    if wrong := misfit(values, {"by_value": bool, "labels": ([str], None)}):
        raise UserError(f"{found[0] / 'evaluation.json'}: {wrong}: evaluate again")
    predictions = [_prediction(row) for row in read_json_lines(found[0] / "predictions.jsonl")]
    return Evaluation(found[0], values["by_value"], tuple(values["labels"] or ()), predictions)


def _asking(run: Path, split: str, task: str | None) -> str:
    """Returns the command that evaluates a run on a split of `task`, by default its own."""
    command, file = f"python -m cot_jax.evaluate {run}", run / "config.json"
    if split != "test":
        command += f" --split={split}"
    if task and not (file.is_file() and with_defaults(read_json(file))[0]["data"]["task"] == task):
        command += f" --task={task}" + (" --root=DIR" if task != "word_problems" else "")
    return command


def _prediction(row: Row) -> Prediction:
    if not isinstance(correct := row.values.get("correct"), bool):
        raise row.error(f"'correct' must be true or false; found {correct!r}")
    # A blank rationale counts, as a bad one.
    rationale = None if row.values.get("rationale") is None else row.text("rationale")
    return Prediction(
        id=row.id(),
        question="\n".join(row.parts("input")),
        gold=row.text("gold"),
        label=row.text("label"),
        correct=correct,
        rationale=rationale,
        teacher_rationale=row.optional_text("teacher_rationale"),
    )


def paired(a: Evaluation, b: Evaluation) -> Sequence[Pair]:
    """Returns the answers of both to the examples in common, in the order of `a`.

    Raises:
      UserError: the runs have no example in common, or an example differs between them.
    """
    answers = {prediction.id: prediction for prediction in b.predictions}
    pairs = [(ours, answers[ours.id]) for ours in a.predictions if ours.id in answers]
    if not pairs:
        raise UserError(f"{a.where} and {b.where} have no example in common: evaluate both on the same data")
    for ours, theirs in pairs:
        if (ours.question, ours.gold) != (theirs.question, theirs.gold):
            raise UserError(f"example {ours.id!r} of {a.where} has another question or label in {b.where}")
    return pairs


def outcome(pair: Pair) -> str:
    """Returns which of the two is right, one of `OUTCOMES`."""
    a, b = pair
    return OUTCOMES[2 * (not a.correct) + (not b.correct)]
