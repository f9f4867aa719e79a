"""One training step, ours against PyTorch with transformers' T5 running the published step.

    python -m benchmarks.step_throughput --model=small --lengths=svamp --batch=8
    python -m benchmarks.step_throughput --model=base --lengths=cqa --against=both --compile
    python -m benchmarks.step_throughput --model=small --lengths=cqa --batch=8 --batching=free

Same weights, same batch, same dropout rate, same loss: before anything is timed, losses and gradient norms
of both sides are compared, without dropout. Then the sides take turns.

Nobody pads in the batch that is timed: all of its examples have the same lengths. `--batching=free` times a
sample of the random batches of an epoch instead, ours flat, PyTorch's padded to the longest of each; and
beside these PyTorch on batches of the sorted data set.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.published import TorchStep, peak_bytes, widths
from benchmarks.workload import (
    DROPOUT,
    LENGTHS,
    OurStep,
    Views,
    decoded_to_longest,
    even_views,
    flat_batch,
    longest,
    model_config,
    random_params,
    real_views,
    rectangle_flops,
    shape,
    slot_flops,
    step_flops,
    synthetic_views,
    typical_rows,
)
from cot_jax.batch import Batch
from cot_jax.config import STEPS
from cot_jax.data.batches import Batches
from cot_jax.data.lengths import describe
from cot_jax.models import student as students
from cot_jax.models.t5 import PRESETS, T5, T5Config

OURS = "cot_jax"


def main() -> None:
    options = _options()
    report = measure.Report(options)
    config = model_config(options.model)
    dtype = measure.compute_dtype(options.dtype)
    params = random_params(config)
    ours = OurStep(config, params, options.method, dtype, options.batch)
    kinds = ("published", "tuned") if options.against == "both" else (options.against,)
    compile_as = (options.batching == "free") if options.compile else None
    with tempfile.TemporaryDirectory() as directory:
        students.save(Path(directory), T5(config), params)
        theirs = {
            f"torch {kind}": TorchStep(
                Path(directory),
                options.method,
                tuned=kind == "tuned",
                compile_as=compile_as if kind == "tuned" else None,
            )
            for kind in kinds
        }
    del params
    if options.root:
        views = real_views(options.lengths, options.method, options.root, options.tokenizer)
    else:
        views = synthetic_views(options.lengths, options.method, config.vocab_size)
    rows = typical_rows(views, options.batch, config)
    batch = flat_batch(views, rows, options.method)
    report.note(
        f"{options.model}, {options.method}, {options.lengths} lengths "
        f"({'data' if options.root else 'drawn'}), batch {options.batch}, dropout {DROPOUT} on both sides"
    )
    found = ours.loss_and_norm(batch)
    for name, step in theirs.items():
        tolerance = 1e-3 if dtype.name == step.dtype == "float32" else 2e-2
        line = measure.agreement(found, step.loss_and_norm(step.tensors(batch)), tolerance)
        report.note(f"{OURS} ({dtype.name}) and {name} ({step.describe}): {line}")
    if options.batching == "free":
        _time_epoch(report, options, config, ours, theirs, views)
    else:
        views = even_views(views, rows, config.vocab_size)
        batch = flat_batch(views, np.arange(options.batch), options.method)
        report.note(f"slots (length) of inputs > targets of each view: {describe(shape(batch))}")
        _time_batch(report, options, config, dtype, ours, theirs, batch)
    report.close()


def _time_batch(
    report: measure.Report,
    options: argparse.Namespace,
    config: T5Config,
    dtype: np.dtype,
    ours: OurStep,
    theirs: Mapping[str, TorchStep],
    batch: Batch,
) -> None:
    """Every side repeats one batch."""
    dtypes = {OURS: dtype.name} | {name: step.dtype for name, step in theirs.items()}
    rates = {name: measure.matmul_rate(np.dtype(name)) for name in sorted(set(dtypes.values()))}
    for name, rate in rates.items():
        report.note(f"a large matrix product on this device, {name}: {rate / 1e12:.3g} TFLOP/s")
    sides = {OURS: measure.following(ours, [batch])}
    sides |= {name: measure.following(step, [step.tensors(batch)]) for name, step in theirs.items()}
    seconds = measure.in_turn(sides, options.repeats, options.calls)
    peaks: dict[str, int | None] = {
        OURS: measure.device_peak() or measure.program_bytes(ours.compiled(batch))
    }
    if len(theirs) == 1:  # of two models the peaks would be one number
        peaks |= dict.fromkeys(theirs, peak_bytes())
    for name, time in seconds.items():
        speed = step_flops(config, batch) / time.median
        report.row(
            name,
            time,
            **{
                "dtype": dtypes[name],
                "examples/s": f"{options.batch / time.median:.4g}",
                "TFLOP/s": f"{speed / 1e12:.3g}",
                "MFU": f"{100 * speed / rates[dtypes[name]]:.0f} %",
                "peak memory": measure.in_bytes(peaks.get(name)),
            },
        )
        if name != OURS:
            report.ratio(f"times as fast as {name}", seconds[OURS], time)
            if (our_peak := peaks[OURS]) and (their_peak := peaks.get(name)):
                report.number(f"memory of {name}", our_peak / their_peak)
        else:
            report.number("TFLOP/s", speed / 1e12)


def _time_epoch(
    report: measure.Report,
    options: argparse.Namespace,
    config: T5Config,
    ours: OurStep,
    theirs: Mapping[str, TorchStep],
    views: Views,
) -> None:
    """Every side takes the same random batches of an epoch; PyTorch those of the sorted data set as well."""
    batches = Batches(
        views,
        batch_size=options.batch,
        steps=STEPS,
        seed=0,
        order="random",
        overlap=False,
        groups=1,
        padded=decoded_to_longest(options.method),
        flops=T5(config).flops,
        pad_id=0,
    )
    report.note(
        f"{OURS}: {len(batches.shapes)} shapes for {STEPS:,} steps, "
        f"{100 * batches.efficiency:.0f} % of their arithmetic is for tokens"
    )
    examples = len(next(iter(views.values())).inputs)
    steps = examples // options.batch

    def sample(rows: np.ndarray) -> np.ndarray:
        """As many batches of an epoch as will be timed, evenly spaced in the order of their cost."""
        order = np.argsort(rectangle_flops(config, options.batch, longest(views, rows)))
        timed = options.repeats * options.calls
        return order[((np.arange(timed) + 0.5) / timed * steps).astype(int)]

    drawn = [batches(i) for i in sample(np.stack([batches.rows(i) for i in range(steps)]))]
    alone = longest(views, np.arange(examples)[:, None])
    by_cost = np.argsort(rectangle_flops(config, 1, alone))[: steps * options.batch].reshape(steps, -1)
    in_order = [flat_batch(views, by_cost[i], options.method) for i in sample(by_cost)]
    ours.compile(drawn)
    # A program's first call takes seconds more, once in a training: it is no step's time.
    for one in {shape(batch): batch for batch in drawn}.values():
        measure.finish(ours(one))
    sides, taken = {OURS: measure.following(ours, drawn)}, {OURS: drawn}
    computed = {OURS: np.mean([slot_flops(config, batch) for batch in drawn])}
    for name, step in theirs.items():
        for order, chosen in (("random", drawn), ("sorted", in_order)):
            side, tensors = f"{name}, {order} batches", [step.tensors(batch) for batch in chosen]
            for batch in tensors if options.compile else ():
                measure.finish(step(batch))
            sides[side], taken[side] = measure.following(step, tensors), chosen
            padded = np.stack([widths(batch) for batch in tensors])
            computed[side] = rectangle_flops(config, options.batch, padded).mean()
    seconds = measure.in_turn(sides, options.repeats, options.calls)
    for side, time in seconds.items():
        real = np.mean([step_flops(config, batch) for batch in taken[side]])
        report.row(
            side,
            time,
            **{
                "GFLOP/example": f"{computed[side] / options.batch / 1e9:.4g}",
                "for tokens": f"{100 * real / computed[side]:.0f} %",
                "seconds an epoch": f"{time.mean * steps:.4g}",
                "examples/s": f"{options.batch / time.mean:.4g}",
            },
        )
        if side != OURS:
            # Of different batches the mean is what an epoch takes.
            report.ratio(f"times the examples/s of {side}", seconds[OURS], time, np.mean)


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--model", default="small", choices=PRESETS)
    parser.add_argument("--lengths", default="cqa", choices=LENGTHS)
    parser.add_argument(
        "--root", type=Path, help="data sets in the published layout, instead of drawn lengths"
    )
    parser.add_argument("--tokenizer", type=Path, help="with --root: directory of T5's tokenizer")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--method", default="dss", choices=["standard", "dss", "mi"])
    parser.add_argument("--against", default="published", choices=["published", "tuned", "both"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"], help="ours")
    parser.add_argument("--compile", action="store_true", help="torch.compile the tuned step")
    parser.add_argument("--batching", default="same", choices=["same", "free"])
    parser.add_argument("--calls", type=int, default=1, help="steps in a timed sample, dispatched together")
    return parser.parse_args()


if __name__ == "__main__":
    main()
