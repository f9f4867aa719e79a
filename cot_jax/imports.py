"""How a command starts: with a large enough stack, with large pages, and without PyTorch.

Transformers imports PyTorch where it is installed. That takes seconds, and only `judge` needs it. In other
processes, such as tests and notebooks, PyTorch stays visible: they may need it.
"""

import contextlib
import importlib.util
import logging
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_COMMAND = re.compile(r"cot_jax\.(?!judge)\w+")


def _is_command() -> bool:
    """Whether this process is one of our commands."""
    spec = sys.modules["__main__"].__spec__
    return spec is not None and bool(_COMMAND.fullmatch(spec.name))


# XLA allocates the temporary arrays of every step anew. By default glibc asks the system for each, which
# clears it page by page: a quarter of the CPU time of a small student's step. With these settings glibc keeps
# up to 4 GiB of freed memory, in large pages.
_MALLOC = ":".join(
    f"glibc.malloc.{name}" for name in ("hugetlb=1", f"mmap_threshold={2**32}", f"trim_threshold={2**32}")
)


def restart_prepared() -> None:
    """Restarts this command with what a process reads when it starts, unless it has that already.

    That is `_MALLOC`, unless GLIBC_TUNABLES is set, and the largest stack allowed, if the TPU's compiler is
    installed: it overflows the usual 8 MiB (libtpu 0.0.42.1 did on preset base with model.remat=layers).
    """
    stack, most = resource.getrlimit(resource.RLIMIT_STACK)
    small = stack != most and importlib.util.find_spec("libtpu") is not None
    if small:
        resource.setrlimit(resource.RLIMIT_STACK, (most, most))
    if small or "GLIBC_TUNABLES" not in os.environ:
        os.environ.setdefault("GLIBC_TUNABLES", _MALLOC)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Makes a module callable: `cot_jax.train` is both a command and a function."""
    sys.modules[name].__class__ = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """In a command, hides PyTorch from imports in the block, and from Transformers for good."""
    if "torch" in sys.modules or not _is_command():
        yield
        return
    # Transformers warns on standard error where PyTorch is missing; no command but `judge` needs it.
    logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not" not in record.getMessage())
    import transformers.utils

    transformers.utils.import_utils.is_torch_available = lambda: False
    transformers.utils.is_torch_available = lambda: False
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
