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

    `None`, or no text among several, means "there is none": a method that needs the field leaves the example
    out of that loss and counts it. The empty string is text like any other and is trained on.

    Attributes:
      parts: the question, one text or several, such as a premise and a hypothesis.
      label: the gold answer.
    """

    id: str
    parts: tuple[str, ...]
    label: str
    teacher_label: str | None = None
    rationales: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The parts, one below the other, for people to read."""
        return "\n".join(self.parts)

    @property
    def rationale(self) -> str | None:
        """The first one."""
        return self.rationales[0] if self.rationales else None

    @property
    def program(self) -> str | None:
        """The first one."""
        return self.programs[0] if self.programs else None


def parts_as_json(parts: tuple[str, ...]) -> str | list[str]:
    """Returns what `Row.parts` reads: a text, or a list of several."""
    return parts[0] if len(parts) == 1 else list(parts)


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

    def parts(self, key: str) -> tuple[str, ...]:
        """Returns the text, or the texts of the list, under `key`."""
        value = self.values.get(key)
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise self.error(f"{key!r} must be a text in quotes or a list of texts; found {value!r}")
        return tuple(texts)

    def optional_text(self, key: str) -> str | None:
        """Returns the text, or None where it is absent, null or blank."""
        if self.values.get(key) is None:
            return None
        return value if (value := self.text(key)).strip() else None

    def texts(self, key: str) -> tuple[str, ...]:
        """Returns the text under `key`, or the list under its plural without blank and repeated texts."""
        several = f"{key}s"
        if self.values.get(several) is None:
            return () if (text := self.optional_text(key)) is None else (text,)
        if self.values.get(key) is not None:
            raise self.error(f"has {key!r} and {several!r}: move the one into the list")
        found = self.values[several]
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise self.error(f"{several!r} must be a list of texts; found {found!r}")
        return tuple(dict.fromkeys(text for text in found if text.strip()))


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


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file, or of one that is a JSON list of objects.

    Raises:
      UserError: as `read_json_lines`; rows of a list are named by their number.
    """
    with path.open("rb") as file:
        if file.read(1) != b"[":
            yield from read_json_lines(path)
            return
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    for number, values in enumerate(rows, start=1):
        if not isinstance(values, dict):
            raise UserError(f"{path}: row {number}: expected a JSON object, found {type(values).__name__}")
        yield Row(f"{path}: row {number}", values)
