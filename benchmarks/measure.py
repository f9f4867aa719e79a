"""What the benchmarks share: clocks, the machine's matmul rate, tables, JSON."""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.training.console import hardware

# Read when the first array is made: PyTorch needs room on the same device, and peaks are to be seen.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Samples of one duration, in the order in which they were taken."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.samples))

    @property
    def mean(self) -> float:
        return float(np.mean(self.samples))

    def __str__(self) -> str:
        """Median [least, lower quartile-upper quartile], all in one unit."""
        unit, scale = ("s", 1) if self.median >= 1 else ("ms", 1000)
        low, first, median, last = scale * np.percentile(self.samples, [0, 25, 50, 75])
        return f"{median:.4g} {unit} [{low:.4g}, {first:.4g}-{last:.4g}]"


def in_turn(sides: Mapping[str, Callable[[int], Any]], repeats: int, calls: int = 1) -> dict[str, Seconds]:
    """Times A B A B ...; a sample is the mean of `calls` calls after an untimed one.

    A step of a training follows one of its own, and finds its memory. After the other side's, ours took a
    quarter longer on a CPU, because the system had to provide that memory anew.

    A side gets the number of its call and returns when its work is dispatched; `finish` waits for it
    once a sample: a host that runs ahead of the device does so here as in training.
    """
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats):
        for name, call in sides.items():
            finish(call(round_ * calls))
            start = time.perf_counter()
            for i in range(round_ * calls, (round_ + 1) * calls):
                result = call(i)
            finish(result)
            samples[name].append((time.perf_counter() - start) / calls)
    return {name: Seconds(tuple(values)) for name, values in samples.items()}


def finish(result: Any) -> None:
    """Waits for JAX's `result` and, where PyTorch is loaded, for its device."""
    jax.block_until_ready(result)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def following(step: Callable[[Any], Any], batches: Sequence[Any]) -> Callable[[int], Any]:
    """Takes one batch after the other, over and over."""
    return lambda i: step(batches[i % len(batches)])


def agreement(ours: tuple[float, float], theirs: tuple[float, float], tolerance: float) -> str:
    """Compares (loss, norm of its gradient); returns a line that says by how much they differ.

    The norm is there because the reference form of MI has nearly the same value whatever the model does.

    Raises:
      ValueError: they differ by more than `tolerance`, the norms by more than five times that.
    """
    loss, norm = (abs(a / b - 1) for a, b in zip(ours, theirs, strict=True))
    line = f"loss {ours[0]:.6g} and {theirs[0]:.6g}, relative difference {loss:.1e}, gradient norm {norm:.1e}"
    # Written so that NaN fails too.
    if not (loss <= tolerance and norm <= 5 * tolerance):
        raise ValueError(f"the two sides do not compute the same: {line}, allowed {tolerance:g}")
    return line


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def compute_dtype(name: str) -> jnp.dtype:
    """`auto` is what training takes: bfloat16 on accelerators, float32 on CPU."""
    return jnp.dtype({"auto": "float32" if on_cpu() else "bfloat16"}.get(name, name))


def matmul_rate(dtype: Any) -> float:
    """FLOP/s of a large square matrix product in `dtype`: the fastest five of fifty."""
    n = 1024 if on_cpu() else 8192
    # Random, because zeros need less power, and so clocks stay higher.
    a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
    matmul = jax.jit(lambda a, b: jnp.matmul(a, b, precision="highest" if dtype == jnp.float32 else None))
    return 2 * n**3 / min(in_turn({"": lambda _: matmul(a, b)}, 10, calls=5)[""].samples)


def in_bytes(count: float | None) -> str:
    if count is None:
        return "-"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def device_peak() -> int | None:
    """The most memory JAX has held on its device; None on CPU, which does not count."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def temporary_bytes(compiled: Any) -> int:
    return compiled.memory_analysis().temp_size_in_bytes


def program_bytes(compiled: Any) -> int:
    """What a compiled program needs at once: arguments, results that alias none, temporaries."""
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


class Report:
    """The table of one benchmark; printed, and written where `--out` says."""

    def __init__(self, options: argparse.Namespace):
        self.rows: list[dict[str, str]] = []
        # The report does not reveal the paths of this machine.
        given = [argument for argument in sys.argv[1:] if not argument.startswith("--out=")]
        arguments = [re.sub("^(--[a-z]+=)/.*/", r"\1", argument) for argument in given]
        self.content: dict[str, Any] = {
            "command": " ".join([f"python -m benchmarks.{Path(sys.argv[0]).stem}", *arguments]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **_machine(),
            "notes": [],
            "rows": self.rows,
            "comparisons": [],
            "samples_s": {},
        }
        self._out = options.out

    def note(self, line: str) -> None:
        print(line, flush=True)
        self.content["notes"].append(line)

    def row(self, name: str, seconds: Seconds, **columns: str) -> None:
        self.rows.append({"": name, "median [least, quartiles]": str(seconds), **columns})
        self.content["samples_s"][name] = seconds.samples

    def ratio(self, name: str, ours: Seconds, theirs: Seconds, of: Callable[..., Any] = np.median) -> None:
        """How many times `ours` goes into `theirs`, and the quartiles of that over neighbouring samples."""
        low, high = np.percentile(np.divide(theirs.samples, ours.samples), [25, 75])
        self._compared(name, float(of(theirs.samples) / of(ours.samples)), float(low), float(high))

    def number(self, name: str, value: float) -> None:
        """A measured figure that is no ratio of times."""
        self._compared(name, value, value, value)

    def _compared(self, name: str, value: float, low: float, high: float) -> None:
        self.content["comparisons"].append({"name": name, "value": value, "low": low, "high": high})

    def close(self) -> None:
        print("\n".join(markdown(self.rows)))
        for c in self.content["comparisons"]:
            print(f"{c['name']}: {in_words(c)}")
        if self._out:
            self._out.parent.mkdir(parents=True, exist_ok=True)
            self._out.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def in_words(comparison: Mapping[str, Any]) -> str:
    low, high = comparison["low"], comparison["high"]
    return f"{comparison['value']:.3g}" + (f" ({low:.3g}-{high:.3g})" if low < high else "")


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--out", type=Path, help="write JSON there")
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds")
    return parser


def markdown(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows of the same columns as an aligned Markdown table."""
    if not rows:
        return []
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _machine() -> dict[str, Any]:
    found = hardware()
    found["hardware"] |= {"processor": _processor(), "cores_used": len(os.sched_getaffinity(0))}
    found["versions"]["torch"] = importlib.metadata.version("torch") if "torch" in sys.modules else "not used"
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
