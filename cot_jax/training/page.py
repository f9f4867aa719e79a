"""A page that compares two finished runs, question by question: `cot_jax.compare RUN_A RUN_B --html=FILE`.

One file, no network. Questions, labels and what a model wrote are hostile: all text is escaped, invisible
characters are shown as code points, and the page allows no script or style but its own.
"""

import base64
import hashlib
import html
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cot_jax.config import differences, with_defaults
from cot_jax.errors import UserError
from cot_jax.files import read_json
from cot_jax.metrics.plots import Curve, read_curves
from cot_jax.metrics.significance import bootstrap_interval, bootstrap_interval_of, mcnemar_p_value
from cot_jax.training.predictions import OUTCOMES, Pair, outcome, paired, read_evaluation
from cot_jax.training.result import metric_of, read_result

_FACTS = ("run", "test score", "right answers (95 % bootstrap interval)", "best step")

# Controls but tab and line feed, marks that turn the direction of text, tags, what HTML may not contain.
_UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff\U000e0000-\U000e007f]"
)

_STYLE = """
:root { color-scheme: light dark; --a: #0b62c4; --b: #b34700; --right: #1a7f37; --wrong: #b3261e }
@media (prefers-color-scheme: dark) { :root { --a: #6cf; --b: #fa5; --right: #6c7; --wrong: #f88 } }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 80rem; margin: auto; padding: 1rem }
table { border-collapse: collapse } polyline.b { stroke-dasharray: 6 4 }
th, td { text-align: start; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid #8886 }
th, td, p { white-space: pre-wrap; overflow-wrap: anywhere; font-weight: 400 }
.a { color: var(--a) } .b { color: var(--b) } .right { color: var(--right) } .wrong { color: var(--wrong) }
div { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center }
figure { margin: 0; flex: 1 1 20rem; max-width: 30rem } svg { font-size: 12px; fill: currentColor }
polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linecap: round }
button, input { font: inherit; padding: .3rem .7rem; border: 1px solid #8886; border-radius: .4rem }
button { background: Canvas; color: CanvasText } [aria-pressed=true] { background: CanvasText; color: Canvas }
input { flex: 1 1 12rem; min-width: 0 } :focus-visible { outline: 3px solid var(--a) }
main table { table-layout: fixed; width: 100% } main p { margin: .3rem 0 0 }
main th:is(:first-child, :nth-child(3)) { width: 9rem } tr[hidden] { display: none !important }
@media (max-width: 48rem) {
  main thead { display: none }
  main :is(tbody, tr, th, td) { display: block; width: auto !important; padding: .15rem 0; border: 0 }
  main tr { border-bottom: 1px solid #8886; padding: .6rem 0 }
  main td[data-run]::before { content: attr(data-run) ": "; opacity: .75 }
}
"""

_SCRIPT = """
const all = selector => [...document.querySelectorAll(selector)]
const rows = all("tbody tr[data-outcome]"), buttons = all("button"), [search] = all("input")
const texts = rows.map(row => row.textContent.replace(row.dataset.outcome, "").toLowerCase())
function show() {
  const wanted = all("[aria-pressed=true]")[0].value, text = search.value.trim().toLowerCase()
  rows.forEach((row, n) => row.hidden = !row.dataset.outcome.includes(wanted) || !texts[n].includes(text))
  all("output")[0].value = rows.filter(row => !row.hidden).length.toLocaleString("en") + " shown"
}
for (const button of buttons) button.onclick = () => {
  for (const other of buttons) other.setAttribute("aria-pressed", other === button)
  show()
}
search.oninput = show; show()
"""


def page(a: Path, b: Path, task: str | None = None) -> str:
    """Returns the page of two runs that were evaluated on test, in HTML; `task` as for `read_evaluation`.

    Raises:
      UserError: a run is not finished or not evaluated, or they have no question in common.
    """
    evaluations = [read_evaluation(run, "test", task) for run in (a, b)]
    pairs = paired(*evaluations)
    configs = [with_defaults(read_json(run / "config.json"))[0] for run in (a, b)]
    curves = [read_curves([run / "metrics.jsonl"]) for run in (a, b)]
    methods = [config["objective"]["method"] for config in configs]
    facts = [_facts(run, [pair[n].correct for pair in pairs]) for n, run in enumerate((a, b))]
    rows = [("method", *methods), *zip(_FACTS, *facts, strict=True)]
    rows += [(f"config.{key}", *map(repr, values)) for key, *values in differences(configs[0], configs[1])]
    title = _text("{}: {} and {}".format(evaluations[0].where.name.removesuffix("_test"), *methods))
    counts = Counter(map(outcome, pairs)) + Counter({"": len(pairs)})
    buttons = "\n".join(
        f'<button type="button" value="{name}" aria-pressed="{str(not name).lower()}">'
        f"{name or 'all'} {counts[name]:,}</button>"
        for name in ("", *OUTCOMES)
    )
    both = {name: [its.get(name) for its in curves] for name in {**curves[0], **curves[1]}}
    figures = "".join(_figure(name, its) for name, its in both.items())
    allowed = "default-src 'none'; style-src {}; script-src {}".format(*map(_hash, (_STYLE, _SCRIPT)))
    return f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<title>{title}</title><style>{_STYLE}</style>
<h1>{title}</h1>
<table><tr><td><th class="a">A: solid line<th class="b">B: dashed line</tr>
{"".join("<tr><th>" + "<td>".join(map(_text, row)) + "</tr>" for row in rows)}</table>
<p>{_verdict(counts, max(len(its.predictions) for its in evaluations))}</p>
<h2>Learning curves</h2><div>{figures}</div>
<main><h2>Questions</h2>
<div role="search">{buttons}
<input type="search" placeholder="search" aria-label="search in all texts"><output></output></div>
<table><thead><tr><th>id<th>question<th>label<th class="a">A<th class="b">B</thead><tbody>
{"".join(map(_row, pairs))}</tbody></table></main>
<script>{_SCRIPT}</script>
"""


def _text(value: Any) -> str:
    """Returns HTML that shows `value` and nothing else."""
    return html.escape(_UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", str(value)))


def _hash(content: str) -> str:
    """Returns the name of a script or style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _facts(run: Path, correct: Sequence[bool]) -> tuple[str, str, str, str]:
    result = read_result(run, splits=("test",), shape={"best_step": int})
    if result is None:
        raise UserError(f"{run}: no result.json, so the run is not finished: train it to its end first")
    low, high = bootstrap_interval(correct)
    share = f"{100 * np.mean(correct):.2f} % ({100 * low:.2f} to {100 * high:.2f})"
    metric = metric_of(result)
    return str(run), f"{metric} {100 * result[f'test/{metric}']:.2f} %", share, f"{result['best_step']:,}"


def _verdict(counts: Counter[str], asked: int) -> str:
    """Returns the difference of the accuracies, its interval and its test."""
    of_each = np.array([counts[name] for name in OUTCOMES])
    points = np.array([0, -100, 100, 0]) / of_each.sum()  # that a question gives to B - A
    low, high = bootstrap_interval_of(lambda drawn: drawn @ points, of_each)
    ones = [counts[name] for name in OUTCOMES[1:3]]
    return (
        f"{of_each.sum():,} of {asked:,} questions were answered by both. B - A: {of_each @ points:+.2f} "
        f"points (95 % interval {low:+.2f} to {high:+.2f}). Of {sum(ones):,} only one is right: p = "
        f"{mcnemar_p_value(*ones):.2g} (McNemar's exact test, two-sided). This compares two students; to "
        "compare methods, train several seeds of both (python -m cot_jax.sweep)."
    )


def _figure(name: str, curves: Sequence[Curve | None]) -> str:
    """Returns a drawing of a metric of both runs over the steps."""
    points = [list(zip(c.steps.tolist(), c.mean.tolist(), strict=True)) if c else [] for c in curves]
    steps, values = zip(*(point for its in points for point in its), strict=True)
    low, high, last = min(values), max(values), max(steps) or 1
    scale = math.log if 0 < 10 * low < high else float  # as `plots.draw_curves`
    span = scale(high) - scale(low) or 1.0
    lines = ""
    for run, its in zip("ab", points, strict=True):
        at = [(50 + 340 * x / last, 170 - 150 * (scale(y) - scale(low)) / span) for x, y in its]
        # The last one twice: a single point is a dot.
        lines += f'<polyline class="{run}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at + at[-1:])}"/>'
    ends = "; ".join(f"{run} ends at {its[-1][1]:.4g}" for run, its in zip("AB", points, strict=True) if its)
    log = ", logarithmic" if scale is math.log else ""
    return f"""<figure><figcaption>{_text(name)}{log}<br><small>{ends}</small></figcaption>
<svg viewBox="0 0 400 195" role="img" aria-label="{_text(name)}: {ends}">
<polyline opacity=".3" points="50,20 50,170 390,170"/>{lines}
<text x="45" y="24" text-anchor="end">{high:.3g}</text><text x="45" y="172" text-anchor="end">{low:.3g}</text>
<text x="390" y="188" text-anchor="end">step {last:,.0f}</text></svg></figure>
"""


def _row(pair: Pair) -> str:
    (a, _), answers = pair, ""
    for run, one in zip("AB", pair, strict=True):
        mark = 'right">✓' if one.correct else 'wrong">✗'
        answers += f'<td data-run="{run}" dir="auto"><b class="{mark} {_text(one.label)}</b>'
        answers += f'<p dir="auto">{_text(one.rationale)}</p>' if one.rationale else ""
    return (
        f'<tr data-outcome="{outcome(pair)}"><th>{_text(a.id)}<br><small>{outcome(pair)}</small>'
        f'<td dir="auto">{_text(a.question)}<td data-run="label" dir="auto">{_text(a.gold)}{answers}</tr>\n'
    )
