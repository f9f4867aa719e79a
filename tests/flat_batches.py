"""Flat batches from lists of sequences (an int32 array for each example), and results by example."""

import numpy as np

from cot_jax.batch import Batch, Tokens, ViewArrays


def sequences(seed, lengths, vocab_size=96):
    """Random ids, none of which is padding (0) or the end (1)."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2, vocab_size, n).astype(np.int32) for n in lengths]


def flat(sequences, *, groups=1, extra=0, wider=0, filler=0):
    """`Tokens`: consecutive sequences form a group; `extra` slots beyond the fullest hold `filler`."""
    length = np.array([len(ids) for ids in sequences], np.int32).reshape(groups, -1)
    E = length.shape[1]
    ids = np.full((groups, length.sum(axis=1).max() + extra), filler, np.int32)
    for g in range(groups):
        joined = np.concatenate(sequences[g * E : (g + 1) * E])
        ids[g, : len(joined)] = joined
    return Tokens(ids, length, int(length.max()) + wider)


def batch(views, *, example=None, learned=None, groups=1, **layout):
    """A `Batch` of {view: (inputs, targets)}; every target is learned whole, unless `learned` says less."""
    arrays = {}
    for view, sides in views.items():
        inputs, targets = (flat(side, groups=groups, **layout) for side in sides)
        own = targets.length if learned is None else np.array(learned, np.int32).reshape(groups, -1)
        arrays[view] = ViewArrays(inputs, targets, own)
    example = np.arange(targets.length.size) if example is None else example
    return Batch(arrays, np.array(example, np.int32).reshape(groups, -1))


def by_example(tokens, x):
    """`x` (G, X, ...) as a list over examples: what each has in its own slots."""
    rows = []
    for x_X, length_E in zip(np.asarray(x), tokens.length, strict=True):
        rows += [x_X[end - n : end] for end, n in zip(length_E.cumsum(), length_E, strict=True)]
    return rows


def in_slots(tokens, rows):
    """The inverse of `by_example`, zero in the slots of nobody."""
    x = np.zeros((*tokens.ids.shape, *rows[0].shape[1:]), rows[0].dtype)
    rows = iter(rows)
    for x_X, length_E in zip(x, tokens.length, strict=True):
        for end, n in zip(length_E.cumsum(), length_E, strict=True):
            x_X[end - n : end] = next(rows)
    return x


def rectangle(sequences, filler=0):
    """The sequences as rows (B, S), filled up, and where they are real."""
    length = np.array([len(ids) for ids in sequences])
    real = np.arange(length.max()) < length[:, None]
    ids = np.full(real.shape, filler)
    ids[real] = np.concatenate(sequences)
    return ids, real
