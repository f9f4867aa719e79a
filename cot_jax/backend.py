"""The devices that a program is compiled for: those of the ambient mesh (`jax.set_mesh`)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def platform() -> str:
    """Returns e.g. "gpu"; a plan compiles for others than this machine's. Without a mesh: this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def by_device(run: Callable[..., Any], in_specs: Callable[[PartitionSpec], Any], *axes: str) -> Any:
    """Returns `run`, each device running it on its own groups: results have a leading axis of groups.

    Args:
      in_specs: from the spec of an array's axis of groups to the specs of the arguments.
      axes: of the mesh, which divide groups.
    """
    mesh = jax.sharding.get_abstract_mesh()
    # The compiler fails if an axis of one device is manual and another automatic.
    axes = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
    if not axes:
        return run
    groups = PartitionSpec(axes)
    return jax.shard_map(
        run, in_specs=in_specs(groups), out_specs=groups, axis_names=set(axes), check_vma=False
    )
