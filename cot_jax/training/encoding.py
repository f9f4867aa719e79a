"""Examples as token ids, through the views of a method."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cot_jax.config import DataConfig
from cot_jax.data.batches import Ragged, TokenizedView
from cot_jax.data.examples import Example
from cot_jax.data.views import View
from cot_jax.text.formats import Format


class Tokenized(NamedTuple):
    """Token ids of examples by view, and lines for the user."""

    views: dict[str, TokenizedView]
    report: list[str]


def training_label(example: Example, label_source: str) -> str | None:
    return example.label if label_source == "gold" else example.teacher_label


def learned(view: View, example: Example, label_source: str) -> tuple[str, ...]:
    """Returns the targets of an example in `view`; () if the example lacks what the view reads or writes."""
    if view.reads(example) is None:
        return ()
    return view.writes(example, training_label(example, label_source))


def fit(format: Format, method: Sequence[View], examples: Sequence[Example], data: DataConfig) -> Format:
    """Returns the format, adapted to the training targets of the method."""
    targets = {
        view.name: [text for example in examples for text in learned(view, example, data.label_source)]
        for view in method
        # The released code, with the reference parser, trains on unknown tokens.
        if view.term == "program" or data.parser == "corrected"
    }
    return format.fit(targets, [view.name for view in method if view.term == "program"])


def tokenize(
    method: Sequence[View], examples: Sequence[Example], format: Format, data: DataConfig
) -> Tokenized:
    """Returns the examples' token ids by view, and a report of cut texts and unknown tokens."""
    tokenized, report = {}, []
    for view in method:
        targets = [learned(view, example, data.label_source) for example in examples]
        questions = [view.reads(example) or () for example, its in zip(examples, targets, strict=True) if its]
        inputs, outputs = format.pairs(
            view.name,
            view.prefix,
            questions,
            [its for its in targets if its],
            data.max_input_tokens,
            data.max_target_tokens,
        )
        # An example without targets becomes an empty sequence, which no loss counts.
        read, written = iter(inputs.ids), iter(outputs.ids)
        asked = [next(read) if its else [] for its in targets]
        answered = [row for its in targets for row in ([next(written) for _ in its] or [[]])]
        counts = [max(len(its), 1) for its in targets]
        first = None if max(counts, default=1) == 1 else np.cumsum([0, *counts])
        tokenized[view.name] = TokenizedView(Ragged(asked, inputs.prefix), Ragged(answered), first)
        report += [f"view {view.name}: inputs {inputs.report}", f"view {view.name}: targets {outputs.report}"]
    return Tokenized(tokenized, report)


def encode_questions(
    view: View, examples: Sequence[Example], format: Format, most: int
) -> tuple[Ragged, str]:
    """Returns the inputs of `view` for inference, and a line of counts.

    An example that lacks part of the view's input is still a question: that part is left out.
    """
    read = [view.reads(example) for example in examples]
    asked = [parts or example.parts for parts, example in zip(read, examples, strict=True)]
    encoded = format.inputs(view.prefix, asked, most)
    bare = read.count(None)
    line = encoded.report + (f", {bare} without a rationale" if bare else "")
    return Ragged(encoded.ids, encoded.prefix), line
