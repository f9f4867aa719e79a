"""Choice among continuations by their likelihood, as in lm-evaluation-harness."""

import numpy as np


def choices(log_probs_NC: np.ndarray, characters_NC: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the most probable of C continuations, (N,) int, by two rules; the first of equals.

    `acc` takes the highest log-probability, `acc_norm` the highest per character. Their accuracies, reported
    for HellaSwag, are not comparable with the share of right written answers (`equality.accuracy`).

    Args:
      log_probs_NC: (N, C) summed log-probabilities of a continuation's tokens, including a leading space.
      characters_NC: (N, C) lengths of the continuations in characters, without that space.

    Raises:
      ValueError: a log-probability is NaN or positive.
    """
    if not np.all(log_probs_NC <= 0):
        raise ValueError("a log-probability is NaN or positive")
    return {"acc": log_probs_NC.argmax(axis=1), "acc_norm": (log_probs_NC / characters_NC).argmax(axis=1)}
