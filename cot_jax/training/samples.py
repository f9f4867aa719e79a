"""Samples of a student's answers, kept in a file as they are drawn."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cot_jax.data.examples import Example
from cot_jax.errors import writing
from cot_jax.files import read_json_lines, write_json_lines
from cot_jax.training.evaluation import Answers

# Between progress lines.
_TELL_SECONDS = 20.0

_ROW = {"id": str, "samples": [{"text": str, "log_prob": float, "cut": bool}]}


class Sample(NamedTuple):
    """One drawn output, its log-probability, and whether it was cut at the token limit."""

    text: str
    log_prob: float
    cut: bool


def draw_samples(
    answer: Callable[[Sequence[Example]], tuple[Answers, str]],
    examples: Sequence[Example],
    file: Path,
    how: Mapping[str, Any],
    *,
    batch_size: int,
) -> list[list[Sample]]:
    """Returns the samples of each example.

    `file` grows with every batch, so that a vote resumes after an interruption: first `how`, then a row for
    each example, from the shortest question to the longest. A file with another `how` is replaced.

    Args:
      answer: draws `how["samples"]` outputs for each of up to `batch_size` examples.
      how: what the samples depend on, as JSON; `samples` for each example.

    Raises:
      UserError: `file` is not one that this function wrote, or cannot be written.
    """
    each = how["samples"]
    order = sorted(range(len(examples)), key=lambda n: len(examples[n].text))
    rows = [dict(how)]
    lines = list(read_json_lines(file)) if file.exists() else []
    if lines and lines[0].values == how:
        ids = [examples[n].id for n in order]
        for line, row in enumerate(lines[1:]):
            if row.check(_ROW)["id"] not in ids[line : line + 1] or len(row.values["samples"]) != each:
                what = f"{each} samples of question {ids[line]!r}" if line < len(ids) else "no further row"
                raise row.error(f"expected {what}: delete the file to draw anew")
            rows.append(row.values)
        print(f"{file}: {len(rows) - 1} of {len(examples)} questions are drawn already", file=sys.stderr)
    elif lines:
        print(f"{file}: of another student, or drawn otherwise: replaced", file=sys.stderr)
    told = time.monotonic()
    while some := [examples[n] for n in order[len(rows) - 1 :][:batch_size]]:
        answers, _ = answer(some)
        drawn = zip(answers.texts, answers.log_probs.tolist(), answers.cut.tolist(), strict=True)
        samples = [Sample(*one)._asdict() for one in drawn]
        rows += [
            {"id": example.id, "samples": samples[n * each : (n + 1) * each]}
            for n, example in enumerate(some)
        ]
        with writing(file.parent):
            write_json_lines(file, rows)
        if len(rows) <= len(examples) and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            print(f"{file.name}: {len(rows) - 1:,} of {len(examples):,} questions", file=sys.stderr)
    found = [[Sample(**sample) for sample in row["samples"]] for row in rows[1:]]
    return [drawn for _, drawn in sorted(zip(order, found, strict=True))]
