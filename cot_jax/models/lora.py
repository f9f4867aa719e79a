"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"): W + alpha / rank * A B.

The weights W of a pretrained student stay as they are; of some of its matrices a product of two thin ones
is added, and only these are trained, stored and remembered by the optimizer. The sum is never formed in
training: the parameters of an adapted student hold `layers.LowRank` leaves.
"""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cot_jax.errors import UserError
from cot_jax.models.layers import LowRank
from cot_jax.models.weights import Params, Weight, Weights, init


class Lora:
    """Which weights of a student are trained: adapters of the targets, and all that is fresh.

    Attributes:
      weights: those that are trained: for every adapted matrix PATH/a (N, P, R) and PATH/b (N, R, Q) with N
        layers, P inputs, Q outputs (all heads of an attention together) and R the rank, beside weights that no
        file has. As in the released code A is uniform within P**-0.5 and B zero: the start is the pretrained
        student.
    """

    def __init__(self, weights: Weights, *, rank: int, alpha: float, targets: str):
        """
        Args:
          weights: the student's.
          rank: R.
          alpha: the product's weight is alpha / R.
          targets: regular expression, found in the paths of the parameters that are adapted.

        Raises:
          UserError: no expression, or no parameter has such a path, or one that is no layer's matrix.
        """
        self._scale = alpha / rank
        try:
            wanted = re.compile(targets)
        except re.error as error:
            raise UserError(f"config.model.lora_targets={targets!r}: {error}") from None
        self._adapted = {path: weight for path, weight in weights.items() if wanted.search(path)}
        if not self._adapted:
            raise UserError(f"config.model.lora_targets={targets!r} is found in no parameter's path")
        self.weights: dict[str, Weight] = {path: w for path, w in weights.items() if not w.theirs}
        for path, weight in self._adapted.items():
            if not weight.inputs or weight.axes[0] != "N":
                raise UserError(
                    f"config.model.lora_targets={targets!r} is found in {path}, no layer's matrix"
                )
            N, (P, Q) = weight.layers, weight.matrix
            # Small, and therefore whole on every device: their axes are none of the mesh's.
            self.weights[f"{path}/a"] = Weight("Nio", (N, P, rank), 1, P**-0.5, weight.theirs)
            self.weights[f"{path}/b"] = Weight("Nio", (N, rank, Q), 1, 0.0, weight.theirs)

    @property
    def matrices(self) -> int:
        """How many are adapted."""
        return sum(weight.layers for weight in self._adapted.values())

    def init(self, rng: jax.Array) -> Params:
        """Fresh trained parameters, float32; the adapters change nothing."""
        flat = flatten_dict(init(self.weights, rng), sep="/")
        for n, path in enumerate(sorted(self._adapted)):
            a = self.weights[f"{path}/a"]
            key = jax.random.fold_in(rng, n)
            flat[f"{path}/a"] = jax.random.uniform(key, a.shape, minval=-a.std, maxval=a.std)
        return unflatten_dict(flat, sep="/")

    def attach(self, frozen: Params, trained: Params) -> Params:
        """The parameters of the adapted student; nothing is copied."""
        # Here, and not where the weight is used: within a loop over layers its result would be kept for the
        # backward pass, a copy of all layers' weights.
        frozen = jax.lax.stop_gradient(frozen)
        flat, own = flatten_dict(frozen, sep="/"), flatten_dict(trained, sep="/")
        for path in self._adapted:
            flat[path] = LowRank(flat[path], own.pop(f"{path}/a"), own.pop(f"{path}/b"), self._scale)
        return unflatten_dict(flat | own, sep="/")

    def merge(self, frozen: Params, trained: Params) -> Params:
        """The parameters of the adapted student as one of the usual kind, float32: for files."""

        def one(leaf):
            if not isinstance(leaf, LowRank):
                return leaf.astype(jnp.float32)
            product_NPQ = jnp.einsum("NPR,NRQ->NPQ", leaf.a, leaf.b, precision="highest")
            return leaf.w.astype(jnp.float32) + leaf.scale * product_NPQ.reshape(leaf.w.shape)

        attached = self.attach(frozen, trained)
        return jax.tree.map(one, attached, is_leaf=lambda leaf: isinstance(leaf, LowRank))


def fingerprint(params: Params) -> int:
    """A checksum of NumPy parameters: with any others an adapter is worth nothing."""
    crc = 0
    for _, leaf in sorted(flatten_dict(params, sep="/").items()):
        crc = zlib.crc32(np.ascontiguousarray(leaf).data, crc)
    return crc
