"""The few static shapes to which batches are padded: padding against compiles.

Every shape is a compile, and every token of padding is arithmetic for nothing. The widths of all axes
are chosen together, since an example with a long question often has a long rationale too.
"""

from collections.abc import Callable, Sequence

import numpy as np

# What GPU and TPU matrix units like, and few enough candidates.
_MULTIPLE = 8
_MOST_CANDIDATES = 512

# What compiling a shape costs, as a share of the whole run's arithmetic: on an accelerator half a
# minute of a quarter of an hour.
_COMPILE = 0.03

# One width per axis: of the inputs (shared by all views), then of each view's targets.
Shape = tuple[int, ...]

# Arithmetic of one example padded to a shape, for an array (..., axes) of shapes.
Cost = Callable[[np.ndarray], np.ndarray]


def choose_shapes(
    lengths: np.ndarray, cost: Cost, most: int, *, least_count: int = 1
) -> tuple[list[Shape], np.ndarray]:
    """Chooses shapes that hold all of `lengths` with little padding.

    Agglomerative: beginning with every rounded length as a shape of its own, those two are merged
    whose common shape adds least cost. Of the numbers up to `most` that one is taken at which one shape
    more would no longer save what it takes to compile (`_COMPILE`).

    Args:
      lengths: (examples, axes) int.
      cost: what a shape costs.
      most: most shapes.
      least_count: fewest examples a shape may serve, unless there are fewer in all.

    Returns:
      The shapes, cheapest first, and (examples,) the index of each example's shape.
    """
    multiple, points = _MULTIPLE, lengths
    while multiple == _MULTIPLE or len(points) > _MOST_CANDIDATES:
        rounded = -(-np.maximum(lengths, 1) // multiple) * multiple
        points, member, counts = np.unique(rounded, axis=0, return_inverse=True, return_counts=True)
        multiple *= 2
    allowed = [
        (total * (1 + _COMPILE * len(shapes)), shapes, cluster)
        for shapes, cluster, total, smallest in _merges(points, counts, cost, least_count)
        if len(shapes) == 1 or (len(shapes) <= most and smallest >= least_count)
    ]
    _, shapes, cluster = min(allowed, key=lambda found: found[0])
    order = np.argsort(cost(shapes), kind="stable")
    return [tuple(map(int, shapes[i])) for i in order], np.argsort(order)[cluster[member.reshape(-1)]]


def _merges(points: np.ndarray, counts: np.ndarray, cost: Cost, least_count: int):
    """Yields (shapes, cluster of each point, total cost, smallest count) from all points down to one shape.

    As long as a cluster is smaller than `least_count`, such a one takes part in every merge.
    """
    shapes, weights, cluster = points.copy(), counts.astype(float), np.arange(len(points))
    alive = np.ones(len(points), bool)

    def added(i):
        """Cost that merging i with each of the others adds."""
        together = (weights[i] + weights) * cost(np.maximum(shapes[i], shapes))
        apart = weights[i] * cost(shapes[i]) + weights * cost(shapes)
        return np.where(alive & (np.arange(len(points)) != i), together - apart, np.inf)

    delta = np.array([added(i) for i in range(len(points))])
    while True:
        total = float((weights * cost(shapes))[alive].sum())
        yield shapes[alive], (np.cumsum(alive) - 1)[cluster], total, weights[alive].min()
        if alive.sum() == 1:
            return
        rows = np.flatnonzero(alive & (weights < least_count))
        if not len(rows):
            rows = np.flatnonzero(alive)
        i = rows[delta[rows].min(axis=1).argmin()]
        j = delta[i].argmin()
        shapes[i], weights[i] = np.maximum(shapes[i], shapes[j]), weights[i] + weights[j]
        alive[j] = False
        cluster[cluster == j] = i
        delta[j] = delta[:, j] = np.inf
        delta[i] = delta[:, i] = added(i)


def cheapest(shapes: Sequence[Shape], lengths: np.ndarray) -> Shape:
    """Returns the first of `shapes`, which are sorted by cost, that holds `lengths`, (axes,) int."""
    return next(shape for shape in shapes if (lengths <= shape).all())
