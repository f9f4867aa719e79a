"""A weight is declared once: its axes, its inputs, its initial values and its name in Hugging Face's files.

Initialisation, shardings, files, weight decay, LoRA's and Adafactor's matrices and the gradient norms of
layers all come from a family's table of weights. Parameters are a plain nested dict of float32 arrays; those
of a stack's layers are one leaf with the layer as its first axis, below a key `layers`.
"""

import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

Params = dict[str, Any]

# The mesh axis that divides each letter.
_MESH_AXES = {"D": "fsdp", "H": "model", "G": "model", "F": "model", "V": "model"}


class Weight(NamedTuple):
    """One parameter.

    Attributes:
      axes: a letter for each dimension: N the layer (only ever first), D model, H heads, G key-value heads,
        K head size, F feed-forward, V vocabulary, P position buckets, W window of a convolution, E examples
        and C classes of a stored answer.
      shape: their sizes.
      inputs: how many of them, after N, a linear map consumes; 0 for a bias, a norm or a table.
      std: standard deviation of a fresh one; 0 for zeros (a bias), None for ones (a norm's scale).
      theirs: tensor name in Hugging Face's files, "{n}" the layer; "" for one that no file has, such as a new
        classification head.
    """

    axes: str
    shape: tuple[int, ...]
    inputs: int
    std: float | None
    theirs: str

    @property
    def is_stacked(self) -> bool:
        """Whether the leaf holds the weights of several layers."""
        return self.axes[0] == "N"

    @property
    def layers(self) -> int:
        """How many; 1 outside a stack."""
        return self.shape[0] if self.is_stacked else 1

    @property
    def is_vector(self) -> bool:
        """Whether a layer's part is a norm's scale or a bias, whatever its axes."""
        return not self.inputs and not self.std

    @property
    def matrix(self) -> tuple[int, ...]:
        """A layer's part as (inputs, outputs), or as (size,) of a vector."""
        sizes = self.shape[self.is_stacked :]
        if self.is_vector:
            return (math.prod(sizes),)
        return (math.prod(sizes[: self.inputs or 1]), math.prod(sizes[self.inputs or 1 :]))

    def partition(self, mesh: Mapping[str, int]) -> PartitionSpec:
        """How the weight is divided on a mesh of these axis sizes.

        Key-value heads that the axis does not divide are whole on every device: there may be fewer of them
        than devices. A norm's scale is always whole.
        """
        if self.is_vector and self.axes[-1] == "D":
            return PartitionSpec()
        taken: list[str | None] = []
        for letter, size in zip(self.axes, self.shape, strict=True):
            axis = _MESH_AXES.get(letter)
            if axis in taken or (letter == "G" and size % mesh.get(str(axis), 1)):
                axis = None
            taken.append(axis)
        return PartitionSpec(*taken)


Weights = Mapping[str, Weight]


def shapes(weights: Weights) -> Params:
    """The shapes of the parameters."""
    flat = {path: jax.ShapeDtypeStruct(weight.shape, jnp.float32) for path, weight in weights.items()}
    return unflatten_dict(flat, sep="/")


def init(weights: Weights, rng: jax.Array, given: Params | None = None) -> Params:
    """Fresh parameters, but for those `given`; each leaf depends on its path and the key only."""
    ready = flatten_dict(given, sep="/") if given else {}

    def one(path: str, weight: Weight) -> jax.Array:
        if path in ready:
            return ready[path]
        if weight.std is None:
            return jnp.ones(weight.shape)
        if weight.std == 0:
            return jnp.zeros(weight.shape)
        return weight.std * jax.random.normal(
            jax.random.fold_in(rng, zlib.crc32(path.encode())), weight.shape
        )

    return unflatten_dict({path: one(path, weight) for path, weight in weights.items()}, sep="/")


def decays(path: str, weight: Weight) -> bool:
    """Whether weight decay acts on it: not on norms and biases, position biases included."""
    return not weight.is_vector and not path.endswith("bias")


def layer_norms(tree: Params) -> dict[str, jax.Array]:
    """Per stack of layers the norms (N,) of each layer's part of a tree with the parameters' paths."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        if found := re.match("(?:(.*)/)?layers/", path):
            stack = found[1] or "layers"
            squares[stack] = squares.get(stack, 0) + jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim)))
    return {stack: jnp.sqrt(total) for stack, total in squares.items()}
