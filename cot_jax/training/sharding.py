"""Where arrays live: the device mesh and the shardings of state and batch."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

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
