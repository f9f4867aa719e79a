"""Choice among continuations by their likelihood: the accuracies of lm-evaluation-harness."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class ByLikelihood(NamedTuple):
    """Choices (N,) int, or their accuracy, by two rules.

    Attributes:
      acc: the highest log-probability.
      acc_norm: the highest log-probability per character.
    """

    acc: Any
    acc_norm: Any


def choices(log_probs_NC: np.ndarray, characters_NC: np.ndarray) -> ByLikelihood:
    """Returns the most probable of C continuations; the first of equals.

    Args:
      log_probs_NC: (N, C) summed log-probabilities of a continuation's tokens, including a leading space.
      characters_NC: (N, C) lengths of the continuations in characters, without that space.

    Raises:
      ValueError: no questions, different shapes, a log-probability that is NaN or positive, or a length
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
        raise ValueError("a continuation without characters has no log-probability per character")
    return ByLikelihood(log_probs_NC.argmax(axis=1), (log_probs_NC / characters_NC).argmax(axis=1))


def likelihood_accuracy(
    log_probs_NC: np.ndarray, characters_NC: np.ndarray, golds: Sequence[int]
) -> ByLikelihood:
    """Returns how often the right one of C continuations is the most probable.

    lm-evaluation-harness reports it for HellaSwag. It is not comparable with the share of right written
    answers (`equality.accuracy`).

    Args:
      log_probs_NC, characters_NC: as in `choices`.
      golds: N indices of the right continuations, from 0.

    Raises:
      ValueError: as in `choices`, or a gold is missing or out of range.
    """
    chosen, golds_N = choices(log_probs_NC, characters_NC), np.asarray(golds)
    N, C = np.shape(log_probs_NC)
    if golds_N.shape != (N,):
        raise ValueError(f"{N} questions, {golds_N.shape} golds")
    if not np.all((golds_N >= 0) & (golds_N < C)):
        raise ValueError(f"a gold is not one of the {C} continuations")
    return ByLikelihood(*(float(np.mean(its == golds_N)) for its in chosen))
