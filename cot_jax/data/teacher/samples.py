"""A teacher's samples: reading their answers, checking them, and choosing which to keep."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from cot_jax.answers import programs
from cot_jax.answers.equality import is_correct
from cot_jax.answers.programs import Interpreter
from cot_jax.answers.reading import choices
from cot_jax.answers.voting import vote
from cot_jax.data.examples import Example
from cot_jax.data.teacher import outputs
from cot_jax.data.teacher.prompts import Style

KINDS = ("cot", "pot")  # a rationale, a program of thought
FILTERS = ("right", "leaks", "duplicates")

# The thoughts of reasoning models, whose prompt may have the opening tag, and the Markdown of chat models.
_THOUGHTS = re.compile(r"\A.*?</think>|<think>.*?(?:</think>|\Z)", re.DOTALL)
# Bold in Markdown, but not a power: `2**3`, `(1 + r) ** n`.
_BOLD = re.compile(r"((?<=[\w)])( *)\*\*\2(?=[-+(.]*(?:\d|[A-Za-z]\b)))|\*\*")
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_ANSWER_GIVEN = re.compile(r"\banswer\s*(?:is|:)|\bis the (?:right |correct )?answer\b", re.IGNORECASE)


class Asked(NamedTuple):
    """One requested output; `hinted`: the teacher is told the gold label."""

    example: Example
    kind: str  # one of KINDS
    seed: int
    hinted: bool = False


class Sample(NamedTuple):
    """One output of a teacher, and what was read from it.

    Attributes:
      text: the rationale or program; None: the output has none.
      label: its answer; None: the output has none.
      right: whether the answer is the gold label.
      failure: why text or label is missing, or the filter that leaves it out (`filtered`); None: it is kept.
    """

    asked: Asked
    output: str
    text: str | None
    label: str | None
    right: bool
    failure: str | None


def read(
    asked: Asked,
    output: str,
    finish_reason: str | None,
    style: Style,
    by_value: bool,
    interpreter: Interpreter = programs.run,
) -> Sample:
    """Reads an output of the teacher; `interpreter` runs programs."""
    text, label, failure = None, None, None
    plain = _THOUGHTS.sub("", output).strip()
    if finish_reason and finish_reason.startswith("refused"):
        output, failure = finish_reason, "refused by the server"
    elif not plain:
        failure = "empty"
    elif asked.kind == "pot":
        fenced = _FENCED.search(plain)
        text = (fenced[1] if fenced else plain.split("\nQ:")[0]).strip()
        result = interpreter(text)
        if result.failure is None:
            label = result.text
        else:
            failure = f"program: {result.failure}"
    else:
        plain = _BOLD.sub(lambda found: found[1] or "", plain)
        text, label = outputs.parse(style.parser, plain, "corrected")
        listed = () if by_value else choices(asked.example.text)  # "(4 * 6)" may stand for a listed 24
        label = outputs.among(style.labels or listed, label)
        if text is None or label is None:
            failure = "no rationale" if label else "no readable answer" if text else "no answer"
    if failure and finish_reason == "length":
        failure = "cut off"
    right = label is not None and is_correct(label, asked.example.label, by_value)
    return Sample(asked, output, text, label, right, failure)


def leaks(rationale: str, label: str) -> bool:
    """Whether a rationale gives the answer before any reason, and so teaches guessing, not reasoning. [ours]

    It does if it begins with the label as a statement ("Neutral. ..", "42, because ..", or it alone), or
    if its first sentence says in these words what the answer is ("The answer is neutral, since ..").
    """
    words = " ".join(rationale.split())
    stated = rf"{re.escape(' '.join(label.split()))}\s*(?:$|[.,:;]\s|because\b|since\b|as\b)"
    first = re.split(r"[.!?](?=\s|$)", words, maxsplit=1)[0]
    return bool(re.match(stated, words + " ", re.IGNORECASE) or _ANSWER_GIVEN.search(first))


def filtered(samples: Sequence[Sample], filters: Collection[str], max_words: int) -> list[Sample]:
    """Returns all samples; the failure of one that is left out by a filter is the filter's reason.

    Args:
      filters: of `FILTERS`. Rationales of a question are duplicates if they differ only in white space or
        case, programs if they are equal.
      max_words: maximum words of a rationale or program; 0: any number.
    """
    kept: set[tuple[str, str, str]] = set()
    found = []
    for sample in samples:
        text, (example, kind, *_) = sample.text or "", sample.asked
        same = (example.id, kind, text if kind == "pot" else " ".join(text.split()).casefold())
        reason = sample.failure
        if reason is None:
            if "right" in filters and not sample.right:
                reason = "wrong"
            elif "leaks" in filters and kind == "cot" and leaks(text, sample.label or ""):
                reason = "leaks"
            elif max_words and len(text.split()) > max_words:
                reason = "too long"
            elif "duplicates" in filters and same in kept:
                reason = "duplicate"
            else:
                kept.add(same)
        found.append(sample._replace(failure=reason))
    return found


def majority(samples: Sequence[Sample], by_value: bool) -> str | None:
    """Returns the majority label (`answers.voting`); None if no sample gives a label."""
    labels = [sample.label for sample in samples if sample.label is not None]
    return vote(labels, [0.0] * len(labels), by_value).answer if labels else None
