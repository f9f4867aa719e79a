"""What a command does not wait for: libraries that it uses import PyTorch where that is installed.

That takes seconds, and no command but `judge` needs it. In a process of somebody else's, such as a test or a
notebook, nothing is hidden: they may want it.
"""

import contextlib
import re
import sys
from collections.abc import Iterator

_COMMAND = re.compile(r"cot_jax\.(?!judge)\w+")


def _is_command() -> bool:
    """Whether this process is one of our commands, run as `python -m`."""
    words = sys.orig_argv
    return "-m" in words[:-1] and bool(_COMMAND.fullmatch(words[words.index("-m") + 1]))


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
