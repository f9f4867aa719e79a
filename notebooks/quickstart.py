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
# # A student in ten lines
#
# What the commands do, from Python. The data are generated word problems, so nothing is fetched; 600 steps of
# a tiny T5 from scratch take a minute on two cores. Runs are written to the
# directory that the environment variable `COT_JAX_RUNS` names, or else to `../runs`. A run that was stopped
# resumes; one that is finished is read.

# %%
import os
from pathlib import Path

from IPython.display import Image

import cot_jax as cj

RUNS = Path(os.environ.get("COT_JAX_RUNS", "../runs"))
config = cj.config("demo_dss", **{"train.steps": 600, "train.eval_every": 200, "train.log_every": 100})
run = cj.train(config, RUNS / "quickstart")

# %% [markdown]
# A question is a text. `explain=True` asks for the rationale too, which the student learned as a second view;
# options are the flags of `python -m cot_jax.predict`.

# %%
questions = [
    "Tom has 3 pens. Ann has 4 more pens than Tom. How many pens does Ann have?",
    "Ann has 12 apples. Ann gives 5 apples to Tom. How many apples does Ann have now?",
]
answers = run.predict(questions, explain=True)
answers

# %% [markdown]
# Accuracy on the test set with its interval, calibration, and files in the run's directory.

# %%
evaluation = run.evaluate(rationales=False)
Image(filename=RUNS / "quickstart" / "evaluation" / "word_problems_test" / "reliability_sequence.png")

# %% [markdown]
# A directory for Transformers, with a model card; `push_to_hub="OWNER/NAME"` uploads it as well.
# `cj.load` reads it back, as it reads the run.

# %%
if not (RUNS / "student").exists():
    run.export(RUNS / "student", license="apache-2.0")
same = cj.load(RUNS / "student").predict(questions, explain=True)
print("the same answers" if same == answers else "other answers")
