"""Shapes: everything fits, little is wasted, compiles are few."""

import itertools

import numpy as np
import pytest

from cot_jax.data.shapes import cheapest, choose_shapes


def area(shapes):
    return shapes.prod(axis=-1).astype(float)


def tokens(shapes):
    return shapes.sum(axis=-1).astype(float)


def _total(shapes, lengths, cost):
    return sum(min(cost(np.array(s)) for s in shapes if (row <= s).all()) for row in lengths)


@pytest.fixture
def lengths():
    rng = np.random.default_rng(0)
    question = rng.geometric(0.05, size=300).clip(max=60)
    return np.stack([question, (question * rng.uniform(0.1, 1.2, 300)).astype(int)], axis=1)


@pytest.mark.parametrize("cost", [area, tokens])
def test_every_example_fits_its_shape(lengths, cost):
    shapes, which = choose_shapes(lengths, cost, 6)
    assert 1 < len(shapes) <= 6
    assert all((row <= shapes[i]).all() for row, i in zip(lengths, which, strict=True))
    assert all(width % 8 == 0 for shape in shapes for width in shape)
    costs = [cost(np.array(shape)) for shape in shapes]
    assert costs == sorted(costs)


def test_near_the_best_of_all_choices():
    lengths = np.random.default_rng(1).integers(1, 33, size=(60, 2))
    shapes, _ = choose_shapes(lengths, area, 3)
    grid = list(itertools.product(range(8, 40, 8), repeat=2))
    top = tuple(-(-lengths.max(axis=0) // 8) * 8)
    best = min(_total([*pair, top], lengths, area) for pair in itertools.combinations(grid, len(shapes) - 1))
    assert _total(shapes, lengths, area) <= 1.1 * best


def test_a_shape_must_pay_for_its_compile():
    # One example in a hundred is half as long: a shape for it would save 0.5 %.
    lengths = np.array([[16]] * 99 + [[8]])
    assert choose_shapes(lengths, tokens, 8)[0] == [(16,)]
    # Half of them: it would save 25 %.
    assert choose_shapes(np.array([[16], [8]] * 50), tokens, 8)[0] == [(8,), (16,)]


def test_no_shape_serves_less_than_asked(lengths):
    for least in (1, 40, 150, 1000):
        shapes, which = choose_shapes(lengths, area, 8, least_count=least)
        assert np.bincount(which).min() >= min(least, len(lengths))
        assert len(shapes) > 1 or least >= 150


def test_very_many_lengths_are_coarsened():
    lengths = np.random.default_rng(2).integers(1, 1000, size=(5000, 2))
    shapes, which = choose_shapes(lengths, area, 4)
    assert len(shapes) <= 4
    assert (lengths <= np.array(shapes)[which]).all()


def test_empty_sequences_take_the_least_width():
    assert choose_shapes(np.array([[0, 3]]), tokens, 8)[0] == [(8, 8)]


def test_cheapest_that_holds():
    shapes = [(8, 16), (16, 8), (24, 24)]
    assert cheapest(shapes, np.array([8, 16])) == (8, 16)
    assert cheapest(shapes, np.array([9, 8])) == (16, 8)
    assert cheapest(shapes, np.array([9, 9])) == (24, 24)
