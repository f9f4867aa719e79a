"""What attention shares, in rectangles and in kernels: the mask's value and the hash of dropout."""

import jax
import numpy as np

# Not -inf: a fully masked row must stay finite.
MASKED = float(np.finfo(np.float32).min)

# 2**32 over the golden ratio, odd: multiplying by it spreads consecutive numbers over all of uint32.
GOLDEN = np.uint32(0x9E3779B1)


def mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32: flipping a bit of `x` flips each bit of the result with probability 1/2.

    Multipliers: Wellons 2018, "Prospecting for Hash Functions" (lowbias32).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
