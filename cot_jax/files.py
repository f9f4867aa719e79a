"""Files: texts that are written whole or not at all, JSON, rows of JSON that name their place, and locks."""

import contextlib
import dataclasses
import fcntl
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from cot_jax.errors import UserError, writing
from cot_jax.limits import MOST_CHARACTERS


def partial(path: Path) -> Path:
    """Returns the file beside `path` that is written first."""
    return path.with_name(path.name + ".partial")


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with whole(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """Opens a file that takes the place of `path` once all is written; until then it is `partial(path)`."""
    if path.exists() and not path.is_file():  # a device or a pipe holds nothing to lose
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    with partial(path).open("w", encoding="utf-8") as file:
        yield file
    partial(path).replace(path)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a directory and keeps it from other processes that ask for it; the end of this one frees it.

    Raises:
      UserError: another one has it.
    """
    with contextlib.ExitStack() as stack:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((directory / ".lock").open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is in use by another process: wait until it ends, or choose another directory"
            ) from None
        except OSError as error:  # some network file systems
            note = f"note: {directory} cannot be locked ({error.strerror}): start no second command there"
            print(note, file=sys.stderr)
        yield


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(path: Path, kind: type[dict] | type[list] = dict) -> Any:
    """Returns what a JSON file holds: a dict or, with another `kind`, a list.

    Raises:
      UserError: there is no such file, or it is not JSON, or it holds something else.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, kind):
        what = "object" if kind is dict else "list"
        raise UserError(f"{path}: expected a JSON {what}, found {type(value).__name__}")
    return value


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a file of JSON objects; its errors name its place."""

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
        return self._bounded(key, self.values.get(key))

    def _bounded(self, key: str, text: Any) -> str:
        if not isinstance(text, str):
            raise self.error(f"{key!r} must be a text in quotes; found {text!r}")
        if len(text) > MOST_CHARACTERS:
            raise self.error(
                f"{key!r} has {len(text):,} characters, more than {MOST_CHARACTERS:,}: shorten it"
            )
        return text

    def parts(self, key: str) -> tuple[str, ...]:
        """Returns the text, or the texts of the list, under `key`."""
        value = self.values.get(key)
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise self.error(f"{key!r} must be a text in quotes or a list of texts; found {value!r}")
        return tuple(self._bounded(key, text) for text in texts)

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
        return tuple(dict.fromkeys(self._bounded(several, text) for text in found if text.strip()))


def read_json_lines(path: Path) -> Iterator[Row]:
    """Returns the rows of a JSON-lines file; see `rows_of`.

    Raises:
      UserError: there is no such file, at once; later as `rows_of` does.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")

    def rows() -> Iterator[Row]:
        with path.open("rb") as lines:
            yield from rows_of(lines, str(path))

    return rows()


def rows_of(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    """Yields the rows of JSON lines; blank lines are skipped.

    Raises:
      UserError: a line is not a JSON object; the message gives `name` and the line's number.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = Row(f"{name}:{number}", {})
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise row.error(f"not valid JSON ({error.msg} at column {error.colno})") from None
        except UnicodeDecodeError as error:
            raise row.error(f"not UTF-8 ({error.reason} at byte {error.start})") from None
        if not isinstance(values, dict):
            raise row.error(f"expected a JSON object, found {type(values).__name__}")
        yield dataclasses.replace(row, values=values)


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file, or of a file that is a JSON list of objects.

    Raises:
      UserError: as `read_json_lines`; rows of a list are named by their number.
    """
    with path.open("rb") as file:
        if file.read(1) != b"[":
            yield from read_json_lines(path)
            return
    for number, values in enumerate(read_json(path, list), start=1):
        if not isinstance(values, dict):
            raise UserError(f"{path}: row {number}: expected a JSON object, found {type(values).__name__}")
        yield Row(f"{path}: row {number}", values)
