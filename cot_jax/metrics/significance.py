"""Confidence intervals of scores, and the significance of differences."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

_RESAMPLES = 10_000


def bootstrap_interval(correct: ArrayLike) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of the mean of `correct`, (N,) of 0 and 1.

    10,000 resamples of the N answers with a fixed seed (Efron & Tibshirani 1993, section 13.3).
    """
    correct = np.asarray(correct, float)
    # The number of right answers in a resample is binomial.
    right = np.random.default_rng(0).binomial(len(correct), correct.mean(), _RESAMPLES)
    return _percentiles(right / len(correct))


def bootstrap_interval_of(
    statistic: Callable[[np.ndarray], np.ndarray], counts: np.ndarray
) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval of a statistic of counts by kind of question.

    Resamples are as in `bootstrap_interval`.

    Args:
      statistic: counts (R, ...) of R resamples -> (R,).
      counts: number of questions of each kind, such as a confusion matrix.
    """
    # The counts of a resample are multinomial.
    total = counts.sum()
    drawn = np.random.default_rng(0).multinomial(total, counts.ravel() / total, _RESAMPLES)
    return _percentiles(statistic(drawn.reshape(-1, *counts.shape)))


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def paired_p_value(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Returns the two-sided p-value of a paired t-test that `a` and `b`, run by run, have equal means.

    None if there are fewer than two pairs, or all differences are equal up to rounding.
    """
    from scipy import stats  # takes half a second

    differences = np.subtract(a, b)
    # Equal differences of decimal scores differ in their last bits, which would be highly significant.
    if len(differences) < 2 or np.ptp(differences) <= 1e-9 * np.abs([a, b]).max():
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def mcnemar_p_value(only_a: int, only_b: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test that two students are right equally often.

    Args:
      only_a, only_b: number of questions of which only one of them is right.
    """
    from scipy import stats

    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
