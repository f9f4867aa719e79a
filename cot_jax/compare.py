"""Make the table and the plots of a sweep, or a page of two runs: `python -m cot_jax.compare DIR`

Writes to DIR report.md, report.csv (one row per run), differences.csv (every pair of methods) and, where
Matplotlib is installed, plots; prints the table.

python -m cot_jax.compare RUN_A RUN_B --html=FILE writes one page for a browser: what differs between the two
finished runs, their scores and learning curves, and both answers to every test question. It reads what
python -m cot_jax.evaluate writes.
"""

import csv
import dataclasses
import importlib.util
import itertools
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cot_jax import experiments
from cot_jax.errors import UserError, argument_parser, command, writing
from cot_jax.experiments import Cell, Table, file_name
from cot_jax.files import Shape, place, whole, write_text
from cot_jax.metrics.plots import Curve, draw_curves, draw_data_size, draw_heat_map, read_curves
from cot_jax.metrics.significance import paired_p_value
from cot_jax.training.page import page
from cot_jax.training.result import metric_of, read_result

_FRACTION = "data.train_fraction"
# What the report shows of a run, beside its scores.
_REPORTED: dict[str, Shape] = {
    "best_step": int,
    "examples": int,
    "example_visits": int,
    "train_seconds": float,
    "hardware": {"devices": int, "device_kind": str},
    "versions": {"jax": str},
}


@dataclasses.dataclass(frozen=True)
class _Runs:
    """The finished runs of a cell, by seed."""

    cell: Cell
    results: Mapping[int, dict[str, Any]]
    directory: Path

    @property
    def first(self) -> dict[str, Any]:
        """The result of the first seed."""
        return next(iter(self.results.values()))

    def scores(self) -> list[float]:
        """Returns the test metric of each seed."""
        return [_score(result) for result in self.results.values()]


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 if there is nothing to report."""
    parser = argument_parser("compare", __doc__)
    add = parser.add_argument
    add("directories", type=place, nargs="+", metavar="DIR", help="--output of a sweep, or two runs")
    add("--html", type=Path, metavar="FILE", help="page of two runs to write")
    add("--task", help="data set of the page, if the runs were evaluated on several")
    options = parser.parse_args(argv)
    directory, *others = options.directories
    if len(others) != bool(options.html):
        parser.error("give --output of one sweep, or RUN_A RUN_B --html=FILE")
    if options.html:
        with writing(options.html):
            write_text(options.html, page(directory, others[0], options.task))
        print(f"written to {options.html}")
        return 0
    table = experiments.from_directory(directory)
    found = {(cell.row, cell.column): _read(cell, directory / cell.path) for cell in table.cells}
    if not any(runs.results for runs in found.values()):
        raise UserError(f"{directory}: no run is finished yet")
    differences = _differences(table, found)
    with writing(directory):
        _write_csv(directory / "report.csv", _csv_rows(found.values()))
        _write_csv(directory / "differences.csv", differences)
        pictures = []
        if importlib.util.find_spec("matplotlib"):
            pictures = _draw(table, found, directory)
        else:
            print("no plots: pip install 'cot-jax[plots]'", file=sys.stderr)
        text = _markdown(table, found, differences)
        write_text(directory / "report.md", text + "".join(f"\n![]({picture})\n" for picture in pictures))
    print(text, end="")
    print("written to " + ", ".join(map(str, [directory / "report.md", *(directory / p for p in pictures)])))
    return 0


def _score(result: Mapping[str, Any], split: str = "test") -> float:
    return result[f"{split}/{metric_of(result)}"]


def _read(cell: Cell, directory: Path) -> _Runs:
    results = {}
    for workdir in directory.glob("seed*"):
        seed = workdir.name.removeprefix("seed")
        if seed.isdecimal() and (result := read_result(workdir, shape=_REPORTED)):
            results[int(seed)] = result
    return _Runs(cell, dict(sorted(results.items())), directory)


def _markdown(
    table: Table, found: Mapping[tuple[str, str], _Runs], differences: Sequence[Mapping[str, Any]]
) -> str:
    theirs = any(runs.cell.published is not None for runs in found.values())
    metrics = {column: metric_of(runs.first) for (_, column), runs in found.items() if runs.results}
    names = " or ".join(dict.fromkeys(metrics.values()))
    lines = [f"# {table.title}", "", f"Test {names} in %, mean ± standard deviation over seeds (seeds).", ""]
    header = ["method"]
    for column in table.columns:
        if len(set(metrics.values())) > 1 and column in metrics:
            column += f" ({metrics[column]})"
        header += [column, f"{column}, published"] if theirs else [column]
    body = []
    for row in table.rows:
        cells = [row]
        for column in table.columns:
            runs = found.get((row, column))
            cells.append(_summary(runs.scores()) if runs else "")
            if theirs:
                published = runs.cell.published if runs else None
                cells.append("" if published is None else f"*{published:.2f}*")
        body.append(cells)
    lines += _rows(header, body)
    if theirs:
        lines += ["", f"*Published* figures are the authors' and were not reproduced here: {table.source}."]
    if chosen := [
        [row, column, runs.cell.choice] for (row, column), runs in found.items() if runs.cell.chosen
    ]:
        lines += ["", "Chosen on validation, by the first seed:", ""]
        lines += _rows(["method", "column", "values"], chosen)
    for column in table.columns:
        body = []
        for r in differences:
            if r["column"] == column and r["b"] == table.rows[0] and r["seeds"] > 1:
                p = "" if r["p_value"] is None else f"{r['p_value']:.3f}"
                body.append([r["a"], f"{r['difference']:+.2f}", p, str(r["seeds"])])
        if body:
            lines += ["", f"Against {table.rows[0]}, {column}, seed by seed (paired t-test, two-sided):", ""]
            lines += _rows(["method", "difference", "p", "seeds"], body)
    lines += ["", "Cost of a run:", ""]
    costs = []
    for (row, column), runs in found.items():
        if runs.results:
            visits, examples = (f"{runs.first[name]:,}" for name in ("example_visits", "examples"))
            seconds = np.mean([result["train_seconds"] for result in runs.results.values()])
            costs.append([row, column, visits, examples, f"{seconds:.0f}"])
    lines += _rows(["method", "column", "example visits", "training examples", "training seconds"], costs)
    devices = {
        f"{r['hardware']['devices']} x {r['hardware']['device_kind']}, jax {r['versions']['jax']}"
        for runs in found.values()
        for r in runs.results.values()
    }
    lines += ["", "Hardware: " + "; ".join(sorted(devices)) + "."]
    return "\n".join(lines) + "\n"


def _rows(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *body)]


def _summary(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    percent = 100 * np.array(values)
    spread = f" ± {percent.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{percent.mean():.2f}{spread} ({len(values)})"


def _csv_rows(found: Iterable[_Runs]) -> list[dict[str, Any]]:
    return [
        {
            "row": runs.cell.row,
            "column": runs.cell.column,
            "seed": seed,
            "metric": metric_of(result),
            "test": _score(result),
            "valid": _score(result, "valid"),
            "best_step": result["best_step"],
            "example_visits": result["example_visits"],
            "train_seconds": result["train_seconds"],
            "published": runs.cell.published,
            "chosen": runs.cell.choice,
        }
        for runs in found
        for seed, result in runs.results.items()
    ]


def _differences(table: Table, found: Mapping[tuple[str, str], _Runs]) -> list[dict[str, Any]]:
    """Returns the mean differences a - b in percentage points, over the seeds that both have."""
    rows = []
    for column in table.columns:
        for b, a in itertools.combinations(table.rows, 2):
            if (a, column) not in found or (b, column) not in found:
                continue
            of_a, of_b = found[a, column].results, found[b, column].results
            seeds = [seed for seed in of_a if seed in of_b]
            if not seeds:
                continue
            scores_a = [100 * _score(of_a[seed]) for seed in seeds]
            scores_b = [100 * _score(of_b[seed]) for seed in seeds]
            rows.append(
                {
                    "column": column,
                    "a": a,
                    "b": b,
                    "difference": float(np.mean(np.subtract(scores_a, scores_b))),
                    "p_value": paired_p_value(scores_a, scores_b),
                    "seeds": len(seeds),
                }
            )
    return rows


def _write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with whole(file) as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _draw(table: Table, found: Mapping[tuple[str, str], _Runs], directory: Path) -> list[str]:
    """Draws learning curves by column, the metric against data size, and a heat map; returns their names."""
    pictures = []
    metric = next(metric_of(runs.first) for runs in found.values() if runs.results)
    for column in table.columns:
        curves: dict[str, dict[str, Curve]] = defaultdict(dict)
        for row in table.rows:
            runs = found.get((row, column))
            if not runs or not runs.results:
                continue
            files = [runs.directory / f"seed{seed}" / "metrics.jsonl" for seed in runs.results]
            for name, curve in read_curves(files).items():
                curves[name][row] = curve
        suffix = "" if len(table.columns) == 1 else "_" + file_name(column)
        for kind in ("valid/", "loss"):
            panels = {name: lines for name, lines in sorted(curves.items()) if name.startswith(kind)}
            if panels:
                picture = {"valid/": "learning_curves", "loss": "losses"}[kind] + suffix + ".png"
                draw_curves(panels, directory / picture)
                pictures.append(picture)
    sizes: dict[str, list[tuple[int, list[float]]]] = defaultdict(list)
    for (row, _), runs in found.items():
        if runs.results and _FRACTION in runs.cell.overrides:
            sizes[row].append((runs.first["examples"], [100 * value for value in runs.scores()]))
    if any(len(points) > 1 for points in sizes.values()):
        draw_data_size(sizes, metric, directory / "data_size.png")
        pictures.append("data_size.png")
    rows, columns = _numbers(table.rows), _numbers(table.columns)
    if rows and columns:
        scores = [[_mean_percent(found.get((row, column))) for column in columns[1]] for row in rows[1]]
        draw_heat_map(np.array(scores), rows, columns, metric, directory / "heat_map.png")
        pictures.append("heat_map.png")
    return pictures


def _numbers(names: Sequence[str]) -> tuple[str, dict[str, float]] | None:
    """Returns KEY and the numbers, ascending, of names KEY=NUMBER; None if the names have another form."""
    try:
        numbers = {name: float(name.split("=", 1)[1]) for name in names}
    except (IndexError, ValueError):
        return None
    keys = {name.split("=", 1)[0] for name in names}
    return (keys.pop(), dict(sorted(numbers.items(), key=lambda n: n[1]))) if len(keys) == 1 else None


def _mean_percent(runs: _Runs | None) -> float:
    """NaN if no run is finished."""
    return 100 * float(np.mean(runs.scores())) if runs and runs.results else float("nan")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
