"""Where arrays live: the device mesh, the shardings of state and batch, and the processes that share them.

The mesh has three axes. `data` and `fsdp` divide the examples; `fsdp` also divides each parameter with its
moments, which are gathered layer by layer where they are used (Rajbhandari et al. 2020, "ZeRO", stage 3).
`model` divides heads, feed-forward and vocabulary of the same examples (Shoeybi et al. 2019, "Megatron-LM").
The student's table of weights says which axis divides which dimension; the compiler does the rest.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.config import MeshConfig, Processes
from cot_jax.errors import UserError
from cot_jax.losses.soft_targets import SelfDistillation
from cot_jax.models.weights import Weights
from cot_jax.training.step import TrainState

AXES = ("data", "fsdp", "model")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh of all devices, or of `devices`.

    Raises:
      UserError: the sizes of the axes are not those of so many devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    asked = ", ".join(f"config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if 0 in sizes or sizes.count(-1) > 1:
        raise UserError(
            f"{asked}: one of them may be -1, which is what is left of the devices; none may be 0"
        )
    given = math.prod(size for size in sizes if size > 0)
    if count % given or (-1 not in sizes and count != given):
        raise UserError(
            f"{asked}: {given} devices or a multiple, but there are {count}"
            if -1 in sizes
            else f"{asked}: {given} devices, but there are {count}"
        )
    sizes = [count // given if size == -1 else size for size in sizes]
    # Optax knows nothing of explicit axis types, jax.make_mesh's default.
    return jax.make_mesh(sizes, AXES, axis_types=3 * (AxisType.Auto,), devices=devices)


def data_parallel() -> Mesh:
    """A mesh of all devices, each with examples of its own and all of the student."""
    return make_mesh(MeshConfig())


def arrangement(trained: MeshConfig, shapes: Any, weights: Weights) -> tuple[Mesh, Any]:
    """Returns a mesh of all devices for a trained student, and the shardings of its parameters.

    As in its training or, where these are other devices: what was divided is divided among all of them, if
    they divide it, and else whole on each.
    """
    configs = [trained, MeshConfig(data=1, fsdp=-1)] if trained.fsdp != 1 or trained.model != 1 else []
    for config in configs:
        try:
            return (mesh := make_mesh(config)), by_weights(mesh, shapes, weights)
        except UserError:
            continue
    return (mesh := data_parallel()), by_weights(mesh, shapes, weights)


def group_count(mesh: Mesh) -> int:
    """How many devices have examples of their own."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def require_divisible(mesh: Mesh, batch_size: int, parts: int = 1) -> None:
    """Checks a batch against the devices.

    Raises:
      UserError: the batch, or each of its `parts` of equal size, does not divide among those with examples of
        their own.
    """
    groups = group_count(mesh)
    if batch_size % (groups * parts):
        raise UserError(
            f"batch size {batch_size} is not divisible by the {groups} devices"
            + (" that have examples of their own" if groups < mesh.size else "")
            + (f" in {parts} equal parts" if parts > 1 else "")
            + f": use a multiple of {groups * parts}"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on each device."""
    return NamedSharding(mesh, P())


def by_example(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: rows split among the devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def by_weights(mesh: Mesh, shapes: Any, weights: Weights) -> Any:
    """Shardings of parameters, or of a tree that has their paths at its leaves' ends, as moments have.

    A leaf of another rank than its parameter, such as Adafactor's sums over rows and columns, is small and
    whole on every device, and so is a single number.

    Raises:
      UserError: an axis of the mesh does not divide a dimension.
      ValueError: a leaf belongs to no weight.
    """

    def one(path, leaf):
        if leaf.ndim == 0:
            return replicated(mesh)
        keys = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        ends = ("/".join(keys[n:]) for n in range(len(keys)))
        name = next((end for end in ends if end in weights), None)
        if name is None:
            raise ValueError(f"no weight is called {'/'.join(keys)}")
        spec = weights[name].partition(mesh.shape)
        if leaf.ndim != len(weights[name].axes):
            return replicated(mesh)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis and size % mesh.shape[axis]:
                raise UserError(
                    f"config.mesh.{axis}={mesh.shape[axis]} does not divide the {size} of {name} "
                    f"{'x'.join(map(str, leaf.shape))}: choose another"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, shapes)


def of_state(
    mesh: Mesh, shapes: TrainState, weights: Weights, distillation: SelfDistillation | None
) -> TrainState:
    """Shardings of a train state; the last batch's outputs are where its examples and their logits are."""
    whole: Any = replicated(mesh)

    def output(leaf):
        divides = (
            distillation and distillation.stores_vocabulary and leaf.shape[-1] % mesh.shape["model"] == 0
        )
        vocabulary = "model" if divides else None
        return NamedSharding(mesh, P(BATCH_AXES, *(leaf.ndim - 2) * [None], *[vocabulary][: leaf.ndim - 1]))

    return TrainState(
        step=whole,
        params=by_weights(mesh, shapes.params, weights),
        opt_state=by_weights(mesh, shapes.opt_state, weights),
        rng=whole,
        last_batch=jax.tree.map(output, shapes.last_batch),
    )


def join(processes: Processes) -> None:
    """Joins the processes of a run, which then see each other's devices.

    Raises:
      UserError: they did not find each other.
    """
    try:
        jax.distributed.initialize(processes.coordinator, processes.count, processes.index)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the processes of this run did not find each other ({' '.join(str(error).split())}): give "
            "--coordinator=HOST:PORT --processes=N --process=I"
        ) from None


def another_was_lost(error: Exception) -> bool:
    """Whether an error, raised among several processes, is the runtime's and not ours: others do not answer.

    Where a program is first called JAX raises it as ValueError, "UNKNOWN: Gloo AllGather failed ...";
    other status codes (DATA_LOSS, NOT_FOUND) are what is said of files.
    """
    if not jax.distributed.is_initialized():
        return False
    code = re.match("(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): ", str(error))
    return isinstance(error, jax.errors.JaxRuntimeError) or (isinstance(error, ValueError) and bool(code))


def spread(tree: Any, sharding: Any) -> Any:
    """Puts NumPy arrays, whole in every process, on the mesh; each device gets its own part only.

    Args:
      sharding: one for all, or a tree of them.
    """

    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(sharding, tree))


def abstract(tree: Any, sharding: Any) -> Any:
    """Shapes and dtypes of arrays (or shapes) as they are to lie on the mesh; `sharding` as for `spread`."""

    def one(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, jax.tree.broadcast(sharding, tree))


def leads() -> bool:
    """Whether this process is the one that prints and writes."""
    # Asked for its index, a process alone would take hold of its devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0
