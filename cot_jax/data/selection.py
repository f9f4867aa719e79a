"""A teacher's samples: of several rationales and programs of a question, those that arrive at its answer."""

import collections
import dataclasses
from collections.abc import Sequence

from cot_jax.data import programs
from cot_jax.data.examples import Example
from cot_jax.metrics.accuracy import is_correct


def keep_right(
    examples: Sequence[Example], labels: Sequence[str | None], by_value: bool
) -> tuple[list[Example], list[str]]:
    """Returns `examples` with those samples that are right, none twice, and lines that say what was counted.

    A program is right if it runs and answers as the label does; a rationale is right if the teacher's label
    is or, as with people's rationales, no example has one. Li et al. 2024 publish no filter; this is ours.

    Args:
      labels: those that are trained on; where there is none nothing is right.
      by_value: how answers compare (`accuracy.is_correct`).
    """
    unlabelled = all(example.teacher_label is None for example in examples)
    rationale_reasons: collections.Counter[str] = collections.Counter()
    program_reasons: collections.Counter[str] = collections.Counter()
    kept = []
    for example, label in zip(examples, labels, strict=True):
        said = label if unlabelled else example.teacher_label
        failures = [_failure(said, label, by_value)] * len(example.rationales)
        rationales = _distinct_right(example.rationales, failures, rationale_reasons)
        ran = [programs.run(program) for program in example.programs]
        failures = [result.failure or _failure(result.text, label, by_value) for result in ran]
        its_programs = _distinct_right(example.programs, failures, program_reasons)
        kept.append(dataclasses.replace(example, rationales=rationales, programs=its_programs))
    return kept, [
        _line("rationales", [e.rationales for e in kept], rationale_reasons),
        _line("programs", [e.programs for e in kept], program_reasons),
    ]


def _failure(answer: str | None, label: str | None, by_value: bool) -> str | None:
    right = answer is not None and label is not None and is_correct(answer, label, by_value)
    return None if right else "wrong"


def _distinct_right(
    samples: Sequence[str], failures: Sequence[str | None], reasons: collections.Counter[str]
) -> tuple[str, ...]:
    """Returns those that do not fail, once each, and counts the others."""
    right = [sample for sample, why in zip(samples, failures, strict=True) if not why]
    distinct = tuple(dict.fromkeys(right))
    reasons.update(why for why in failures if why)
    reasons.update(["repeated"] * (len(right) - len(distinct)))
    return distinct


def _line(kind: str, kept: Sequence[Sequence[str]], left_out: collections.Counter[str]) -> str:
    right, having = sum(map(len, kept)), sum(map(bool, kept))
    reasons = ", ".join(f"{why} {count:,}" for why, count in left_out.most_common()) or "none"
    return (
        f"{right:,} of {right + left_out.total():,} {kind} arrive at the label, {having:,} examples have one "
        f"(left out: {reasons})"
    )
