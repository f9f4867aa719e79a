"""Token ids, batches and the order of examples. NumPy only.

Texts are tokenised once; a batch is then an indexing operation. The order is a pure function of
(seed, step), so a resumed run sees exactly the batches it would have seen.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cot_jax.batch import Batch, ViewArrays
from cot_jax.data.shapes import Cost, Shape, cheapest, choose_shapes

ORDERS = ("random", "sequential", "grouped")

# Overlapping batches of a group follow each other so many at a time: fewer overlaps are cut.
_RUN = 16

# So many steps tell how long a random batch's longest sequences are.
_MOST_SAMPLED = 2048


class Ragged:
    """Sequences of token ids of different lengths, in one flat array."""

    def __init__(self, sequences: Sequence[Sequence[int]]):
        self.lengths = np.array([len(s) for s in sequences], np.int32)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        flat = [token for sequence in sequences for token in sequence]
        self._tokens = np.array(flat or [0], np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: np.ndarray, width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (ids (B, width) int32, lengths (B,) int32) of `rows`; row -1 is an empty sequence."""
        lengths = np.where(rows >= 0, self.lengths[rows], 0).astype(np.int32)
        if lengths.max(initial=0) > width:
            raise ValueError(f"a sequence of {lengths.max()} tokens does not fit a width of {width}")
        position = np.arange(width)[None, :]
        real = position < lengths[:, None]
        index = np.where(real, self._starts[rows][:, None] + position, 0)
        return np.where(real, self._tokens[index], pad_id).astype(np.int32), lengths


@dataclasses.dataclass(frozen=True)
class TokenizedView:
    """All N examples of a split through one view.

    Attributes:
      inputs: one each.
      targets: at least one each, those of an example next to one another.
      first: (N + 1,) int, where each example's targets begin; None: one each.
    """

    inputs: Ragged
    targets: Ragged
    first: np.ndarray | None = None

    def longest_targets(self) -> np.ndarray:
        """(N,) tokens of each example's longest target."""
        if self.first is None:
            return self.targets.lengths
        return np.maximum.reduceat(self.targets.lengths, self.first[:-1])

    def in_turn(self, rows: np.ndarray, turns: np.ndarray | int) -> np.ndarray:
        """(B,) int, of each example of `rows` the target whose turn it is; -1 remains -1."""
        if self.first is None:
            return rows
        count = self.first[rows + 1] - self.first[rows]
        return np.where(rows < 0, -1, self.first[rows] + turns % np.where(rows < 0, 1, count))


class Batches:
    """The training batches of a run: which examples each step sees, and to what shape they are padded.

    Every group of examples is an endless stream, a fresh permutation for each epoch end to end, so that
    no batch is short and every example is seen once an epoch. `random` has one group, as the published
    code, and `sequential` too, in the data's own order; `grouped` has a group for each shape, examples of
    like lengths, and shuffles the groups' turns: far less padding, but batches are no longer uniform
    samples. Where an example has several targets, each epoch shows the next one, from one drawn by lot.

    Overlapping batches move along the stream by half a batch: rows 0, 2, ... of each are rows 1, 3, ... of
    the group's batch before, so that a batch divided among devices keeps an example where it is. Then
    every example is seen twice an epoch.

    Attributes:
      views: all training examples through every view.
      shapes: the static shapes, cheapest first; each is a compile.
      efficiency: share of the arithmetic that is for real tokens.
    """

    def __init__(
        self,
        views: Mapping[str, TokenizedView],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        order: str,
        overlap: bool,
        max_shapes: int,
        cost: Cost,
        pad_id: int,
    ):
        """
        Args:
          views: all training examples through every view.
          batch_size: B, examples a step.
          steps: how many batches will be asked for.
          seed: of the order.
          order: one of `ORDERS`.
          overlap: whether a batch shares half of its examples with the one before; B is even then.
          max_shapes: most shapes.
          cost: arithmetic of one example padded to a shape: (input width, target width of each view).
          pad_id: fills up sequences.
        """
        self.views, self._seed, self._batch_size, self._pad_id = views, seed, batch_size, pad_id
        self._order, self._overlap = order, overlap
        self._stride = batch_size // 2 if overlap else batch_size
        self._inputs = np.max([view.inputs.lengths for view in views.values()], axis=0)
        self._first_turn = np.random.default_rng([seed, 0, 0, 0]).integers(2**31, size=len(self._inputs))
        sampled = range(min(steps, _MOST_SAMPLED))
        most = np.stack([self._inputs, *(view.longest_targets() for view in views.values())], axis=1)
        if order == "grouped":
            self.shapes, group = choose_shapes(most, cost, max_shapes, least_count=batch_size)
            self._groups = [np.flatnonzero(group == i) for i in range(len(self.shapes))]
            lengths = [self._lengths(*self._visits(step)) for step in sampled]
        else:
            self._groups = [np.arange(len(most))]
            lengths = [self._lengths(*self._visits(step)) for step in sampled]
            longest = np.max(lengths, axis=1)
            if steps > _MOST_SAMPLED:
                longest = np.concatenate([longest, most.max(axis=0, keepdims=True)])
            self.shapes, _ = choose_shapes(longest, cost, max_shapes)
        padded = sum(batch_size * cost(np.array(cheapest(self.shapes, one.max(axis=0)))) for one in lengths)
        self.efficiency = float(cost(np.concatenate(lengths)).sum() / padded)

    def __call__(self, step: int) -> Batch:
        """Returns the batch of training step `step` (from 0): a pure function of the arguments above."""
        rows, turns = self._visits(step)
        return make_batch(self.views, rows, self.shape(step), self._pad_id, turns)

    def shape(self, step: int) -> Shape:
        """Returns the cheapest of the shapes that holds the batch of `step`."""
        return cheapest(self.shapes, self._lengths(*self._visits(step)).max(axis=0))

    def rows(self, step: int) -> np.ndarray:
        """Returns the examples, (batch_size,) int64, of training step `step` (from 0)."""
        return self._visits(step)[0]

    def _lengths(self, rows: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """(B, axes) tokens of the examples `rows` when it is the turn of these targets."""
        targets = [view.targets.lengths[view.in_turn(rows, turns)] for view in self.views.values()]
        return np.stack([self._inputs[rows], *targets], axis=1)

    def _visits(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples of a step and whose turn it is among the targets of each, (B,) int64."""
        sizes = np.array([len(group) for group in self._groups])

        def batches(epochs):
            """Whole batches of each group that begin in its first `epochs` epochs."""
            return epochs * sizes // self._stride

        # An estimate that is never too high, since batches(e).sum() <= e * sizes.sum() / stride.
        epoch = step * self._stride // int(sizes.sum())
        while batches(epoch + 1).sum() <= step:
            epoch += 1
        before = batches(epoch)
        turns = _turns(self._seed, epoch, tuple(batches(epoch + 1) - before), _RUN if self._overlap else 1)
        turn = step - int(before.sum())
        group = turns[turn]
        index = int(before[group]) + int((turns[:turn] == group).sum())
        position = index * self._stride + np.arange(self._batch_size)
        if self._overlap:
            position = position.reshape(2, -1).T.reshape(-1)
        epochs, chosen = np.divmod(position, sizes[group])
        if self._order != "sequential":
            for e in np.unique(epochs):
                permutation = _permutation((self._seed, int(e), int(group)), int(sizes[group]))
                chosen[epochs == e] = permutation[chosen[epochs == e]]
        rows = self._groups[group][chosen]
        return rows, self._first_turn[rows] + epochs


def make_batch(
    views: Mapping[str, TokenizedView],
    rows: np.ndarray,
    shape: Shape,
    pad_id: int,
    turns: np.ndarray | int = 0,
) -> Batch:
    """Returns the examples `rows`, (B,) int, through every view, padded to `shape` (`turns`: `in_turn`)."""
    input_width, *target_widths = shape
    taken = {}
    for (name, view), width in zip(views.items(), target_widths, strict=True):
        inputs = view.inputs.take(rows, input_width, pad_id)
        targets = view.targets.take(view.in_turn(rows, turns), width, pad_id)
        taken[name] = ViewArrays(*inputs, *targets)
    return Batch(taken, rows.astype(np.int32))


@functools.lru_cache(maxsize=4)
def _turns(seed: int, epoch: int, counts: tuple[int, ...], run: int) -> np.ndarray:
    """The order of an epoch's batches: to which group each belongs, `run` of a group in a row."""
    runs = [
        np.full(min(run, count - start), group)
        for group, count in enumerate(counts)
        for start in range(0, count, run)
    ]
    order = np.random.default_rng([seed, epoch]).permutation(len(runs))
    return np.concatenate([runs[i] for i in order])


@functools.lru_cache(maxsize=64)
def _permutation(seed: tuple[int, ...], examples: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(examples)


def evaluation_rows(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields rows in batches of `batch_size`, longest first, the last one filled up with -1.

    Sorted by length there is little padding; longest first, lack of memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.pad(rows, (0, batch_size - len(rows)), constant_values=-1)
