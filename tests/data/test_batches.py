"""Batches: the order is a function of (seed, step), every batch fits a shape, nothing is lost."""

import itertools

import numpy as np
import pytest

from cot_jax.config import DataConfig
from cot_jax.data import tasks
from cot_jax.data.batches import (
    Batches,
    Ragged,
    TokenizedView,
    evaluation_rows,
    make_batch,
    question_shapes,
    stream_shapes,
    view_lengths,
)
from cot_jax.data.examples import ORDERS
from cot_jax.data.lengths import ViewShape, as_shape, cheapest, needed
from cot_jax.data.views import METHODS
from cot_jax.text.formats import load
from cot_jax.training.encoding import tokenize


def _flops(works):
    """Of a model of width 50: that much for a token, one for a pair of tokens."""
    return sum(
        50 * (work.inputs + work.targets) + work.input_pairs + work.target_pairs + work.cross_pairs
        for work in works
    )


def _split(tokens):
    """Returns the sequences of `Tokens`, lists of ids, in the order of the examples."""
    found = []
    for ids, lengths in zip(tokens.ids, tokens.length, strict=True):
        ends = np.cumsum(lengths)
        found += [ids[end - n : end].tolist() for end, n in zip(ends, lengths, strict=True)]
    return found


def test_tokens_are_flat_in_groups():
    ragged = Ragged([[5, 6, 7], [], [8]])
    tokens = ragged.tokens(np.array([2, 0, -1, 1]), (5, 3), pad_id=9)
    np.testing.assert_array_equal(tokens.ids, [[8, 5, 6, 7, 9]])
    np.testing.assert_array_equal(tokens.length, [[1, 3, 0, 0]])
    assert (tokens.width, tokens.slots) == (3, 5)
    tokens = ragged.tokens(np.array([2, 0, -1, 1]), (4, 3), pad_id=9, groups=2)
    np.testing.assert_array_equal(tokens.ids, [[8, 5, 6, 7], [9, 9, 9, 9]])
    np.testing.assert_array_equal(tokens.length, [[1, 3], [0, 0]])
    assert tokens.ids.dtype == tokens.length.dtype == np.int32


def test_a_prefix_is_stored_once_and_handed_to_every_group():
    ragged = Ragged([[5, 6, 7], [], [8]], prefix=[1, 2])
    assert ragged.lengths.tolist() == [3, 0, 1]
    assert ragged[0].tolist() == [5, 6, 7]
    bare = Ragged([[5, 6, 7], [], [8]])
    rows = np.array([2, 0, -1, 1])
    tokens, without = (some.tokens(rows, (4, 3), pad_id=9, groups=2) for some in (ragged, bare))
    np.testing.assert_array_equal(tokens.prefix, [[1, 2], [1, 2]])
    assert tokens.prefix.dtype == np.int32
    assert without.prefix is None
    for name in ("ids", "length", "width"):
        np.testing.assert_array_equal(getattr(tokens, name), getattr(without, name))
    view = TokenizedView(ragged, Ragged([[3], [], [4, 4]]))
    arrays = make_batch({"predict": view}, rows, [ViewShape((4, 3), (3, 2))], pad_id=9, groups=2)
    inputs, targets, _ = arrays.views["predict"]
    np.testing.assert_array_equal(inputs.prefix, tokens.prefix)
    assert targets.prefix is None


def test_sequences_are_continued_with_padding_up_to_the_least_length():
    tokens = Ragged([[5, 6, 7], [], [8]]).tokens(np.array([0, 1, 2]), (7, 3), pad_id=9, least=2)
    np.testing.assert_array_equal(tokens.ids, [[5, 6, 7, 9, 9, 8, 9]])
    np.testing.assert_array_equal(tokens.length, [[3, 2, 2]])


def test_sequences_that_do_not_fit_are_refused():
    ragged = Ragged([[5, 6, 7], [8]])
    with pytest.raises(ValueError, match="up to 3 tokens, 3 in a group, do not fit a width of 2 and 8 slots"):
        ragged.tokens(np.array([0]), (8, 2), pad_id=0)
    with pytest.raises(ValueError, match="up to 3 tokens, 4 in a group, do not fit a width of 3 and 3 slots"):
        ragged.tokens(np.array([1, 0]), (3, 3), pad_id=0)


def _views(examples, seed=0):
    """Two views whose rationales are long where their questions are."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 60, size=examples)
    inputs = Ragged([[int(row)] * n for row, n in enumerate(lengths, start=1)])
    return {
        "predict": TokenizedView(inputs, Ragged([[2, 1]] * examples)),
        "explain": TokenizedView(inputs, Ragged([[3] * n for n in lengths])),
    }


def _batches(views, order="random", *, batch_size=8, steps=200, seed=0, overlap=False, groups=1, padded=()):
    return Batches(
        views,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        order=order,
        overlap=overlap,
        groups=groups,
        padded=padded,
        flops=_flops,
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


# Of ten examples, example n with n % 3 + 1 targets: (example, number of its target) in steps 0, 7 and 12,345.
_PINNED = {
    ("random", False): ["90 60 00 22", "30 51 00 10", "41 90 82 00"],
    ("random", True): ["90 00 60 22", "50 71 00 90", "00 60 40 90"],
    ("sequential", False): ["00 11 22 30", "81 90 00 10", "00 11 22 30"],
    ("sequential", True): ["00 22 11 30", "40 60 50 71", "00 22 10 30"],
}


@pytest.mark.parametrize(("order", "overlap"), _PINNED)
def test_order_is_that_of_earlier_versions(order, overlap):
    """So that the results of earlier runs can be reproduced."""
    views, _ = _several(10)
    batches = _batches(views, order, batch_size=4, seed=3, steps=12_346, overlap=overlap)
    for step, pinned in zip((0, 7, 12_345), _PINNED[order, overlap], strict=True):
        assert " ".join(f"{n}{target}" for n, target in _shown(batches(step))) == pinned


def test_a_batch_may_be_larger_than_the_data():
    rows = _batches(_views(3), batch_size=8).rows(5)
    assert len(rows) == 8
    assert np.bincount(rows, minlength=3).min() >= 2


@pytest.mark.parametrize("order", ORDERS)
def test_overlapping_batches_share_half(order):
    views = _views(500)
    batches = _batches(views, order, steps=260, overlap=True, groups=2)
    rows = [batches.rows(step) for step in range(260)]
    assert all(np.array_equal(now[0::2], before[1::2]) for before, now in itertools.pairwise(rows))
    # Two epochs of 500 / 4 batches, in which every example is seen twice.
    visits = np.bincount(np.concatenate(rows[:250]), minlength=500)
    assert visits.mean() == 4
    assert 3 <= visits.min() <= visits.max() <= 5
    # The content of an example is the same in both of its batches, and so is its group.
    for before, now in itertools.pairwise(map(batches, range(20))):
        for name in views:
            old, new = (_split(batch.views[name].targets) for batch in (before, now))
            assert old[1::2] == new[0::2]
        np.testing.assert_array_equal(before.example[:, 1::2], now.example[:, 0::2])


def test_sequential_is_the_order_of_the_data():
    batches = _batches(_views(10), "sequential", batch_size=4)
    np.testing.assert_array_equal(
        [batches.rows(s) for s in range(3)], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    )
    halves = _batches(_views(10), "sequential", batch_size=4, overlap=True)
    np.testing.assert_array_equal([halves.rows(s) for s in range(2)], [[0, 2, 1, 3], [2, 4, 3, 5]])


def _shape(batch):
    return tuple(
        ViewShape((its.inputs.slots, its.inputs.width), (its.targets.slots, its.targets.width))
        for its in batch.views.values()
    )


@pytest.mark.parametrize(("batch_size", "groups", "padded"), [(8, 1, ()), (8, 8, ()), (16, 8, ("explain",))])
def test_every_batch_has_one_of_few_shapes(batch_size, groups, padded):
    """In blocks and samples of few steps, too; groups may have one or two examples."""
    views = _views(300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cot_jax.data.batches._BLOCK", 7)
        patch.setattr("cot_jax.data.batches._SAMPLED", 20)
        patch.setattr("cot_jax.data.batches._COMPILE_STEPS", 1)
        batches = _batches(views, steps=100, batch_size=batch_size, groups=groups, padded=padded)
    assert 1 < len(batches.shapes) <= 3
    used = [_shape(batches(step)) for step in range(100)]
    assert used == [batches.shape(step) for step in range(100)]
    assert set(used) <= set(batches.shapes)
    assert [
        max(axis) for axis in zip(*(np.ravel(shape) for shape in batches.shapes), strict=True)
    ] == np.ravel(batches.shapes[-1]).tolist()


@pytest.mark.parametrize("padded", [(), ("explain",)])
def test_filled_slots_and_efficiency_are_those_of_the_batches(padded):
    batches = _batches(_views(300), batch_size=16, steps=50, groups=2, padded=padded)
    made = [batches(step) for step in range(50)]
    for name, filled in batches.filled.items():
        for share, part in zip(filled, ("inputs", "targets"), strict=True):
            tokens = [getattr(batch.views[name], part) for batch in made]
            real = sum(t.length.sum() for t in tokens) / sum(t.ids.size for t in tokens)
            np.testing.assert_allclose(share, real, rtol=1e-12)
    real = padded_flops = 0
    for batch in made:
        for inputs, targets, _ in batch.views.values():
            S, T, (W, U) = inputs.length, targets.length, (inputs.width, targets.width)
            real += (50 * (S + T) + S * S + T * T + S * T).sum()
            padded_flops += 50 * (inputs.ids.size + targets.ids.size) + 16 * (W * W + U * U + W * U)
    np.testing.assert_allclose(batches.efficiency, real / padded_flops, rtol=1e-12)


def test_short_runs_compile_one_program():
    views = _views(300)
    assert len(_batches(views, steps=20).shapes) == 1
    assert len(_batches(views, steps=20_000).shapes) == 3


def test_batch_is_flat_in_every_view():
    views = {
        "predict": TokenizedView(Ragged([[1] * 9, [1] * 3, [1]]), Ragged([[2] * 2, [2], []])),
        "explain": TokenizedView(Ragged([[4] * 10, [5] * 4, [6]]), Ragged([[3] * 5, [], [7]])),
    }
    shape = (ViewShape((16, 9), (4, 2)), ViewShape((14, 10), (8, 6)))
    batch = make_batch(views, np.array([1, 0, 2, -1]), shape, pad_id=0, groups=2)
    assert _shape(batch) == shape
    np.testing.assert_array_equal(batch.example, [[1, 0], [2, -1]])
    np.testing.assert_array_equal(batch.views["predict"].targets.ids, [[2, 2, 2, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.views["explain"].inputs.ids[0], [5] * 4 + [4] * 10)
    np.testing.assert_array_equal(batch.views["explain"].inputs.length, [[4, 10], [1, 0]])
    for its in batch.views.values():
        np.testing.assert_array_equal(its.learned, its.targets.length)
        assert its.learned.dtype == batch.example.dtype == np.int32


def test_padded_targets_are_decoded_up_to_the_longest_of_the_batch():
    """The published form of mutual information reads padding: of every row, also of one without a target."""
    inputs = Ragged([[1]] * 4)
    views = {
        "predict": TokenizedView(inputs, Ragged([[2], [2, 3], [2], []])),
        "explain": TokenizedView(inputs, Ragged([[4] * 3, [], [5], [6] * 2])),
    }
    rows = np.arange(4)
    lengths = view_lengths(views, rows, padded=["explain"])
    np.testing.assert_array_equal(lengths[0], [[1, 1, 1, 1], [1, 2, 1, 0]])
    np.testing.assert_array_equal(lengths[1], [[1, 1, 1, 1], [3, 3, 3, 3]])
    shape = as_shape(needed(lengths, 2))
    batch = make_batch(views, rows, shape, 0, groups=2, padded=["explain"])
    explain = batch.views["explain"]
    np.testing.assert_array_equal(explain.targets.length, [[3, 3], [3, 3]])
    np.testing.assert_array_equal(explain.learned, [[3, 0], [1, 2]])
    np.testing.assert_array_equal(explain.targets.ids, [[4, 4, 4, 0, 0, 0], [5, 0, 0, 6, 6, 0]])
    np.testing.assert_array_equal(batch.views["predict"].targets.length, [[1, 2], [1, 0]])


def _several(examples):
    """A view whose example n has n % 3 + 1 targets: [n] * (n % 7 + 1), and 10, and 20 tokens more."""
    counts = np.arange(examples) % 3 + 1
    targets = [[n] * (10 * k + n % 7 + 1) for n, count in enumerate(counts) for k in range(count)]
    views = _views(examples)
    view = TokenizedView(views["explain"].inputs, Ragged(targets), np.cumsum([0, *counts]))
    return {"predict": views["predict"], "explain": view}, counts


def _shown(batch):
    """Returns (example, number of its target) of every row."""
    rows = batch.example.ravel().tolist()
    shown = []
    for n, target in zip(rows, _split(batch.views["explain"].targets), strict=True):
        assert set(target) == {n}
        shown.append((n, (len(target) - 1 - n % 7) // 10))
    return shown


@pytest.mark.parametrize("order", ORDERS)
def test_every_target_of_an_example_has_its_turn(order):
    views, counts = _several(60)
    longest = views["explain"].longest_targets()
    np.testing.assert_array_equal(longest, 10 * (counts - 1) + np.arange(60) % 7 + 1)
    batches = _batches(views, order, steps=60)
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
    assert _shown(_batches(views, order, steps=60)(37)) == _shown(batches(37))
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
    rows = np.array([5, -1])
    shape = as_shape(needed(view_lengths(views, rows, turns=1), 1))
    batch = make_batch(views, rows, shape, pad_id=0, turns=1)
    assert batch.views["explain"].learned.tolist() == [[10 + 6, 0]]


def _t5_base_flops(works):
    """Of the forward pass of T5-base."""
    return sum(
        12 * (2 * 768 * (6 * 768 + 2 * 3072) * work.inputs + 4 * 768 * work.input_pairs)
        + 12
        * (2 * 768 * (6 * 768 + 2 * 3072) * work.targets + 4 * 768 * (work.target_pairs + work.cross_pairs))
        + 2 * 768 * 32128 * work.targets
        for work in works
    )


@pytest.mark.slow
# The smallest data set, and the one whose lengths vary most.
@pytest.mark.parametrize("task", ["svamp", "esnli"])
def test_nine_tenths_of_the_slots_of_real_data_are_filled(task, data_root, tokenizers_root):
    """Published runs: random batches of 64, 10,000 of them, in at most three programs."""
    format = load(tokenizers_root / "t5", "seq2seq")
    examples = tasks.load(task, data_root).train
    views = tokenize(METHODS["dss"], examples, format, DataConfig()).views
    batches = Batches(
        views,
        batch_size=64,
        steps=10_000,
        seed=0,
        order="random",
        overlap=False,
        groups=1,
        padded=(),
        flops=_t5_base_flops,
        pad_id=0,
    )
    assert len(batches.shapes) == 3
    assert min(share for filled in batches.filled.values() for share in filled) >= 0.9
    assert batches.efficiency >= 0.89


def test_evaluation_visits_everything_once_longest_first():
    lengths = np.array([3, 9, 1, 9, 4])
    batches = list(evaluation_rows(lengths, 2))
    np.testing.assert_array_equal(batches, [[1, 3], [4, 0], [2, -1]])


@pytest.mark.parametrize("groups", [1, 4])
def test_questions_fit_few_shapes(groups):
    questions = _views(203)["predict"].inputs
    shapes = question_shapes(questions, batch_size=8, groups=groups, new_tokens=5, flops=_flops)
    assert 1 < len(shapes) <= 3
    asked = []
    for rows in evaluation_rows(questions.lengths, 8):
        shape = shapes[cheapest(shapes, needed(questions.lengths_of(rows), groups))]
        asked += _split(questions.tokens(rows, shape, 0, groups))
    # Each has its own id.
    assert sorted((ids[0], len(ids)) for ids in asked if ids) == list(enumerate(questions.lengths, start=1))


def test_questions_of_any_length_fit_a_shape():
    shapes = stream_shapes(100, 4)
    np.testing.assert_array_equal(shapes, [(128, 32), (256, 64), (400, 100)])
    np.testing.assert_array_equal(stream_shapes(32, 1), [(32, 32)])
