"""Methods as views of an example: what the student reads and what it must write.

A method is a tuple of views; the first one answers the question at test time, others that end in an answer
are further *paths* to one, which `evaluate` and `predict` take alone or let vote. Everything downstream
(tokens, the step, generation) works on views by name, so a new method is a new row of `METHODS`.

Sources: Hsieh et al. 2023, "Distilling Step-by-Step!", section 3.2 (`predict`, `explain` and their
prefixes); Wang et al. 2023, "PINTO" (`informed`: a teacher's rationale as part of the input); Li et al. 2024,
"Mixed Distillation Helps Smaller Language Models Reason Better" (chains and programs of thought side by side;
prefixes and the label beside them are ours, the paper gives none).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from cot_jax.answers import programs
from cot_jax.answers.programs import Interpreter
from cot_jax.data.examples import Example

# The published single-task baseline does not give its separator; this one is ours.
ANSWER_MARK = "So the answer is"


@dataclasses.dataclass(frozen=True)
class View:
    """One way to look at an example.

    Attributes:
      name: key of the view in batches.
      term: name of its loss.
      prefix: put before the input.
      reads: example -> the parts of the input, or None where the example lacks one of them.
      writes: (example, label to train on) -> the targets, to be learned in turn; () where there is nothing.
      path: how its text answers the question: "label", as it is; "cot", behind `ANSWER_MARK`; "pot", as what
        the program gives; None: not at all.
      reader: reads the answer instead, where the student was not taught to write it so (`data.prompting`).
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
    """What a text answers.

    Attributes:
      answer: '' if nothing.
      failure: then why: what failed, as in `programs.Result`.
      unmarked: whether the answer was found where nothing marks it as one.
    """

    answer: str
    failure: str | None = None
    unmarked: bool = False


def answer_of(view: View, text: str, interpreter: Interpreter = programs.run) -> Reading:
    """Returns the answer in what the student wrote for `view`; of a view that is no path, all of it.

    `interpreter` gives the answer of a program.
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
    """Returns the reasons in what the student wrote for `view`: without the answer that they end in."""
    return text.rpartition(ANSWER_MARK)[0].rstrip() if view.path == "cot" and ANSWER_MARK in text else text
