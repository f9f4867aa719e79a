"""Batches: the order is a function of (seed, step), every batch fits a shape, nothing is lost."""

import itertools

import numpy as np
import pytest

from cot_jax.config import default_config, freeze
from cot_jax.data import tasks
from cot_jax.data.batches import ORDERS, Batches, Ragged, TokenizedView, evaluation_rows, make_batch
from cot_jax.data.views import METHODS
from cot_jax.models.student import from_scratch
from cot_jax.text.tokenizer import load
from cot_jax.training.experiment import tokenize


def test_ragged_takes_pads_and_leaves_empty():
    ragged = Ragged([[5, 6, 7], [], [8]])
    ids, lengths = ragged.take(np.array([2, 0, -1, 1]), 4, pad_id=9)
    np.testing.assert_array_equal(ids, [[8, 9, 9, 9], [5, 6, 7, 9], [9, 9, 9, 9], [9, 9, 9, 9]])
    np.testing.assert_array_equal(lengths, [1, 3, 0, 0])
    assert ids.dtype == lengths.dtype == np.int32
    with pytest.raises(ValueError, match="3 tokens does not fit a width of 2"):
        ragged.take(np.array([0]), 2, pad_id=0)


def _views(examples, seed=0):
    """Two views whose rationales are long where their questions are."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=examples)
    inputs = Ragged([[int(row)] * n for row, n in enumerate(lengths, start=1)])
    return {
        "predict": TokenizedView(inputs, Ragged([[2, 1]] * examples)),
        "explain": TokenizedView(inputs, Ragged([[3] * n for n in lengths])),
    }


def _batches(views, order="random", batch_size=8, steps=200, seed=0, max_shapes=6, overlap=False):
    return Batches(
        views,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        order=order,
        overlap=overlap,
        max_shapes=max_shapes,
        cost=lambda shapes: shapes.sum(axis=-1).astype(float),
        pad_id=0,
    )


def test_every_epoch_visits_every_example_once():
    batches = _batches(_views(10), batch_size=4)
    epochs = np.concatenate([batches.rows(step) for step in range(10)]).reshape(4, 10)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("order", ORDERS)
def test_order_is_a_function_of_seed_and_step(order):
    views = _views(500)
    first = _batches(views, order)
    rows = [first.rows(step) for step in range(100)]
    again = _batches(views, order)
    for step in (99, 3, 70):
        np.testing.assert_array_equal(again.rows(step), rows[step])
    if order != "sequential":
        assert not np.array_equal(_batches(views, order, seed=1).rows(0), rows[0])


def test_a_batch_may_be_larger_than_the_data():
    rows = _batches(_views(3), batch_size=8).rows(5)
    assert len(rows) == 8
    assert np.bincount(rows, minlength=3).min() >= 2


def test_grouped_batches_visit_everything_equally_often():
    views = _views(500)
    batches = _batches(views, "grouped", batch_size=8, steps=620)
    assert len(batches.shapes) > 2
    steps = 620  # nearly ten epochs of 62.5 batches
    visits = np.bincount(np.concatenate([batches.rows(step) for step in range(steps)]), minlength=500)
    # A group's stream may be a batch ahead or behind.
    assert (visits.min(), visits.max()) in {(9, 10), (10, 10), (9, 11), (10, 11)}
    shapes = [batches.shape(step) for step in range(62)]
    assert len(set(shapes)) > 2
    assert shapes != sorted(shapes), "the groups take turns"


def test_grouped_batches_pad_less():
    views = _views(500)
    random, grouped = _batches(views), _batches(views, "grouped")
    assert grouped.efficiency > 1.3 * random.efficiency
    padded = [np.sum(random.shape(step)) for step in range(200)]
    lengths = views["explain"].inputs.lengths
    real = [2 * lengths[random.rows(step)].mean() + 2 for step in range(200)]
    np.testing.assert_allclose(random.efficiency, np.sum(real) / np.sum(padded), rtol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_overlapping_batches_share_half(order):
    views = _views(500)
    batches = _batches(views, order, overlap=True)
    rows = [batches.rows(step) for step in range(260)]
    linked = [np.array_equal(now[0::2], before[1::2]) for before, now in itertools.pairwise(rows)]
    if order == "grouped":  # where another group has its turn, the chain breaks
        assert 0.7 < np.mean(linked) < 1
    else:
        assert all(linked)
    # Two epochs of 500 / 4 batches, in which every example is seen twice.
    visits = np.bincount(np.concatenate(rows[:250]), minlength=500)
    assert visits.mean() == 4
    assert (visits.min(), visits.max()) in {(4, 4), (3, 4), (3, 5), (2, 6), (3, 6), (2, 5)}
    np.testing.assert_array_equal(_batches(views, order, overlap=True).rows(100), rows[100])
    # The content of an example is the same in both of its batches.
    for step in np.flatnonzero(linked)[:20]:
        before, now = batches(step), batches(step + 1)
        for name in views:
            old, new = (
                [ids[:n].tolist() for ids, n in zip(b.target_ids, b.target_length, strict=True)]
                for b in (before.views[name], now.views[name])
            )
            assert old[1::2] == new[0::2]
        np.testing.assert_array_equal(before.example[1::2], now.example[0::2])


def test_sequential_is_the_order_of_the_data():
    batches = _batches(_views(10), "sequential", batch_size=4)
    np.testing.assert_array_equal(
        [batches.rows(s) for s in range(3)], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    )
    halves = _batches(_views(10), "sequential", batch_size=4, overlap=True)
    np.testing.assert_array_equal([halves.rows(s) for s in range(2)], [[0, 2, 1, 3], [2, 4, 3, 5]])


def test_every_batch_has_one_of_the_shapes_even_beyond_the_sample(monkeypatch):
    monkeypatch.setattr("cot_jax.data.batches._MOST_SAMPLED", 3)
    views = _views(300)
    batches = _batches(views, steps=100, batch_size=2)
    for step in range(100):
        batch = batches(step)
        shape = (
            batch.views["predict"].input_ids.shape[1],
            *(v.target_ids.shape[1] for v in batch.views.values()),
        )
        assert shape in batches.shapes


def test_batch_has_one_input_width_and_targets_at_their_own():
    views = {
        "predict": TokenizedView(Ragged([[1] * 9, [1] * 3]), Ragged([[2] * 2, [2]])),
        "explain": TokenizedView(Ragged([[1] * 10, [1] * 4]), Ragged([[3] * 20, []])),
    }
    batch = make_batch(views, np.array([1, 0]), (16, 8, 24), pad_id=0)
    assert batch.views["predict"].input_ids.shape == batch.views["explain"].input_ids.shape == (2, 16)
    assert batch.views["predict"].target_ids.shape == (2, 8)
    assert batch.views["explain"].target_ids.shape == (2, 24)
    np.testing.assert_array_equal(batch.views["explain"].target_length, [0, 20])


def _several(examples):
    """A view whose example n has n % 3 + 1 targets: [n] * (n % 7 + 1), and 10, and 20 tokens more."""
    counts = np.arange(examples) % 3 + 1
    targets = [[n] * (10 * k + n % 7 + 1) for n, count in enumerate(counts) for k in range(count)]
    views = _views(examples)
    view = TokenizedView(views["explain"].inputs, Ragged(targets), np.cumsum([0, *counts]))
    return {"predict": views["predict"], "explain": view}, counts


def _shown(batch):
    """Returns (example, number of its target) of every row."""
    ids, lengths = batch.views["explain"][2:]
    for n, row, length in zip(batch.example, ids, lengths, strict=True):
        assert (row[:length] == n).all()
    return [(int(n), int(length - 1 - n % 7) // 10) for n, length in zip(batch.example, lengths, strict=True)]


@pytest.mark.parametrize("order", ORDERS)
def test_every_target_of_an_example_has_its_turn(order):
    views, counts = _several(60)
    longest = views["explain"].longest_targets()
    np.testing.assert_array_equal(longest, 10 * (counts - 1) + np.arange(60) % 7 + 1)
    batches = _batches(views, order, steps=60, max_shapes=4)
    seen = {n: [] for n in range(60)}
    for step in range(60):
        for n, target in _shown(batches(step)):
            seen[n].append(target)
    for n, targets in seen.items():
        assert len(targets) >= 3
        assert set(targets) == set(range(counts[n]))
        assert (np.diff(targets) % counts[n] == 1 % counts[n]).all()
    # Not everybody begins with the first one, and a resumed run sees what it would have seen.
    assert {targets[0] for n, targets in seen.items() if counts[n] == 3} == {0, 1, 2}
    assert _shown(_batches(views, order, steps=60, max_shapes=4)(37)) == _shown(batches(37))
    other = _batches(views, "sequential", seed=1)(0)
    assert _shown(other) != _shown(_batches(views, "sequential")(0))


def test_overlapping_batches_see_the_same_target_of_an_example():
    """What is kept of an example is of the target that it is compared on."""
    views, _ = _several(60)
    batches = _batches(views, overlap=True, steps=60)
    shown = [_shown(batches(step)) for step in range(60)]
    for before, now in itertools.pairwise(shown):
        assert now[::2] == before[1::2]
    assert len({pair for batch in shown for pair in batch}) == 120


def test_a_row_that_is_none_has_no_target():
    views, _ = _several(6)
    batch = make_batch(views, np.array([5, -1]), (64, 8, 32), pad_id=0, turns=1)
    assert batch.views["explain"].target_length.tolist() == [10 + 6, 0]


@pytest.mark.parametrize("task", ["svamp", "cqa"])
def test_grouped_real_data_is_seven_tenths_real_in_few_shapes(task, data_root, tokenizers_root):
    # T5-base, batches of 64: what a run on an accelerator would pay.
    student = from_scratch("base", vocab_size=32100, dropout_rate=0, dtype="float32", pad_id=0, eos_id=1)
    tokenizer = load(str(tokenizers_root / "t5"))
    examples = tasks.load(task, data_root).train
    config = freeze(default_config())
    views = tokenize(METHODS["dss"], examples, tokenizer, config).views
    options = {"batch_size": 64, "steps": 1000, "seed": 0, "max_shapes": 16, "overlap": False, "pad_id": 0}
    batches = Batches(
        views,
        order="grouped",
        cost=lambda shapes: student.flops(shapes[..., 0], [shapes[..., 1], shapes[..., 2]]),
        **options,
    )
    assert len(batches.shapes) <= 16
    assert batches.efficiency >= 0.70


def test_evaluation_visits_everything_once_longest_first():
    lengths = np.array([3, 9, 1, 9, 4])
    batches = list(evaluation_rows(lengths, 2))
    np.testing.assert_array_equal(batches, [[1, 3], [4, 0], [2, -1]])
