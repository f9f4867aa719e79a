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
# # What the mutual-information term does
#
# Chen et al. 2024 add to Distilling Step-by-Step (`dss`) a term between two *vocabulary maps*: p, the label
# view's softmax reduced over the target's positions by its maximum, and q, the same of the rationale view. p
# carries no gradient. `reference` is the published form, `masked`, `normalized` and `kl` are ours (README,
# "Methods").
#
# This notebook reads finished runs from the directory that the environment variable `COT_JAX_RUNS` names, or
# else from `../runs/demo`. They are made by, in the root of the repository and in some minutes each,
#
# ```bash
# python -m cot_jax.sweep --config=configs/demo_mi.py --seeds=0 --output=runs/demo \
#     --methods=standard,dss,mi,mi:masked,mi:normalized,mi:kl --config.train.steps=3500
# ```
#
# Rows that are not finished yet are left out. It is **one seed**: what holds for a student here is what
# that student does, not what the method does on average; `python -m cot_jax.compare` compares seeds. The text
# speaks of the runs whose outputs are committed.

# %%
import json
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Image

from cot_jax import evaluate
from cot_jax.data.batches import make_batch, view_lengths
from cot_jax.data.lengths import as_shape, needed
from cot_jax.experiments import from_directory
from cot_jax.losses.mutual_information import mutual_information_loss
from cot_jax.losses.vocabulary import logits
from cot_jax.metrics.plots import Curve, draw_curves
from cot_jax.training.data import load_splits
from cot_jax.training.encoding import tokenize
from cot_jax.training.saved import load

RUNS = Path(os.environ.get("COT_JAX_RUNS", "../runs/demo"))
ROWS = ("dss", "mi", "mi:masked", "mi:normalized", "mi:kl")  # `mi` is the published form
runs = {cell.row: RUNS / cell.path / "seed0" for cell in from_directory(RUNS).cells if cell.row in ROWS}
runs = {row: run for row, run in runs.items() if (run / "result.json").is_file()}
print("finished:", ", ".join(runs))


# %% [markdown]
# ## The terms of the loss
#
# Each point is the mean over a window of training steps, warm-up left out. The cross-entropies of the label
# and of the rationale can be compared between methods; the values of the MI forms cannot, so each has its own
# panel. Look at which way each MI term goes, and at what `loss/rationale` pays for it against `dss`.
# `normalized` falls by 0.35, `kl`, which is the same less the entropy of p, by 0.1: that entropy falls most.

# %%
WINDOW, WARM_UP = 25, 100


def curve(run, name):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    points = np.array([(row["step"], row[name]) for row in rows if name in row and row["step"] > WARM_UP])
    points = points[: len(points) // WINDOW * WINDOW].reshape(-1, WINDOW, 2).mean(axis=1)
    steps, values = points.T
    return Curve(steps, values, values, values)


panels = {name: {row: curve(runs[row], name) for row in runs} for name in ("loss/label", "loss/rationale")}
panels |= {f"loss/mi of {row}": {row: curve(run, "loss/mi")} for row, run in runs.items() if row != "dss"}
draw_curves(panels, RUNS / "mi_curves.png")
Image(RUNS / "mi_curves.png")

# %% [markdown]
# ## Do the two sides know more of each other?
#
# `evaluate --mutual_information` estimates a lower bound of the mutual information between the pooled decoder
# states of the two views on the test set (InfoNCE), which can show no more than the logarithm of the number
# of pairs. Compare the bound of each variant with that of `dss`, and both with the accuracy and its bootstrap
# interval. Where a run has no such evaluation yet, the cell makes it, in some minutes.


# %%
def evaluation(run):
    file = run / "evaluation" / "word_problems_test" / "evaluation.json"
    if not file.is_file() or "mutual_information" not in json.loads(file.read_text()):
        evaluate.main([str(run), "--mutual_information"])
    return json.loads(file.read_text())


evaluations = {row: evaluation(run) for row, run in runs.items()}
pd.DataFrame(
    {
        row: {
            "test accuracy, %": 100 * found["accuracy"],
            "from": 100 * found["accuracy_interval_95"][0],
            "to": 100 * found["accuracy_interval_95"][1],
            "InfoNCE bound, nats": found["mutual_information"]["nats"],
            "most it can show": found["mutual_information"]["most_nats"],
        }
        for row, found in evaluations.items()
    }
).T.round(2)

# %% [markdown]
# ## What the maximum keeps
#
# The maps of validation examples, teacher forced as in training and over the targets alone, whatever the
# variant. An entry is the largest probability that a token has at any position, so a map does not sum to 1;
# its *mass* is its sum.


# %%
class Targets:
    """The targets of N examples, padded to the longest: `ids_NT`, `length_N` and where they are `real_NT`."""

    def __init__(self, view):
        self.length_N = view.learned[0]
        self.ids_NT = view.targets.ids.reshape(len(self.length_N), -1)
        self.real_NT = np.arange(self.ids_NT.shape[1]) < self.length_N[:, None]


class Maps:
    """A student's probabilities at each position of both targets of N examples, and their maps p and q."""

    def __init__(self, run, count=200):
        saved = load(run)
        self.objective, pieces = saved.config.objective, saved.format.tokenizer.hf
        self.examples = load_splits(saved.config.data, saved.config.seed).valid[:count]
        views = tokenize(saved.views, self.examples, saved.format, saved.config.data).views
        # Decoded up to the longest, as `reference` does, all targets have one length: flat tokens are rows.
        rows, padded = np.arange(len(self.examples)), ("predict", "explain")
        shape = as_shape(needed(view_lengths(views, rows, padded=padded), groups=1))
        self.batch = make_batch(views, rows, shape, saved.student.pad_id, padded=padded)
        self.label, self.rationale = (Targets(self.batch.views[name]) for name in padded)

        @jax.jit
        def probabilities(params, batch):
            hidden, head_DV = saved.student.hidden(params, batch, None), saved.student.head(params)
            return {name: jax.nn.softmax(logits(hidden[name][0], head_DV)) for name in hidden}

        found = jax.device_get(probabilities(saved.params, self.batch))
        said = {name: found[name].reshape(len(rows), -1, found[name].shape[-1]) for name in padded}
        self.said_NTV = said["explain"]  # at the positions of the rationale and of its padding
        self.p_NV = np.where(self.label.real_NT[..., None], said["predict"], 0).max(axis=1)
        self.q_NV = np.where(self.rationale.real_NT[..., None], self.said_NTV, 0).max(axis=1)
        # The embedding has more rows than the tokenizer has pieces.
        known = pieces.convert_ids_to_tokens(list(range(len(pieces))))
        self.pieces = known + [f"#{v}" for v in range(len(known), self.p_NV.shape[1])]

    def shown(self, ids):
        """The pieces without SentencePiece's sign for a space."""
        return [self.pieces[v].removeprefix("▁") or "▁" for v in ids]

    def of_label(self, n):
        """The ids that the label of example n contains, its end included."""
        return np.unique(self.label.ids_NT[n, : self.label.length_N[n]])


maps = {row: Maps(run) for row, run in runs.items()}

# %% [markdown]
# One example, the largest entries of both maps, orange where the label contains the token. p is nearly one
# probability 1 for each token of the label: the maximum forgets order and number. In q look for the label's
# tokens that no rationale of this task contains, the brackets.

# %%
EXAMPLE, TOP = 1, (12, 26)
drawn = [row for row in ("dss", "mi", "mi:normalized") if row in maps]
figure, axes = plt.subplots(
    len(drawn), 2, figsize=(11, 2 * len(drawn)), width_ratios=TOP, layout="constrained", squeeze=False
)
for row, panels in zip(drawn, axes, strict=True):
    found = maps[row]
    for name, panel, top in zip(("p", "q"), panels, TOP, strict=True):
        values = getattr(found, f"{name}_NV")[EXAMPLE]
        largest = np.argsort(-values)[:top]
        colors = np.where(np.isin(largest, found.of_label(EXAMPLE)), "C1", "0.75")
        panel.bar(range(len(largest)), values[largest], color=colors)
        panel.set_xticks(range(len(largest)), found.shown(largest), rotation=90)
        panel.set_ylim(0, 1)
        panel.set_title(f"{row}: {name}", loc="left")
        panel.spines[["top", "right"]].set_visible(False)
example = maps["dss"].examples[EXAMPLE]
print(f"{example.label}  |  {example.rationale}")

# %% [markdown]
# A handful of examples: how much of each map's mass lies on tokens that the label contains, and the inner
# product of the maps, which is what `reference` and `masked` raise.


# %%
def of_maps(found, n):
    p, q, label = found.p_NV[n].astype(float), found.q_NV[n].astype(float), found.of_label(n)
    return {
        "mass of p": p.sum(),
        "mass of q": q.sum(),
        "share of p on the label": p[label].sum() / p.sum(),
        "share of q on the label": q[label].sum() / q.sum(),
        "<p, q>": p @ q,
        "mass of p * logsumexp q": p.sum() * np.log(np.exp(q).sum()),
    }


pd.DataFrame(
    {(maps[row].examples[n].label, row): of_maps(maps[row], n) for n in range(5) for row in drawn}
).T.round(2)

# %% [markdown]
# The mean over the validation examples, every run. The last two columns are the two parts of the published
# loss, mass of p * logsumexp q - <p, q>. The first part is most of the value and is about the same whatever
# the student does: that is why the curve of `reference` says nothing, and even rises as p grows sure.

# %%
pd.DataFrame(
    {
        row: pd.DataFrame([of_maps(found, n) for n in range(len(found.examples))]).mean()
        for row, found in maps.items()
    }
).T.round(2)

# %% [markdown]
# ## What it costs: the student's own rationales
#
# What the students write for the test set, greedily. Look at how many contain a bracket, which no teacher's
# rationale of this task does, at how many end as a sentence does, and at how many are an equation and nothing
# else.


# %%
def predictions(run):
    lines = (run / "evaluation" / "word_problems_test" / "predictions.jsonl").read_text().splitlines()
    return pd.DataFrame(map(json.loads, lines))


predicted = {row: predictions(run) for row, run in runs.items()}
texts = {row: found["rationale"] for row, found in predicted.items()}
texts["teacher"] = predicted["dss"]["teacher_rationale"]
pd.DataFrame(
    {
        row: {
            "rationales": len(found),
            "with a bracket": found.str.contains(r"[()]").sum(),
            "ending in a bracket": found.str.endswith(")").sum(),
            "ending in a full stop": found.str.endswith(".").sum(),
            "equation only": found.str.fullmatch(r"[-+*/() 0-9]+").sum(),
        }
        for row, found in texts.items()
    }
).T

# %%
pd.set_option("display.max_colwidth", None)
pd.DataFrame({row: found[:3] for row, found in texts.items()}).T

# %% [markdown]
# ### Where the brackets come from
#
# The maximum rewards a token that is said with certainty *once*, anywhere. Below are the positions of one
# rationale, teacher forced: grey is the probability of the teacher's token, blue that of `(`, orange that of
# `)`; what is right of the line is padding. In `reference`, padding is part of the map and of no
# cross-entropy: what is said there costs nothing. At a position of the rationale it is taken from the
# teacher's token.

# %%
BRACKETS, PADDING = {"▁(": "C0", "▁)": "C1"}, 4
figure, axes = plt.subplots(
    len(maps), 1, figsize=(11, 1.5 * len(maps) + 0.8), layout="constrained", sharex=True, squeeze=False
)
for panel, (row, found) in zip(axes[:, 0], maps.items(), strict=True):
    length, ids = found.rationale.length_N[EXAMPLE], found.rationale.ids_NT[EXAMPLE]
    said = found.said_NTV[EXAMPLE, : length + PADDING]
    panel.bar(range(length), said[np.arange(length), ids[:length]], color="0.8")
    for piece, color in BRACKETS.items():
        panel.bar(range(len(said)), said[:, found.pieces.index(piece)], 0.5, color=color, label=piece[1:])
    panel.axvline(length - 0.5, color="black", linewidth=1)
    panel.set_ylim(0, 1)
    panel.margins(x=0.01)
    panel.set_title(row, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
ticks = [*found.shown(ids[:length]), *["pad"] * (len(said) - length)]
panel.set_xticks(range(len(said)), ticks, rotation=90)
axes[0, 0].legend(ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
_ = figure.supylabel("probability")

# %% [markdown]
# The same over all validation examples: the largest probability that each bracket has at a position of the
# rationale, and at one of its padding, on average.


# %%
def largest_of(found, piece, where_NT):
    return np.where(where_NT, found.said_NTV[..., found.pieces.index(piece)], 0).max(axis=1).mean()


pd.DataFrame(
    {
        row: {
            f"{piece[1:]} in the {name}": largest_of(found, piece, where_NT)
            for piece in BRACKETS
            for real_NT in [found.rationale.real_NT]
            for name, where_NT in (("rationale", real_NT), ("padding", ~real_NT))
        }
        for row, found in maps.items()
    }
).T.round(3)

# %% [markdown]
# ### Gain and price of one bracket
#
# Take the maps of the `dss` student and let it say `)` with probability π at one position of each rationale.
# The other tokens there keep a share of 1 - π, so the cross-entropy of that one token rises by -log(1 - π);
# in the mean over all tokens it counts (1 - alpha) over the tokens of a rationale. The MI term changes by
# what the loss itself says, times beta. The lines are the sum: where it is negative, the objective prefers
# the bracket to the teacher's token, and a student that minimises it says `)` with the probability of the
# dot: compare with the table above. Above one half, greedy decoding writes the bracket; below, it does where
# the student is unsure of the teacher's token, as of the name that a rationale begins with.
#
# Without padding, `reference` is `masked`. `kl` differs from `normalized` by the entropy of p, which carries
# no gradient: it has the same minimum and, above, trains the very same student.

# %%
found = maps["dss"]
objective = next((maps[row].objective for row in maps if row != "dss"), found.objective)
tokens, bracket = found.rationale.length_N.mean(), found.pieces.index("▁)")
pi = np.linspace(0.005, 0.995, 100)
price = (1 - objective.alpha) / tokens * -np.log1p(-pi)


def mi_loss(variant, probability):
    q_NV = found.q_NV.copy()
    q_NV[:, bracket] = np.maximum(q_NV[:, bracket], probability)
    one_group = found.p_NV[None], q_NV[None], np.ones((1, len(q_NV)), bool)
    return float(mutual_information_loss(*one_group, variant=variant, detach="label"))


figure, panel = plt.subplots(figsize=(7, 3.8), layout="constrained")
panel.plot(pi, price, color="0.6", linestyle="--", label="price alone")
for variant in ("masked", "normalized"):
    change = np.array([mi_loss(variant, probability) - mi_loss(variant, 0) for probability in pi])
    total = objective.beta * change + price
    (line,) = panel.plot(pi, total, label=variant)
    panel.plot(pi[total.argmin()], total.min(), "o", color=line.get_color())
    print(f"{variant}: least at a probability of {pi[total.argmin()]:.2f}")
print(f"{tokens:.1f} tokens a rationale, alpha {objective.alpha}, beta {objective.beta}")
panel.axhline(0, color="black", linewidth=0.8)
panel.set_ylim(top=0.1)
panel.set_xlabel("π, probability of ) at one position")
panel.set_ylabel("change of the loss")
panel.legend(frameon=False)
panel.spines[["top", "right"]].set_visible(False)
