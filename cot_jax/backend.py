"""The devices that a program is compiled for: those of the ambient mesh (`jax.set_mesh`)."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec


def platform() -> str:
    """Returns e.g. "gpu"; a plan compiles for others than this machine's. Without a mesh: this machine's."""
    return _device().platform


def kind() -> str:
    """Returns the devices' name, e.g. "TPU v5 lite"."""
    return _device().device_kind


def _device() -> Any:
    return jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]


def by_device(run: Callable[..., Any], in_specs: Callable[[PartitionSpec], Any], *axes: str) -> Any:
    """Returns `run`, each device running it on its own groups: results have a leading axis of groups.

    Args:
      in_specs: from the spec of an array's axis of groups to the specs of the arguments.
      axes: of the mesh, which divide groups.
    """
    mesh = jax.sharding.get_abstract_mesh()
    large = {axis for axis, size in mesh.shape.items() if size > 1}
    axes = tuple(axis for axis in axes if axis in large)
    if not axes:
        return run
    groups = PartitionSpec(axes)
    # The TPU's kernels want all axes manual. If one must be automatic, the compiler fails if another one, of
    # one device, is manual.
    manual = set(axes) if large - set(axes) else set(mesh.axis_names)
    return jax.shard_map(run, in_specs=in_specs(groups), out_specs=groups, axis_names=manual, check_vma=False)
