"""A table of experiments: rows are methods, columns data sets or shares of one, cells are runs over seeds."""

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

# In an override: the directory of the table's runs, e.g. for the teacher of a student.
RUNS = "{runs}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One experiment, run with several seeds.

    Attributes:
      config: config file, or name of one that is shipped; a shipped one is known by its name whichever was
        given, so that the same sweep resumes from another installation.
      overrides: config keys that differ from the file, without `config.`, e.g. {"objective.method": "mi"}.
      published: accuracy in %, the authors' and not ours; None where there is none.
      chosen: further keys, whose values a sweep chose on validation.
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
        """What was chosen, in words."""
        return ", ".join(f"{key}={value}" for key, value in self.chosen.items())

    @property
    def path(self) -> Path:
        """The directory of its runs, one directory a seed."""
        names = (self.row, self.column, *([self.choice] if self.chosen else []))
        return Path(*(re.sub(r"[^\w.+=-]+", "_", name) for name in names))

    def flags(self, seed: int, runs: Path) -> list[str]:
        """Returns the arguments of `cot_jax.train` for one seed, of a table whose runs are in `runs`."""
        values = {**self.overrides, **self.chosen}
        overrides = [f"--config.{key}={str(value).replace(RUNS, str(runs))}" for key, value in values.items()]
        return [f"--config={self.config}", *overrides, f"--config.seed={seed}"]


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells, row by row; `source` says where the published figures stand."""

    title: str
    cells: tuple[Cell, ...]
    source: str = ""

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
    """Returns methods x shares of the training data, all from one config file.

    Raises:
      UserError: a method that `overrides_of` does not know.
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
    """Returns the config keys of METHOD[:MI_VARIANT][+SELF_DISTILLATION], e.g. `mi:masked+dynsdpb`.

    Raises:
      UserError: no such method.
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
            f"--methods: no {method!r}; METHOD[:MI_VARIANT][+SELF_DISTILLATION] with METHOD one of "
            f"{', '.join(METHODS)}; of {' and '.join(WITH_MUTUAL_INFORMATION)} a variant "
            f"{', '.join(VARIANTS)}; "
            f"SELF_DISTILLATION {', '.join(SELF_DISTILLATION)}"
        )
    overrides = {"objective.method": name, "self_distillation.method": distillation or "none"}
    return overrides | ({"objective.mi_variant": variant} if variant else {})


def from_file(given: str) -> Table:
    """Returns what `get_table()` of a file returns; `given` is its path, or the name of a shipped table."""
    return load_config_module(find_config(given, TABLES), "get_table", Table)


def from_directory(directory: Path) -> Table:
    """Reads the table that a sweep wrote.

    Raises:
      UserError: there is none, or it is torn.
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
    """Returns `table` with the cells that `directory` already has before its own.

    The values that were chosen for a cell may be others now: what is chosen from has grown.

    Raises:
      UserError: a cell of the same row and column is another experiment there.
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
