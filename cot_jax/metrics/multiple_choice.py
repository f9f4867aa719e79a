"""Choosing among continuations by their likelihood: the accuracies of lm-evaluation-harness."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class LikelihoodAccuracy(NamedTuple):
    """Two shares of questions whose right continuation is chosen.

    Attributes:
      acc: chosen is the continuation of the highest log-probability.
      acc_norm: the one of the highest log-probability a character.
    """

    acc: float
    acc_norm: float


def likelihood_accuracy(
    log_probs_NC: np.ndarray, characters_NC: np.ndarray, golds: Sequence[int]
) -> LikelihoodAccuracy:
    """Returns how often the right one of C continuations is the most probable.

    As lm-evaluation-harness reports it for HellaSwag; of equals the first one is chosen. It is another
    measure than the share of right written answers (`equality.accuracy`), and the two do not compare.

    Args:
      log_probs_NC: (N, C) sums of the log-probabilities of a continuation's tokens, leading space included.
      characters_NC: (N, C) lengths of the continuations in characters, without that space.
      golds: N numbers of the right ones, from 0.

    Raises:
      ValueError: no questions, shapes that do not fit, a log-probability that is NaN or positive, a length
        below 1 or a number that is none of the continuations'.
    """
    log_probs_NC, characters_NC, golds_N = map(np.asarray, (log_probs_NC, characters_NC, golds))
    if log_probs_NC.ndim != 2 or not log_probs_NC.size:
        raise ValueError(f"expected (N, C) log-probabilities, found {log_probs_NC.shape}")
    if characters_NC.shape != log_probs_NC.shape or golds_N.shape != log_probs_NC.shape[:1]:
        raise ValueError(
            f"{log_probs_NC.shape} log-probabilities, {characters_NC.shape} lengths, {golds_N.shape} golds"
        )
    if not np.all(log_probs_NC <= 0):
        raise ValueError("a log-probability is NaN or positive")
    if not np.all(characters_NC >= 1):
        raise ValueError("a continuation without characters has no log-probability a character")
    if not np.all((golds_N >= 0) & (golds_N < log_probs_NC.shape[1])):
        raise ValueError(f"a gold is none of the {log_probs_NC.shape[1]} continuations")
    return LikelihoodAccuracy(
        acc=float(np.mean(log_probs_NC.argmax(axis=1) == golds_N)),
        acc_norm=float(np.mean((log_probs_NC / characters_NC).argmax(axis=1) == golds_N)),
    )
