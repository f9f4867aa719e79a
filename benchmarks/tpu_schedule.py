"""How long a training step takes a TPU, by the schedule in its compiled program. Nothing runs.

    python -m benchmarks.tpu_schedule --student=base --root=DATA --tokenizer=DIR
    python -m benchmarks.tpu_schedule --student=base --method=dss --root=DATA --tokenizer=DIR
    python -m benchmarks.tpu_schedule --student=bert-base --root=DATA/glue --tokenizer=DIR --chips v5e v5p

Needs no TPU, but its compiler (pip install '.[tpu]'), which takes minutes. One chip, bfloat16, the largest
batch of the run: a seq2seq student learns CQA by `--method` in batches of 64, a decoder SVAMP with LoRA of
rank 16 in batches of 16, an encoder RTE in batches of 32. Prints Markdown.

Cycles are the compiler's own estimate, of operations one after the other. It has none for gathers, scatters
and copies between memories, which count as nothing, and none for attention's kernels: of these it counts the
scheduled instruction bundles, a cycle each, times the tiles that the batch needs. A loop over the examples of
a chunk, whose turns depend on the data, counts as if each chunk began within an example. FLOPs are those of
`workload.step_flops`; with LoRA two thirds, since frozen weights have no gradient.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import itertools
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.batch import Batch
from cot_jax.config import Config, default_config, freeze
from cot_jax.configs import common
from cot_jax.data.lengths import describe, real_work
from cot_jax.errors import UserError, command
from cot_jax.imports import restart_prepared
from cot_jax.models import student as students
from cot_jax.models import tpu_attention
from cot_jax.models.layers import Layout
from cot_jax.models.tpu_attention import B as LANES
from cot_jax.training.experiment import prepare
from cot_jax.training.planning import topology
from cot_jax.training.run import Run


class Chip(NamedTuple):
    """A slice that has it, its bfloat16 FLOP/s, its clock: these over what matrix units do a cycle."""

    topology: str
    peak: float
    hertz: float


CHIPS = {
    "v5e": Chip("v5e:2x2", 197e12, 197e12 / (4 * 2 * 128**2)),
    "v5p": Chip("v5p:2x2x1", 459e12, 459e12 / (8 * 2 * 128**2)),
    "v6e": Chip("v6e:2x2", 918e12, 918e12 / (4 * 2 * 256**2)),
}
# The first that an operation's name has.
_PARTS = ("optimizer", "head", "attention", "unpack", "pack", "encoder", "decoder")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
_IN_PLACE = ("dynamic-slice", "dynamic-update-slice")
_LONG = 64  # bundles; a branch over more of them is rarely not taken


class Operation(NamedTuple):
    """What a scheduled operation takes in a whole step.

    Attributes:
      name: in the program.
      part: of the model, one of `_PARTS` or "other".
      does: the end of its name in JAX.
      cycles, bytes: of all `turns`; bytes are those of operands and results outside the chip's fast memory.
      turns: of the loops around it.
    """

    name: str
    part: str
    does: str
    cycles: int
    bytes: int
    turns: int


class _Instruction(NamedTuple):
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


def operations(hlo: str, examples: int, kernels: Mapping[str, int]) -> list[Operation]:
    """Returns the scheduled operations of a compiled TPU program that have an estimate of cycles.

    Args:
      hlo: its text.
      examples: of the batch: loops whose number of turns is no constant go over those of each chunk.
      kernels: cycles of a call of each of attention's kernels, by its name in the program.
    """
    computations, entry = _read(hlo)
    found: list[Operation] = []

    def visit(computation: str, turns: int, inside: str) -> None:
        for name, one in computations[computation].items():
            named = re.search(r'op_name="([^"]*)"', one.rest)
            where = named[1] if named else inside
            if one.opcode == "while":
                condition, body = _attribute(one, "condition"), _attribute(one, "body")
                known = _turns(computations[condition])
                visit(body, turns * known if known else examples + turns - 1, where)
            elif one.opcode == "call":
                visit(_attribute(one, "to_apply"), turns, where)
            elif cycles := _estimate(one) or kernels.get(name):
                words = set(re.findall(r"\w+", where))
                part = next((part for part in _PARTS if part in words), "other")
                does = where.rpartition("/")[2]
                size = _moved(computations, computations[computation], one)
                found.append(Operation(name, part, does, turns * cycles, turns * size, turns))

    visit(entry, 1, "")
    return found


def _read(hlo: str) -> tuple[dict[str, dict[str, _Instruction]], str]:
    """The instructions of each computation by name, and which one is entered."""
    computations: dict[str, dict[str, _Instruction]] = {}
    entry = ""
    for line in hlo.splitlines():
        if begins := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            current = computations[begins[2]] = {}
            entry = begins[2] if begins[1] else entry
        elif found := re.match(r"\s+(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\(([^)]*)\)(.*)", line):
            root, name, shape, opcode, operands, rest = found.groups()
            names = tuple(re.findall(r"%([\w.-]+)", operands)) or (operands,)
            current[name] = _Instruction(shape, opcode, names, rest, bool(root))
    return computations, entry


def _attribute(one: _Instruction, key: str) -> str:
    found = re.search(rf"{key}=%([\w.-]+)", one.rest)
    assert found
    return found[1]


def _estimate(one: _Instruction) -> int | None:
    found = re.search(r'"estimated_cycles":"(\d+)"', one.rest)
    return int(found[1]) if found else None


def kernel_cycles(hlo: str, dumped: Path, batch: Batch) -> dict[str, int]:
    """Returns what a call of each of attention's kernels takes, by its name in the program.

    A kernel has code that each of its programs runs, a loop over the tiles of keys that one needs, and code
    behind branches, such as copies of keys: if long, only the first or last program of a group of heads runs
    it. Waiting for memory is not counted.

    Args:
      dumped: folder of the compiler's files of instruction bundles.
    """
    targets, inputs = (
        Layout([getattr(view, side) for view in batch.views.values()], batch.example)
        for side in ("targets", "inputs")
    )
    tiles = {}
    for queries, keys, causal in (
        (targets, targets, True),
        (targets, inputs, False),
        (inputs, inputs, False),
    ):
        X, Y = queries.ids_GX.size, keys.ids_GX.size
        places = [x.reshape(-1) for layout in (queries, keys) for x in layout.places()]
        low, high = tpu_attention.needed(causal, -(-X // LANES), -(-Y // LANES), places)
        tiles[X, Y] = int(jnp.sum(jnp.maximum(high - low, 0)))
    found = {}
    for computation in _read(hlo)[0].values():
        for name, one in computation.items():
            if "tpu_custom_call" in one.rest:
                (X, width), (Y, _) = (_dims(computation[operand].shape) for operand in one.operands[2:4])
                (file,) = dumped.glob(f"*-{name}-*-final_bundles.txt")
                once, program, tile = _bundles(file.read_text())
                each = once - (-X // LANES) * program + tiles[X, Y] * tile
                found[name] = width // LANES * each
    return found


def _bundles(text: str) -> tuple[int, int, int]:
    """Bundles of a kernel that run once in a group of heads, once in a program, once for a tile of keys."""
    lines = re.findall(r"^ *0(?:x[0-9a-f]+)? +(?:[A-Z]{2})?: *(?:> ?)* *\{.*$", text, re.MULTILINE)
    depth = [line[: line.index("{")].count(">") for line in lines]
    begins = {
        n: i for i, line in enumerate(lines) for n in re.findall(r"Start(?:/End empty)? region (\d+)", line)
    }
    seldom: set[int] = set()
    for i, line in enumerate(lines):
        for n in re.findall(r"target = \$region(\d+)", line):
            body = range(i + 1, begins.get(n, 0))
            looped = sum(depth[j] > 1 for j in body)
            if len(body) > _LONG and looped < sum(d > 1 for d in depth) / 2:  # not around the loop over tiles
                seldom |= set(body)
    often = [d for i, d in enumerate(depth) if i not in seldom]
    return len(seldom), sum(d < 2 for d in often), sum(d > 1 for d in often)


def _dims(shape: str) -> list[int]:
    found = re.search(r"\[([\d,]*)\]", shape)
    assert found
    return [int(n) for n in found[1].split(",")]


def _turns(condition: dict[str, _Instruction]) -> int | None:
    """How often a loop that counts from 0 turns; None where that is no constant."""
    (root,) = (one for one in condition.values() if one.is_root)
    ends = [condition[name] for name in root.operands if condition[name].opcode == "constant"]
    return int(ends[0].operands[0]) if "direction=LT" in root.rest and ends else None


def _moved(
    computations: dict[str, dict[str, _Instruction]], around: dict[str, _Instruction], one: _Instruction
) -> int:
    """Bytes an operation reads and writes; of what it only slices or updates in place, the slices'."""
    inner = computations[_attribute(one, "calls")] if one.opcode == "fusion" else {}
    parameters = {int(i.operands[0]): name for name, i in inner.items() if i.opcode == "parameter"}
    total = 0
    for n, operand in enumerate(one.operands):
        if operand not in around:
            continue
        users = [i for i in inner.values() if parameters.get(n) in i.operands]
        if users and all(i.opcode in _IN_PLACE and i.operands[0] == parameters[n] for i in users):
            slices = [i.shape for i in users if i.opcode == "dynamic-slice"]
            total += sum(_size(shape, around[operand].shape) for shape in slices)
        else:
            total += _size(around[operand].shape)
    roots = [i for i in inner.values() if i.is_root]
    if roots and roots[0].opcode == "tuple":
        roots = [inner[name] for name in roots[0].operands]
    if all(root.opcode != "dynamic-update-slice" for root in roots):
        return total + _size(one.shape)
    for root in roots:
        written = inner[root.operands[1]] if root.opcode == "dynamic-update-slice" else root
        total += _size(written.shape, root.shape)
    return total


def _size(shape: str, of: str = "") -> int:
    """Bytes of a shape's arrays in the chip's large memory, or of parts of `of`; S(1) is the fast memory."""
    if of:
        return 0 if "S(" in of else _size(shape.replace("S(1)", ""))
    total = 0
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        dims = [int(n) for n in sizes.split(",") if n]
        total += 0 if "S(" in layout else _BYTES.get(dtype, 0) * int(np.prod(dims, dtype=np.int64))
    return total


@command
def main(argv: Sequence[str]) -> int:
    """Prints the page of each chip; returns the exit status."""
    options = _options(argv)
    config = _config(options)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("there is no compiler for TPUs: pip install 'cot-jax[tpu]'")
    versions = f"jax {jax.__version__}, libtpu {importlib.metadata.version('libtpu')}"
    print(f"The estimate of the TPU's compiler; nothing ran. {versions}\n", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        # Read when the compiler is loaded.
        flags = f"to={directory}", "llo_text=true", "llo_pass_label_regex=.*final_bundles"
        given = os.environ.get("LIBTPU_INIT_ARGS", "")
        os.environ["LIBTPU_INIT_ARGS"] = " ".join([given, *(f"--xla_jf_dump_{flag}" for flag in flags)])
        _print_pages(options, config, Path(directory))
    return 0


def _print_pages(options: argparse.Namespace, config: Config, dumped: Path) -> None:
    for name in options.chips:
        chip = CHIPS[name]
        for file in dumped.iterdir():
            file.unlink()
        devices, _ = topology(chip.topology)
        experiment = prepare(config, weights=False, platform="tpu")
        run = Run(experiment, devices[:1])
        batch = run.batches.largest()
        lengths = [(view.inputs.length, view.targets.length) for view in batch.views.values()]
        passes = 2 if experiment.lora else 3
        flops = passes * float(experiment.student.flops(real_work(np.array(lengths))))
        began = time.monotonic()
        text = run.compile().as_text()
        assert text
        print(f"{options.student}, {describe(run.batches.shapes[-1])}, {name}:", end=" ")
        compiled = f"{time.monotonic() - began:.0f} s to compile"
        found = operations(text, batch.example.size, kernel_cycles(text, dumped, batch))
        print(*page(found, chip, flops, compiled), sep="\n", flush=True)


def page(found: list[Operation], chip: Chip, flops: float, compiled: str) -> Iterator[str]:
    """Says what a step takes, by part, and what the ten most expensive operations are."""
    cycles = sum(one.cycles for one in found)
    seconds = cycles / chip.hertz
    yield f"{1e3 * seconds:.1f} ms a step, {flops / seconds / chip.peak:.0%} of the peak, {compiled}."
    parts: collections.Counter[str] = collections.Counter()
    for one in found:
        parts[one.part] += one.cycles
    yield ", ".join(f"{part} {count / cycles:.0%}" for part, count in parts.most_common())
    yield from ("", "| part | operation | turns | ms | share | GB |", "| --- | --- | --- | --- | --- | --- |")
    for one in itertools.islice(sorted(found, key=lambda one: -one.cycles), 10):
        figures = f"{1e3 * one.cycles / chip.hertz:.2f} | {one.cycles / cycles:.1%} | {one.bytes / 1e9:.2f}"
        yield f"| {one.part} | {one.does or one.name} | {one.turns} | {figures} |"


def _config(options: argparse.Namespace) -> Config:
    kind = students.family("", options.student).format
    if options.method and kind != "seq2seq":
        raise UserError(
            f"--method={options.method} is for a seq2seq student, not {options.student}: leave it out"
        )
    if kind == "classes":
        values = common.encoder("", "rte", 32)
    else:
        values = default_config()
        values.data.task = "cqa" if kind == "seq2seq" else "svamp"
        method, _, variant = (options.method or "mi").partition(":")
        values.objective.method, values.objective.mi_variant = method, variant or "reference"
    if kind == "causal":
        values.objective.method, values.train.batch_size = "single_task", 16
        values.model.lora_rank, values.model.frozen_dtype = 16, "bfloat16"
    values.data.root, values.model.tokenizer = options.root, options.tokenizer
    values.model.preset, values.model.remat = options.student, options.remat
    return freeze(values)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="base", help="preset")
    methods = ("mi", "mi:normalized", "dss")
    parser.add_argument("--method", choices=methods, help="of a seq2seq student (default: mi)")
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument("--tokenizer", required=True, help="the student's")
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=["v5e"])
    parser.add_argument("--remat", default="auto", help="config.model.remat")
    return parser.parse_args(argv)


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main(sys.argv[1:]))
