"""Calibration: confidence against accuracy.

Confidence is the probability p_i in [0, 1] of the given answer, correct_i is 1 or 0 (both (N,)). Naeini et
al. 2015 and Guo et al. 2017 define the errors and temperature scaling; Chen et al. 2024 report the expected
error with 10 bins of equal width, their released code computes it with 100 of equal mass.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

_MOST = 100.0  # the highest fitted temperature


@dataclasses.dataclass(frozen=True)
class Bin:
    """Answers of similar confidence: mean confidence, accuracy and count."""

    confidence: float
    accuracy: float
    count: int


def equal_width_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = 10) -> list[Bin]:
    """Returns the non-empty bins ((b - 1) / bins, b / bins]; 0 belongs to the first."""
    confidence = np.asarray(confidence, float)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return _bins(confidence, correct, [np.flatnonzero(index == b) for b in range(bins)])


def equal_mass_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = 100) -> list[Bin]:
    """Returns bins of equal counts, in order of confidence; ties in order of the answers."""
    order = np.argsort(np.asarray(confidence), kind="stable")
    return _bins(confidence, correct, np.array_split(order, bins))


def _bins(confidence: ArrayLike, correct: ArrayLike, groups: Sequence[np.ndarray]) -> list[Bin]:
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    return [
        Bin(float(confidence[group].mean()), float(correct[group].mean()), len(group))
        for group in groups
        if len(group)
    ]


def expected_error(bins: Sequence[Bin]) -> float:
    """Mean |accuracy - confidence| of the bins, weighted by their counts (ECE)."""
    gaps = [abs(b.accuracy - b.confidence) for b in bins]
    return float(np.average(gaps, weights=[b.count for b in bins]))


def maximum_error(bins: Sequence[Bin]) -> float:
    """Largest |accuracy - confidence| of the bins (MCE)."""
    return max(abs(b.accuracy - b.confidence) for b in bins)


def brier_score(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean squared difference between confidence and correctness."""
    return float(np.mean((np.asarray(confidence, float) - np.asarray(correct, float)) ** 2))


def summary(confidence: ArrayLike, correct: ArrayLike) -> dict[str, float]:
    """Returns all metrics of this module and the mean confidence, by name."""
    ten = equal_width_bins(confidence, correct)
    return {
        "mean_confidence": float(np.asarray(confidence).mean()),
        "expected_calibration_error": expected_error(ten),
        "expected_calibration_error_100_equal_mass": expected_error(equal_mass_bins(confidence, correct)),
        "maximum_calibration_error": maximum_error(ten),
        "brier_score": brier_score(confidence, correct),
    }


def fit_temperature(log_prob_NL: ArrayLike, gold_N: ArrayLike) -> float:
    """Returns the T > 0 for which softmax(log_prob / T) makes the gold labels most probable.

    Guo et al. 2017, section 4.2, on log-probabilities (N, L) of a closed set of labels. They differ from
    logits by a constant per row, which does not matter.
    """
    from scipy import optimize  # takes half a second: only commands that fit import it

    log_prob_NL, gold_N = np.asarray(log_prob_NL, float), np.asarray(gold_N)

    def loss(log_temperature: float) -> float:
        scaled_NL = special.log_softmax(log_prob_NL / np.exp(log_temperature), axis=1)
        return -scaled_NL[np.arange(len(gold_N)), gold_N].mean()

    bounds = (-np.log(_MOST), np.log(_MOST))
    within = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x
    # A loss that falls towards a bound becomes flat to rounding, and the search stops anywhere.
    return float(np.exp(min((*bounds, within), key=loss)))


def fit_binary_temperature(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Returns the T > 0 for which sigmoid(logit(confidence) / T) best predicts correctness.

    For open answers, of which only the given one has a known probability: "wrong" and "correct" are the two
    labels of `fit_temperature`.

    Args:
      correct: (N,) bool, or 0 and 1.
    """
    logit_N = _logit(confidence)
    return fit_temperature(np.stack([np.zeros_like(logit_N), logit_N], axis=1), np.asarray(correct, int))


def scale_confidence(confidence: ArrayLike, temperature: float) -> np.ndarray:
    """Returns sigmoid(logit(confidence) / temperature), (N,)."""
    return special.expit(_logit(confidence) / temperature)


def _logit(confidence: ArrayLike) -> np.ndarray:
    # A float32 probability can round to 1.
    return special.logit(np.clip(np.asarray(confidence, float), 1e-7, 1 - 1e-7))


def at_limit(temperature: float) -> bool:
    """Whether a fitted temperature is at a bound of the search: the fit has no optimum."""
    return bool(np.isclose(max(temperature, 1 / temperature), _MOST))
