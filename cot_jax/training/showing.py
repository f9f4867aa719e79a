"""What a finished run shows: its learning curve, and questions of its test set with its own answers."""

import importlib.util
from pathlib import Path

from cot_jax.answers.equality import is_correct
from cot_jax.files import read_json_lines
from cot_jax.metrics.plots import curve_of, draw_curves
from cot_jax.training import answering
from cot_jax.training.data import load_splits
from cot_jax.training.saved import Saved

PICTURE = "curves.png"
_ROWS, _BAR = 16, 40  # most lines of a curve, and characters of a bar that stands for 1
_WINDOW = 25  # steps that a point of a loss is the mean of


def learning_curve(workdir: Path, metric: str) -> list[str]:
    """Returns the validation metric as text, a line with a bar for each of up to 16 evaluations."""
    name = f"valid/{metric}"
    rows = (row.values for row in read_json_lines(workdir / "metrics.jsonl"))
    points = [(row["step"], row[name]) for row in rows if name in row]
    every = -(-len(points) // _ROWS)
    shown = points[::-every][::-1]  # the last of them, too
    return [
        f"{name} by step",
        *(f"{step:>9,} {100 * v:6.1f} % {'#' * round(_BAR * v)}".rstrip() for step, v in shown),
    ]


def draw(workdir: Path, method: str) -> list[str]:
    """Draws validation metrics and losses over the steps, if Matplotlib is installed.

    Returns:
      The pictures that were written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    series: dict[str, list[tuple[int, float]]] = {}
    for row in read_json_lines(workdir / "metrics.jsonl"):
        for name, value in row.values.items():
            if name.startswith(("valid/", "loss")):
                series.setdefault(name, []).append((row.values["step"], value))
    panels = {
        name: {method: curve_of([points], 1 if name.startswith("valid/") else _WINDOW)}
        for name, points in sorted(series.items(), reverse=True)
    }
    draw_curves(panels, workdir / PICTURE)
    return [PICTURE]


def questions(saved: Saved, count: int) -> list[str]:
    """Returns the first `count` test questions as text, with the student's rationales and answers."""
    splits = load_splits(saved.config.data, saved.config.seed, saved.student.format)
    examples = splits.test[:count]
    explain = any(view.term == "rationale" for view in saved.views)
    options = answering.Options(explain=explain, batch_size=count)
    lines = []
    answers = answering.predict(saved, answering.rows_of_examples(examples), options)
    for example, answer in zip(examples, answers, strict=True):
        right = is_correct(answer["label"], example.label, saved.by_value)
        lines += ["", " / ".join(example.parts)]
        if explain:
            lines.append(f"  rationale: {answer['rationale']}")
        verdict = "correct" if right else f"wrong, it is {example.label}"
        lines.append(f"  answer:    {answer['label']} ({verdict})")
    return lines
