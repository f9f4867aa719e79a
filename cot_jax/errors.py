"""The one error a user is meant to read, and the frame around every command."""

import contextlib
import functools
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can fix: a flag, a file, a weight, a row.

    The message is one line that names what is wrong, where it is, and the fix. Commands print it to
    standard error and exit with status 2; they write nothing else.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns a text of servers, programs or files as one line that does nothing to a terminal.

    Spaces stand for line ends and control characters, and URLs come without names and passwords.
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"(?<=://)[^/\s]*@", "", line)


Main = Callable[[Sequence[str]], int]


def command(main: Main) -> Main:
    """Returns `main`, the body of a command, with errors of the user's and the machine's in one line.

    A `UserError` gives exit status 2; what the machine refuses (files, memory, depth, text that cannot be
    written) status 1. Other exceptions are mistakes of ours and keep their traceback. With `--debug` among
    the arguments all have one.
    """

    @functools.wraps(main)
    def framed(argv: Sequence[str]) -> int:
        try:
            status = main([argument for argument in argv if argument != "--debug"])
            sys.stdout.flush()  # a full disk, while it can be said
            return status
        except Exception as error:
            if isinstance(error, UserError):
                said, status = str(error), 2
            elif _is_the_machine_s(error):
                said, status = f"{_refused(error)}; --debug shows where", 1
            else:
                raise
            if "--debug" in argv:
                traceback.print_exc()
        print("error:", " ".join(said.split()), file=sys.stderr)
        return status

    return framed


def _is_the_machine_s(error: Exception) -> bool:
    # XLA has a class of its own for all that goes wrong; without memory it says this.
    return isinstance(error, OSError | MemoryError | RecursionError | UnicodeError) or str(error).startswith(
        "RESOURCE_EXHAUSTED"
    )


def _refused(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return first_line(error)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an error of the file system, such as a folder in a file's place, into a `UserError`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an error of the file system, such as a full disk, into a `UserError` about `path`."""
    try:
        yield
    except OSError as error:
        what = error.strerror or error
        raise UserError(
            f"{path} cannot be written: {what}; fix that and run the same command again"
        ) from error


def first_line(error: BaseException) -> str:
    """Returns the class and the first line of another library's error."""
    text = str(error).strip()
    return printable(
        f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
    )
