"""Batches: the order is a function of (seed, step), widths are the best there are, nothing is lost."""

import itertools

import numpy as np
import pytest

from cot_jax.data.batches import (
    Ragged,
    TokenizedView,
    Widths,
    choose_widths,
    evaluation_rows,
    make_batch,
    training_rows,
)


def test_ragged_takes_pads_and_leaves_empty():
    ragged = Ragged([[5, 6, 7], [], [8]])
    ids, lengths = ragged.take(np.array([2, 0, -1, 1]), 4, pad_id=9)
    np.testing.assert_array_equal(ids, [[8, 9, 9, 9], [5, 6, 7, 9], [9, 9, 9, 9], [9, 9, 9, 9]])
    np.testing.assert_array_equal(lengths, [1, 3, 0, 0])
    assert ids.dtype == lengths.dtype == np.int32
    with pytest.raises(ValueError, match="3 tokens does not fit a width of 2"):
        ragged.take(np.array([0]), 2, pad_id=0)


def test_every_epoch_visits_every_example_once():
    stream = np.concatenate([training_rows(7, 10, step, 4) for step in range(10)])
    epochs = stream.reshape(4, 10)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_is_a_function_of_seed_and_step():
    first = [training_rows(0, 1000, step, 64) for step in range(40)]
    np.testing.assert_array_equal(first[33], training_rows(0, 1000, 33, 64))
    assert not np.array_equal(first[0], training_rows(1, 1000, 0, 64))


def test_a_batch_may_be_larger_than_the_data():
    rows = training_rows(0, 3, 5, 8)
    assert len(rows) == 8
    assert np.bincount(rows, minlength=3).min() >= 2


def _expected_width(lengths, batch_size, widths):
    def chance(width):
        return np.mean(lengths <= width) ** batch_size

    return sum(
        width * (chance(width) - (chance(widths[i - 1]) if i else 0)) for i, width in enumerate(widths)
    )


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_widths_are_the_best_of_all(batch_size, most):
    lengths = np.random.default_rng(0).geometric(0.04, size=400).clip(max=79)
    longest = -(-int(lengths.max()) // 8) * 8
    everything = [
        (*combination, longest)
        for n in range(most)
        for combination in itertools.combinations(range(8, longest, 8), n)
    ]
    best = min(_expected_width(lengths, batch_size, widths) for widths in everything)
    chosen = choose_widths(lengths, batch_size, most)
    assert chosen[-1] == longest
    assert len(chosen) <= most
    assert best * (1 - 1e-12) <= _expected_width(lengths, batch_size, chosen) <= 1.02 * best
    fewer = [w for w in everything if len(w) < len(chosen)]
    assert all(_expected_width(lengths, batch_size, w) > 1.02 * best for w in fewer)


def test_widths_of_nothing():
    assert choose_widths(np.array([], np.int32), 4, 2) == (8,)
    assert choose_widths(np.array([0, 0]), 4, 2) == (8,)


def test_batch_has_one_input_width_and_targets_at_their_own():
    views = {
        "predict": TokenizedView(Ragged([[1] * 9, [1] * 3]), Ragged([[2] * 2, [2]])),
        "explain": TokenizedView(Ragged([[1] * 10, [1] * 4]), Ragged([[3] * 20, []])),
    }
    widths = Widths.choose(views, batch_size=1, most=2)
    batch = make_batch(views, np.array([1, 0]), widths, pad_id=0)
    assert batch["predict"].input_ids.shape == batch["explain"].input_ids.shape == (2, 16)
    assert batch["predict"].target_ids.shape == (2, 8)
    assert batch["explain"].target_ids.shape == (2, 24)
    np.testing.assert_array_equal(batch["explain"].target_length, [0, 20])
    short = make_batch(views, np.array([1]), widths, pad_id=0)
    assert short["predict"].input_ids.shape == (1, 8)
    assert short["explain"].target_ids.shape == (1, 8)


def test_evaluation_visits_everything_once_longest_first():
    lengths = np.array([3, 9, 1, 9, 4])
    batches = list(evaluation_rows(lengths, 2))
    np.testing.assert_array_equal(batches, [[1, 3], [4, 0], [2, -1]])
