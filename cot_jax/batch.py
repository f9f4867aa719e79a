"""The arrays that pass from data through models to losses: flat tokens, and their map to rectangles.

A batch is flat: the tokens of its examples are concatenated, and lengths give where each example begins
(Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination"; Portes et al. 2023,
"MosaicBERT", call it unpadding). Everything in a transformer but attention acts on one token at a time, so
no arithmetic is spent on padding. The examples are divided into G groups, one per data-parallel device and
micro-batch. A group has E examples and X slots for their tokens.

Shape suffixes: G groups, E examples of a group, X slots of a group, S positions of an example.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("ids", "length", "prefix"), meta_fields=("width",)
)
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Sequences of token ids. NumPy on the host, jax.Array in the step.

    Attributes:
      ids: (G, X) int32, the concatenated sequences of a group; unused slots hold any valid id.
      length: (G, E) int32, tokens of each sequence; 0 for none.
      width: upper bound of the lengths. Static: each width is a program.
      prefix: (G, P) int32, tokens that all sequences begin with, such as the head of a chat template. Stored
        once, equal in all groups, counted neither in `ids` nor in `length`. None: no shared prefix.
    """

    ids: np.ndarray
    length: np.ndarray
    width: int
    prefix: np.ndarray | None = None

    @property
    def slots(self) -> int:
        """X."""
        return self.ids.shape[1]


class ViewArrays(NamedTuple):
    """One view of a batch.

    Attributes:
      inputs: what the student reads.
      targets: what it learns to write, with the end token, without a start token. A target may be followed by
        padding, which is decoded but not learned: the published mutual-information loss reads it.
      learned: (G, E) int32, tokens of each target that are learned. 0: nothing to learn, the example counts
        in no loss and no mean.
    """

    inputs: Tokens
    targets: Tokens
    learned: np.ndarray


class Texts(NamedTuple):
    """What a student needs to know about its texts.

    Attributes:
      size: number of token ids.
      pad_id: the padding token; None: there is none.
      end_id: ends a text; for an encoder, ends each part of it.
      begin_id: begins a sequence of an encoder.
      labels: class names of an encoder; () for students that write.
      multiple_choice: whether an encoder chooses among as many texts.
    """

    size: int
    pad_id: int | None
    end_id: int
    begin_id: int = 0
    labels: tuple[str, ...] = ()
    multiple_choice: bool = False


class Batch(NamedTuple):
    """What a training step sees.

    Attributes:
      views: view name ("predict", "explain", ...) -> arrays.
      example: (G, E) int32, the index of each example in the training split.
    """

    views: dict[str, ViewArrays]
    example: np.ndarray


class Work(NamedTuple):
    """The cost of one view, in tokens and in pairs of tokens that attend to each other.

    Each is a number or an array. A student's `flops` is linear in all of them.

    Attributes:
      inputs, targets: tokens.
      input_pairs, target_pairs, cross_pairs: sums over examples of S * S, T * T and S * T.
    """

    inputs: np.ndarray
    targets: np.ndarray
    input_pairs: np.ndarray
    target_pairs: np.ndarray
    cross_pairs: np.ndarray


class Segments:
    """The sequence and position of each token of a flat batch. Made inside a step; gathers stay in a group.

    Attributes:
      start_GE, end_GE: int32, the slots of each sequence are those from start to before end.
      example_GX: int32, the sequence of each slot's token, in [0, E).
      position_GX: int32, the token's position in its sequence.
      real_GX: bool, whether the slot holds a token.
      real_GES: bool, whether the sequence has this position.
    """

    def __init__(self, length_GE: ArrayLike, slots: int, width: int):
        """
        Args:
          length_GE: tokens of each sequence; their sum over a group is at most `slots`.
          slots: X.
          width: S, at least the longest length.
        """
        length_GE = jnp.asarray(length_GE)
        E = length_GE.shape[1]
        self.end_GE = end_GE = jnp.cumsum(length_GE, axis=1)
        slot_1X = jnp.arange(slots)[None]
        before_GX = jnp.sum(slot_1X[:, :, None] >= end_GE[:, None, :], axis=-1)
        self.real_GX = before_GX < E
        self.example_GX = jnp.minimum(before_GX, E - 1)
        self.start_GE = start_GE = end_GE - length_GE
        self.position_GX = slot_1X - _rows(start_GE, self.example_GX)
        position_11S = jnp.arange(width)[None, None]
        self.real_GES = position_11S < length_GE[:, :, None]
        # An index without a counterpart points past the end and reads as zero.
        self._slot_GES = jnp.where(self.real_GES, start_GE[:, :, None] + position_11S, slots)
        self._cell_GX = jnp.where(self.real_GX, self.example_GX * width + self.position_GX, E * width)

    @classmethod
    def of(cls, tokens: Tokens) -> "Segments":
        return cls(tokens.length, tokens.slots, tokens.width)

    @jax.named_scope("unpack")
    def unpack(self, x: jax.Array) -> jax.Array:
        """One row of a rectangle per sequence: (G, X, ...) -> (G, E, S, ...), zeros elsewhere."""
        return _unpack(x, self._slot_GES, self._cell_GX)

    @jax.named_scope("pack")
    def pack(self, x: jax.Array) -> jax.Array:
        """The inverse of `unpack`: (G, E, S, ...) -> (G, X, ...); zeros where there is no token."""
        return _pack(x, self._slot_GES, self._cell_GX)

    def spread(self, x_GE: ArrayLike) -> jax.Array:
        """(G, X), each sequence's value at all its tokens."""
        return _rows(jnp.asarray(x_GE), self.example_GX)

    def last(self, x_GX: jax.Array) -> jax.Array:
        """(G, E), the last token of each sequence; for an empty one, some other sequence's."""
        return _rows(x_GX, jnp.maximum(self.end_GE - 1, 0))

    def first(self, x: jax.Array) -> jax.Array:
        """(G, E, ...), each sequence's first token in `x` (G, X, ...); for an empty one, some other's."""
        last_slot = self.real_GX.shape[1] - 1
        return _rows(x, jnp.minimum(self.start_GE, last_slot))

    def within(self, length_GE: ArrayLike) -> jax.Array:
        """(G, X) bool, whether a token's position is below `length_GE` of its sequence."""
        return self.real_GX & (self.position_GX < self.spread(length_GE))

    def mean(self, x_GX: jax.Array, length_GE: ArrayLike) -> jax.Array:
        """(G, E), the mean over each sequence's first `length_GE` tokens; 0 where that is none."""
        total_GE = jnp.sum(self.unpack(jnp.where(self.within(length_GE), x_GX, 0)), axis=2)
        return total_GE / jnp.maximum(length_GE, 1)


def _rows(x: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of each group: (G, A, ...), (G, ...) -> (G, ..., ...); an index of A gives zeros."""
    return jax.vmap(lambda rows, i: rows.at[i].get(mode="fill", fill_value=0))(x, index)


# The map is one to one: the gradient of each gather is the other gather, never a scatter.
@jax.custom_vjp
def _unpack(x, slot_GES, cell_GX):
    return _rows(x, slot_GES)


@jax.custom_vjp
def _pack(x, slot_GES, cell_GX):
    G, E, S, *rest = x.shape
    return _rows(x.reshape(G, E * S, *rest), cell_GX)


_unpack.defvjp(
    lambda x, slot_GES, cell_GX: (_unpack(x, slot_GES, cell_GX), (slot_GES, cell_GX)),
    lambda places, dx: (_pack(dx, *places), None, None),
)
_pack.defvjp(
    lambda x, slot_GES, cell_GX: (_pack(x, slot_GES, cell_GX), (slot_GES, cell_GX)),
    lambda places, dx: (_unpack(dx, *places), None, None),
)
