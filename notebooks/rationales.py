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
# # The students' own rationales
#
# How much they are like the teacher's, whether they arrive at the answer that the student gives, whether good
# rationales and right answers go together, and what they look like side by side.
#
# This notebook reads finished runs from the directory that the environment variable `COT_JAX_RUNS` names, or
# else from `../runs/demo`. They are made by, in the root of the repository and in some minutes each,
#
# ```bash
# python -m cot_jax.sweep --config=configs/demo_mi.py --seeds=0 --output=runs/demo \
#     --methods=standard,dss,mi,mi:masked,mi:normalized,mi:kl --config.train.steps=3500
# ```
#
# Rows that are not finished yet are left out. It is **one seed** a method. Where a run has not been evaluated
# yet, `python -m cot_jax.evaluate` is called for it, which takes some minutes, and then
# `python -m cot_jax.judge`, which takes seconds.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

from cot_jax import evaluate, judge
from cot_jax.experiments import from_directory

RUNS = Path(os.environ.get("COT_JAX_RUNS", "../runs/demo"))
ROWS = ("dss", "mi", "mi:masked", "mi:normalized", "mi:kl")  # `mi` is the published form of the term
runs = {cell.row: RUNS / cell.path / "seed0" for cell in from_directory(RUNS).cells if cell.row in ROWS}
evaluations = {
    row: run / "evaluation" / "word_problems_test"
    for row, run in runs.items()
    if (run / "result.json").is_file()
}
for row, where in evaluations.items():
    if not where.is_dir():
        evaluate.main([str(runs[row])])
    if not (where / "rationales.json").is_file():
        judge.main([str(runs[row])])
measures = {row: json.loads((where / "rationales.json").read_text()) for row, where in evaluations.items()}

# %% [markdown]
# ## Quality
#
# BLEU and chrF are in percent, ROUGE-L is from 0 to 1, all against the teacher's rationale of the same
# question. The last three columns are shares of the rationales: those that arrive at the predicted label, at
# the gold one, and at nothing that can be read. A rationale that is nothing but an equation can agree
# with the label without explaining anything: read the columns together. `mi:kl` equals `mi:normalized`: their
# losses differ by what carries no gradient.

# %%
pd.DataFrame(
    {
        row: {
            "BLEU": found["against_teacher"]["bleu"],
            "chrF": found["against_teacher"]["chrf"],
            "ROUGE-L": found["against_teacher"]["rouge_l"],
        }
        | {name.replace("_", " "): values["share"] for name, values in found["consistency"].items()}
        for row, found in measures.items()
    }
).T.round(3)

# %% [markdown]
# ## Do good rationales go with right answers?
#
# Correlation of each measure with the correctness of the label over the test set. r is that of Pearson,
# p its two-sided p-value; the one of Spearman is beside it. A dash is where none is defined because
# one side is constant.


# %%
def coefficients(found):
    return {
        (name.replace("_", " "), sign): values[kind][of] if values[kind] else None
        for name, values in found["correlation_with_correctness"].items()
        for sign, kind, of in (("r", "pearson", "r"), ("p", "pearson", "p"), ("Spearman", "spearman", "r"))
    }


table = pd.DataFrame({row: coefficients(found) for row, found in measures.items()}).T
table.map(lambda value: "-" if pd.isna(value) else f"{value:.2g}" if abs(value) < 0.01 else f"{value:.2f}")

# %% [markdown]
# The distribution behind it: ROUGE-L of the rationales beside right and beside wrong answers. The further the
# two lie apart, the more a rationale says about its answer.

# %%
figure, axes = plt.subplots(
    1,
    len(measures),
    figsize=(2.7 * len(measures) + 1.2, 2.8),
    layout="constrained",
    sharex=True,
    sharey=True,
    squeeze=False,
)
for panel, (row, where) in zip(axes[0], evaluations.items(), strict=True):
    rows = pd.DataFrame(map(json.loads, (where / "rationales.jsonl").read_text().splitlines()))
    for correct, name in ((True, "right"), (False, "wrong")):
        values = rows.loc[rows["correct"] == correct, "rouge_l"]
        share = [100 / max(len(values), 1)] * len(values)
        panel.hist(values, bins=20, range=(0, 1), weights=share, alpha=0.6, label=name)
    panel.set_title(row)
    panel.set_xlabel("ROUGE-L")
    panel.spines[["top", "right"]].set_visible(False)
axes[0, 0].set_ylabel("share of rationales, %")
legend = figure.legend(
    *panel.get_legend_handles_labels(), loc="outside right upper", frameon=False, title="answer"
)

# %% [markdown]
# ## Side by side
#
# The first examples of `python -m cot_jax.judge --against`, which puts those first of which one student
# is right and the other wrong. A is the variant, B is `dss`. Read whether a wrong label follows from a wrong
# rationale or in spite of a right one.


# %%
def case_studies(row, most=2):
    where = evaluations[row]
    if not (where / "case_studies.md").is_file():
        judge.main([str(runs[row]), f"--against={runs['dss']}"])
    head, *cases = (where / "case_studies.md").read_text().split("\n## ")
    counts = head.strip().splitlines()[-1]
    return "\n\n".join([f"### A: {row}, B: dss", counts, *(f"#### {case}" for case in cases[:most])])


Markdown("\n\n".join(case_studies(row) for row in evaluations if row != "dss"))
