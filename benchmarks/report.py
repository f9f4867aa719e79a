"""The benchmarks' JSON files as pages: performance.md, performance_rows.md and performance.png in docs/.

    python -m benchmarks.report DIR [DIR or FILE ...]

In performance.md the part between two marks is replaced; the other two files are written anew.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import in_words, markdown

BEGIN, END = "<!-- measured: begin, made by benchmarks.report -->", "<!-- measured: end -->"

_ROWS_PAGE = """\
# Measured rows

Made by `benchmarks.report`: every row behind the tables of [performance](performance.md). Both sides run in
one process, in turn, with the same weights and the same dropout rate on the same examples; before timing,
losses and gradient norms are compared, and the run stops where they differ. "Published" is the step of the
released PyTorch code: float32, eager attention, one forward a view, AdamW, padded to the batch's longest.
"Tuned" has sdpa, fused AdamW and, on a GPU, bfloat16 autocast and torch.compile. Times are medians [least,
quartiles]; a ratio's spread are the quartiles over neighbouring samples. FLOPs are those of the matrix
products at the padded shapes, the same formula for both sides; MFU is their share of the rate of one large
matrix product, measured in the same run.

![Ratios](performance.png)
"""


class Target(NamedTuple):
    """What the project asks of a comparison; `row` and `name` say where it is measured."""

    text: str
    row: str
    name: str
    must: float
    aim: float


_PUBLISHED, _TUNED = "times as fast as torch published", "times as fast as torch tuned"
_BASE, _SMALL, _SAME = "T5-base, batch 64", "T5-small, batch 64", "T5-small, same shapes"
TARGETS = (
    Target(f"{_BASE}: against float32 eager", "gpu-base-published", _PUBLISHED, 5, 7.5),
    Target(f"{_BASE}: against bf16 + compile", "gpu-base-tuned", _TUNED, 1.2, 1.5),
    Target(
        f"{_BASE}: the same, batching free",
        "gpu-base-free",
        "times the examples/s of torch tuned, random batches",
        1.5,
        2,
    ),
    Target(f"{_SMALL}: against float32 eager", "gpu-small-published", _PUBLISHED, 4, 5.3),
    Target(f"{_SMALL}: against bf16 + compile", "gpu-small-tuned", _TUNED, 1.1, 1.4),
    Target("T5-base, 1024/128/256: against bf16 + compile", "gpu-base-1024", _TUNED, 1.3, 1.8),
    Target("TFLOP/s, small", "gpu-models", "TFLOP/s, small", 200, 260),
    Target("TFLOP/s, base", "gpu-models", "TFLOP/s, base", 300, 360),
    Target("TFLOP/s, large", "gpu-models", "TFLOP/s, large", 340, 400),
    Target("step time of MI over DSS (at most)", "gpu-method", "step time against dss, mi", 1.05, 1.02),
    Target(
        "step time of DynSDPB (vmm) over DSS (at most)",
        "gpu-method",
        "step time against dss, dynsdpb",
        1.08,
        1.03,
    ),
    Target(
        f"{_BASE}: peak memory over bf16 + compile's (at most)",
        "gpu-base-tuned",
        "memory of torch tuned",
        0.7,
        0.4,
    ),
    Target(
        "T5-base, whole SVAMP experiment, minutes (at most)",
        "gpu-experiment",
        "minutes of 10,000 steps and 40 evaluations",
        15,
        6,
    ),
    Target("T5-base, generation, batch 64", "gpu-generate", "times as fast, batch 64", 3, 8),
    Target(f"{_SAME}: against float32 eager", "cpu-small-same", _PUBLISHED, 1.2, 1.35),
    Target(f"{_SAME}: against sdpa and fused AdamW", "cpu-small-tuned", _TUNED, 1.1, 1.25),
    *(
        Target(
            f"T5-small, random batches of 64: against {order} batches padded to their longest",
            "cpu-small-free-64",
            f"times the examples/s of torch published, {order} batches",
            must,
            aim,
        )
        for order, must, aim in (("random", 1.8, 2.3), ("sorted", 1.2, 1.5))
    ),
    *(
        Target(
            f"T5-small, generation, batch {size}", "cpu-generate", f"times as fast, batch {size}", must, aim
        )
        for size, must, aim in ((1, 2.2, 3), (8, 1.5, 2), (32, 1.2, 1.5))
    ),
    Target(
        "demo, start to the first step, programs cached, seconds (at most)",
        "cpu-startup",
        "seconds to the first step, cached",
        10,
        6,
    ),
    *(
        Target(f"MiniLM-L6, {named}: {what}", f"cpu-encoder-{task}", f"{name}, {task}", must, aim)
        for task, named in (("rte", "RTE"), ("cola", "CoLA"))
        for what, name, must, aim in (
            ("step", "times as fast, training step", 1.3, 1.8),
            ("prediction", "times as fast, prediction", 1.1, 1.4),
            ("step time of DynSDPB over a plain step (at most)", "step time of dynsdpb", 1.03, 1.01),
        )
    ),
    *(
        Target(f"SmolLM2-135M, LoRA: {what}", "cpu-decoder", name, must, aim)
        for what, name, must, aim in (
            ("step against eager", "training step against eager", 1.3, 2.0),
            ("step against sdpa", "training step against sdpa", 1.3, 2.0),
            ("peak memory over sdpa's (at most)", "peak memory of sdpa", 0.7, 0.5),
            ("generation, batch 1", "generation, batch 1", 1.5, 2.0),
            ("generation, batch 8", "generation, batch 8", 1.2, 1.5),
        )
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("measured", type=Path, nargs="+", help="JSON files, or directories of them")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where the pages are")
    options = parser.parse_args()
    files = [
        f for path in options.measured for f in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
    options.docs.mkdir(exist_ok=True)
    page = options.docs / "performance.md"
    old = page.read_text(encoding="utf-8") if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    page.write_text(insert(old, tables(results)), encoding="utf-8")
    (options.docs / "performance_rows.md").write_text(rows_page(results), encoding="utf-8")
    draw(results, options.docs / "performance.png")


def insert(page: str, measured: str) -> str:
    """Puts `measured` between the page's marks; the rest of the page stays.

    Raises:
      ValueError: the page has not each mark once, in order.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after:
        raise ValueError(f"the page must have the lines {BEGIN} and {END} once, in this order")
    return f"{before}{BEGIN}\n{measured}\n{END}{after}"


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The measured part of performance.md: a table for each kind of device."""
    parts = []
    for title, kind in (("CPU, measured", "cpu"), ("H100, measured or not", "gpu")):
        parts += [f"## {title}", "\n".join(markdown(target_rows(results, kind)))]
    return "\n" + "\n\n".join(parts) + "\n"


def rows_page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """performance_rows.md: where, when and how each row was measured, and what it gave."""
    parts = [_ROWS_PAGE.strip()]
    for name, result in results.items():
        hardware, versions = result["hardware"], result["versions"]
        parts += [
            f"## {name}",
            f"`{result['command']}`",
            f"{result['date']}; {hardware['device_kind']}, {hardware['processor']}, "
            f"{hardware['cores_used']} cores; "
            + ", ".join(f"{package} {version}" for package, version in versions.items()),
            "\n".join(f"- {note}" for note in result["notes"]),
            "\n".join(markdown(result["rows"])),
            "\n".join(f"- {c['name']}: {in_words(c)}" for c in result["comparisons"]),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def target_rows(results: Mapping[str, Mapping[str, Any]], kind: str) -> list[dict[str, str]]:
    """The targets of a kind of device, "cpu" or "gpu"; what is not measured says so."""
    rows = []
    for target in TARGETS:
        if not target.row.startswith(kind):
            continue
        found = [c for c in results.get(target.row, {}).get("comparisons", ()) if c["name"] == target.name]
        link = f"[{target.row}](performance_rows.md#{target.row})"
        rows.append(
            {
                "comparison": target.text,
                "must": f"{target.must:g}",
                "aim": f"{target.aim:g}",
                "measured": in_words(found[0]) if found else "not measured",
                "row": link if found else target.row,
            }
        )
    return rows


def draw(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Bars of every ratio of speeds, with quartiles."""
    from matplotlib.figure import Figure

    bars = [
        (f"{row}: {c['name']}", c)
        for row, result in results.items()
        for c in result["comparisons"]
        if c["name"].startswith("times ")
    ]
    labels = [label for label, _ in bars]
    values = [c["value"] for _, c in bars]
    # The median of all may lie outside the quartiles of neighbours where there are few samples.
    spread = [
        [max(c["value"] - c["low"], 0) for _, c in bars],
        [max(c["high"] - c["value"], 0) for _, c in bars],
    ]
    figure = Figure(figsize=(9, 1 + 0.35 * len(bars)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(labels, values, xerr=spread, color="tab:blue", ecolor="0.3", capsize=3)
    axes.bar_label(drawn, fmt=" %.2f", padding=4)
    axes.axvline(1, color="0.3", linewidth=1)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel("more than 1: cot_jax is faster")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
