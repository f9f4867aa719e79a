"""Choosing among continuations by their likelihood: the accuracies of lm-evaluation-harness."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Choices(NamedTuple):
    """Of N questions the numbers, (N,) int, of the continuations that are chosen.

    Attributes:
      acc: those of the highest log-probability.
      acc_norm: those of the highest log-probability a character.
    """

    acc: np.ndarray
    acc_norm: np.ndarray


class LikelihoodAccuracy(NamedTuple):
    """Two shares of questions whose right continuation is chosen, by either of `Choices`."""

    acc: float
    acc_norm: float


def choices(log_probs_NC: np.ndarray, characters_NC: np.ndarray) -> Choices:
    """Returns which of C continuations are the most probable; of equals the first one is chosen.

    Args:
      log_probs_NC: (N, C) sums of the log-probabilities of a continuation's tokens, leading space included.
      characters_NC: (N, C) lengths of the continuations in characters, without that space.

    Raises:
      ValueError: no questions, shapes that do not fit, a log-probability that is NaN or positive, or a length
        below 1.
    """
    log_probs_NC, characters_NC = map(np.asarray, (log_probs_NC, characters_NC))
    if log_probs_NC.ndim != 2 or not log_probs_NC.size:
        raise ValueError(f"expected (N, C) log-probabilities, found {log_probs_NC.shape}")
    if characters_NC.shape != log_probs_NC.shape:
        raise ValueError(f"{log_probs_NC.shape} log-probabilities, {characters_NC.shape} lengths")
    if not np.all(log_probs_NC <= 0):
        raise ValueError("a log-probability is NaN or positive")
    if not np.all(characters_NC >= 1):
        raise ValueError("a continuation without characters has no log-probability a character")
    return Choices(log_probs_NC.argmax(axis=1), (log_probs_NC / characters_NC).argmax(axis=1))


def likelihood_accuracy(
    log_probs_NC: np.ndarray, characters_NC: np.ndarray, golds: Sequence[int]
) -> LikelihoodAccuracy:
    """Returns how often the right one of C continuations is the most probable.

    As lm-evaluation-harness reports it for HellaSwag. It is another measure than the share of right written
    answers (`equality.accuracy`), and the two do not compare.

    Args:
      log_probs_NC, characters_NC: as in `choices`.
      golds: N numbers of the right ones, from 0.

    Raises:
      ValueError: as `choices`, or a gold that is missing or none of the continuations.
    """
    chosen, golds_N = choices(log_probs_NC, characters_NC), np.asarray(golds)
    N, C = np.shape(log_probs_NC)
    if golds_N.shape != (N,):
        raise ValueError(f"{N} questions, {golds_N.shape} golds")
    if not np.all((golds_N >= 0) & (golds_N < C)):
        raise ValueError(f"a gold is none of the {C} continuations")
    return LikelihoodAccuracy(*(float(np.mean(its == golds_N)) for its in chosen))
