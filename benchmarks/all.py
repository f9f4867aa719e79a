"""All rows of a table, each in a process of its own, so that memory is clean and a failure loses one row.

    python -m benchmarks.all --table=gpu --out=DIR --minutes=9    # one H100
    python -m benchmarks.all --table=cpu --out=DIR

Writes DIR/ROW.json and DIR/ROW.log; `python -m benchmarks.report DIR` makes the page. Rows that do not fit
into the minutes are named; `--only` runs them later.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_GPU_STEP = "step_throughput --batch=64 --calls=10 --repeats=5"
# The most telling first.
ROWS = {
    "gpu": {
        "gpu-base-published": f"{_GPU_STEP} --model=base --against=published",
        "gpu-base-tuned": f"{_GPU_STEP} --model=base --against=tuned --compile",
        "gpu-models": "scaling --axis=model --values small base large --batch=64 --lengths=cqa --calls=10",
        "gpu-small-published": f"{_GPU_STEP} --model=small --against=published",
        "gpu-small-tuned": f"{_GPU_STEP} --model=small --against=tuned --compile",
        "gpu-method": "scaling --axis=method --values dss mi dynsdpb dynsdpb_full --model=base --batch=64 "
        "--lengths=cqa --calls=10",
        "gpu-base-1024": "step_throughput --model=base --lengths=1024 --batch=8 --against=tuned --compile "
        "--calls=3 --repeats=5",
        "gpu-generate": "generate --model=base --batches 1 64 --tokens=64 --repeats=5",
        "gpu-base-free": f"{_GPU_STEP} --model=base --against=tuned --compile --batching=free",
        "gpu-head": "head --batch=64 --targets 128 256 --width=768 --chunk_rows 1024 2048 4096 8192",
        "gpu-head-short": "head --batch=64 --targets 8 48 --width=768 --chunk_rows 1024 2048 4096 8192",
        "gpu-batch": "scaling --axis=batch --values 16 64 256 --model=base --lengths=cqa --calls=10",
        "gpu-decoder-1.7b": "decoders --preset=smollm2-1.7b --compile --batch=16 --generate 1 32 --repeats=5",
        "gpu-decoder-7b": "decoders --preset=llama2-7b --compile --batch=8 --generate --repeats=3",
        "gpu-encoder": "encoders --preset=bert-base --dtype=bfloat16 --repeats=30",
        "gpu-startup": "startup --config.model.preset=base --repeats=1",
        "gpu-experiment": "experiment --model=base --repeats=1",
    },
    "cpu": {
        "cpu-small-same": "step_throughput --lengths=svamp",
        "cpu-small-same-mi": "step_throughput --lengths=svamp --method=mi",
        "cpu-small-tuned": "step_throughput --lengths=svamp --against=tuned",
        "cpu-small-free": "step_throughput --lengths=svamp --batching=free --repeats=12",
        "cpu-small-free-64": "step_throughput --lengths=svamp --batching=free --batch=64 --repeats=8",
        "cpu-tiny": "step_throughput --model=tiny --lengths=svamp --batch=32",
        "cpu-generate": "generate --batches 1 8 32",
        "cpu-head": "head",
        "cpu-head-memory": "head --batch=64 --targets 128 256 --width=768 --memory_only",
        "cpu-decoder": "decoders --preset=smollm2-135m --memory",
        "cpu-encoder-rte": "encoders --preset=minilm-l6 --repeats=7 --tasks rte",
        "cpu-encoder-cola": "encoders --preset=minilm-l6 --repeats=20 --tasks cola",
        "cpu-startup": "startup",
        "cpu-batch": "scaling --axis=batch --values 4 8 16 --repeats=5",
        "cpu-lengths": "scaling --axis=lengths --repeats=5",
        "cpu-models": "scaling --axis=model --repeats=5",
        "cpu-vocabulary": "scaling --axis=vocabulary --model=t5-small --values 8032 16064 32128 --repeats=5",
        "cpu-method": "scaling --axis=method --values dss mi dynsdpb dynsdpb_full --repeats=7",
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--table", required=True, choices=ROWS)
    parser.add_argument("--out", type=Path, required=True, help="directory")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows")
    parser.add_argument("--minutes", type=float, default=120, help="start and let run no longer than this")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - ROWS[options.table].keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}; rows: {', '.join(ROWS[options.table])}")
    options.out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    missing = []
    with tempfile.TemporaryDirectory() as cache:
        for name, arguments in ROWS[options.table].items():
            left = deadline - time.monotonic()
            if not options.only or name in options.only:
                print(f"== {name}: {arguments}", flush=True)
                outcome = _run(arguments, options.out / name, cache, left) if left > 0 else "no time left"
                missing += [f"{name} ({outcome})"] if outcome else []
    print("every row is there" if not missing else f"missing: {', '.join(missing)}")
    return 1 if missing else 0


def _run(arguments: str, stem: Path, cache: str, timeout_s: float) -> str:
    """Runs one row; returns what went wrong."""
    benchmark, *rest = arguments.split()
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *rest, f"--out={stem}.json"]
    # Rows share programs, and what is timed is not compiling (startup empties this for itself).
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    start = time.monotonic()
    with Path(f"{stem}.log").open("w") as log:
        try:
            done = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return "no time left"
    lines = Path(f"{stem}.log").read_text().splitlines()
    print("\n".join(lines if done.returncode == 0 else lines[-3:]))
    print(f"== {time.monotonic() - start:.0f} s", flush=True)
    return f"failed, see {stem}.log" if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
