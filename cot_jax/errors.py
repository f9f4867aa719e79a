"""The one error a user is meant to read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: a flag, a file, a weight, a row.

    The message is one line that names what is wrong, where, and the mend. Commands print it to
    standard error and exit with status 2; nothing else is written.
    """


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turns what the file system says, of a full disk or one that may not be written, into a `UserError`."""
    try:
        yield
    except OSError as error:
        what = error.strerror or error
        raise UserError(
            f"{directory} cannot be written: {what}; mend that, and the same command goes on"
        ) from error
