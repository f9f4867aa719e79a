"""The choice of a few static shapes for the flat batches of a run.

Every shape is a program to compile, and every empty slot is wasted arithmetic. The total length of a batch
varies little, so a few shapes leave few slots empty. All axes are chosen together, since a batch must fit
its shape in every axis.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from cot_jax.batch import Work

_MULTIPLE = 8  # slots and widths are multiples of a matrix unit's tile
_PROGRAMS = 3  # maximum number of shapes
_CANDIDATES = 64  # maximum number of values tried for each axis of a shape

# Work of each view -> matrix-product FLOPs of the forward pass (`Student.flops`).
Flops = Callable[[Sequence[Work]], np.ndarray]

# Shapes (..., axes) -> cost of a batch (...).
Cost = Callable[[np.ndarray], np.ndarray]


class ViewShape(NamedTuple):
    """The static shape of one view.

    Attributes:
      inputs: (X, S), slots of a group and width.
      targets: (Y, T).
    """

    inputs: tuple[int, int]
    targets: tuple[int, int]


# One per view.
Shape = tuple[ViewShape, ...]


def as_shape(needs: np.ndarray) -> Shape:
    """Returns slots and width of each view's inputs and targets, (views, 2, 2) or flat, as a shape."""
    return tuple(ViewShape((X, S), (Y, T)) for X, S, Y, T in needs.reshape(-1, 4).tolist())


def describe(shape: Shape) -> str:
    """Returns e.g. "2752 (80) > 512 (24), 2752 (80) > 2624 (104)": slots and width of each view."""
    return ", ".join(f"{X} ({S}) > {Y} ({T})" for (X, S), (Y, T) in shape)


def needed(lengths: np.ndarray, groups: int) -> np.ndarray:
    """Returns (..., 2): slots of the fullest group, and width, for batches of lengths (..., B)."""
    grouped = lengths.reshape(*lengths.shape[:-1], groups, -1)
    return np.stack([grouped.sum(axis=-1).max(axis=-1), lengths.max(axis=-1)], axis=-1)


def padded_work(shapes: np.ndarray, batch_size: int, groups: int) -> list[Work]:
    """Returns each view's work, arrays (...), for batches of `shapes`, (..., views, 2, 2), slots included."""
    X, S, Y, T = np.moveaxis(shapes.reshape(*shapes.shape[:-2], 4), (-2, -1), (1, 0))
    B, G = batch_size, groups
    return [Work(*work) for work in zip(G * X, G * Y, B * S * S, B * T * T, B * S * T, strict=True)]


def real_work(lengths: np.ndarray) -> list[Work]:
    """Returns each view's work without empty slots; `lengths` (views, 2, ...) of inputs and targets."""
    return [
        Work(S.sum(), T.sum(), (S * S).sum(), (T * T).sum(), (S * T).sum())
        for S, T in lengths.astype(np.int64)
    ]


def choose_shapes(needs: np.ndarray, cost: Cost, program: float) -> np.ndarray:
    """Chooses at most three shapes so that every batch fits one and few slots stay empty.

    The last shape holds every batch. The others start at quantiles; coordinate descent then improves each
    axis of each shape until nothing improves. An additional shape must save more than its program costs.

    Args:
      needs: (batches, axes) int, the smallest shape of each batch.
      cost: shapes -> cost of a batch.
      program: cost of compiling a program, as a share of the cost of all batches.

    Returns:
      (shapes, axes) int64, cheapest first.
    """
    needs = -(-np.maximum(needs, 1) // _MULTIPLE) * _MULTIPLE
    found = [_search(needs, count, cost) for count in range(1, _PROGRAMS + 1)]
    total = [(1 + program * len(shapes)) * _least(needs, shapes, cost).sum() for shapes in found]
    shapes = found[np.argmin(total)]
    return shapes[np.argsort(cost(shapes), kind="stable")]


def _search(needs: np.ndarray, count: int, cost: Cost) -> np.ndarray:
    quantiles = 1 - 0.25 ** np.arange(1, count)
    shapes = np.quantile(needs, [*quantiles, 1], axis=0, method="higher")
    steps = np.linspace(0, 1, _CANDIDATES)
    candidates = [np.unique(np.quantile(axis, steps, method="higher")) for axis in needs.T]
    before, now = np.inf, _least(needs, shapes, cost).sum()
    while now < before:
        before = now
        for i, shape in enumerate(shapes[:-1]):
            others = _least(needs, np.delete(shapes, i, axis=0), cost)
            for axis, values in enumerate(candidates):
                fits = (np.delete(needs, axis, 1) <= np.delete(shape, axis)).all(axis=1)
                trials = np.repeat(shape[None], len(values), axis=0)
                trials[:, axis] = values
                saved = np.maximum(others[fits] - cost(trials)[:, None], 0)
                saved = np.sum(saved, axis=1, where=needs[fits, axis] <= values[:, None])
                shape[axis] = values[saved.argmax()]
        now = _least(needs, shapes, cost).sum()
    return shapes


def _least(needs: np.ndarray, shapes: np.ndarray, cost: Cost) -> np.ndarray:
    """(batches,) cost of each batch in the cheapest of `shapes` that holds it."""
    fits = (needs[:, None] <= shapes).all(axis=-1)
    return np.where(fits, cost(shapes), np.inf).min(axis=1)


def cheapest(shapes: np.ndarray, needs: np.ndarray) -> np.ndarray:
    """Returns the index (...) of the first of `shapes`, (shapes, axes), that holds `needs`, (..., axes)."""
    return (needs[..., None, :] <= shapes).all(axis=-1).argmax(axis=-1)
