"""The one error a user is meant to read, and what all commands share: their frame and their parser."""

import argparse
import contextlib
import functools
import gc
import os
import re
import select
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can fix: a flag, a file, a weight, a row.

    The message is one line that names what is wrong, where it is, and the fix. Commands print it to
    standard error and exit with status 2; they write nothing else.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Returns text from a server, program or file as one line that is safe to print on a terminal.

    Line ends and control characters become spaces. User names and passwords in URLs are removed.
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"(?<=://)[^/\s]*@", "", line)


Main = Callable[[Sequence[str]], int]


def command(main: Main) -> Main:
    """Returns `main`, the body of a command, with user errors and system errors reported in one line.

    A `UserError` gives exit status 2. System errors (files, memory, recursion depth, text encoding) give
    status 1. Ctrl-C gives 130; a reader that closes standard output, such as `head`, 141. Other exceptions
    are bugs and keep their traceback. With `--debug` all errors show one.
    """

    @functools.wraps(main)
    def framed(argv: Sequence[str]) -> int:
        # Imports and tracing make a million objects that stay. Python's default is to look for garbage every
        # 700 new ones: two seconds more in a run of two steps.
        gc.set_threshold(50_000)
        try:
            status = main([argument for argument in argv if argument != "--debug"])
            sys.stdout.flush()  # so that a full disk is still reported
            return status
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _output_is_closed():
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at exit
                return 141
            if isinstance(error, UserError):
                message, status = str(error), 2
            elif _is_system_error(error):
                message, status = f"{_system_message(error)}; --debug shows where", 1
            else:
                raise
            if "--debug" in argv:
                traceback.print_exc()
        print("error:", " ".join(message.split()), file=sys.stderr)
        return status

    return framed


def argument_parser(name: str, doc: str | None, **options: Any) -> argparse.ArgumentParser:
    """Returns the parser of `python -m cot_jax.NAME`, whose `--help` shows `doc` as it is written."""
    raw = argparse.RawDescriptionHelpFormatter
    name = f"python -m cot_jax.{name}"
    return argparse.ArgumentParser(
        name,
        description=doc,
        epilog="With --debug, an error also shows its traceback.",
        formatter_class=raw,
        allow_abbrev=False,
        **options,
    )


def _output_is_closed() -> bool:
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors are always reported
    return bool(poll.poll(0))


def _is_system_error(error: Exception) -> bool:
    if type(error).__module__.split(".")[0] in ("gcsfs", "google"):  # clients of buckets
        return True
    # XLA raises one class for everything; out of memory it begins with this code.
    return isinstance(error, OSError | MemoryError | RecursionError | UnicodeError) or str(error).startswith(
        "RESOURCE_EXHAUSTED"
    )


def _system_message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return first_line(error)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns a file system error, such as a directory in place of a file, into a `UserError`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a file system error, such as a full disk, into a `UserError` that names `path`."""
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
