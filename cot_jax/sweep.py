"""Run an experiment over seeds, methods and shares of the data, or a whole published table.

python -m cot_jax.sweep --config=demo_mi --seeds=0..3 --methods=standard,dss,mi --output=DIR
python -m cot_jax.sweep --table=mi_base --seeds=0..3 --output=DIR --config.data.root=DATA
    --grid optimizer.learning_rate=1e-4,3e-4,1e-3

With a grid, every combination of its values is run with the first seed, and the best one on validation with
all seeds, in DIR/ROW/COLUMN/VALUES/seedN.

Every run is a process of its own in DIR/ROW/COLUMN/seedN; the same command skips what is done
and resumes what was stopped. `python -m cot_jax.compare DIR` makes the table. Keys as --config.KEY=VALUE hold
for all.
"""

import argparse
import dataclasses
import functools
import itertools
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cot_jax import experiments
from cot_jax.config import parse_command_line, refuse_other_config
from cot_jax.errors import command, writing
from cot_jax.experiments import Cell, Table
from cot_jax.files import locked
from cot_jax.limits import MOST
from cot_jax.training.result import RESULT_FILE, metric_of, read_result

say = functools.partial(print, flush=True)

STOPPED = 75  # exit status, as of `cot_jax.train`: start me again


@dataclasses.dataclass(frozen=True)
class _Job:
    name: str
    workdir: Path
    flags: list[str]
    split: str = "test"  # what is said of it

    @property
    def done(self) -> bool:
        return (self.workdir / RESULT_FILE).is_file()

    @property
    def score(self) -> tuple[str, float]:
        """Name and value of the task's metric."""
        result = read_result(self.workdir, [self.split])
        assert result  # it is done
        name = f"{self.split}/{metric_of(result)}"
        return name.replace("/", " "), result[name]


class _Jobs:
    """Runs jobs, some at a time; a signal stops those that run after they have saved."""

    def __init__(self, jobs: Sequence[_Job]):
        self._jobs, self._lock = jobs, threading.Lock()
        self._children: list[subprocess.Popen] = []
        self.stopped = False

    def stop(self, *_) -> None:
        self.stopped = True
        for child in self._children:
            child.terminate()

    def run(self, parallel: int) -> list[_Job]:
        """Returns those that failed."""
        previous = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with ThreadPoolExecutor(parallel) as pool:
                succeeded = list(pool.map(self._run, range(len(self._jobs))))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return [job for job, good in zip(self._jobs, succeeded, strict=True) if not good]

    def _run(self, n: int) -> bool:
        job, began = self._jobs[n], time.monotonic()
        place = f"[{n + 1}/{len(self._jobs)}] {job.name}"
        job.workdir.mkdir(parents=True, exist_ok=True)
        with (job.workdir / "train.log").open("a", encoding="utf-8") as log:
            with self._lock:
                if self.stopped:
                    return False
                # A session of its own, so that Ctrl-C reaches it once, from here.
                child = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "cot_jax.train",
                        *job.flags,
                        f"--workdir={job.workdir}",
                        "--show=0",
                    ],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
                self._children.append(child)
            status = child.wait()
        if status == 0:
            name, value = job.score
            say(f"{place}: {name} {100 * value:.2f} %, {time.monotonic() - began:.0f} s")
        elif not self.stopped:
            said = (job.workdir / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
            say(f"{place}: failed with status {status}: {said[-1] if said else 'it said nothing'}")
        return status == 0


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 some runs failed, 2 usage, 75 stopped."""
    table, options = _options(argv)
    whole = experiments.merged(table, options.output)
    if options.grid:
        trials = [[dataclasses.replace(cell, chosen=v) for v in options.grid] for cell in table.cells]
        searches = [_plan(of_cell, options.seeds[:1], options.output, "valid") for of_cell in trials]
        jobs = list(itertools.chain(*searches))
        status = _run(jobs, options)
        if status or not all(job.done for job in jobs):
            return status
        table = dataclasses.replace(table, cells=tuple(map(_best, trials, searches)))
        whole = experiments.merged(table, options.output)
    jobs = _plan(table.cells, options.seeds, options.output)
    if not options.dry_run:
        with writing(options.output):
            whole.save(options.output)
    status = _run(jobs, options)
    if not status and not options.dry_run:
        say(f"done: python -m cot_jax.compare {options.output}")
    return status


def _run(jobs: Sequence[_Job], options: argparse.Namespace) -> int:
    """Runs those that are not done, or prints them; returns the exit status."""
    left = [job for job in jobs if not job.done]
    say(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done")
    if options.dry_run:
        for job in left:
            print("python -m cot_jax.train", *job.flags, f"--workdir={job.workdir}")
        return 0
    runner = _Jobs(left)
    with locked(options.output):
        failed = runner.run(options.jobs)
    if runner.stopped:
        say(f"stopped; {len(failed)} runs are left; the same command resumes")
        return STOPPED
    if failed:
        say(f"{len(failed)} runs failed; each has a train.log: " + ", ".join(job.name for job in failed))
        return 1
    return 0


def _best(trials: Sequence[Cell], jobs: Sequence[_Job]) -> Cell:
    """Returns the cell whose run is best on validation, the first one of equals."""
    scores = [job.score for job in jobs]
    name, value = max(scores, key=lambda score: score[1])
    best = trials[scores.index((name, value))]
    say(f"{best.row}, {best.column}: chosen {best.choice}, {name} {100 * value:.2f} %")
    return best


def _plan(cells: Sequence[Cell], seeds: Sequence[int], output: Path, split: str = "test") -> list[_Job]:
    """Returns all runs, the first seed of every cell first, so that what is there can be compared early."""
    jobs = []
    for seed, cell in itertools.product(seeds, cells):
        workdir = output / cell.path / f"seed{seed}"
        flags = cell.flags(seed, output)
        # Every run is checked before the first one starts.
        config = parse_command_line(["sweep", *flags], "").config
        if (workdir / "config.json").exists():
            from cot_jax.training.students import resolved  # --help does not wait for JAX

            refuse_other_config(workdir, resolved(config))
        name = ", ".join(filter(None, (cell.row, cell.column, cell.choice, f"seed {seed}")))
        jobs.append(_Job(name, workdir, flags, split))
    return jobs


def _options(argv: Sequence[str]) -> tuple[Table, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        "python -m cot_jax.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", help="published table, e.g. mi_base, or a file with get_table()")
    what.add_argument("--config", help="what all runs start from, e.g. demo_mi, or a file")
    parser.add_argument("--methods", help="e.g. standard,dss,mi:masked,standard+dlb,mi+dynsdpb")
    parser.add_argument("--fractions", help="shares of the training data, e.g. 0.25,1.0")
    parser.add_argument(
        "--grid",
        type=_values,
        action="append",
        default=[],
        help="values to choose from on validation, e.g. optimizer.learning_rate=1e-4,3e-4; may be repeated",
    )
    parser.add_argument("--seeds", type=_seeds, required=True, help="e.g. 0..3 or 0,7")
    parser.add_argument("--output", type=Path, required=True, help="directory of the runs and the table")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--dry_run", action="store_true", help="print what would run and stop")
    options, rest = parser.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        match = re.fullmatch(r"--config\.([^=]+)=(.*)", argument)
        if not match:
            parser.error(f"unexpected argument {argument!r}; keys are given as --config.KEY=VALUE")
        overrides[match[1]] = match[2]
    if options.jobs < 1:
        parser.error("--jobs is at least 1")
    if options.table:
        if options.methods or options.fractions:
            parser.error("--table names its methods itself: leave --methods and --fractions out")
        table = experiments.from_file(options.table)
    else:
        if not options.methods:
            parser.error("--config needs --methods")
        try:
            fractions = [float(text) for text in (options.fractions or "1.0").split(",")]
        except ValueError:
            parser.error(f"--fractions={options.fractions}: numbers between 0 and 1, joined by commas")
        table = experiments.grid(options.config, options.methods.split(","), fractions)
    grid = dict(options.grid)
    if len(grid) < len(options.grid) or "seed" in grid:
        parser.error("--grid: each key once, and not the seed")
    options.grid = (
        [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())] if grid else []
    )
    first = options.grid[0] if grid else {}  # until it is known which is best
    cells = (
        dataclasses.replace(cell, overrides={**cell.overrides, **overrides}, chosen=first)
        for cell in table.cells
    )
    return dataclasses.replace(table, cells=tuple(cells)), options


def _values(text: str) -> tuple[str, list[str]]:
    match = re.fullmatch(r"([\w.]+)=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not like KEY=VALUE,VALUE")
    return match[1], match[2].split(",")


def _seeds(text: str) -> list[int]:
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        seeds = range(int(match[1]), int(match[2]) + 1)
        if not 0 < len(seeds) <= MOST["seeds"]:
            raise argparse.ArgumentTypeError(f"{text!r} must be 1 to {MOST['seeds']:,} seeds")
        return list(seeds)
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither like 0..3 nor like 0,7")
    return [int(seed) for seed in text.split(",")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
