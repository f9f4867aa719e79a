"""Scores of answers from a closed set of labels, overall and per class.

A confusion matrix is (..., L, L + 1): gold labels by answers; the last column counts other answers.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np


def confusion_matrix(golds: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Returns (L, L + 1) int64, how often each gold label was answered by each label or, last, by none.

    White space around texts is ignored, as in `equality.is_correct`.

    Raises:
      ValueError: a gold label is not in `labels`.
    """
    column = {label: n for n, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels) + 1), np.int64)
    for gold, answer in zip(golds, answers, strict=True):
        if gold.strip() not in column:
            raise ValueError(f"{gold!r} is not one of the labels {', '.join(labels)}")
        counts[column[gold.strip()], column.get(answer.strip(), -1)] += 1
    return counts


def _f1_of_each(confusion: np.ndarray) -> np.ndarray:
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _ratio(2 * right, confusion.sum(-1) + confusion.sum(-2)[..., :-1])


def _f1(confusion: np.ndarray) -> np.ndarray:
    if confusion.shape[-2] != 2:
        raise ValueError(f"f1 needs two labels, the second of them positive; found {confusion.shape[-2]}")
    return _f1_of_each(confusion)[..., 1]


def _matthews(confusion: np.ndarray) -> np.ndarray:
    # R_K of Gorodkin 2004. In floats, as products of squared counts overflow int64.
    counts = confusion.astype(float)
    gold, answered, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (gold * answered[..., :-1]).sum(-1)
    spread = (total**2 - (gold**2).sum(-1)) * (total**2 - (answered**2).sum(-1))
    return _ratio(covariance, np.sqrt(spread))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


METRICS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": lambda c: _ratio(np.trace(c, axis1=-2, axis2=-1), c.sum((-2, -1))),
    "f1": _f1,
    "macro_f1": lambda c: _f1_of_each(c).mean(-1),
    "matthews": _matthews,
}


def scores(
    names: Sequence[str], golds: Sequence[str], answers: Sequence[str], labels: Sequence[str]
) -> dict[str, float]:
    """Returns the named metrics, keys of `METRICS`, from -1 or 0 to 1.

    An answer that is not in `labels` is wrong. As in scikit-learn, a ratio whose denominator is 0 is 0:
    Matthews' coefficient if all golds or all answers are equal, the F1 of a class that neither occurs nor is
    answered. macro_f1 is the mean over all `labels`, including such a class, as in scikit-learn with
    `labels`.

    Args:
      labels: f1 takes the second of two as positive.

    Raises:
      ValueError: a gold label is not in `labels`, or f1 is requested for other than two labels.
    """
    confusion = confusion_matrix(golds, answers, labels)
    return {name: float(METRICS[name](confusion)) for name in names}


def per_class(confusion: np.ndarray, labels: Sequence[str]) -> list[dict[str, float | int | str]]:
    """Returns precision, recall, F1 and number of questions per label; a ratio with denominator 0 is 0."""
    right, questions = np.diagonal(confusion), confusion.sum(1)
    ratios = {
        "precision": _ratio(right, confusion.sum(0)[:-1]),
        "recall": _ratio(right, questions),
        "f1": _f1_of_each(confusion),
    }
    return [
        {"label": label}
        | {name: float(ratio[n]) for name, ratio in ratios.items()}
        | {"questions": int(count)}
        for n, (label, count) in enumerate(zip(labels, questions, strict=True))
    ]
