"""What attention shares, in rectangles and in kernels: masks, biases and the hash of dropout."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Not -inf: a fully masked row must stay finite.
MASKED = float(np.finfo(np.float32).min)

# 2**32 over the golden ratio, odd: multiplying by it spreads consecutive numbers over all of uint32.
GOLDEN = np.uint32(0x9E3779B1)


class Spec(NamedTuple):
    """Static arguments of a kernel: those of `fused_attention.attend`.

    Attributes:
      q_width, k_width: no sequence has more queries, and keys.
    """

    causal: bool
    scale: float
    rate: float
    q_width: int
    k_width: int
    biased: bool
    interpret: bool


def mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32: flipping a bit of `x` flips each bit of the result with probability 1/2.

    Multipliers: Wellons 2018, "Prospecting for Hash Functions" (lowbias32).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def by_distance(bias_HW: jax.Array, queries: int, keys: int, shift: int = 0) -> jax.Array:
    """(H, queries, keys), the bias of each key's distance from each query, key - query - `shift`.

    Slices of copies, so the gradient is sums of slices, not a scatter.

    Args:
      bias_HW: of distances -W/2 to W/2 - 1; further ones count as 0.
    """
    H, W = bias_HW.shape
    half = max(W // 2, queries + shift, keys - shift)
    bias_HW = jnp.pad(bias_HW, ((0, 0), (half - W // 2,) * 2))
    from_zero = jnp.roll(bias_HW, shift - half, axis=1)  # row q begins q entries before that
    rows = jnp.tile(from_zero, queries)[:, : queries * (2 * half - 1)]
    return rows.reshape(H, queries, -1)[:, :, :keys]
