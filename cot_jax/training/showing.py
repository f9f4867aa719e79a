"""What a finished run shows: its learning curve, and questions of its test set with its own answers."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cot_jax.answers.equality import is_correct
from cot_jax.files import read_json_lines
from cot_jax.metrics.plots import draw_curves, read_curves
from cot_jax.training import answering
from cot_jax.training.data import load_splits
from cot_jax.training.saved import Saved

PICTURE = "curves.png"
_ROWS, _BAR = 16, 40  # most lines of a curve, and characters of a bar that stands for 1


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
    panels = {name: {method: curve} for name, curve in read_curves([workdir / "metrics.jsonl"]).items()}
    draw_curves(panels, workdir / PICTURE)
    return [PICTURE]


def answers(saved: Saved, count: int) -> list[dict[str, Any]]:
    """Returns the first `count` test questions, as many rows, with the student's answers and rationales."""
    splits = load_splits(saved.config.data, saved.config.seed, saved.student.format)
    examples = splits.test[:count]
    explain = any(view.term == "rationale" for view in saved.views)
    options = answering.Options(explain=explain, batch_size=count)
    return [
        {"question": " / ".join(example.parts)}
        | ({"rationale": answer["rationale"]} if explain else {})
        | {"answer": answer["label"], "label": example.label}
        | {"correct": is_correct(answer["label"], example.label, saved.by_value)}
        for example, answer in zip(
            examples, answering.predict(saved, answering.rows_of_examples(examples), options), strict=True
        )
    ]


def as_text(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the lines that show `answers`."""
    lines = []
    for row in rows:
        lines += ["", row["question"]]
        if "rationale" in row:
            lines.append(f"  rationale: {row['rationale']}")
        verdict = "correct" if row["correct"] else f"wrong, it is {row['label']}"
        lines.append(f"  answer:    {row['answer']} ({verdict})")
    return lines
