# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Does a student know when it is right?
#
# Confidence is the probability that a student gives to the answer it wrote: that of the whole label
# (*sequence*), or the geometric mean over its tokens (*per token*). It is calibrated where, of the answers
# given with confidence c, a share c is right.
#
# This notebook reads finished runs from the directory that the environment variable `COT_JAX_RUNS` names, or
# else from `../runs/demo`. They are made by, in the root of the repository and in some minutes each,
#
# ```bash
# python -m cot_jax.sweep --config=configs/demo_mi.py --seeds=0 --output=runs/demo \
#     --methods=standard,dss,mi,mi:masked,mi:normalized,mi:kl --config.train.steps=3500
# ```
#
# It is **one seed** a method. Where a run has not been evaluated yet, `python -m cot_jax.evaluate` is called
# for it, which takes some minutes.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from cot_jax import evaluate
from cot_jax.experiments import from_directory
from cot_jax.metrics.calibration import equal_width_bins, scale_confidence

RUNS = Path(os.environ.get("COT_JAX_RUNS", "../runs/demo"))
ROWS = ("standard", "dss", "mi")
runs = {cell.row: RUNS / cell.path / "seed0" for cell in from_directory(RUNS).cells if cell.row in ROWS}
runs = {row: run for row, run in runs.items() if (run / "result.json").is_file()}


def evaluation(run):
    """What `evaluate` found, and its predictions."""
    where = run / "evaluation" / "word_problems_test"
    if not where.is_dir():
        evaluate.main([str(run)])
    lines = (where / "predictions.jsonl").read_text().splitlines()
    return json.loads((where / "evaluation.json").read_text()), pd.DataFrame(map(json.loads, lines))


evaluations = {row: evaluation(run) for row, run in runs.items()}
KINDS = {"sequence": "confidence", "per_token": "confidence_per_token"}

# %% [markdown]
# ## Errors before and after temperature scaling
#
# ECE is the expected calibration error (10 bins of equal width), MCE the largest error of a bin, both better
# when small, as is the Brier score. The temperature is fitted on validation; above 1 it makes a student less
# sure. Compare the two kinds of confidence before scaling, then what scaling leaves.

# %%
FIGURES = {
    "mean confidence": "mean_confidence",
    "ECE": "expected_calibration_error",
    "MCE": "maximum_calibration_error",
    "Brier": "brier_score",
}
table = {}
for row, (found, _) in evaluations.items():
    for kind, values in found["calibration"].items():
        table[row, kind] = {
            ("", "accuracy"): values["accuracy"],
            ("", "temperature"): values["temperature"],
        } | {
            (when, name): values[key][figure]
            for when, key in (("as trained", "as_trained"), ("scaled", "scaled"))
            for name, figure in FIGURES.items()
        }
pd.DataFrame(table).T.round(3)

# %% [markdown]
# ## Reliability diagrams
#
# Accuracy of the answers in each bin of confidence; the area of a point is the number of answers. Below the
# diagonal a student is too sure, above it not sure enough. The whole label's probability lies near the
# diagonal. The mean per token crowds at the right, where nearly all answers look sure, and
# one temperature can move the crowd but hardly spread it.

# %%
figure, axes = plt.subplots(
    len(KINDS),
    len(runs),
    figsize=(3.4 * len(runs), 3.5 * len(KINDS)),
    layout="constrained",
    sharex=True,
    sharey=True,
    squeeze=False,
)
for panels, (kind, column) in zip(axes, KINDS.items(), strict=True):
    for panel, (row, (found, answers)) in zip(panels, evaluations.items(), strict=True):
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle="--")
        scaled = scale_confidence(answers[column], found["calibration"][kind]["temperature"])
        for name, confidence in (("as trained", answers[column]), ("temperature scaled", scaled)):
            bins = equal_width_bins(confidence, answers["correct"])
            x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
            (line,) = panel.plot(x, y, linewidth=1, label=name, clip_on=False)
            areas = [400 * b.count / len(answers) for b in bins]
            panel.scatter(x, y, areas, color=line.get_color(), alpha=0.7, clip_on=False)
        panel.set_title(f"{row}, {kind.replace('_', ' ')}")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.spines[["top", "right"]].set_visible(False)
figure.supxlabel("confidence")
figure.supylabel("accuracy")
legend = figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)

# %% [markdown]
# ## Which confidence tells right from wrong?
#
# Calibration is about the level, this is about the order, which no temperature changes: of the answers that a
# student is surest of, how many are right? The curves begin with the surest twentieth and end, at all
# answers, at the accuracy. The higher one is the better ground for leaving questions to somebody else.

# %%
figure, axes = plt.subplots(
    1, len(runs), figsize=(3.6 * len(runs) + 1.4, 3.2), layout="constrained", sharey=True, squeeze=False
)
for panel, (row, (_, answers)) in zip(axes[0], evaluations.items(), strict=True):
    counts = np.arange(1, len(answers) + 1)
    for kind, column in KINDS.items():
        surest = answers.sort_values(column, ascending=False, kind="stable")["correct"]
        first = len(answers) // 20
        panel.plot(
            100 * counts[first:] / len(answers),
            100 * (surest.cumsum() / counts)[first:],
            label=kind.replace("_", " "),
        )
    panel.set_title(row)
    panel.set_xlabel("answers kept, surest first, %")
    panel.spines[["top", "right"]].set_visible(False)
axes[0, 0].set_ylabel("of these right, %")
legend = figure.legend(
    *panel.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="confidence"
)

# %% [markdown]
# The same in one figure: the probability that of a right and a wrong answer, drawn at random, the right one
# is the surer (area under the ROC curve; a half is chance).


# %%
def area_under_roc(confidence, correct):
    if correct.nunique() < 2:
        return None
    right, wrong = confidence[correct], confidence[~correct]
    return stats.mannwhitneyu(right, wrong).statistic / (len(right) * len(wrong))


pd.DataFrame(
    {
        row: {kind: area_under_roc(answers[column], answers["correct"]) for kind, column in KINDS.items()}
        for row, (_, answers) in evaluations.items()
    }
).T.round(3)
