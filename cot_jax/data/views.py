"""Methods as views of an example: what the student reads and what it must write.

A method is a tuple of views. The first one answers the question at test time. Others that end in an answer
are further *paths*, which `evaluate` and `predict` use alone or in a vote. Everything downstream (tokens, the
step, generation) works on views by name, so a new method is a new row of `METHODS`.

Sources: Hsieh et al. 2023, "Distilling Step-by-Step!", section 3.2 (`predict`, `explain` and their
prefixes); Wang et al. 2023, "PINTO" (`informed`: a teacher's rationale as part of the input); Li et al. 2024,
"Mixed Distillation Helps Smaller Language Models Reason Better" (chains and programs of thought; the paper
gives no prefixes and no label view, both are ours).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from cot_jax.answers import programs
from cot_jax.answers.programs import Interpreter
from cot_jax.data.examples import Example

# The separator of the published single-task baseline is not known; this one is ours.
ANSWER_MARK = "So the answer is"


@dataclasses.dataclass(frozen=True)
class View:
    """One way to look at an example.

    Attributes:
      name: key of the view in batches.
      term: name of its loss.
      prefix: text before the input.
      reads: example -> parts of the input; None: the example lacks one of them.
      writes: (example, label to train on) -> targets, learned in turn; (): nothing to learn.
      path: how its text gives the answer: "label": it is the answer; "cot": after `ANSWER_MARK`; "pot": the
        program's result; None: no answer.
      reader: reads the answer of a student that was not trained on this view (`data.prompting`).
    """

    name: str
    term: str
    prefix: str
    reads: Callable[[Example], tuple[str, ...] | None]
    writes: Callable[[Example, str | None], tuple[str, ...]]
    path: str | None
    reader: Callable[[str], "Reading"] | None = None


def _question(example: Example) -> tuple[str, ...]:
    return example.parts


def _question_and_rationale(example: Example) -> tuple[str, ...] | None:
    if example.rationale is None:
        return None
    *first, last = example.parts
    return (*first, f"{last}\nRationale: {example.rationale}")


def _label(example: Example, label: str | None) -> tuple[str, ...]:
    return () if label is None else (label,)


def _rationales(example: Example, label: str | None) -> tuple[str, ...]:
    return example.rationales


def _rationales_then_label(example: Example, label: str | None) -> tuple[str, ...]:
    if label is None:
        return ()
    return tuple(f"{rationale} {ANSWER_MARK} {label}" for rationale in example.rationales)


def _programs(example: Example, label: str | None) -> tuple[str, ...]:
    return example.programs


_PREDICT = View("predict", "label", "predict: ", _question, _label, "label")
_EXPLAIN = View("explain", "rationale", "explain: ", _question, _rationales, None)
_MIXED = (
    _PREDICT,
    View("explain", "rationale", "explain: ", _question, _rationales_then_label, "cot"),
    View("program", "program", "program: ", _question, _programs, "pot"),
)

METHODS: dict[str, tuple[View, ...]] = {
    "standard": (View("label", "label", "", _question, _label, "label"),),
    "single_task": (View("joint", "joint", "", _question, _rationales_then_label, "cot"),),
    "program": (View("program", "program", "", _question, _programs, "pot"),),
    "rationale_input": (View("informed", "label", "", _question_and_rationale, _label, "label"),),
    "dss": (_PREDICT, _EXPLAIN),
    "mi": (_PREDICT, _EXPLAIN),
    "mixed": _MIXED,
    "mixed_mi": _MIXED,
}
WITH_MUTUAL_INFORMATION = ("mi", "mixed_mi")


class Reading(NamedTuple):
    """The answer in a text.

    Attributes:
      answer: '' if there is none.
      failure: why there is none, as in `programs.Result`.
      unmarked: whether the answer was read without a mark before it.
    """

    answer: str
    failure: str | None = None
    unmarked: bool = False


def answer_of(view: View, text: str, interpreter: Interpreter = programs.run) -> Reading:
    """Returns the answer in a student's output for `view`; the whole output if the view is not a path.

    `interpreter` runs programs.
    """
    if view.reader:
        return view.reader(text)
    if view.path == "pot":
        result = interpreter(text)
        return Reading(result.text, result.failure)
    if view.path != "cot":
        return Reading(text)
    answer = text.rpartition(ANSWER_MARK)[2].strip() if ANSWER_MARK in text else ""
    return Reading(answer, None if answer else "NoAnswer")


def rationale_of(view: View, text: str) -> str:
    """Returns the rationale in a student's output for `view`, without the answer at its end."""
    return text.rpartition(ANSWER_MARK)[0].rstrip() if view.path == "cot" and ANSWER_MARK in text else text
