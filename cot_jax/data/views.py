"""Methods as views of an example: what the student reads and what it must write.

A method is a tuple of views; the first one answers the question at test time. Everything downstream
(tokens, the step, generation) works on views by name, so a new method is a new row of `METHODS`.

Sources: Hsieh et al. 2023, "Distilling Step-by-Step!", section 3.2 (`predict`, `explain` and their
prefixes); Wang et al. 2023, "PINTO" (`informed`: a teacher's rationale as part of the input).
"""

import dataclasses
from collections.abc import Callable

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
      reads: example -> text after the prefix, or None where the example lacks it.
      writes: (example, label to train on) -> target, or None where there is nothing to learn.
    """

    name: str
    term: str
    prefix: str
    reads: Callable[[Example], str | None]
    writes: Callable[[Example, str | None], str | None]

    def source(self, example: Example) -> str | None:
        text = self.reads(example)
        return None if text is None else self.prefix + text


def _input(example: Example) -> str:
    return example.input


def _input_and_rationale(example: Example) -> str | None:
    return None if example.rationale is None else f"{example.input}\nRationale: {example.rationale}"


def _label(example: Example, label: str | None) -> str | None:
    return label


def _rationale(example: Example, label: str | None) -> str | None:
    return example.rationale


def _rationale_then_label(example: Example, label: str | None) -> str | None:
    if example.rationale is None or label is None:
        return None
    return f"{example.rationale} {ANSWER_MARK} {label}"


_PREDICT = View("predict", "label", "predict: ", _input, _label)
_EXPLAIN = View("explain", "rationale", "explain: ", _input, _rationale)

METHODS: dict[str, tuple[View, ...]] = {
    "standard": (View("label", "label", "", _input, _label),),
    "single_task": (View("joint", "joint", "", _input, _rationale_then_label),),
    "rationale_input": (View("informed", "label", "", _input_and_rationale, _label),),
    "dss": (_PREDICT, _EXPLAIN),
    "mi": (_PREDICT, _EXPLAIN),
}


def answer_of(view: View, text: str) -> str:
    """Returns the answer in what the student wrote for `view`; '' where it gave none."""
    if view.term != "joint":
        return text
    return text.rpartition(ANSWER_MARK)[2].strip() if ANSWER_MARK in text else ""
