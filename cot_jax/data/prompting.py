"""Prompts for a pretrained model that was not trained on our views, and how its answers are read.

Few-shot as in Wei et al. 2022, "Chain-of-Thought Prompting Elicits Reasoning in Large Language Models". With
zero shots the prompt says how to end [ours]. If no number is marked as the answer, the last one in the text
counts, as in `flexible-extract` of lm-evaluation-harness for GSM8K.
"""

import dataclasses
import functools
import re

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.reading import final_answer, last_number, number
from cot_jax.data.examples import Example
from cot_jax.data.tasks import Splits
from cot_jax.data.views import ANSWER_MARK, METHODS, Reading, View
from cot_jax.errors import UserError
from cot_jax.text.formats import Shot

# "So the answer is", and variants of pretrained models: "So, the final answer is".
_MARK = re.compile(r"\bthe (?:final )?answer is\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s)")
# What chat models put around an answer: "So the answer is **42**."
_AROUND = " \t:*\"'`"


def method_of(splits: Splits) -> str:
    """Returns the method whose first view is used: with rationales, if training examples have any."""
    return "single_task" if any(example.rationales for example in splits.train) else "standard"


def prompted(splits: Splits, shots: int) -> View:
    """Returns the view of `method_of`, with a lenient reader.

    Args:
      shots: number of examples shown; with 0 the prompt says how to end.
    """
    (view,) = METHODS[method_of(splits)]
    view = dataclasses.replace(view, reader=functools.partial(_read, view.path == "cot", splits.by_value))
    if shots or not (told := _instruction(view, splits)):
        return view

    def reads(example: Example) -> tuple[str, ...]:
        *first, last = example.parts
        return (*first, f"{last}\n{told}")

    return dataclasses.replace(view, reads=reads)


def examples_of(view: View, splits: Splits, shots: int) -> list[Shot]:
    """Returns the first `shots` training examples with a target of the view, as question and target.

    Raises:
      UserError: there are fewer.
    """
    found: list[Shot] = []
    for example in splits.train:
        if len(found) == shots:
            break
        parts, targets = view.reads(example), view.writes(example, example.label)
        if parts and targets:
            found.append((parts, targets[0]))
    if len(found) < shots:
        raise UserError(
            f"--shots={shots}: task={splits.task} has {len(found)} training examples to show; use fewer"
        )
    return found


def _instruction(view: View, splits: Splits) -> str:
    if view.path == "cot":
        return f'Think step by step, then end with "{ANSWER_MARK}" and the answer.'
    if splits.by_value:
        return "Answer with a number alone."
    return f"Answer with one of: {', '.join(splits.label_set)}." if splits.label_set else ""


def _read(reasons: bool, by_value: bool, text: str) -> Reading:
    """Returns the rest of the line after the mark; without rationales, the first line needs no mark."""
    *_, end = (0, *(mark.end() for mark in _MARK.finditer(text)))
    if end or not reasons:
        line = text[end:].strip().partition("\n")[0]
        answer = line.strip(_AROUND).removesuffix(".").rstrip(_AROUND)
        if end and by_value:
            answer = _value(answer)
        if answer and (end or not by_value or evaluate(answer) is not None):
            return Reading(answer)
    if by_value and (found := last_number(text)) is not None:
        return Reading(found, unmarked=True)
    return Reading("", "NoAnswer")


def _value(answer: str) -> str:
    """Returns the number or equation in an answer that is a sentence; '' if there is none."""
    if evaluate(answer) is not None:
        return answer
    # "2 * 9 = 18 apples. Tom has": the result of the first sentence.
    return number(answer) or final_answer(_SENTENCE_END.split(answer)[0], by_value=True) or ""
