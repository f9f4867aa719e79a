"""The device mesh, the shardings of state and batch, and the processes that share them.

The mesh has three axes. `data` and `fsdp` shard the examples; `fsdp` also shards each parameter and its
moments, which are gathered layer by layer on use (Rajbhandari et al. 2020, "ZeRO", stage 3). `model` shards
heads, feed-forward and vocabulary of the same examples (Shoeybi et al. 2019, "Megatron-LM"). The student's
table of weights maps dimensions to axes; the compiler does the rest.
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
      UserError: the sizes of the axes do not match the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    sizes = [getattr(config, axis) for axis in AXES]
    asked = ", ".join(f"config.mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if 0 in sizes or sizes.count(-1) > 1:
        raise UserError(f"{asked}: one of them may be -1, which takes all remaining devices; none may be 0")
    given = math.prod(size for size in sizes if size > 0)
    if count % given or (-1 not in sizes and count != given):
        raise UserError(
            f"{asked}: {given} devices or a multiple, but there are {count}"
            if -1 in sizes
            else f"{asked}: {given} devices, but there are {count}"
        )
    sizes = [count // given if size == -1 else size for size in sizes]
    # Optax does not support explicit axis types, the default of jax.make_mesh.
    return jax.make_mesh(sizes, AXES, axis_types=3 * (AxisType.Auto,), devices=devices)


def data_parallel() -> Mesh:
    """Returns a mesh of all devices, each with its own examples and the whole student."""
    return make_mesh(MeshConfig())


def arrangement(trained: MeshConfig, shapes: Any, weights: Weights) -> tuple[Mesh, Any]:
    """Returns a mesh of all devices for a trained student, and the shardings of its parameters.

    As in training, if the devices allow it. Otherwise a student that was sharded is sharded over all devices
    if it is divisible, else replicated.
    """
    configs = [trained, MeshConfig(data=1, fsdp=-1)] if trained.fsdp != 1 or trained.model != 1 else []
    for config in configs:
        try:
            return (mesh := make_mesh(config)), by_weights(mesh, shapes, weights)
        except UserError:
            continue
    return (mesh := data_parallel()), by_weights(mesh, shapes, weights)


def group_count(mesh: Mesh) -> int:
    """Returns the number of data-parallel groups."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def require_divisible(mesh: Mesh, batch_size: int, parts: int = 1) -> None:
    """Checks a batch against the devices.

    Raises:
      UserError: the batch, in `parts` of equal size, is not divisible among the data-parallel groups.
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
    """Returns the sharding of a copy on each device."""
    return NamedSharding(mesh, P())


def by_example(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows split among the devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


def by_weights(mesh: Mesh, shapes: Any, weights: Weights) -> Any:
    """Returns the shardings of parameters, or of a tree whose paths end in theirs, such as the moments.

    Scalars, and leaves of another shape than their parameter, such as Adafactor's row and column sums, are
    small and replicated.

    Raises:
      UserError: a mesh axis does not divide a dimension.
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
        if leaf.shape != weights[name].shape:
            return replicated(mesh)
        spec = weights[name].partition(mesh.shape)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis and size % mesh.shape[axis]:
                raise UserError(
                    f"config.mesh.{axis}={mesh.shape[axis]} does not divide the {size} of {name} "
                    f"{'x'.join(map(str, leaf.shape))}: choose another size"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, shapes)


def of_state(
    mesh: Mesh, shapes: TrainState, weights: Weights, distillation: SelfDistillation | None
) -> TrainState:
    """Returns the shardings of a train state; stored outputs are sharded as their examples and logits."""
    whole: Any = replicated(mesh)

    def stored(leaf):
        axes: list[Any] = [BATCH_AXES, *(leaf.ndim - 1) * [None]]
        has_vocabulary = distillation and distillation.stores_vocabulary and leaf.ndim > 1
        if has_vocabulary and leaf.shape[-1] % mesh.shape["model"] == 0:
            axes[-1] = "model"
        return NamedSharding(mesh, P(*axes))

    return TrainState(
        step=whole,
        params=by_weights(mesh, shapes.params, weights),
        opt_state=by_weights(mesh, shapes.opt_state, weights),
        rng=whole,
        last_batch=jax.tree.map(stored, shapes.last_batch),
    )


def join(processes: Processes) -> None:
    """Connects the processes of a run, which then see each other's devices.

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
    """Whether an error comes from the distributed runtime because another process does not answer.

    On the first call of a program JAX raises it as ValueError, "UNKNOWN: Gloo AllGather failed ...". Other
    status codes (DATA_LOSS, NOT_FOUND) concern files.
    """
    if not jax.distributed.is_initialized():
        return False
    code = re.match("(UNKNOWN|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED): ", str(error))
    return isinstance(error, jax.errors.JaxRuntimeError) or (isinstance(error, ValueError) and bool(code))


def spread(tree: Any, sharding: Any) -> Any:
    """Puts NumPy arrays, complete in every process, on the mesh; each device gets its own shard only.

    Args:
      sharding: one for all, or a tree of them.
    """

    def put(x, sharding):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree, jax.tree.broadcast(sharding, tree))


def abstract(tree: Any, sharding: Any) -> Any:
    """Returns shapes, dtypes and shardings of arrays (or shapes) on the mesh; `sharding` as for `spread`."""

    def one(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(one, tree, jax.tree.broadcast(sharding, tree))


def leads() -> bool:
    """Whether this process prints and writes."""
    # Asking for the index would make a single process initialise its devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0
