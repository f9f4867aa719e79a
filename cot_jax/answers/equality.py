"""When an answer is right, and how often."""

from collections.abc import Sequence

from cot_jax.answers.arithmetic import same_value


def is_correct(prediction: str, gold: str, by_value: bool) -> bool:
    """Whether `prediction` answers as `gold` does.

    Args:
      by_value: compare equations by their value (`arithmetic.same_value`), so that `( 84 / 2 )` is
        `42`; otherwise the texts must be equal but for white space around them (the released code
        compares decoded text, from which the tokenizer has already removed such white space).
    """
    return same_value(prediction, gold) if by_value else prediction.strip() == gold.strip()


def accuracy(predictions: Sequence[str], golds: Sequence[str], by_value: bool) -> float:
    """Returns the share of right predictions.

    Raises:
      ValueError: the sequences are empty or of different lengths.
    """
    if not golds:
        raise ValueError("accuracy of no answers")
    pairs = zip(predictions, golds, strict=True)
    return sum(is_correct(prediction, gold, by_value) for prediction, gold in pairs) / len(golds)
