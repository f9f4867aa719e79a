"""Rows and columns that the published tables share."""

from pathlib import Path

from cot_jax.experiments import Cell, Table, overrides_of

CHEN = "Chen et al., Findings of ACL 2024"
HSIEH = "Hsieh et al., Findings of ACL 2023"
FU = "Fu et al. 2024"

TASKS = {"esnli": "e-SNLI", "anli1": "ANLI-R1", "cqa": "CQA", "svamp": "SVAMP"}
SMALL = {"model.pretrained": "google/t5-v1_1-small"}

_CONFIGS = Path(__file__).resolve().parent.parent


def cell(row, task, method, published=None, column=None, **overrides):
    """A cell of the published recipe on `task`; `method` as in `cot_jax.experiments.overrides_of`.

    Keys of `overrides` have `__` for the dot: `data__train_fraction=0.5`.
    """
    overrides = {key.replace("__", "."): value for key, value in overrides.items()}
    config = str(_CONFIGS / f"{task}_standard.py")
    return Cell(row, column or TASKS[task], config, {**overrides_of(method), **overrides}, published)


def table(title, source, cells):
    return Table(title, tuple(cells), source)
