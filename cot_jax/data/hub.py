"""Rows of data sets on the Hugging Face Hub."""

import re
from collections.abc import Iterator
from typing import Any

from cot_jax.errors import UserError, first_line
from cot_jax.files import Row

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def library(where: str) -> Any:
    """Returns the package `datasets`.

    Raises:
      UserError: it is not installed.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(f"{where}: the Hub's files need `datasets`: pip install 'cot-jax[hub]'") from None
    return datasets


def reason(error: Exception) -> str:
    return first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)


def rows(data: Any, where: str) -> Iterator[Row]:
    """Yields the rows of a `datasets.Dataset`, with named labels by name."""
    names = getattr(data.features.get("label"), "names", None)
    for number, values in enumerate(data, start=1):
        label = values.get("label")
        if names and type(label) is int and 0 <= label < len(names):
            values["label"] = names[label]
        yield Row(f"{where}: row {number}", values)


def splits(given: str) -> dict[str, Iterator[Row]]:
    """Returns the rows of OWNER/NAME, or of its subset OWNER/NAME:SUBSET, by the Hub's name of the split.

    Raises:
      UserError: the data set cannot be loaded.
    """
    repository, _, subset = given.partition(":")
    datasets = library(given)
    try:
        found = datasets.load_dataset(repository, subset or None)
    except Exception as error:  # from the network, the Hub or the library
        raise UserError(f"{given}: no such folder, and not a data set on the Hub ({reason(error)})") from None
    return {split: rows(data, f"{given} {split}") for split, data in found.items()}
