"""The one error a user is meant to read."""

import contextlib
import re
from collections.abc import Iterator
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
