"""Shapes: everything fits, little is left empty, compiles are few."""

import itertools

import numpy as np
import pytest

from cot_jax.data.lengths import (
    ViewShape,
    as_shape,
    cheapest,
    choose_shapes,
    needed,
    padded_work,
    real_work,
)


def area(shapes):
    return shapes.prod(axis=-1).astype(float)


def tokens(shapes):
    return shapes.sum(axis=-1).astype(float)


def _total(shapes, needs, cost):
    return sum(min(cost(np.array(s)) for s in shapes if (row <= s).all()) for row in needs)


def test_slots_are_those_of_the_fullest_group_and_widths_those_of_the_longest_sequence():
    lengths = np.array([[1, 2, 7, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(needed(lengths, 1), [[11, 7], [0, 0]])
    np.testing.assert_array_equal(needed(lengths, 2), [[8, 7], [0, 0]])


def test_work_of_tokens_and_of_padded_batches():
    """One batch of three examples, two views: inputs of 1, 2, 3 tokens; targets of 4, 0, 2 and of 5, 5, 5."""
    inputs = [1, 2, 3]
    real = real_work(np.array([[inputs, [4, 0, 2]], [inputs, [5, 5, 5]]]))
    assert [tuple(map(int, work)) for work in real] == [(6, 6, 14, 20, 10), (6, 15, 14, 75, 30)]
    shape = (ViewShape((2, 3), (4, 5)), ViewShape((2, 3), (6, 7)))
    padded = padded_work(np.array([shape, shape]), batch_size=3, groups=3)
    for work, (Y, T) in zip(padded, [(4, 5), (6, 7)], strict=True):
        np.testing.assert_array_equal(work, [[x] * 2 for x in (6, 3 * Y, 27, 3 * T * T, 9 * T)])
    assert as_shape(np.array(shape)) == shape


@pytest.fixture
def needs():
    rng = np.random.default_rng(0)
    question = rng.geometric(0.05, size=300).clip(max=60)
    return np.stack([question, (question * rng.uniform(0.1, 1.2, 300)).astype(int)], axis=1)


@pytest.mark.parametrize("cost", [area, tokens])
def test_every_batch_fits_and_the_last_shape_holds_them_all(needs, cost):
    shapes = choose_shapes(needs, cost, 0.01)
    assert shapes.shape == (3, 2)
    assert (needs <= shapes[cheapest(shapes, needs)]).all()
    assert (shapes % 8 == 0).all()
    assert (needs.max(axis=0) <= shapes[-1]).all()
    costs = cost(shapes).tolist()
    assert costs == sorted(costs)


def test_near_the_best_of_all_choices():
    needs = np.random.default_rng(1).integers(1, 33, size=(60, 2))
    shapes = choose_shapes(needs, area, 0.01)
    assert len(shapes) == 3
    grid = list(itertools.product(range(8, 40, 8), repeat=2))
    best = min(_total([*pair, (32, 32)], needs, area) for pair in itertools.combinations(grid, 2))
    assert _total(shapes, needs, area) <= 1.1 * best


def test_a_program_must_pay_for_its_compile():
    # One batch in a hundred is half as long: a shape for it would save 0.5 %.
    needs = np.array([[16]] * 99 + [[8]])
    assert choose_shapes(needs, tokens, 0.03).tolist() == [[16]]
    assert choose_shapes(needs, tokens, 0.003).tolist() == [[8], [16]]
    # Half of them: it would save 25 %.
    assert choose_shapes(np.array([[16], [8]] * 50), tokens, 0.03).tolist() == [[8], [16]]


def test_no_more_than_three_programs():
    assert choose_shapes(np.arange(8, 808, 8)[:, None], tokens, 1e-6).shape == (3, 1)


def test_empty_sequences_take_the_least_width():
    assert choose_shapes(np.array([[0, 3]]), tokens, 0.03).tolist() == [[8, 8]]


def test_cheapest_that_holds():
    shapes = np.array([(8, 16), (16, 8), (24, 24)])
    np.testing.assert_array_equal(cheapest(shapes, np.array([(8, 16), (9, 8), (9, 9)])), [0, 1, 2])
    assert cheapest(shapes, np.array([9, 8])) == 1
