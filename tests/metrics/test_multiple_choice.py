"""acc and acc_norm: by hand, and as properties."""

import numpy as np
import pytest

from cot_jax.metrics.multiple_choice import likelihood_accuracy


def test_by_hand():
    log_probs = [[-10.0, -12.0, -30.0, -40.0], [-8.0, -9.0, -10.0, -11.0]]
    characters = [[10, 24, 15, 20], [4, 9, 8, 10]]
    # Chosen: 0 and 0; a character -1, -0.5, -2, -2 and -2, -1, -1.25, -1.1: 1 and 1.
    assert likelihood_accuracy(log_probs, characters, [0, 1]) == (0.5, 0.5)
    assert likelihood_accuracy(log_probs, characters, [0, 0]) == (1.0, 0.0)
    assert likelihood_accuracy(log_probs, characters, [1, 1]) == (0.0, 1.0)


def test_of_equals_the_first_is_chosen():
    assert likelihood_accuracy([[-2.0, -2.0, -3.0, -3.0]], [[1, 1, 1, 1]], [0]) == (1.0, 1.0)
    assert likelihood_accuracy([[-2.0, -2.0, -3.0, -3.0]], [[1, 1, 1, 1]], [1]) == (0.0, 0.0)


def test_what_cannot_happen_is_never_chosen():
    assert likelihood_accuracy([[-np.inf, -1e9]], [[1, 1]], [1]) == (1.0, 1.0)


def test_order_of_endings_and_equal_lengths_do_not_matter():
    rng = np.random.default_rng(0)
    log_probs, golds = -rng.exponential(50, (200, 4)), rng.integers(4, size=200)
    characters = rng.integers(1, 200, (200, 4))
    found = likelihood_accuracy(log_probs, characters, golds)
    assert found.acc == np.mean([row.argmax() == gold for row, gold in zip(log_probs, golds, strict=True)])
    order = rng.permutation(4)
    shuffled = likelihood_accuracy(log_probs[:, order], characters[:, order], np.argsort(order)[golds])
    assert shuffled == found
    same = likelihood_accuracy(log_probs, np.full((200, 4), 7), golds)
    assert same.acc_norm == same.acc == found.acc
    # The sum over all four choices of being right is one.
    each = [likelihood_accuracy(log_probs, characters, np.full(200, n)) for n in range(4)]
    np.testing.assert_allclose(np.sum(each, axis=0), [1, 1])


@pytest.mark.parametrize(
    ("log_probs", "characters", "golds", "message"),
    [
        (np.zeros((0, 4)), np.zeros((0, 4)), [], r"expected \(N, C\) log-probabilities, found \(0, 4\)"),
        ([-1.0, -2.0], [1, 1], [0], r"found \(2,\)"),
        ([[-1.0, -2.0]], [[1, 1, 1]], [0], r"\(1, 2\) log-probabilities, \(1, 3\) lengths"),
        ([[-1.0, -2.0]], [[1, 1]], [0, 1], r"1 questions, \(2,\) golds"),
        ([[-1.0, np.nan]], [[1, 1]], [0], "NaN or positive"),
        ([[-1.0, 0.5]], [[1, 1]], [0], "NaN or positive"),
        ([[-1.0, -2.0]], [[1, 0]], [0], "without characters"),
        ([[-1.0, -2.0]], [[1, 1]], [2], "not one of the 2 continuations"),
        ([[-1.0, -2.0]], [[1, 1]], [-1], "not one of the 2 continuations"),
    ],
)
def test_what_does_not_fit_is_refused(log_probs, characters, golds, message):
    with pytest.raises(ValueError, match=message):
        likelihood_accuracy(log_probs, characters, golds)
