"""How the cost of our training step grows: one axis at a time from one point.

    python -m benchmarks.scaling --axis=batch --model=small
    python -m benchmarks.scaling --axis=method --model=base --batch=64 --lengths=cqa

The variants of an axis take turns. `--axis=method` shows what a method adds to a step.
"""

import argparse
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from benchmarks import measure
from benchmarks.workload import (
    LENGTHS,
    OurStep,
    flat_batch,
    model_config,
    random_params,
    shape,
    step_flops,
    synthetic_views,
    typical_rows,
)
from cot_jax.batch import Batch
from cot_jax.data.lengths import describe
from cot_jax.models.t5 import PRESETS


@dataclasses.dataclass(frozen=True)
class Point:
    """One training step."""

    model: str
    lengths: str
    batch: int
    vocabulary: int
    method: str


_DEFAULT_VALUES: dict[str, list[Any]] = {
    "batch": [2, 4, 8, 16],
    "lengths": ["svamp", "cqa", "anli1"],
    "model": ["tiny", "t5-small", "small"],
    "vocabulary": [4096, 8192, 16384, 32128],
    "method": ["dss", "standard", "mi", "dynsdpb", "dynsdpb_full"],
}


def main() -> None:
    options = _options()
    report = measure.Report(options)
    dtype = measure.compute_dtype(options.dtype)
    rate = measure.matmul_rate(dtype)
    base = Point(options.model, options.lengths, options.batch, options.vocabulary, options.method)
    report.note(f"{dtype.name}; all but {options.axis}: {base}")
    report.note(f"a large matrix product on this device: {rate / 1e12:.3g} TFLOP/s")
    sides, columns, flops = {}, {}, {}
    for point in _points(base, options.axis, options.values):
        name = str(getattr(point, options.axis))
        config = model_config(point.model, point.vocabulary)
        views = synthetic_views(point.lengths, point.method, config.vocab_size)
        batch = flat_batch(views, typical_rows(views, point.batch, config), point.method)
        widths = None
        if point.method == "dynsdpb_full":
            widths = {name: view.targets.width for name, view in batch.views.items()}
        step = OurStep(config, random_params(config), point.method, dtype, point.batch, widths)
        memory = measure.in_bytes(measure.program_bytes(step.compiled(batch)))
        columns[name] = {"slots (longest text)": describe(shape(batch)), "program's memory": memory}
        flops[name] = step_flops(config, batch)
        sides[name] = functools.partial(_step, step, batch)
    seconds = measure.in_turn(sides, options.repeats, options.calls)
    first = next(iter(seconds))
    for name, spent in seconds.items():
        speed = flops[name] / spent.median
        columns[name] |= {"TFLOP/s": f"{speed / 1e12:.3g}", "MFU": f"{100 * speed / rate:.0f} %"}
        report.row(name, spent, **columns[name])
        report.number(f"TFLOP/s, {name}", speed / 1e12)
        if name != first:
            report.ratio(f"step time against {first}, {name}", seconds[first], spent)
    report.close()


def _step(step: OurStep, batch: Batch, _: int) -> Any:
    return step(batch)


def _points(base: Point, axis: str, values: list[str] | None) -> Iterator[Point]:
    kind = type(getattr(base, axis))
    for value in values or _DEFAULT_VALUES[axis]:
        yield dataclasses.replace(base, **{axis: kind(value)})


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--axis", default="batch", choices=_DEFAULT_VALUES)
    parser.add_argument("--values", nargs="+", help="along the axis")
    parser.add_argument("--model", default="small", choices=PRESETS)
    parser.add_argument("--lengths", default="svamp", choices=LENGTHS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32128)
    parser.add_argument("--method", default="dss", choices=_DEFAULT_VALUES["method"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--calls", type=int, default=1, help="steps in a timed sample, dispatched together")
    return parser.parse_args()


if __name__ == "__main__":
    main()
