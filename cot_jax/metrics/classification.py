"""Answers to questions with a closed set of labels, class by class."""

from collections.abc import Sequence

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
