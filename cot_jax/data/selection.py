"""Selection of a teacher's programs that run and give the correct answer."""

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
    """Returns `examples` with the distinct programs whose answer equals the label, and a line of counts.

    Li et al. 2024 publish no filter; this is ours. (config.data.rationales=right filters rationales.)

    Args:
      labels: the labels to train on; None: no program is correct.
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
