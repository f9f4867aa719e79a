"""Seconds from the start of the process to the end of the first training step, each in a process of its own.

    python -m benchmarks.startup --preset=small

What is started is training on the embedded word problems. "cold" compiles, "cached" finds the programs in
JAX's persistent compilation cache, which a run before has filled.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

from benchmarks import measure
from cot_jax.config import TrainConfig
from cot_jax.models.t5 import PRESETS

# Beside a whole step's compilation even the smallest entry is worth keeping.
CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}
_PARTS = ("import", "data", "state", "step")


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(_first_step(options)))
        return
    report = measure.Report(options)
    report.note(f"{options.preset}, word problems, batch {TrainConfig.batch_size}")
    found: dict[str, list[dict[str, float]]] = {"cold": [], "cached": []}
    with tempfile.TemporaryDirectory() as cache:
        _start(cache)
        for _ in range(options.repeats):
            found["cold"].append(_start(None))
            found["cached"].append(_start(cache))
    totals = {}
    for name in ("cold", "cached"):
        totals[name] = measure.Seconds(tuple(run["total"] for run in found[name]))
        parts = {f"{part} s": f"{np.median([run[part] for run in found[name]]):.3g}" for part in _PARTS}
        report.row(name, totals[name], **parts)
    cold, cached = totals["cold"], totals["cached"]
    report.ratio("times as fast as cold", cached, cold)
    report.close()


def _start(cache: str | None) -> dict[str, float]:
    """Seconds of a fresh process with the same arguments, in all and by part."""
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    if cache:
        environment |= CACHE | {"JAX_COMPILATION_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.startup", *sys.argv[1:], "--child", str(time.time())]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _first_step(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part, and in all since the parent started this process."""
    clock = [options.child]
    from cot_jax.config import Config, ModelConfig
    from cot_jax.training.experiment import prepare
    from cot_jax.training.run import Run

    clock.append(time.time())
    experiment = prepare(Config(model=ModelConfig(preset=options.preset)))
    clock.append(time.time())
    run = Run(experiment)
    with jax.set_mesh(run.mesh):
        state = jax.block_until_ready(run.initial_state())
        clock.append(time.time())
        with run.compiled_ahead(0) as train_step:
            jax.block_until_ready(train_step(state, run.batch(0)))
            clock.append(time.time())
    return dict(zip(_PARTS, np.diff(clock).tolist(), strict=True)) | {"total": clock[-1] - clock[0]}


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--child", type=float, metavar="STARTED", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
