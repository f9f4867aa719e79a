"""What T5 of every size needs of TPU slices, without the hardware: the tables of docs/scaling.md.

    python -m benchmarks.plans --out=plans.jsonl --root=DATA --tokenizer=DIR [--compile] [--sizes small base]
    python -m benchmarks.plans --out=plans.jsonl --write

SVAMP by the published recipe (batch 64, AdamW), MI and DynSDPB. A row is what stays of a step in each
device's memory with its gradients, exact and not compiled, data parallel and divided among all (fsdp). With
--compile it is what `cot_jax.plan` says: the whole step as the TPU's compiler makes it, and the least costly
change with which it fits. Rows that --out has are not made again; --write puts them on the page.
"""

import argparse
import datetime
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from cot_jax import plan
from cot_jax.config import Config, default_config, freeze
from cot_jax.training.experiment import Experiment, prepare

_PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
_BEGIN, _END = "<!-- plans: begin, made by benchmarks.plans -->", "<!-- plans: end -->"
_SIZES = ("t5-small", "base", "large", "xl", "xxl")
_SLICES = ("v5e:4x4", "v5p:2x2x4", "v6e:4x4")


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
    done = {(row["size"], row["method"], row["slice"], row["compiled"]) for row in rows}
    for size in options.sizes:
        for method in ("mi", "dynsdpb"):
            experiment = prepare(_config(options, size, method), weights=False)
            for name in options.slices:
                if (size, method, name, options.compile) not in done:
                    row = {"size": size, "method": method, "slice": name, "compiled": options.compile}
                    row |= _row(experiment, name, compiled=options.compile)
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


def _row(experiment: Experiment, name: str, *, compiled: bool) -> dict[str, Any]:
    devices, memory = plan.topology(name)
    whole = plan.measure(experiment, devices, memory if compiled else 0)
    row = {
        "memory": memory,
        "parameters": sum(x.size for x in jax.tree.leaves(_shapes(experiment))),
        "data": whole.least,
        "fsdp": plan.measure(plan.changed(experiment, {"mesh.fsdp": len(devices)}), devices, 0).least,
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }
    if compiled:
        row["total"], row["fits"] = whole.total, whole.fits(memory)
        row["remedy"] = None if row["fits"] else plan.remedy(experiment, devices, memory)
    return row


def _shapes(experiment: Experiment) -> Any:
    return jax.eval_shape(experiment.student.init, jax.random.key(0))


def _markdown(rows: list[dict[str, Any]]) -> Iterator[str]:
    made = sorted({(row["date"], *row["versions"].items()) for row in rows})
    yield "Made " + "; ".join(f"{date} with " + ", ".join(map(" ".join, of)) for date, *of in made) + "."
    yield ""
    names = (
        "student",
        "method",
        "slice",
        "of a device",
        "stays, data 16",
        "stays, fsdp 16",
        "step",
        "fits with",
    )
    yield f"| {' | '.join(names)} |"
    yield "|---|---|---|---|---|---|---|---|"
    compiled = {(row["size"], row["method"], row["slice"]): row for row in rows if row["compiled"]}
    for row in rows:
        key = row["size"], row["method"], row["slice"]
        if row["compiled"]:
            continue
        found = compiled.get(key)
        total = remedy = "not compiled"
        if found:
            total = _gib(found["total"]) if found["total"] else "too much before activations"
            remedy = "as it is" if found["fits"] else found["remedy"] or "nothing"
        cells = (
            f"{row['size']} ({row['parameters'] / 1e9:.2f} B)",
            row["method"],
            row["slice"],
            *(_gib(row[name]) for name in ("memory", "data", "fsdp")),
            total,
            remedy.removeprefix("fits with "),
        )
        yield f"| {' | '.join(cells)} |"


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
    parser.add_argument("--slices", nargs="+", default=_SLICES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--write", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
