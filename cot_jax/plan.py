"""Does it fit? `python -m cot_jax.plan --config=FILE --topology=v5e:4x4 | --devices=8 --memory=80GiB`

Compiles the training step of FILE at its costliest shape, from shapes alone. Prints how much of a device's
memory parameters, optimizer state, the last batch of self-distillation and activations need. If they do not
fit, prints the cheapest change that makes them fit. --topology uses the TPU compiler, without the hardware
(pip install 'cot-jax[tpu]'); --devices uses the CPU compiler, on as many virtual devices, in the precision of
a GPU. No weights are read: --config.model.pretrained= --config.model.preset=xxl plans for a size. All other
flags are those of cot_jax.train.
"""

import argparse
import dataclasses
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from cot_jax.config import Config, parse_command_line
from cot_jax.data.lengths import describe, padded_work
from cot_jax.errors import UserError, command
from cot_jax.imports import restart_prepared
from cot_jax.training.experiment import Experiment, prepare
from cot_jax.training.mesh import group_count
from cot_jax.training.run import Run
from cot_jax.training.students import load_student, make_lora

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


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0: it fits, 1: it does not, 2: usage."""
    options, rest = _options(argv)
    config = parse_command_line([argv[0], *rest], __doc__).config
    devices, memory, source = _devices(options)
    platform = "tpu" if options.topology else "gpu"
    experiment = prepare(config, weights=False, platform=platform)
    print(*_describe(experiment, devices, memory, source), sep="\n", flush=True)
    need = measure(experiment, devices, memory)
    print(*_table(need, memory), sep="\n", flush=True)
    if need.fits(memory):
        print("fits")
        return 0
    print(f"does not fit: {_why(need, memory)}", flush=True)
    print(remedy(experiment, devices, memory) or "no memory setting makes it fit: use more devices")
    return 1


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
        # The TPU compiler rejects a program that does not fit and reports its size; it reserves some memory.
        used = re.search(r"Used ([\d.]+)([MG]) of ([\d.]+)([MG]) hbm", str(error))
        if not used:
            raise
        total = float(used[1]) * {"M": 2**20, "G": 2**30}[used[2]]
        return dataclasses.replace(need, rest=int(total) - need.resident, compiler=used[0])
    assert found is not None
    rest = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return dataclasses.replace(need, rest=rest)


def remedy(experiment: Experiment, devices: Sequence[jax.Device], memory: int) -> str | None:
    """Returns the flags of the cheapest change that makes it fit, and its need; None if nothing does."""
    *weaker, strongest = _activation_changes(experiment.config.train.batch_size)
    for state in _state_changes(experiment.config, len(devices)):
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
        need = measure(changed(experiment, change), devices, memory)
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


def _activation_changes(batch_size: int) -> list[dict[str, Any]]:
    """Changes that shrink activations, the cheapest first: micro-batches, rematerialisation."""
    parts = [n for n in (2, 4, 8, 16) if batch_size % n == 0]
    return [
        {},
        *({"train.micro_batches": n} for n in parts[:2]),
        {"model.remat": "layers"},
        *({"model.remat": "layers", "train.micro_batches": n} for n in parts[-1:]),
    ]


def changed(experiment: Experiment, change: dict[str, Any]) -> Experiment:
    """Returns the experiment with new values for the keys "SECTION.NAME"."""
    config = experiment.config.changed(change)
    student, *_ = load_student(config.model, experiment.format, weights=False, platform="gpu")  # or TPU
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


def _devices(options: argparse.Namespace) -> tuple[Sequence[jax.Device], int, str]:
    """Returns the devices to plan for, which need not exist, the bytes of one, and whose figures they are."""
    if options.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)
        source = "figures of the CPU compiler: it widens bfloat16, so activations are an upper bound"
        return jax.devices(), options.memory, source
    devices, memory = topology(options.topology)
    return devices, options.memory or memory, "figures of the TPU compiler, without hardware"


def topology(name: str) -> tuple[Sequence[jax.Device], int]:
    """Returns the chips of a TPU slice, e.g. "v5e:4x4", and the bytes of one.

    Raises:
      UserError: no such slice, or no compiler for it.
    """
    kind = name.partition(":")[0]
    if kind not in _TPU_MEMORY:
        raise UserError(f"--topology={name}: {kind!r} is not one of {', '.join(_TPU_MEMORY)}")
    jax.config.update("jax_platforms", "cpu")
    # There may be no TPU to query, or another run may hold it.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name)
    except Exception as error:  # libtpu, or its absence, raises many classes
        raise UserError(
            f"--topology={name}: {' '.join(str(error).split())[:200]} (it needs pip install 'cot-jax[tpu]' "
            "and a slice such as v5e:4x4 or v5p:2x2x4)"
        ) from None
    return found.devices, _TPU_MEMORY[kind] * 2**30


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--topology")
    where.add_argument("--devices", type=int)
    parser.add_argument("--memory", type=_memory)
    try:
        options, rest = parser.parse_known_args(list(argv[1:]))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    asks = any(flag in rest for flag in ("--help", "-h", "-help"))
    if options.devices is not None and options.devices < 1:
        raise UserError(f"--devices={options.devices}: at least 1")
    if not (options.topology or (options.devices and options.memory)) and not asks:
        raise UserError("give the devices to plan for: --topology=v5e:4x4, or --devices=8 --memory=80GiB")
    return options, rest


def _memory(text: str) -> int:
    found = re.fullmatch(r"([\d.]+)\s*(GiB|GB)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and GiB or GB, e.g. 80GiB")
    return int(float(found[1]) * {"GiB": 2**30, "GB": 10**9}[found[2]])


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main(sys.argv))
