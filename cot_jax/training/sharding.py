"""Where arrays live: the device mesh, the shardings of state and batch, and the processes that share them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.config import Processes
from cot_jax.errors import UserError

BATCH_AXES = ("data",)


def make_mesh(batch_size: int, parts: int = 1) -> Mesh:
    """Returns a mesh of all devices along `data`.

    Raises:
      UserError: the batch, or each of its `parts` of equal size, does not divide among the devices.
    """
    devices = jax.device_count()
    if batch_size % (devices * parts):
        raise UserError(
            f"batch size {batch_size} is not divisible by the {devices} devices"
            + (f" in {parts} equal parts" if parts > 1 else "")
            + f": use a multiple of {devices * parts}"
        )
    # Linen and optax know nothing of explicit axis types, jax.make_mesh's default.
    return jax.make_mesh((devices,), BATCH_AXES, axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of the state: a whole copy on each device."""
    return NamedSharding(mesh, P())


def by_example(mesh: Mesh) -> NamedSharding:
    """Sharding of a batch: rows split among the devices."""
    return NamedSharding(mesh, P(BATCH_AXES))


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


def spread(tree: Any, sharding: NamedSharding) -> Any:
    """Puts NumPy arrays, whole in every process, on the mesh; each process copies its own part only."""

    def put(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def leads() -> bool:
    """Whether this process is the one that prints and writes."""
    # Asked for its index, a process alone would take hold of its devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0
