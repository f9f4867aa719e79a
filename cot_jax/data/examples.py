"""Examples, and the JSON-lines files they are read from."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cot_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    """One problem, its gold answer and what a teacher said about it.

    `None` means "there is none", so that a method that needs the field leaves the example out of
    that loss and counts it. The empty string is text like any other and is trained on.
    """

    id: str
    input: str
    label: str  # gold
    teacher_label: str | None = None
    rationale: str | None = None
    program: str | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a JSON-lines file, which can say where it stands."""

    where: str  # file:line
    values: dict[str, Any]

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def id(self) -> str:
        """Returns the row's id, a text or an integer, as text."""
        value = self.values.get("id")
        if type(value) not in (str, int):
            raise self.error(f"every row needs an 'id', a text or an integer; found {value!r}")
        return str(value)

    def text(self, key: str) -> str:
        if not isinstance(value := self.values.get(key), str):
            raise self.error(f"{key!r} must be a text in quotes; found {value!r}")
        return value

    def optional_text(self, key: str) -> str | None:
        """Returns the text, or None where it is absent, null or blank."""
        if self.values.get(key) is None:
            return None
        return value if (value := self.text(key)).strip() else None


def read_json_lines(path: Path) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file; blank lines are skipped.

    Raises:
      UserError: the file is missing, or a line is not a JSON object (file and line are named).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                values = json.loads(line.decode("utf-8-sig"))
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not valid JSON ({error.msg} at column {error.colno})") from None
            except UnicodeDecodeError as error:
                raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from None
            if not isinstance(values, dict):
                raise UserError(f"{where}: expected a JSON object, found {type(values).__name__}")
            yield Row(where, values)
