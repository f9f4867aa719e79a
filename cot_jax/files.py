"""Files, on disk or in a bucket: atomic writes, JSON with checked shapes, located errors, and locks."""

import codecs
import contextlib
import dataclasses
import fcntl
import functools
import io
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from cot_jax.errors import UserError, first_line, reading, writing
from cot_jax.limits import MOST_CHARACTERS

_URL = re.compile(r"(\w+):/+([^/]*)")  # with one slash, too: what pathlib makes of two


def place(text: str | Path) -> Path:
    """Returns the path of a file or directory on disk or, for gs://BUCKET/..., in a bucket.

    A path in a bucket is `etils.epath`'s, which has the methods of `pathlib.Path` but is none (`in_bucket`).
    An object there is replaced as a whole: it is never seen half-written, cannot be appended to or renamed,
    and is stored for good once its write returns. Libraries that need a disk get one from `uploaded` and
    `local_copy`: given such a path they would write a local folder named `gs:`.

    Raises:
      UserError: another kind of URL, the bucket cannot be reached, or its client is not installed.
    """
    if not (url := _URL.match(str(text))):
        return Path(text)
    scheme, bucket = url.groups()
    if scheme != "gs" or not bucket:
        raise UserError(f"{text}: give gs://BUCKET/DIR or a local path; Orbax writes to no other buckets")
    return _bucket(bucket) / str(text)[url.end() :].strip("/")


@functools.cache
def _bucket(name: str) -> Path:
    try:
        import fsspec
        import gcsfs  # noqa: F401, what etils asks; it brings Google's own client, which Orbax asks
        from etils import epath
    except ImportError:
        raise UserError(f"gs://{name} needs a client: pip install 'cot-jax[buckets]'") from None
    os.environ["EPATH_USE_TF"] = "false"  # one client, whether or not TensorFlow is installed
    # It logs the traceback of what it raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # TensorStore and other processes write what this client does not notice: it must not remember listings.
    fsspec.config.conf["gcs"] = {"use_listings_cache": False}
    bucket = epath.Path(f"gs://{name}")
    try:
        found = bucket.exists()
    except Exception as error:  # of gcsfs, aiohttp or Google's libraries
        raise UserError(f"{bucket} cannot be reached ({first_line(error)})") from None
    if not found:  # gcsfs would make one
        raise UserError(f"{bucket}: there is no such bucket, or this account may not see it")
    return cast(Path, bucket)


def local(text: str) -> Path:
    """Returns the path of a file or directory on disk.

    Raises:
      UserError: the text is a URL, which would become a folder of that name.
    """
    if _URL.match(text):
        raise UserError(f"{text}: only a local path can be given here")
    return Path(text)


def in_bucket(path: Path) -> bool:
    return not isinstance(path, Path)


def files_below(directory: Path) -> Iterator[Path]:
    """Yields the files of a directory and of the directories in it."""
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            yield from files_below(entry)
        else:
            yield entry


def copy_files(source: Path, target: Path) -> None:
    """Copies the files below a directory to another one, on disk or in a bucket."""
    for file in files_below(source):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with file.open("rb") as reads, copy.open("wb") as writes:
            shutil.copyfileobj(reads, writes)


@contextlib.contextmanager
def uploaded(directory: Path) -> Iterator[Path]:
    """Gives a local directory to write to: `directory`, or one that is copied to it, in a bucket."""
    if not in_bucket(directory):
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        copy_files(Path(scratch), directory)


@contextlib.contextmanager
def local_copy(directory: Path) -> Iterator[Path]:
    """Gives a local directory to read from: `directory`, or a copy of one in a bucket."""
    if not in_bucket(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy_files(directory, Path(scratch))
        yield Path(scratch)


def partial(path: Path) -> Path:
    """Returns the temporary file beside `path`."""
    return path.with_name(path.name + ".partial")


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically."""
    with whole(path) as file:
        file.write(text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[TextIO]:
    """Opens `partial(path)` for writing; it replaces `path` once everything is written."""
    if in_bucket(path):  # an object replaces another one as a whole, but if the block fails, it must not
        content = io.StringIO()
        yield content
        path.write_bytes(content.getvalue().encode())
        return
    if path.exists() and not path.is_file():  # a device or a pipe has no content to protect
        with path.open("w", encoding="utf-8") as file:
            yield file
        return
    with partial(path).open("w", encoding="utf-8") as file:
        yield file
    partial(path).replace(path)


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes a directory and locks it against other processes, at the latest until this one ends.

    Buckets have no lock that ends with its process. There, a second run is noticed when the first one next
    writes its metrics (`metrics.writers`).

    Raises:
      UserError: another process holds the lock.
    """
    if in_bucket(directory):
        yield
        return
    with contextlib.ExitStack() as stack:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((directory / ".lock").open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is in use by another process: wait for it to end, or choose another directory"
            ) from None
        except OSError as error:  # some network file systems
            note = f"note: {directory} cannot be locked ({error.strerror}): start no second command there"
            print(note, file=sys.stderr)
        yield


def refuse_full(directory: Path) -> None:
    """
    Raises:
      UserError: the directory is not empty, or is a file.
    """
    with reading(directory):
        if directory.exists() and any(directory.iterdir()):
            raise UserError(f"{directory} is not empty: choose another directory")


@contextlib.contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Makes a directory, and empties it again if the block fails; gives the local directory to write to.

    Raises:
      UserError: it is not empty, or cannot be written.
    """
    refuse_full(directory)
    with writing(directory), uploaded(directory) as local_directory:
        try:
            yield local_directory
        except BaseException:
            for entry in local_directory.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# The expected shape of a JSON value: a type (float: any number, object: anything); None; a range of integers;
# a tuple of alternatives; [shape], a list; {name: shape}, an object, where "name?" may be absent or null and
# the key `str` stands for all other names.
Shape = Any

_WORDS: dict[Any, str] = {
    str: "a text", bool: "true or false", int: "an integer", float: "a number", list: "a list",
    dict: "an object", None: "null",
}  # fmt: skip
_MOST_DIGITS = 300  # of an integer: with more it does not fit a float either
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def misfit(value: Any, shape: Shape, path: str = "") -> str:
    """Returns where a JSON value does not have the shape, and what was expected; '' if it has it."""
    if isinstance(shape, list) and isinstance(value, list):
        (each,) = shape
        return next(filter(None, (misfit(item, each, f"{path}[{n}]") for n, item in enumerate(value))), "")
    if isinstance(shape, dict) and isinstance(value, dict):
        required = {name for name in shape if name is not str and not name.endswith("?")}
        if missing := sorted(required - value.keys()):
            return f"{path and path + ' has '}no {missing[0]!r}"
        for name, item in value.items():
            optional = (shape[f"{name}?"], None) if f"{name}?" in shape else shape.get(str, object)
            inside = misfit(item, shape.get(name, optional), f"{path}.{name}" if path else name)
            if inside:
                return inside
        return ""
    if isinstance(shape, tuple):
        found = [misfit(value, one, path) for one in shape]
        if "" in found:
            return ""
        nested = [one for one, its in zip(shape, found, strict=True) if isinstance(value, type(one))]
        if len(nested) == 1:  # the alternative that was meant
            return found[shape.index(nested[0])]
    elif _has(value, shape):
        return ""
    kind = shape if isinstance(shape, type) else type(shape)
    if not path and kind in (dict, list):
        return f"expected a JSON {'object' if kind is dict else 'list'}, found {type(value).__name__}"
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return f"{path or 'the content'} is {shown}, expected {_in_words(shape)}"


def _has(value: Any, shape: Shape) -> bool:
    if shape is object:
        return True
    if shape is None:
        return value is None
    if isinstance(shape, range):
        return type(value) is int and value in shape
    if not isinstance(shape, type):
        return False
    return isinstance(value, int | float if shape is float else shape) and (
        isinstance(value, bool) <= (shape is bool)
    )


def _in_words(shape: Shape) -> str:
    if isinstance(shape, tuple):
        return " or ".join(map(_in_words, shape))
    if isinstance(shape, range):
        return f"an integer from {shape.start:,} to {shape.stop - 1:,}"
    return _WORDS[type(shape) if isinstance(shape, list | dict) else shape]


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def parse_text(content: bytes) -> str:
    """Decodes UTF-8, with or without a byte order mark; raises ValueError for anything else."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None


def parse_json(content: bytes, shape: Shape = object) -> Any:
    """Parses JSON.

    Raises:
      ValueError: the content is not UTF-8 or not JSON, has a too long integer, too many nested levels or a
        lone surrogate, or does not have the shape. The message is one line.
    """
    text = parse_text(content)
    try:
        value = json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        problem = error.msg.removesuffix(" at")
        raise ValueError(f"not valid JSON ({problem} at {line}column {error.colno})") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError("not valid JSON (nested too deeply)") from None
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(
                f"{half!r} is a lone surrogate, half of a character: write both halves"
            ) from None
    if wrong := misfit(value, shape):
        raise ValueError(wrong)
    return value


def read_json(path: Path, shape: Shape = dict) -> Any:
    """Returns the content of a JSON file, which has `shape`.

    Raises:
      UserError: the file is missing or unreadable, or `parse_json` rejects it.
    """
    with reading(path):
        content = path.read_bytes()
    try:
        return parse_json(content, shape)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a file of JSON objects; its errors name file and line."""

    where: str  # file:line
    values: dict[str, Any]

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def check(self, shape: Shape) -> dict[str, Any]:
        """Returns the values after checking their shape."""
        if wrong := misfit(self.values, shape):
            raise self.error(wrong)
        return self.values

    def require(self, *keys: str) -> None:
        """
        Raises:
          UserError: the row lacks one of the fields.
        """
        if missing := [key for key in keys if key not in self.values]:
            names = ", ".join(self.values) or "none"
            names = names if len(names) <= 200 else f"{names[:200]}..."
            raise self.error(f"no field {' and no field '.join(map(repr, missing))}; the row has {names}")

    def id(self) -> str:
        """Returns the row's id, a string or an integer, as a string."""
        self.require("id")
        value = self.values["id"]
        if type(value) not in (str, int):
            raise self.error(f"every row needs an 'id', a text or an integer; found {value!r}")
        return str(value)

    def text(self, key: str) -> str:
        self.require(key)
        return self._bounded(key, self.values[key])

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
        self.require(key)
        value = self.values[key]
        texts = value if isinstance(value, list) else [value]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise self.error(f"{key!r} must be a text in quotes or a list of texts; found {value!r}")
        return tuple(self._bounded(key, text) for text in texts)

    def question(self) -> tuple[str, ...]:
        """Returns the parts of the input; some may be blank, but not all."""
        parts = self.parts("input")
        if not any(part.strip() for part in parts):
            raise self.error("the input is blank")
        return parts

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
      UserError: at once, the file is missing or unreadable; during iteration, as `rows_of`.
    """
    with reading(path), path.open("rb"):
        pass

    def rows() -> Iterator[Row]:
        with reading(path), path.open("rb") as lines:
            yield from rows_of(lines, str(path))

    return rows()


def rows_of(lines: Iterable[bytes], name: str) -> Iterator[Row]:
    """Yields the rows of JSON lines; blank lines are skipped.

    Raises:
      UserError: a line is not a JSON object; names `name` and the line number.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = Row(f"{name}:{number}", {})
        start = line.removeprefix(codecs.BOM_UTF8).strip()
        if start.startswith(b"[") or start == b"{":
            found = "a list" if start.startswith(b"[") else "only '{'"
            raise row.error(f"expected one whole JSON object a line, found {found}")
        try:
            values = parse_json(line.strip(), dict)  # with its end, an error at it would name line 2
        except ValueError as error:
            raise row.error(str(error)) from None
        yield dataclasses.replace(row, values=values)


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a JSON-lines file, or of a JSON file with a list of objects.

    Raises:
      UserError: as `read_json_lines`; for a list it names the row number.
    """
    with reading(path), path.open("rb") as file:
        is_list = file.read(100).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    if not is_list:
        yield from read_json_lines(path)
        return
    for number, values in enumerate(read_json(path, list), start=1):
        row = Row(f"{path}: row {number}", values)
        if wrong := misfit(values, dict):
            raise row.error(wrong)
        yield row
