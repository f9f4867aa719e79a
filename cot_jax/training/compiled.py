"""Compiled programs outlive the run."""

import os
import platform
import sys
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Lets a later run of the same shapes, on this machine, start without compiling them again.

    The programs go to JAX_COMPILATION_CACHE_DIR where that is set, else to the user's cache directory. They
    are this machine's own: XLA compiles for the processor at hand, which JAX's key does not contain.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "cot_jax" / "xla" / platform.node()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{directory} cannot be written ({error.strerror}): every run compiles anew", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))
