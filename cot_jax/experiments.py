"""A table of experiments: rows are methods, columns data sets or shares of one, cells runs over seeds."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_jax.config import TABLES, find_config, load_config_module, name_of
from cot_jax.data.views import METHODS, WITH_MUTUAL_INFORMATION
from cot_jax.errors import UserError
from cot_jax.files import Shape, misfit, read_json, write_json
from cot_jax.losses.choices import SELF_DISTILLATION, VARIANTS

_FILE = "table.json"
_VALUES = {str: (str, float, bool, None)}
_CELL: Shape = {
    "row": str,
    "column": str,
    "config": str,
    "overrides": _VALUES,
    "published?": float,
    "chosen?": _VALUES,
}
_TABLE: Shape = {"title": str, "cells": [_CELL], "source": str}

# In an override, stands for the directory of the table's runs, e.g. to name a teacher.
RUNS = "{runs}"


def file_name(text: str) -> str:
    """Returns `text` with what may not be in a file's name replaced."""
    return re.sub(r"[^\w.+=-]+", "_", text)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment, run with several seeds.

    Attributes:
      config: a config file, or the name of a shipped one. The path of a shipped config becomes its name, so
        that the sweep resumes from another installation.
      overrides: config keys that differ from the file, without `config.`, e.g. {"objective.method": "mi"}.
      published: the authors' accuracy in %; None: not published.
      chosen: further keys, whose values a grid search chose on validation.
    """

    row: str
    column: str
    config: str
    overrides: Mapping[str, Any]
    published: float | None = None
    chosen: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "config", name_of(self.config))

    @property
    def choice(self) -> str:
        """The chosen values as text."""
        return ", ".join(f"{key}={value}" for key, value in self.chosen.items())

    @property
    def path(self) -> Path:
        """The directory of its runs, relative to the table's; each seed has one below it."""
        names = (self.row, self.column, *([self.choice] if self.chosen else []))
        return Path(*map(file_name, names))

    def flags(self, seed: int, runs: Path) -> list[str]:
        """Returns the arguments of `cot_jax.train` for one seed; `runs` is the table's directory."""
        values = {**self.overrides, **self.chosen}
        overrides = [f"--config.{key}={str(value).replace(RUNS, str(runs))}" for key, value in values.items()]
        return [f"--config={self.config}", *overrides, f"--config.seed={seed}"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells, row by row; `source` is the publication of the published figures."""

    title: str
    cells: tuple[Cell, ...]
    source: str = ""

    def __post_init__(self):
        for path, count in collections.Counter(cell.path for cell in self.cells).items():
            if count > 1:
                raise UserError(
                    f"{self.title}: {count} experiments would write to {path}: give each its own row"
                )

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(cell.row for cell in self.cells))

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(cell.column for cell in self.cells))

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / _FILE, dataclasses.asdict(self))


def grid(config: str, methods: Sequence[str], fractions: Sequence[float]) -> Table:
    """Returns the table of methods x shares of the training data, from one config.

    Raises:
      UserError: `overrides_of` does not know a method.
    """
    cells = [
        Cell(
            method,
            f"{100 * fraction:g} % of train",
            config,
            {**overrides_of(method), "data.train_fraction": fraction},
        )
        for method in methods
        for fraction in fractions
    ]
    return Table(Path(config).stem, tuple(cells))


def overrides_of(method: str) -> dict[str, str]:
    """Returns the config overrides of METHOD[:MI_VARIANT][+SELF_DISTILLATION], e.g. `mi:masked+dynsdpb`.

    Raises:
      UserError: unknown method.
    """
    match = re.fullmatch(r"(\w+)(?::(\w+))?(?:\+(\w+))?", method)
    name, variant, distillation = match.groups() if match else (None, None, None)
    if (
        name not in METHODS
        or variant not in (None, *VARIANTS)
        or (variant and name not in WITH_MUTUAL_INFORMATION)
        or distillation not in (None, *SELF_DISTILLATION)
    ):
        raise UserError(
            f"--methods: no {method!r}; write METHOD[:MI_VARIANT][+SELF_DISTILLATION], METHOD one of "
            f"{', '.join(METHODS)}; MI_VARIANT, for {' and '.join(WITH_MUTUAL_INFORMATION)} only, one of "
            f"{', '.join(VARIANTS)}; SELF_DISTILLATION one of {', '.join(SELF_DISTILLATION)}"
        )
    overrides = {"objective.method": name, "self_distillation.method": distillation or "none"}
    return overrides | ({"objective.mi_variant": variant} if variant else {})


def from_file(given: str) -> Table:
    """Returns the result of a file's `get_table()`; `given` is a path or the name of a shipped table."""
    return load_config_module(find_config(given, TABLES), "get_table", Table)


def from_directory(directory: Path) -> Table:
    """Reads the table that a sweep wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    file = directory / _FILE
    if not file.is_file():
        raise UserError(f"{file}: no such file; python -m cot_jax.sweep writes it")
    values = read_json(file)
    if wrong := misfit(values, _TABLE):
        raise UserError(f"{file}: {wrong}: not a sweep's table; delete it and start the sweep again")
    names = {field.name for field in dataclasses.fields(Cell)}
    cells = ({name: cell[name] for name in names & cell.keys()} for cell in values["cells"])
    return Table(values["title"], tuple(Cell(**cell) for cell in cells), values["source"])


def merged(table: Table, directory: Path) -> Table:
    """Returns the cells that `directory` already holds, followed by those of `table`.

    The chosen values of a cell may differ: its grid may have grown.

    Raises:
      UserError: the directory has a different experiment in the same row and column.
    """
    if not (directory / _FILE).is_file():
        return table
    cells = {(cell.row, cell.column): cell for cell in from_directory(directory).cells}
    for cell in table.cells:
        known = cells.get((cell.row, cell.column), cell)
        cells[cell.row, cell.column] = cell
        same_keys = known.chosen.keys() == cell.chosen.keys()
        if not same_keys or dataclasses.replace(known, chosen=cell.chosen) != cell:
            raise UserError(
                f"{directory} holds another experiment as {cell.row}, {cell.column}: "
                "choose another --output, or the flags of that sweep"
            )
    return dataclasses.replace(table, cells=tuple(cells.values()))
