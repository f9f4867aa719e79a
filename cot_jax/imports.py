"""How a command starts: with room on its stack, and without PyTorch, which its libraries would import.

That takes seconds, and no command but `judge` needs it. In a process of somebody else's, such as a test or a
notebook, nothing is hidden: they may want it.
"""

import contextlib
import importlib.util
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


def unlimit_stack() -> None:
    """Restarts this command with the largest stack that it may have, where the TPU's compiler is installed.

    The compiler overflows the usual 8 MiB: libtpu 0.0.42.1 did on preset base with model.remat=layers.
    """
    stack, most = resource.getrlimit(resource.RLIMIT_STACK)
    if stack != most and importlib.util.find_spec("libtpu"):
        resource.setrlimit(resource.RLIMIT_STACK, (most, most))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # it is read when a process starts


def make_callable(name: str, function: Callable[..., Any]) -> None:
    """Lets a module be called: `cot_jax.train` is a command and, to a program, a function."""
    sys.modules[name].__class__ = type("CallableModule", (ModuleType,), {"__call__": staticmethod(function)})


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """In a command: imports in the block find no PyTorch, and Transformers does not look for it later."""
    if "torch" in sys.modules or not _is_command():
        yield
        return
    import transformers.utils

    transformers.utils.import_utils.is_torch_available = lambda: False
    transformers.utils.is_torch_available = lambda: False
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
