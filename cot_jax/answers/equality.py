"""Whether answers are right, and their accuracy."""

import math
from collections.abc import Sequence

from cot_jax.answers.arithmetic import evaluate, same_value
from cot_jax.answers.reading import number

# Tolerance of numeric answers (DPO-ST's code). [ours: relative below 1]
_TOLERANCE = 1e-4


def is_correct(prediction: str, gold: str, by_value: bool) -> bool:
    """Whether `prediction` is the same answer as `gold`.

    Args:
      by_value: compare equations by value (`arithmetic.same_value`): `( 84 / 2 )` is `42`. If the gold answer
        is a number, not an equation, the prediction may be an equation or a number as people write it
        (`reading.number`): "$1,080." is `1080`; and it may be off by 1e-4. Otherwise the texts must be equal
        except for surrounding white space (the released code compares decoded text, from which the tokenizer
        has removed it).
    """
    if not by_value:
        return prediction.strip() == gold.strip()
    right = evaluate(number(gold) or "")
    if right is None:
        return same_value(prediction, gold)
    value = evaluate(prediction)
    if value is None:
        value = evaluate(number(prediction) or "")
    # The relative tolerance covers rounding only: 1,000,000,001 is not 1,000,000,000.
    off = max(_TOLERANCE * min(abs(right), 1), 1e-9)
    return value is not None and math.isclose(value, right, rel_tol=1e-15, abs_tol=off)


def accuracy(predictions: Sequence[str], golds: Sequence[str], by_value: bool) -> float:
    """Returns the share of right predictions.

    Raises:
      ValueError: the sequences are empty or of different lengths.
    """
    if not golds:
        raise ValueError("accuracy of no answers")
    pairs = zip(predictions, golds, strict=True)
    return sum(is_correct(prediction, gold, by_value) for prediction, gold in pairs) / len(golds)
