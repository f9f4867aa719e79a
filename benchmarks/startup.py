"""Seconds from starting `cot_jax.train` to the end of its first step, each in a process of its own.

    python -m benchmarks.startup                              # demo_mi
    python -m benchmarks.startup --config.model.preset=base   # the same with other keys of the config

"cold" compiles, "cached" finds the programs in JAX's persistent compilation cache, which a run before has
filled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import measure

# Beside a whole step's compilation even the smallest entry is worth keeping.
CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
# How the line begins that ends each part: what the data is, a compiled program, the first step.
_PARTS = {"imports, data": "task ", "compiling": "compiled 1 ", "first step": "step 1: "}


def main() -> None:
    options, keys = _options()
    report = measure.Report(options)
    report.note(f"demo_mi {' '.join(keys)}".rstrip())
    found: dict[str, list[list[float]]] = {"cold": [], "cached": []}
    with tempfile.TemporaryDirectory() as cache:
        _start(keys, cache)
        for _ in range(options.repeats):
            found["cold"].append(_start(keys, None))
            found["cached"].append(_start(keys, cache))
    totals = {name: measure.Seconds(tuple(ends[-1] for ends in runs)) for name, runs in found.items()}
    for name, runs in found.items():
        spent = np.median(np.diff(runs, prepend=0), axis=0)
        report.row(name, totals[name], **{f"{p} s": f"{s:.3g}" for p, s in zip(_PARTS, spent, strict=True)})
    report.ratio("cold start over cached", totals["cached"], totals["cold"])
    report.number("seconds to the first step, cached", totals["cached"].median)
    report.close()


def _start(keys: list[str], cache: str | None) -> list[float]:
    """Seconds from the start of a run to the end of each part."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as directory:
        environment |= CACHE | {"JAX_COMPILATION_CACHE_DIR": cache or f"{directory}/compiled"}
        environment["PYTHONUNBUFFERED"] = "1"
        command = [sys.executable, "-m", "cot_jax.train", "--config=demo_mi", "--config.train.log_every=1"]
        command += [f"--workdir={directory}/run", *keys]
        began, ends = time.monotonic(), []
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for begin in _PARTS.values():
                if not any(line.startswith(begin) for line in process.stdout):
                    sys.exit(f"the run ended before its line {begin!r}")
                ends.append(time.monotonic() - began)
            process.kill()
    return ends


def _options() -> tuple[argparse.Namespace, list[str]]:
    parser = measure.parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.set_defaults(repeats=3)
    options, keys = parser.parse_known_args()
    if unknown := [key for key in keys if not key.startswith("--config.")]:
        parser.error(f"unknown: {' '.join(unknown)}")
    return options, keys


if __name__ == "__main__":
    main()
