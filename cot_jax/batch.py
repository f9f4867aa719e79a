"""The arrays that travel from data through models to losses."""

from typing import NamedTuple

import numpy as np


class ViewArrays(NamedTuple):
    """One view of a batch as token ids, padded at the end. NumPy on the host, jax.Array in the step.

    A target of length 0 means "nothing to learn here": such rows count in no loss and no mean.

    Attributes:
      input_ids: (B, S) int32.
      input_length: (B,) int32, real tokens of each row.
      target_ids: (B, T) int32, the end token included, no start token.
      target_length: (B,) int32.
    """

    input_ids: np.ndarray
    input_length: np.ndarray
    target_ids: np.ndarray
    target_length: np.ndarray


class Batch(NamedTuple):
    """What a training step sees.

    Attributes:
      views: view name ("predict", "explain", ...) -> arrays, all with the same B and S.
      example: (B,) int32, the number of each row's example in the training split.
    """

    views: dict[str, ViewArrays]
    example: np.ndarray
