"""Run an experiment over seeds, methods and shares of the data, or a whole published table.

python -m cot_jax.sweep --config=demo_mi --seeds=0..3 --methods=standard,dss,mi --output=DIR
python -m cot_jax.sweep --table=mi_base --seeds=0..3 --output=DIR --config.data.root=DATA
    --grid optimizer.learning_rate=1e-4,3e-4,1e-3

With --grid, every combination of values runs with the first seed. The best one on validation then runs with
all seeds, in DIR/ROW/COLUMN/VALUES/seedN.

Every run is a separate process in DIR/ROW/COLUMN/seedN. The same command skips finished runs and resumes
stopped ones. `python -m cot_jax.compare DIR` makes the table. --config.KEY=VALUE applies to all runs; the
keys that --methods, --fractions and --seeds set cannot be given so.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from cot_jax import experiments
from cot_jax.config import parse_command_line, refuse_other_config
from cot_jax.errors import argument_parser, command, writing
from cot_jax.experiments import RUNS, Cell, Table
from cot_jax.files import locked, place, uploaded
from cot_jax.limits import MOST, check_ranges
from cot_jax.training.result import RESULT_FILE, metric_of, read_result

say = functools.partial(print, flush=True)

STOPPED = 75  # exit status, as in `cot_jax.train`: run the command again


@dataclasses.dataclass(frozen=True)
class _Job:
    name: str
    workdir: Path
    flags: list[str]
    split: str = "test"  # whose score is printed

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
    """Runs jobs in parallel; on a signal the running ones save and stop."""

    def __init__(self, jobs: Sequence[_Job]):
        # Reentrant: a second signal may interrupt `stop`.
        self._jobs, self._lock = jobs, threading.RLock()
        self._children: list[subprocess.Popen] = []
        self.stopped = False

    def stop(self, *_) -> None:
        with self._lock:  # no child is being started
            self.stopped = True
            for child in self._children:
                child.terminate()

    def run(self, parallel: int) -> list[_Job]:
        """Runs all jobs, `parallel` at a time; returns those that failed."""
        previous = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
                runs = [pool.submit(self._run, n) for n in range(len(self._jobs))]
                # Python calls handlers in the main thread, between instructions. A signal that arrives just
                # before the thread blocks, or in another thread, does not wake it.
                while concurrent.futures.wait(runs, timeout=1).not_done:
                    pass
                succeeded = [run.result() for run in runs]
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return [job for job, good in zip(self._jobs, succeeded, strict=True) if not good]

    def _run(self, n: int) -> bool:
        job, began = self._jobs[n], time.monotonic()
        title = f"[{n + 1}/{len(self._jobs)}] {job.name}"
        command = [sys.executable, "-m", "cot_jax.train", *job.flags, "--show=0", f"--workdir={job.workdir}"]
        with uploaded(job.workdir) as directory, (directory / "train.log").open("a", encoding="utf-8") as log:
            with self._lock:
                if self.stopped:
                    return False
                # A new session, so that Ctrl-C reaches the child only once, from here.
                child = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
                self._children.append(child)
            status = child.wait()
        if status == 0:
            name, value = job.score
            say(f"{title}: {name} {100 * value:.2f} %, {time.monotonic() - began:.0f} s")
        elif not self.stopped:
            lines = (job.workdir / "train.log").read_bytes().decode(errors="replace").splitlines()
            say(f"{title}: failed with status {status}: {lines[-1] if lines else 'train.log is empty'}")
        return status == 0


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1: some runs failed, 2: usage, 75: stopped."""
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
    """Runs the unfinished jobs, or prints them (--dry_run); returns the exit status."""
    left = [job for job in jobs if not job.done]
    say(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done")
    if options.dry_run:
        for job in left:
            print("python -m cot_jax.train", shlex.join([*job.flags, f"--workdir={job.workdir}"]))
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
    """Returns the cell whose run is best on validation, the first one in a tie."""
    scores = [job.score for job in jobs]
    name, value = max(scores, key=lambda score: score[1])
    best = trials[scores.index((name, value))]
    say(f"{best.row}, {best.column}: chosen {best.choice}, {name} {100 * value:.2f} %")
    return best


def _plan(cells: Sequence[Cell], seeds: Sequence[int], output: Path, split: str = "test") -> list[_Job]:
    """Returns all runs, the first seed of every cell first, so that early results can be compared."""
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
    parser = argument_parser("sweep", __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", help="published table, e.g. mi_base, or a file with get_table()")
    what.add_argument("--config", help="config that all runs start from, e.g. demo_mi, or a file")
    add = parser.add_argument
    add("--methods", help="e.g. standard,dss,mi:masked,standard+dlb,mi+dynsdpb")
    add("--fractions", help="shares of the training data, e.g. 0.25,1.0")
    grid_help = "values to choose from on validation, e.g. optimizer.learning_rate=1e-4,3e-4; repeatable"
    add("--grid", type=_values, action="append", default=[], help=grid_help)
    add("--seeds", type=_seeds, required=True, help="e.g. 0..3 or 0,7")
    add("--output", type=place, required=True, help="directory of the runs and the table")
    add("--jobs", type=int, default=1, help="runs in parallel")
    add("--dry_run", action="store_true", help="print what would run and stop")
    options, rest = parser.parse_known_args(argv)
    overrides = {}
    for argument in rest:
        match = re.fullmatch(r"--config\.([^=]+)=(.*)", argument)
        if not match:
            parser.error(f"unexpected argument {argument!r}; give keys as --config.KEY=VALUE")
        overrides[match[1]] = match[2]
    check_ranges({"jobs": options.jobs}, positive=("jobs",))
    if options.table:
        if options.methods or options.fractions:
            parser.error("--table defines its own methods: leave --methods and --fractions out")
        table = experiments.from_file(options.table)
    else:
        if not options.methods:
            parser.error("--config needs --methods")
        try:
            fractions = [float(text) for text in (options.fractions or "1.0").split(",")]
        except ValueError:
            parser.error(f"--fractions={options.fractions}: numbers between 0 and 1, joined by commas")
        table = experiments.grid(options.config, options.methods.split(","), fractions)
    taken = {"seed"} if options.table else {"seed"}.union(*(cell.overrides for cell in table.cells))
    for key in taken & overrides.keys():
        flag = {"seed": "--seeds", "data.train_fraction": "--fractions"}.get(key, "--methods")
        parser.error(f"--config.{key}: {flag} sets this key")
    grid = dict(options.grid)
    if len(grid) < len(options.grid) or "seed" in grid:
        parser.error("--grid: give each key once, and not the seed")
    if grid and any(RUNS in str(value) for cell in table.cells for value in cell.overrides.values()):
        parser.error("--grid: this table's students read its teachers' runs, which a grid would move")
    points = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    options.grid = points if grid else []  # the product of nothing is one empty point
    cells = (  # with the first point, until the best is known
        dataclasses.replace(cell, overrides={**cell.overrides, **overrides}, chosen=points[0])
        for cell in table.cells
    )
    return dataclasses.replace(table, cells=tuple(cells)), options


def _values(text: str) -> tuple[str, list[str]]:
    match = re.fullmatch(r"([\w.]+)=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE,VALUE")
    return match[1], list(dict.fromkeys(match[2].split(",")))


def _seeds(text: str) -> list[int]:
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        seeds = range(int(match[1]), int(match[2]) + 1)
        if not 0 < len(seeds) <= MOST["seeds"]:
            raise argparse.ArgumentTypeError(f"{text!r}: give 1 to {MOST['seeds']:,} seeds")
        return list(seeds)
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: write 0..3 or 0,7")
    return list(dict.fromkeys(map(int, text.split(","))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
