"""Questions scored by likelihood: a context and its possible continuations."""

import re
from pathlib import Path
from typing import NamedTuple

from cot_jax.data.problems import hellaswag_label
from cot_jax.data.tasks import DATA_SETS, hold_out
from cot_jax.errors import UserError
from cot_jax.files import Row, read_json_lines

_IN_BRACKETS = re.compile(r"\[.*?\]")


class Continuations(NamedTuple):
    """A context, its endings and the index of the correct one.

    The text that is scored is `context + " " + ending`; acc_norm divides by `len(ending)`, without the space
    (`metrics.multiple_choice.choices`).
    """

    id: str
    context: str
    endings: tuple[str, ...]
    gold: int


def hellaswag(root: Path, split: str = "test") -> tuple[list[Continuations], tuple[str, ...]]:
    """Returns HellaSwag as lm-evaluation-harness scores it, and notes for the user.

    Its scores are called `hellaswag_likelihood`. The task `hellaswag` (`problems.hellaswag`) differs: its
    questions list the endings and the answer is generated. The two are not comparable.

    Args:
      split: test: the published validation file; valid, train: a tenth of the training file and the rest, as
        for the task.

    Raises:
      UserError: the file is missing, or a row is malformed (file and line are named).
    """
    questions, joined = _read(root, "test" if split == "test" else "train")
    if split != "test":
        train, valid = hold_out(questions)
        questions = valid if split == "valid" else train
    note = (
        f"hellaswag_likelihood: {joined:,} rows of the file have 'ctx' without 'ctx_a' and "
        "'ctx_b': their last part is not capitalised, unlike in lm-evaluation-harness"
    )
    return questions, (note,) if joined else ()


def _read(root: Path, file: str) -> tuple[list[Continuations], int]:
    """Returns the questions of a file, and how many have a one-part context."""
    data = DATA_SETS["hellaswag"]
    path = data.path(file, root)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is from {data.source}")
    questions, joined = [], 0
    for index, row in enumerate(read_json_lines(path)):
        context, as_published = _context(row)
        joined += not as_published
        endings = tuple(map(_cleaned, row.parts("endings")))
        if len(endings) != 4 or not all(endings):
            raise row.error(f"'endings' must be a list of four texts; found {row.values['endings']!r}")
        gold = int(hellaswag_label(row))
        questions.append(Continuations(f"hellaswag-{file}-{index:04d}", context, endings, gold))
    if not questions:
        raise UserError(f"{path}: the file has no questions")
    return questions, joined


def _context(row: Row) -> tuple[str, bool]:
    """Returns the context, and whether the row has the two published parts."""
    activity = row.text("activity_label")
    if row.values.get("ctx_a") is None and row.values.get("ctx_b") is None:
        return _cleaned(f"{activity}: {row.text('ctx')}"), False
    return _cleaned(f"{activity}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"), True


def _cleaned(text: str) -> str:
    # As lm-evaluation-harness: remove WikiHow's brackets, then collapse double spaces, once.
    text = text.strip().replace(" [title]", ". ")
    return _IN_BRACKETS.sub("", text).replace("  ", " ")
