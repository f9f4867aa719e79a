"""What T5 of every size needs of sixteen devices, without the hardware: the tables of docs/scaling.md.

    python -m benchmarks.plans --out=plans.jsonl --root=DATA --tokenizer=DIR [--sizes base xl]
    python -m benchmarks.plans --out=plans.jsonl --root=DATA --tokenizer=DIR --slices v5e:4x4 v5p:2x2x4
    python -m benchmarks.plans --out=plans.jsonl --write

SVAMP by the published recipe, batch 64. The first command counts what stays of a DynSDPB step in each
device's memory, with its gradients: exact, nothing is compiled. The second is `cot_jax.plan` for MI and
DynSDPB on TPU slices: the whole step as their compiler makes it, with settings that suit the size, and how
long that takes. Rows that --out has are not made again; --write puts them on the page.
"""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from cot_jax.config import Config, default_config, freeze
from cot_jax.imports import restart_prepared
from cot_jax.training import planning
from cot_jax.training.experiment import Experiment, prepare

_PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
_BEGIN, _END = "<!-- plans: begin, made by benchmarks.plans -->", "<!-- plans: end -->"
_SIZES = ("t5-small", "base", "large", "xl", "xxl")
_FSDP = {"mesh.fsdp": 16}
_STATES: dict[str, dict[str, Any]] = {
    "data 16": {},
    "fsdp 16": _FSDP,
    "bfloat16 moments": _FSDP | {"optimizer.moment_dtype": "bfloat16"},
    "Adafactor": _FSDP | {"optimizer.name": "adafactor"},
    "LoRA of rank 16": _FSDP | {"model.lora_rank": 16},
}
_REMAT = {"model.remat": "layers"}
_SETTINGS: dict[str, dict[str, Any]] = {
    "t5-small": {},
    "base": {},
    "large": _REMAT,
    "xl": _REMAT | _FSDP,
    "xxl": _REMAT | _FSDP | {"optimizer.moment_dtype": "bfloat16"},
}


def main() -> None:
    options = _options()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [json.loads(line) for line in lines]
    if options.write:
        text = _PAGE.read_text(encoding="utf-8")
        before, after = text.split(_BEGIN)[0], text.split(_END)[1]
        made = "\n".join(_markdown(rows))
        _PAGE.write_text(f"{before}{_BEGIN}\n{made}\n{_END}{after}", encoding="utf-8")
        return
    jax.config.update("jax_num_cpu_devices", 16)
    done = {(row["size"], row["method"], row["slice"]) for row in rows}
    for size in options.sizes:
        for method in ("mi", "dynsdpb") if options.slices else ("dynsdpb",):
            for name in options.slices or ("",):
                if (size, method, name) not in done:
                    experiment = prepare(_config(options, size, method), weights=False)
                    row = {"size": size, "method": method, "slice": name, "date": str(datetime.date.today())}
                    row["jax"] = jax.__version__
                    row |= _step(experiment, _SETTINGS[size], name) if name else _state(experiment)
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
                    print(row, flush=True)


def _config(options: argparse.Namespace, size: str, method: str) -> Config:
    values = default_config()
    values.data.task, values.data.root = "svamp", options.root
    values.model.preset, values.model.tokenizer = size, options.tokenizer
    values.model.compute_dtype = "bfloat16"
    values.objective.method = "mi" if method == "mi" else "dss"
    values.self_distillation.method = "none" if method == "mi" else "dynsdpb"
    return freeze(values)


def _state(experiment: Experiment) -> dict[str, Any]:
    found = {
        name: planning.measure(planning.changed(experiment, change, jax.devices()), jax.devices(), 0).least
        for name, change in _STATES.items()
    }
    weights = experiment.student.weights.values()
    return {"parameters": sum(math.prod(weight.shape) for weight in weights), "least": found}


def _step(experiment: Experiment, settings: dict[str, Any], name: str) -> dict[str, Any]:
    devices, memory = planning.topology(name)
    experiment = planning.changed(experiment, settings, devices)
    began = time.monotonic()
    need = planning.measure(experiment, devices, memory)
    return {
        "seconds": time.monotonic() - began,
        "cores": len(os.sched_getaffinity(0)),
        "settings": settings,
        "memory": memory,
        "total": need.total,
        "least": need.least,
        "fits": need.fits(memory),
        "libtpu": importlib.metadata.version("libtpu"),
    }


def _markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    states = [row for row in rows if not row["slice"]]
    steps = [row for row in rows if row["slice"]]
    yield f"Parameters, optimizer, maps of DynSDPB and gradients on each of 16 devices ({_made(states)}):"
    yield from _lines(
        ("student", "parameters", *_STATES),
        [(r["size"], f"{r['parameters'] / 1e9:.2f} B", *map(_gib, r["least"].values())) for r in states],
    )
    if steps:
        yield ""
        cores = "; ".join(sorted({f"{row['cores']} cores" for row in steps}))
        yield f"The whole step by the TPU's compiler, batch 64 ({_made(steps)}; compiled on {cores}):"
        yield from _lines(
            ("student", "method", "slice", "of a device", "settings", "step", "", "compile"),
            [
                (
                    *(r[name] for name in ("size", "method", "slice")),
                    _gib(r["memory"]),
                    " ".join(f"`{key}={value}`" for key, value in r["settings"].items()) or "the defaults",
                    _gib(r["total"]) if r["total"] else f"more than {_gib(r['least'])}",
                    "fits" if r["fits"] else "does not fit",
                    f"{r['seconds']:.0f} s",
                )
                for r in sorted(steps, key=lambda r: _SIZES.index(r["size"]))
            ],
        )


def _lines(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    for cells in (names, len(names) * ["---"], *rows):
        yield f"| {' | '.join(cells)} |"


def _made(rows: list[dict[str, Any]]) -> str:
    versions = {
        f"{row['date']}, jax {row['jax']}" + (f", libtpu {row['libtpu']}" if row["slice"] else "")
        for row in rows
    }
    return "; ".join(sorted(versions))


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", help="folder of the data sets")
    parser.add_argument("--tokenizer", help="T5's")
    parser.add_argument("--sizes", nargs="+", default=_SIZES)
    parser.add_argument("--slices", nargs="+", default=())
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    restart_prepared()
    main()
