"""acc and acc_norm: by hand, and as properties."""

import numpy as np
import pytest

from cot_jax.metrics.multiple_choice import choices


def likelihood_accuracy(log_probs, characters, golds):
    """(acc, acc_norm), the shares of right choices."""
    found = choices(np.array(log_probs), np.array(characters))
    return tuple(float(np.mean(found[name] == golds)) for name in ("acc", "acc_norm"))


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
    assert found[0] == np.mean([row.argmax() == gold for row, gold in zip(log_probs, golds, strict=True)])
    order = rng.permutation(4)
    shuffled = likelihood_accuracy(log_probs[:, order], characters[:, order], np.argsort(order)[golds])
    assert shuffled == found
    same = likelihood_accuracy(log_probs, np.full((200, 4), 7), golds)
    assert same == (found[0], found[0])
    # The sum over all four choices of being right is one.
    each = [likelihood_accuracy(log_probs, characters, np.full(200, n)) for n in range(4)]
    np.testing.assert_allclose(np.sum(each, axis=0), [1, 1])


@pytest.mark.parametrize("wrong", [np.nan, 0.5])
def test_a_number_that_is_no_log_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="NaN or positive"):
        choices(np.array([[-1.0, wrong]]), np.ones((1, 2)))
