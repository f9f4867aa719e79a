"""What a training step needs of each device's memory, and the cheapest change with which it fits.

Everything is computed from shapes: no weights are read, and the devices need not exist.
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cot_jax.config import Config
from cot_jax.data.lengths import describe, padded_work
from cot_jax.errors import UserError
from cot_jax.training.experiment import Experiment, prepare
from cot_jax.training.mesh import group_count, make_mesh
from cot_jax.training.run import Run
from cot_jax.training.students import load_student, make_lora

FITS = "fits"
_TOO_LARGE = re.compile(
    r"(Used |HLO temporaries \()(?P<size>[\d.]+)(?P<unit>[MG])"
    r"( of [\d.]+[MG] hbm|\) exceeds available HBM \([\d.]+[MG]\))"
)
# GiB per chip.
_TPU_MEMORY = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}


@dataclasses.dataclass(frozen=True)
class Need:
    """What a step needs of one device, in bytes.

    Attributes:
      rest: gradients, activations and other temporaries; None: not compiled, since the rest is already too
        much.
      compiler: the compiler's message if it refused the program.
    """

    parameters: int
    optimizer: int
    last_batch: int
    batch: int
    gradients: int
    rest: int | None
    compiler: str = ""

    @property
    def resident(self) -> int:
        """What stays in memory between steps."""
        return self.parameters + self.optimizer + self.last_batch + self.batch

    @property
    def least(self) -> int:
        """The minimum without activations: all gradients exist at once, for clipping."""
        return self.resident + self.gradients

    @property
    def total(self) -> int | None:
        return None if self.rest is None else self.resident + self.rest

    def fits(self, memory: int) -> bool:
        return self.total is not None and not self.compiler and self.total <= memory


def report(config: Config, topology_name: str, count: int, memory: int) -> Iterator[str]:
    """Yields lines: what a step needs, whether it fits (the last line is "fits"), and if not, what would.

    Args:
      topology_name: a TPU slice; empty: `count` devices of `memory` bytes each.
      memory: 0: the slice's own.

    Raises:
      UserError: no such slice, or the batch or a dimension is not divisible among the devices.
    """
    if topology_name:
        devices, own = topology(topology_name)
        memory, source = memory or own, "figures of the TPU compiler, without hardware"
    else:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
        devices = jax.devices()
        source = "figures of the CPU compiler: it widens bfloat16, so activations are an upper bound"
    # Only the training step is planned; a run also prepares its evaluation, and prints lines on it.
    config = config.changed({"evaluation.answers": "generate", "evaluation.mutual_information": False})
    experiment = prepare(config, weights=False, platform=_platform(devices))
    yield from _describe(experiment, devices, memory, source)
    need = measure(experiment, devices, memory)
    yield from _table(need, memory)
    if need.fits(memory):
        yield FITS
        return
    yield f"does not fit: {_why(need, memory)}"
    yield remedy(experiment, devices, memory) or "no memory setting makes it fit: use more devices"


def measure(experiment: Experiment, devices: Sequence[jax.Device], memory: int) -> Need:
    """Returns what a device needs; compiles the step unless its state alone is too much.

    Raises:
      UserError: the batch or a dimension is not divisible among the devices.
    """
    run = Run(experiment, devices)
    state, batch, frozen = run.abstract_arguments()
    need = Need(
        parameters=_bytes((state.params, frozen)),
        optimizer=_bytes(state.opt_state),
        last_batch=_bytes(state.last_batch),
        batch=_bytes(batch),
        gradients=_bytes(state.params),
        rest=None,
    )
    if need.least > memory:
        return need
    try:
        found = run.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        # The TPU compiler rejects a program that does not fit and reports its size, or, if these alone are
        # too much, that of its temporaries; it reserves some memory.
        used = _TOO_LARGE.search(str(error))
        if not used:
            raise
        size = int(float(used["size"]) * {"M": 2**20, "G": 2**30}[used["unit"]])
        rest = size if "temporaries" in used[0] else size - need.resident
        return dataclasses.replace(need, rest=rest, compiler=used[0])
    assert found is not None
    rest = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return dataclasses.replace(need, rest=rest)


def remedy(experiment: Experiment, devices: Sequence[jax.Device], memory: int) -> str | None:
    """Returns the flags of the cheapest change that makes it fit, and its need; None if nothing does."""
    for state in _state_changes(experiment.config, len(devices)):
        try:
            mesh = make_mesh(experiment.config.changed(state).mesh, devices)
        except UserError:
            continue
        *weaker, strongest = _activation_changes(experiment, group_count(mesh))
        # The strongest first: if it is not enough, the weaker ones need no compilation.
        if not _needed(experiment, {**state, **strongest}, devices, memory):
            continue
        for activations in (*weaker, strongest):
            change = {**state, **activations}
            if total := _needed(experiment, change, devices, memory):
                flags = " ".join(f"--config.{key}={value}" for key, value in change.items())
                return f"fits with {flags}: {_size(total)} of each device"
    return None


def _needed(
    experiment: Experiment, change: dict[str, Any], devices: Sequence[jax.Device], memory: int
) -> int | None:
    """Returns the bytes of a device with `change`; None if it does not fit or does not divide evenly."""
    try:
        need = measure(changed(experiment, change, devices), devices, memory)
    except UserError:
        return None
    return need.total if need.fits(memory) else None


def _state_changes(config: Config, devices: int) -> list[dict[str, Any]]:
    """Changes that shrink parameters and optimizer state, the cheapest first.

    No change; moments in bfloat16 (4 bytes per parameter, not 8) or, with LoRA, frozen weights in bfloat16
    (2, not 4); parameters sharded among devices (more communication), then heads and feed-forward too. Last,
    if all weights are trained, changes of the result: Adafactor, LoRA.
    """
    divisors = [n for n in range(2, devices + 1) if devices % n == 0]
    divided: list[dict[str, Any]] = [{"mesh.data": -1, "mesh.fsdp": n} for n in divisors]
    divided += [{"mesh.data": 1, "mesh.fsdp": -1, "mesh.model": n} for n in (2, 4, 8) if n in divisors]
    frozen = {"model.frozen_dtype": "bfloat16"}
    narrow = frozen if config.model.has_lora else {"optimizer.moment_dtype": "bfloat16"}
    changes: list[dict[str, Any]] = [{}, narrow, *divided, *({**narrow, **mesh} for mesh in divided)]
    # Adafactor cannot train an adapter (`students.check_lora`).
    adamw = {"optimizer.name": "adamw"} if config.optimizer.name != "adamw" else {}
    lora = {"model.lora_rank": 16, **adamw}
    for other in () if config.model.has_lora else ({"optimizer.name": "adafactor"}, lora, lora | frozen):
        changes += [other, *({**other, **mesh} for mesh in divided)]
    return changes


def _activation_changes(experiment: Experiment, groups: int) -> list[dict[str, Any]]:
    """Changes that shrink activations, the cheapest first: micro-batches, rematerialisation."""
    config = experiment.config
    least = groups * (2 if experiment.overlaps else 1)  # examples of a micro-batch (`Run`)
    parts = [n for n in (2, 4, 8, 16) if config.train.batch_size % (n * least) == 0]
    if config.distillation.gradient_weight:  # needs the whole batch (`teachers.load_teacher`)
        parts = []
    return [
        {},
        *({"train.micro_batches": n} for n in parts[:2]),
        {"model.remat": "layers"},
        *({"model.remat": "layers", "train.micro_batches": n} for n in parts[-1:]),
    ]


def _platform(devices: Sequence[jax.Device]) -> str:
    """The platform planned for. A GPU's devices are taken for the host's."""
    return "tpu" if devices[0].platform == "tpu" else "gpu"


def changed(experiment: Experiment, change: dict[str, Any], devices: Sequence[jax.Device]) -> Experiment:
    """Returns the experiment on `devices` with new values for the keys "SECTION.NAME"."""
    config = experiment.config.changed(change)
    student, *_ = load_student(config.model, experiment.format, weights=False, platform=_platform(devices))
    return dataclasses.replace(
        experiment, config=config, student=student, lora=make_lora(config.model, student)[0]
    )


def _bytes(tree: Any) -> int:
    """Bytes of one device's shards of a tree of shapes."""

    def one(x):
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def _why(need: Need, memory: int) -> str:
    if need.rest is None:
        return f"state and gradients alone need {_size(need.least)} of {_size(memory)}"
    if need.compiler:
        return f"the compiler says: {need.compiler}"
    return f"it needs {_size(need.resident + need.rest)} of {_size(memory)}"


def _table(need: Need, memory: int) -> list[str]:
    rest = "not compiled" if need.rest is None else _size(need.rest - need.gradients)
    rows = {
        "parameters": _size(need.parameters),
        "optimizer": _size(need.optimizer),
        "last batch of self-distillation": _size(need.last_batch),
        "batch": _size(need.batch),
        "gradients": _size(need.gradients),
        "activations, temporary": rest,
        "sum": _size(need.least if need.total is None else need.total),
        "memory of a device": _size(memory),
    }
    return [f"{name:34}{value:>14}" for name, value in rows.items()]


def _describe(
    experiment: Experiment, devices: Sequence[jax.Device], memory: int, source: str
) -> Iterator[str]:
    config = experiment.config
    run = Run(experiment, devices)
    shape, groups = run.batches.shapes[-1], group_count(run.mesh) * config.train.micro_batches
    work = padded_work(np.array(shape), config.train.batch_size, groups)
    flops = 3 * float(experiment.student.flops(work))
    yield (
        f"{run.parameters:,} parameters, method {config.objective.method}, self-distillation "
        f"{config.self_distillation.method}, {config.train.batch_size} examples in {groups} groups of "
        f"{describe(shape)} slots (longest text) of each view's inputs > targets: the largest program"
    )
    yield (
        f"a step: {flops / 1e12:.3g} TFLOP in matrix products, {flops / len(devices) / 1e12:.3g} per device, "
        "without rematerialisation"
    )
    yield f"{len(devices)} x {devices[0].device_kind}, {_size(memory)} each; {source}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.2f} MiB"


def topology(name: str) -> tuple[Sequence[jax.Device], int]:
    """Returns the chips of a TPU slice, e.g. "v5e:4x4" or the single "v5e:1x1", and the bytes of one.

    Raises:
      UserError: no such slice, or no compiler for it.
    """
    kind, _, shape = name.partition(":")
    if kind not in _TPU_MEMORY:
        raise UserError(f"--topology={name}: {kind!r} is not one of {', '.join(_TPU_MEMORY)}")
    jax.config.update("jax_platforms", "cpu")
    # There may be no TPU to query, or another run may hold it.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    # Hosts have four chips unless something else is said.
    host = {"chips_per_host_bounds": (1, 1, 1)} if shape in ("1x1", "1x1x1") else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **host)
    except Exception as error:  # libtpu, or its absence, raises many classes
        raise UserError(
            f"--topology={name}: {' '.join(str(error).split())[:200]} (it needs pip install 'cot-jax[tpu]' "
            "and a slice such as v5e:4x4 or v5p:2x2x4)"
        ) from None
    return found.devices, _TPU_MEMORY[kind] * 2**30
