"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"): W + alpha / rank * A B.

The weights W of a pretrained student stay as they are; of some of its matrices a product of two thin ones
is added, and only these are trained, stored and remembered by the optimizer.
"""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from cot_jax.errors import UserError
from cot_jax.models.student import Params, Partition, as_matrices


class Lora:
    """An adapter: for every adapted matrix its path in the parameters, then `a` (N, P, R) and `b` (N, R, Q).

    N are the layers, P and Q the matrix's inputs and outputs, all heads of an attention together, R the
    rank. As in the released code A is uniform within P**-0.5 and B zero: the start is the pretrained
    student. The released examples' dropout on A's input is left out, as is usual today.
    """

    def __init__(self, shapes: Params, *, rank: int, alpha: float, targets: str):
        """
        Args:
          shapes: the student's parameters, or their shapes.
          rank: R.
          alpha: the product's weight is alpha / R.
          targets: regular expression, found in the paths of the parameters that are adapted.

        Raises:
          UserError: no expression, or no parameter has such a path, or one that is no layer's matrix.
        """
        self._rank, self._scale = rank, alpha / rank
        try:
            wanted = re.compile(targets)
        except re.error as error:
            raise UserError(f"config.model.lora_targets={targets!r}: {error}") from None
        found = {p: x for p, x in flatten_dict(shapes, sep="/").items() if wanted.search(p)}
        if not found:
            raise UserError(f"config.model.lora_targets={targets!r} is found in no parameter's path")
        self._shapes = {path: as_matrices(path, x.shape) for path, x in found.items()}
        for path, shape in self._shapes.items():
            if len(shape) != 3 or "layers" not in path.split("/"):
                raise UserError(
                    f"config.model.lora_targets={targets!r} is found in {path}, no layer's matrix"
                )

    @property
    def partition(self) -> Partition:
        """Whole on every device: an adapter is small."""
        return (("[ab]", PartitionSpec()),)

    @property
    def matrices(self) -> int:
        """How many are adapted."""
        return sum(N for N, _, _ in self._shapes.values())

    def init(self, rng: jax.Array) -> Params:
        """A fresh adapter, float32, which changes nothing."""
        flat: dict[str, jax.Array] = {}
        for n, (path, (N, P, Q)) in enumerate(sorted(self._shapes.items())):
            limit = P**-0.5
            key = jax.random.fold_in(rng, n)
            flat[f"{path}/a"] = jax.random.uniform(key, (N, P, self._rank), minval=-limit, maxval=limit)
            flat[f"{path}/b"] = jnp.zeros((N, self._rank, Q))
        return unflatten_dict(flat, sep="/")

    def merge(self, frozen: Params, adapter: Params) -> Params:
        """The parameters of the adapted student; what is not adapted is that of `frozen`."""
        flat, low = flatten_dict(frozen, sep="/"), flatten_dict(adapter, sep="/")
        for path in self._shapes:
            a_NPR, b_NRQ = low[f"{path}/a"], low[f"{path}/b"]
            product_NPQ = jnp.einsum("NPR,NRQ->NPQ", a_NPR, b_NRQ, precision="highest")
            flat[path] = flat[path] + self._scale * product_NPQ.reshape(flat[path].shape)
        return unflatten_dict(flat, sep="/")


def fingerprint(params: Params) -> int:
    """A checksum of NumPy parameters: with any others an adapter is worth nothing."""
    crc = 0
    for _, leaf in sorted(flatten_dict(params, sep="/").items()):
        crc = zlib.crc32(np.ascontiguousarray(leaf).data, crc)
    return crc
