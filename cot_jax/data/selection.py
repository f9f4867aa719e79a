"""Selects the programs of a teacher that run and give the answer."""

import collections
import dataclasses
from collections.abc import Sequence

from cot_jax.answers import programs
from cot_jax.answers.equality import is_correct
from cot_jax.answers.programs import Interpreter
from cot_jax.data.examples import Example


def keep_right_programs(
    examples: Sequence[Example],
    labels: Sequence[str | None],
    by_value: bool,
    interpreter: Interpreter = programs.run,
) -> tuple[list[Example], str]:
    """Returns `examples` with the programs that answer as the label does, none twice, and what was counted.

    Li et al. 2024 publish no filter; this is ours. (That of rationales is config.data.rationales=right.)

    Args:
      labels: those that are trained on; where there is none no program is right.
      by_value: how answers compare (`equality.is_correct`).
      interpreter: gives the answer of a program.
    """
    left_out: collections.Counter[str] = collections.Counter()
    kept = []
    for example, label in zip(examples, labels, strict=True):
        right = []
        for program in example.programs:
            result = interpreter(program)
            if result.failure:
                left_out[result.failure] += 1
            elif label is None or not is_correct(result.text, label, by_value):
                left_out["wrong"] += 1
            elif program in right:
                left_out["repeated"] += 1
            else:
                right.append(program)
        kept.append(dataclasses.replace(example, programs=tuple(right)))
    counts = [len(example.programs) for example in kept]
    reasons = ", ".join(f"{why} {count:,}" for why, count in left_out.most_common()) or "none"
    return kept, (
        f"{sum(counts):,} of {sum(counts) + left_out.total():,} programs give the label, "
        f"{sum(map(bool, counts)):,} examples have one (left out: {reasons})"
    )
