"""Plots of runs; each function writes `picture`, a PNG."""

import dataclasses
import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cot_jax.errors import UserError
from cot_jax.files import read_json_lines
from cot_jax.metrics.calibration import Bin

_LEAST_POINTS = 10  # of a curve, rather than averages over all of the window
_WINDOW = 25  # rows of which a point of a loss is the mean, at most


def require_matplotlib() -> None:
    """Raises UserError if Matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("plots need Matplotlib: pip install 'cot-jax[plots]'")


def draw_layer_norms(metrics_file: Path, prefix: str, picture: Path) -> None:
    """Draws every layer's gradient norm over the steps, in a panel per stack; nothing if no row has any.

    Args:
      metrics_file: `metrics.jsonl`, with values named `{prefix}STACK/LAYER`.
    """
    stacks: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in read_json_lines(metrics_file):
        for name, value in row.values.items():
            if name.startswith(prefix):
                stack, number = name.removeprefix(prefix).split("/")
                stacks[stack][int(number)].append((row.values["step"], value))
    if not stacks:  # a run resumed without its rows
        return
    figure = _figure(5 * len(stacks) + 1, 3.6)
    panels = figure.subplots(1, len(stacks), sharey=True, squeeze=False)[0]
    for panel, (stack, layers) in zip(panels, stacks.items(), strict=True):
        for layer, points in sorted(layers.items()):
            steps, norms = zip(*points, strict=True)
            shade = 0.15 + 0.75 * layer / max(len(layers) - 1, 1)
            panel.plot(steps, norms, color=(0.1, 0.3 + 0.4 * (1 - shade), shade), label=f"layer {layer}")
        panel.set_title(stack)
        panel.set_xlabel("step")
        panel.set_yscale("log")
    panels[0].set_ylabel("norm of the gradient")
    handles, labels = panels[-1].get_legend_handles_labels()
    columns = -(-len(labels) // 12)
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small", ncols=columns)
    _save(figure, picture)


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric over the steps, (N,) each: mean, minimum and maximum over seeds."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def read_curves(metrics_files: Sequence[Path]) -> dict[str, Curve]:
    """Returns the curves of validation metrics, then of losses, over seeds, by name.

    Args:
      metrics_files: `metrics.jsonl` of each seed.

    Raises:
      UserError: a file cannot be read, a row has another shape, or a file lacks a metric of the first.
    """
    seeds: list[dict[str, list[tuple[int, float]]]] = []
    for file in metrics_files:
        series: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row in read_json_lines(file):
            values = row.check({"step": int, str: float})
            for name in values:
                if name.startswith(("valid/", "loss")):
                    series[name].append((values["step"], values[name]))
        if missing := [name for name in (seeds or [series])[0] if name not in series]:
            raise UserError(f"{file}: no {missing[0]}, which other seeds have: train this seed again")
        seeds.append(series)
    return {
        name: _curve([series[name] for series in seeds], 1 if name.startswith("valid/") else _WINDOW)
        for name in sorted(seeds[0], reverse=True)
    }


def _curve(seeds: Sequence[Sequence[tuple[int, float]]], window: int) -> Curve:
    """Returns the curve of the (step, value) of some seeds, each point the mean of up to `window` rows."""
    rows = min(map(len, seeds))
    window = max(1, min(window, rows // _LEAST_POINTS))
    points = np.array([seed[: rows // window * window] for seed in seeds])  # (seeds, rows, 2)
    averaged = points.reshape(len(seeds), -1, window, 2).mean(axis=2)
    values = averaged[..., 1]
    return Curve(averaged[0, :, 0], values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def draw_curves(panels: Mapping[str, Mapping[str, Curve]], picture: Path) -> None:
    """Draws a panel per metric, with a line and a band (minimum to maximum) per method.

    Args:
      panels: metric -> method -> curve.
    """
    from matplotlib.lines import Line2D

    methods = list(dict.fromkeys(method for curves in panels.values() for method in curves))
    colors = _colors(methods)
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = _figure(4.2 * across + 1.8, 3.2 * down)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for panel, (metric, curves) in zip(axes, panels.items(), strict=False):
        for method, curve in curves.items():
            panel.plot(curve.steps, curve.mean, color=colors[method], linewidth=1.5)
            panel.fill_between(curve.steps, curve.low, curve.high, color=colors[method], alpha=0.15, lw=0)
        lowest, highest = (
            min(c.low.min() for c in curves.values()),
            max(c.high.max() for c in curves.values()),
        )
        if 0 < 10 * lowest < highest:
            panel.set_yscale("log")
        panel.set_title(metric)
        panel.set_xlabel("step")
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    handles = [Line2D([], [], color=colors[method], label=method) for method in methods]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    _save(figure, picture)


def draw_data_size(
    methods: Mapping[str, Sequence[tuple[int, Sequence[float]]]], metric: str, picture: Path
) -> None:
    """Draws a test metric against the number of training examples, with the standard deviation over seeds.

    Args:
      methods: method -> pairs (number of examples, metric in % for each seed).
    """
    colors = _colors(list(methods))
    figure = _figure(6, 3.8)
    panel = figure.subplots()
    for method, points in methods.items():
        examples, scores = zip(*sorted(points), strict=True)
        panel.errorbar(
            examples,
            [np.mean(values) for values in scores],
            [np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in scores],
            color=colors[method],
            marker="o",
            markersize=4,
            capsize=3,
            label=method,
        )
    panel.set_xscale("log", base=2)
    sizes = sorted({examples for points in methods.values() for examples, _ in points})
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
    panel.minorticks_off()
    panel.set_xlabel("training examples")
    panel.set_ylabel(f"test {metric}, %")
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, picture)


def draw_heat_map(
    scores: np.ndarray,
    rows: tuple[str, Mapping[str, float]],
    columns: tuple[str, Mapping[str, float]],
    metric: str,
    picture: Path,
) -> None:
    """Draws a test metric for every pair of two settings.

    Args:
      scores: (rows, columns), the metric in %; NaN if missing.
      rows, columns: name of the setting, and its values.
    """
    down, across = scores.shape
    figure = _figure(2.6 + 0.9 * across, 1.4 + 0.5 * down)
    panel = figure.subplots()
    panel.set_facecolor("0.8")  # marks a missing score: the lowest one is white
    image = panel.imshow(scores, cmap="Blues", aspect="auto")
    dark = np.nanmin(scores) + 0.6 * (np.nanmax(scores) - np.nanmin(scores))
    for row, column in np.argwhere(np.isfinite(scores)).tolist():
        score = scores[row, column]
        color = "white" if score > dark else "black"
        panel.text(column, row, f"{score:.1f}", ha="center", va="center", color=color)
    panel.set_xticks(range(across), [f"{number:g}" for number in columns[1].values()])
    panel.set_yticks(range(down), [f"{number:g}" for number in rows[1].values()])
    panel.set_xlabel(columns[0])
    panel.set_ylabel(rows[0])
    figure.colorbar(image, label=f"test {metric}, %")
    _save(figure, picture, frame=True)


def draw_reliability(before: Sequence[Bin], after: Sequence[Bin] | None, title: str, picture: Path) -> None:
    """Draws accuracy against confidence, and below it the number of answers."""
    figure = _figure(4.6, 5.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--", label="perfect")
    for bins, color, label in ((before, "C0", "as trained"), (after, "C1", "temperature scaled")):
        if not bins:
            continue
        confidences, accuracies, counts = zip(
            *((b.confidence, b.accuracy, b.count) for b in bins), strict=True
        )
        top.plot(confidences, accuracies, color=color, marker="o", markersize=4, label=label, clip_on=False)
        bottom.bar(confidences, counts, width=0.03, color=color, alpha=0.7)
    top.set_ylabel("accuracy")
    top.set_title(title)
    top.set_xlim(0, 1)
    top.set_ylim(0, 1)
    top.legend(frameon=False, loc="upper left")
    bottom.set_xlabel("confidence")
    bottom.set_ylabel("answers")
    _save(figure, picture)


def draw_votes(voted: Mapping[str, Sequence[float]], alone: Mapping[str, float], picture: Path) -> None:
    """Draws accuracy against the number of samples that vote.

    Args:
      voted: voters -> accuracy for 1, 2, ... samples of each path.
      alone: path -> accuracy of its greedy answer.
    """
    from matplotlib.ticker import MaxNLocator

    colors = _colors(list(dict.fromkeys([*voted, *alone])))
    figure = _figure(6, 3.8)
    panel = figure.subplots()
    for name, accuracies in voted.items():
        shares = [100 * accuracy for accuracy in accuracies]
        ks = range(1, len(shares) + 1)
        panel.plot(ks, shares, color=colors[name], marker="o", markersize=4, label=f"{name}, vote")
    for name, accuracy in alone.items():
        panel.axhline(100 * accuracy, color=colors[name], lw=1, linestyle="--", label=f"{name}, greedy")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("samples of each path")
    panel.set_ylabel("accuracy of the vote, %")
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, picture)


def draw_confusion(labels: Sequence[str], counts: np.ndarray, picture: Path) -> None:
    """Draws how often each gold label was answered with each label.

    Args:
      labels: names of the columns; the rows are the first of them.
      counts: (gold, answered).
    """
    rows, columns = counts.shape
    figure = _figure(2.2 + 0.9 * columns, 1.6 + 0.7 * rows)
    panel = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in np.ndindex(rows, columns):
        color = "white" if shares[row, column] > 0.6 else "black"
        panel.text(column, row, f"{counts[row, column]}", ha="center", va="center", color=color)
    panel.set_xticks(range(columns), labels)
    panel.set_yticks(range(rows), labels[:rows])
    panel.set_xlabel("answered")
    panel.set_ylabel("gold")
    _save(figure, picture, frame=True)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, picture: Path, frame: bool = False) -> None:
    for panel in () if frame else figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    with picture.open("wb") as file:  # Matplotlib itself writes to a disk only
        figure.savefig(file, format="png", dpi=120)


def _colors(names: Sequence[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    palette = colormaps["tab10" if len(names) <= 10 else "tab20"]
    return {name: palette(n % palette.N) for n, name in enumerate(names)}
