"""Token ids, length buckets and the order of examples. NumPy only.

Texts are tokenised once; a batch is then an indexing operation. The order is a pure function of
(seed, step), so a resumed run sees exactly the batches it would have seen.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cot_jax.batch import Batch, ViewArrays

# Widths are multiples of this: what GPU and TPU matrix units like, and few enough candidates.
_MULTIPLE = 8


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
    """All examples of a split through one view."""

    inputs: Ragged
    targets: Ragged


def choose_widths(lengths: np.ndarray, batch_size: int, most: int) -> tuple[int, ...]:
    """Chooses at most `most` widths to which batches are padded along one axis.

    A random batch is as wide as its longest row; with the lengths' distribution function F that is
    at most L with probability F(L)^batch_size. For each number of widths, those are found that minimise
    the expected padded width (dynamic programming over multiples of 8; the last one holds the longest
    sequence). Of these the fewest are taken that are within 2 % of the best: every width is a compile.
    """
    longest = max(int(lengths.max(initial=0)), 1)
    candidates = np.arange(_MULTIPLE, longest + _MULTIPLE, _MULTIPLE)
    below = np.searchsorted(np.sort(lengths), candidates, side="right") / max(len(lengths), 1)
    # covered[j]: chance that a batch is no wider than candidate j - 1.
    covered = np.concatenate([[0.0], below**batch_size])
    n = len(candidates)
    # cost[j]: least expected width, over the batches that covered[j] counts, of the widths chosen[j].
    cost = np.array([0.0] + [np.inf] * n)
    chosen: list[tuple[int, ...]] = [()] * (n + 1)
    found = []
    for _ in range(most):
        new_cost, new_chosen = cost.copy(), list(chosen)
        for j in range(1, n + 1):
            through = cost[:j] + (covered[j] - covered[:j]) * candidates[j - 1]
            i = int(through.argmin())
            if through[i] < new_cost[j]:
                new_cost[j], new_chosen[j] = through[i], (*chosen[i], int(candidates[j - 1]))
        cost, chosen = new_cost, new_chosen
        found.append((cost[n], chosen[n]))
    return next(widths for expected, widths in found if expected <= 1.02 * found[-1][0])


def width_for(widths: Sequence[int], longest: int) -> int:
    """Returns the smallest of `widths` that holds `longest` tokens."""
    return next(width for width in widths if width >= longest)


@dataclasses.dataclass(frozen=True)
class Widths:
    """The static widths of a split's batches: of the inputs (shared by all views), of each target."""

    inputs: tuple[int, ...]
    targets: Mapping[str, tuple[int, ...]]

    @classmethod
    def choose(cls, views: Mapping[str, TokenizedView], batch_size: int, most: int) -> "Widths":
        longest_input = np.max([view.inputs.lengths for view in views.values()], axis=0)
        targets = {
            name: choose_widths(view.targets.lengths, batch_size, most) for name, view in views.items()
        }
        return cls(choose_widths(longest_input, batch_size, most), targets)


def make_batch(views: Mapping[str, TokenizedView], rows: np.ndarray, widths: Widths, pad_id: int) -> Batch:
    """Returns the examples `rows`, (B,) int (-1: an empty row), through every view."""

    def longest(sequences: Ragged) -> int:
        return max(int(sequences.lengths[rows[rows >= 0]].max(initial=0)), 1)

    input_width = width_for(widths.inputs, max(longest(view.inputs) for view in views.values()))
    batch = {}
    for name, view in views.items():
        target_width = width_for(widths.targets[name], longest(view.targets))
        batch[name] = ViewArrays(
            *view.inputs.take(rows, input_width, pad_id), *view.targets.take(rows, target_width, pad_id)
        )
    return batch


def training_rows(seed: int, examples: int, step: int, batch_size: int) -> np.ndarray:
    """Returns the rows, (batch_size,) int64, of training step `step` (from 0).

    Steps read one endless stream, a fresh permutation for every epoch end to end, so that every
    example is seen once an epoch and no batch is short.
    """
    position = step * batch_size + np.arange(batch_size)
    epochs = position // examples
    return np.concatenate(
        [_permutation(seed, examples, int(e))[position[epochs == e] % examples] for e in np.unique(epochs)]
    )


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, examples: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def evaluation_rows(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yields rows in batches of `batch_size`, longest first, the last one filled up with -1.

    Sorted by length there is little padding; longest first, lack of memory shows at once.
    """
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield np.pad(rows, (0, batch_size - len(rows)), constant_values=-1)
