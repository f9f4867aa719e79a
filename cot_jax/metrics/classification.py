"""Answers to questions with a closed set of labels: scores, and each class by itself.

A confusion matrix is (..., L, L + 1): gold labels by answers, the last of which are no labels.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def confusion_matrix(golds: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Returns (L, L + 1) int64: how often gold label l was answered with each label or, last, with no label.

    Texts count as equal but for white space around them, as in `equality.is_correct`.

    Raises:
      ValueError: a gold label is none of `labels`.
    """
    column = {label: n for n, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), np.int64)
    for gold, answer in zip(golds, answers, strict=True):
        if gold.strip() not in column:
            raise ValueError(f"{gold!r} is none of the labels {', '.join(labels)}")
        counts[column[gold.strip()], column.get(answer.strip(), -1)] += 1
    return counts


def _accuracy(confusion: np.ndarray) -> np.ndarray:
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def _f1_of_each(confusion: np.ndarray) -> np.ndarray:
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _ratio(2 * right, confusion.sum(-1) + confusion.sum(-2)[..., :-1])


def _f1(confusion: np.ndarray) -> np.ndarray:
    if confusion.shape[-2] != 2:
        raise ValueError(f"f1 is of two labels, the second of them positive; found {confusion.shape[-2]}")
    return _f1_of_each(confusion)[..., 1]


def _macro_f1(confusion: np.ndarray) -> np.ndarray:
    return _f1_of_each(confusion).mean(-1)


def _matthews(confusion: np.ndarray) -> np.ndarray:
    # R_K of Gorodkin 2004. Floats: the squares of large counts multiply to more than an int64 holds.
    counts = confusion.astype(float)
    gold, answered, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (gold * answered[..., :-1]).sum(-1)
    spread = (total**2 - (gold**2).sum(-1)) * (total**2 - (answered**2).sum(-1))
    return _ratio(covariance, np.sqrt(spread))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


METRICS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "macro_f1": _macro_f1,
    "matthews": _matthews,
}


def scores(
    names: Sequence[str], golds: Sequence[str], answers: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Returns the metrics of these names, keys of `METRICS`, from -1 or 0 to 1.

    An answer that is none of `labels` is wrong. As in scikit-learn, a ratio whose denominator is 0 is 0:
    Matthews' coefficient where all golds or all answers are the same, the F1 of a class that neither occurs
    nor is answered. macro_f1 is the mean over all `labels`, and so counts such a class; scikit-learn does if
    it is given `labels`.

    Args:
      labels: of two, f1 takes the second as positive.

    Raises:
      ValueError: a gold label is none of `labels`, or f1 is asked of other than two.
    """
    confusion = confusion_matrix(golds, answers, labels)
    return {name: float(METRICS[name](confusion)) for name in names}


def per_class(confusion: np.ndarray, labels: Sequence[str]) -> list[dict[str, float | int | str]]:
    """Returns precision, recall, F1 and number of questions of each label; a ratio without cases is 0."""
    rows: list[dict[str, float | int | str]] = []
    for n, label in enumerate(labels):
        right, answered, questions = int(confusion[n, n]), confusion[:, n].sum(), int(confusion[n].sum())
        rows.append(
            {
                "label": label,
                "precision": float(right / max(answered, 1)),
                "recall": right / max(questions, 1),
                "f1": float(2 * right / max(answered + questions, 1)),
                "questions": questions,
            }
        )
    return rows
