"""The table of weights: each one's axes, inputs, initial values and name in Hugging Face's files.

A family declares each weight once. Initialisation, shardings, files, weight decay, LoRA's and Adafactor's
matrices and layerwise gradient norms follow from the table. Parameters are a plain nested dict of float32
arrays; a stack's layers share one leaf, with the layer as its first axis, below a key `layers`.
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

# The mesh axis over which each letter is sharded.
_MESH_AXES = {"D": "fsdp", "H": "model", "G": "model", "F": "model", "V": "model"}


class Weight(NamedTuple):
    """One parameter.

    Attributes:
      axes: a letter for each dimension: N layer (always first), D model, H heads, G key-value heads,
        K head size, F feed-forward, V vocabulary, P positions or buckets of them, W window of a convolution.
        Other letters have a meaning in their family only and are never sharded.
      shape: their sizes.
      inputs: number of axes, after N, that a linear map consumes; 0 for a bias, a norm or a table.
      std: initial standard deviation; 0: zeros (a bias), None: ones (a norm's scale).
      theirs: tensor name in Hugging Face's files, with "{n}" for the layer; "" for what is in no such file, a
        teacher's stored answers.
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
        """Number of layers; 1 outside a stack."""
        return self.shape[0] if self.is_stacked else 1

    @property
    def is_vector(self) -> bool:
        """Whether it is a norm's scale or a bias, whatever its axes."""
        return not self.inputs and not self.std

    @property
    def matrix(self) -> tuple[int, ...]:
        """Shape of a layer's part as a matrix (inputs, outputs), or (size,) of a vector."""
        sizes = self.shape[self.is_stacked :]
        if self.is_vector:
            return (math.prod(sizes),)
        return (math.prod(sizes[: self.inputs or 1]), math.prod(sizes[self.inputs or 1 :]))

    def partition(self, mesh: Mapping[str, int]) -> PartitionSpec:
        """The weight's sharding on a mesh of these axis sizes.

        Key-value heads are replicated if the axis does not divide them: there may be fewer heads than
        devices. A norm's scale is always replicated.
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


class Table:
    """Collects the weights of a family with one stack of layers."""

    def __init__(self, layers: int):
        self.weights: dict[str, Weight] = {}
        self._N = layers

    def add(self, path: str, axes: str, shape: tuple[int, ...], inputs: int, std: float | None, theirs: str):
        if path.startswith("layers/"):
            axes, shape = f"N{axes}", (self._N, *shape)
        self.weights[path] = Weight(axes, shape, inputs, std, theirs)

    def linear(
        self, path: str, axes: str, shape: tuple[int, ...], theirs: str, inputs: int = 1, bias: bool = True
    ) -> None:
        """Adds a map and its bias: `path`_bias, or bias beside a map called w."""
        self.add(path, axes, shape, inputs, 0.02, f"{theirs}.weight")
        if bias:
            name = f"{path[:-1]}bias" if path.endswith("/w") else f"{path}_bias"
            self.add(name, axes[inputs:], shape[inputs:], 0, 0.0, f"{theirs}.bias")

    def scale(self, path: str, axis: str, size: int, theirs: str) -> None:
        self.add(path, axis, (size,), 0, None, f"{theirs}.weight")

    def norm(self, path: str, size: int, theirs: str) -> None:
        self.scale(f"{path}/scale", "D", size, theirs)
        self.add(f"{path}/bias", "D", (size,), 0, 0.0, f"{theirs}.bias")


def shapes(weights: Weights) -> Params:
    """Shapes and dtypes of the parameters."""
    flat = {path: jax.ShapeDtypeStruct(weight.shape, jnp.float32) for path, weight in weights.items()}
    return unflatten_dict(flat, sep="/")


def init(weights: Weights, rng: jax.Array, given: Params | None = None) -> Params:
    """Initial parameters, except those `given`. Each leaf depends on its path and the key only."""
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
    """Whether weight decay applies: not to norms and biases, position biases included."""
    return not weight.is_vector and not path.endswith("bias")


def layer_norms(tree: Params) -> dict[str, jax.Array]:
    """For each stack, the norms (N,) of its layers in a tree with the parameters' paths."""
    squares: dict[str, jax.Array] = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        if found := re.match("(?:(.*)/)?layers/", path):
            stack = found[1] or "layers"
            squares[stack] = squares.get(stack, 0) + jnp.sum(leaf**2, axis=tuple(range(1, leaf.ndim)))
    return {stack: jnp.sqrt(total) for stack, total in squares.items()}
