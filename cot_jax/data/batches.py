"""Token ids, flat batches and the order of examples. NumPy only.

Texts are tokenized once; a batch is then an indexing operation. The order is a pure function of
(seed, step), so a resumed run sees the same batches as an uninterrupted one.
"""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from cot_jax.batch import Batch, Tokens, ViewArrays, Work
from cot_jax.data.lengths import (
    Flops,
    Shape,
    as_shape,
    cheapest,
    choose_shapes,
    needed,
    padded_work,
    real_work,
)

# The cost of compiling one more program: in training this many steps (most of it is hidden behind them), in
# evaluation this share of the arithmetic.
_COMPILE_STEPS, _COMPILE_SHARE = 100, 0.03

# Steps whose lengths are computed at once, and the maximum number of steps for choosing shapes.
_BLOCK, _SAMPLED = 1024, 2**14


class Ragged:
    """Sequences of token ids of different lengths, in one flat array.

    Attributes:
      lengths: (N,) int32, without the prefix.
      prefix: (P,) int32, the common beginning of all sequences; stored once.
    """

    def __init__(self, sequences: Sequence[Sequence[int]], prefix: Sequence[int] = ()):
        self.prefix = np.array(prefix, np.int32)
        self.lengths = np.array([len(s) for s in sequences], np.int32)
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self._tokens = np.fromiter(itertools.chain.from_iterable(sequences), np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns the ids of a sequence, without the prefix."""
        return self._tokens[self._starts[row] :][: self.lengths[row]]

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.prefix, self.lengths, self._tokens

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the lengths, int32, of `rows`; row -1 is an empty sequence."""
        return np.where(rows >= 0, self.lengths[rows], 0)

    def tokens(
        self, rows: np.ndarray, shape: tuple[int, int], pad_id: int, groups: int = 1, least: int = 0
    ) -> Tokens:
        """Returns the sequences `rows`, (B,) int, in groups of consecutive rows; row -1 is an empty one.

        Args:
          shape: slots of a group and width.
          least: shorter sequences are padded with `pad_id` to this length.

        Raises:
          ValueError: the sequences do not fit the shape.
        """
        slots, width = map(int, shape)
        real_B = self.lengths_of(rows)
        length_GE = np.maximum(real_B, least, dtype=np.int32).reshape(groups, -1)
        end_GE = np.cumsum(length_GE, axis=1)
        if (full := end_GE[:, -1].max()) > slots or length_GE.max() > width:
            raise ValueError(
                f"sequences of up to {length_GE.max()} tokens, {full} in a group, do not fit a width of "
                f"{width} and {slots} slots"
            )
        first_GE = end_GE - length_GE + slots * np.arange(groups)[:, None]
        ids = np.full(groups * slots, pad_id, np.int32)
        starts_B = self._starts[rows]
        for first, start, n in zip(
            first_GE.ravel().tolist(), starts_B.tolist(), real_B.tolist(), strict=True
        ):
            ids[first : first + n] = self._tokens[start : start + n]
        prefix = np.tile(self.prefix, (groups, 1)) if self.prefix.size else None
        return Tokens(ids.reshape(groups, slots), length_GE, width, prefix)


@dataclasses.dataclass(frozen=True)
class TokenizedView:
    """All N examples of a split through one view.

    Attributes:
      inputs: one per example.
      targets: at least one per example, those of an example adjacent.
      first: (N + 1,) int, the index of each example's first target; None: one target per example.
    """

    inputs: Ragged
    targets: Ragged
    first: np.ndarray | None = None

    def checksum(self, crc: int = 0) -> int:
        """Returns the CRC-32 of the view's inputs and targets, continued from `crc`."""
        first = [] if self.first is None else [self.first]
        for array in (*self.inputs.arrays(), *self.targets.arrays(), *first):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return crc

    def longest_targets(self) -> np.ndarray:
        """(N,) length of each example's longest target."""
        if self.first is None:
            return self.targets.lengths
        return np.maximum.reduceat(self.targets.lengths, self.first[:-1])

    def in_turn(self, rows: np.ndarray, turns: np.ndarray | int) -> np.ndarray:
        """(...) int, the index of the target in turn for each example of `rows`, (...); -1 stays -1."""
        if self.first is None:
            return rows
        count = self.first[rows + 1] - self.first[rows]
        return np.where(rows < 0, -1, self.first[rows] + turns % np.where(rows < 0, 1, count))


class Batches:
    """The training batches of a run: the examples and the shape of each step.

    The examples are an endless stream of epochs, each a new permutation (`random`) or the data's own order
    (`sequential`). No batch is short and every example is seen once per epoch. If an example has several
    targets, each epoch shows the next one, beginning with a random one.

    Overlapping batches advance by half a batch: rows 0, 2, ... of each are rows 1, 3, ... of the batch
    before, so an example stays on its device. Every example is then seen twice per epoch.

    The order is known in advance, and so are the lengths of each step. The cost of a shape is its arithmetic
    plus the slots of each view's inputs and targets, all relative to the average need: by arithmetic alone,
    slots of short targets are so cheap that more than a tenth of them would stay empty.

    Attributes:
      views: all training examples by view.
      shapes: the static shapes, cheapest first; each is a program. The last one holds every batch.
      efficiency: share of the run's arithmetic spent on tokens.
      filled: view name -> shares of the run's input and target slots that hold tokens.
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
        groups: int,
        padded: Collection[str],
        flops: Flops,
        pad_id: int,
    ):
        """
        Args:
          batch_size: B, examples per step, a multiple of `groups`.
          overlap: whether a batch shares half of its examples with the one before; B must be even.
          padded: views whose targets are padded to the longest of the batch (`make_batch`).
        """
        self.views, self._seed, self._order, self._overlap = views, seed, order, overlap
        self._batch_size, self._groups, self._padded, self._pad_id = batch_size, groups, padded, pad_id
        self._examples = len(next(iter(views.values())).inputs)
        self._first_turn = np.random.default_rng([seed, 0, 0, 0]).integers(2**31, size=self._examples)
        blocks, real = [], np.zeros((len(views), len(Work._fields)))
        for first in range(0, steps, _BLOCK):
            lengths = self._lengths(first, min(_BLOCK, steps - first))
            blocks.append(_needs(lengths, groups))
            real += real_work(lengths)
        needs = np.concatenate(blocks)
        mean = np.maximum(needs.mean(axis=0), 1)

        def arithmetic(shapes):
            """FLOPs of batches of shapes (..., axes)."""
            by_view = shapes.reshape(*shapes.shape[:-1], len(views), 2, 2)
            return flops(padded_work(by_view, batch_size, groups))

        def cost(shapes):
            return arithmetic(shapes) / arithmetic(mean) + (shapes / mean)[..., ::2].sum(axis=-1)

        sample = np.concatenate([needs[:: -(-steps // _SAMPLED)], needs.max(axis=0, keepdims=True)])
        self._shapes = choose_shapes(sample, cost, _COMPILE_STEPS / steps)
        self.shapes = list(map(as_shape, self._shapes))
        count = np.bincount(cheapest(self._shapes, needs), minlength=len(self.shapes))
        self.efficiency = float(flops([Work(*work) for work in real]) / (count @ arithmetic(self._shapes)))
        slots = groups * (count @ self._shapes[:, ::2]).reshape(-1, 2)
        self.filled = dict(zip(views, map(tuple, (real[:, :2] / slots).tolist()), strict=True))

    def __call__(self, step: int) -> Batch:
        """Returns the batch of training step `step` (from 0), a pure function of the run's arguments."""
        return self._batch(step, self.shape(step))

    def largest(self) -> Batch:
        """Returns the batch of step 0, in the shape that holds every batch."""
        return self._batch(0, self.shapes[-1])

    def _batch(self, step: int, shape: Shape) -> Batch:
        (rows,), (turns,) = self._visits(step, 1)
        return make_batch(self.views, rows, shape, self._pad_id, self._groups, turns, self._padded)

    def shape(self, step: int) -> Shape:
        """Returns the cheapest of the shapes that holds the batch of `step`."""
        return self.shapes[cheapest(self._shapes, _needs(self._lengths(step, 1), self._groups))[0]]

    def rows(self, step: int) -> np.ndarray:
        """Returns the examples, (batch_size,) int64, of training step `step` (from 0)."""
        return self._visits(step, 1)[0][0]

    def _lengths(self, first: int, steps: int) -> np.ndarray:
        """(views, 2, steps, B), lengths of inputs and targets in the steps from `first` on."""
        return view_lengths(self.views, *self._visits(first, steps), self._padded)

    def _visits(self, first: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the examples of the steps from `first` on, and their turns, both (steps, B) int64."""
        B, N = self._batch_size, self._examples
        stride = B // 2 if self._overlap else B
        row = np.arange(B).reshape(2, -1).T.reshape(-1) if self._overlap else np.arange(B)
        begin, end = first * stride, (first + steps - 1) * stride + B
        epochs = range(begin // N, -(-end // N))
        parts = [_epoch(self._order, self._seed, e, N)[max(begin - e * N, 0) : end - e * N] for e in epochs]
        offset = stride * np.arange(steps)[:, None] + row
        rows = np.concatenate(parts)[offset]
        return rows, self._first_turn[rows] + (begin + offset) // N


def _needs(lengths: np.ndarray, groups: int) -> np.ndarray:
    """(steps, views * 4), slots and width of each view's inputs and targets; lengths (views, 2, steps, B)."""
    needs = np.moveaxis(needed(lengths, groups), 2, 0)
    return needs.reshape(len(needs), -1)


@functools.lru_cache(maxsize=4)
def _epoch(order: str, seed: int, epoch: int, examples: int) -> np.ndarray:
    if order == "sequential":
        return np.arange(examples)
    return np.random.default_rng((seed, epoch, 0)).permutation(examples)


def view_lengths(
    views: Mapping[str, TokenizedView],
    rows: np.ndarray,
    turns: np.ndarray | int = 0,
    padded: Collection[str] = (),
) -> np.ndarray:
    """Returns (views, 2, ..., B) int, lengths of inputs and targets of the batches `rows`, (..., B).

    `turns` is as in `TokenizedView.in_turn`, `padded` as in `make_batch`.
    """
    found = []
    for name, view in views.items():
        targets = view.targets.lengths_of(view.in_turn(rows, turns))
        if name in padded:
            targets = np.broadcast_to(targets.max(axis=-1, keepdims=True), targets.shape)
        found.append([view.inputs.lengths_of(rows), targets])
    return np.array(found)


def make_batch(
    views: Mapping[str, TokenizedView],
    rows: np.ndarray,
    shape: Shape,
    pad_id: int,
    groups: int = 1,
    turns: np.ndarray | int = 0,
    padded: Collection[str] = (),
) -> Batch:
    """Returns the examples `rows`, (B,) int, through every view, in groups of consecutive rows.

    Args:
      rows: row -1 is no example, of length 0 everywhere.
      shape: must hold the batch.
      turns: as in `TokenizedView.in_turn`.
      padded: views whose targets are padded to the longest of the batch.
    """
    taken = {}
    for (name, view), its in zip(views.items(), shape, strict=True):
        chosen = view.in_turn(rows, turns)
        learned = view.targets.lengths_of(chosen)
        inputs = view.inputs.tokens(rows, its.inputs, pad_id, groups)
        least = learned.max() if name in padded else 0
        targets = view.targets.tokens(chosen, its.targets, pad_id, groups, least)
        taken[name] = ViewArrays(inputs, targets, learned.reshape(groups, -1))
    return Batch(taken, rows.astype(np.int32).reshape(groups, -1))


def evaluation_rows(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields rows in batches of `batch_size`, longest first, the last batch padded with -1.

    Sorting by length saves padding; longest first, lack of memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.pad(rows, (0, batch_size - len(rows)), constant_values=-1)


def evaluation_shapes(
    views: Mapping[str, TokenizedView], batches: Sequence[np.ndarray], *, groups: int, flops: Flops
) -> list[Shape]:
    """Returns the shape of each of the `batches`, rows (B,) of examples; at most three distinct shapes."""
    rows = np.array(batches)
    needs = _needs(view_lengths(views, rows), groups)

    def cost(shapes):
        by_view = shapes.reshape(*shapes.shape[:-1], len(views), 2, 2)
        return flops(padded_work(by_view, rows.shape[1], groups))

    shapes = choose_shapes(needs, cost, _COMPILE_SHARE)
    return [as_shape(shapes[n]) for n in cheapest(shapes, needs)]


def question_shapes(
    questions: Ragged, *, batch_size: int, groups: int, new_tokens: int, flops: Flops
) -> np.ndarray:
    """Returns (shapes, 2) int64, slots and width, cheapest first, for the batches of `evaluation_rows`."""
    rows = np.array(list(evaluation_rows(questions.lengths, batch_size)))
    answers = np.array([batch_size // groups * new_tokens, new_tokens])

    def cost(inputs):
        both = np.stack([inputs, np.broadcast_to(answers, inputs.shape)], axis=-2)
        return flops(padded_work(both[..., None, :, :], batch_size, groups))

    return choose_shapes(needed(questions.lengths_of(rows), groups), cost, _COMPILE_SHARE)


def stream_shapes(most: int, examples: int) -> np.ndarray:
    """Returns (shapes, 2), slots and width, for questions of up to `most` tokens, `examples` per group."""
    widths = [width for width in (32, 64, 128, 256, 512) if width < most]
    return np.array([(examples * width, width) for width in [*widths, most]])
