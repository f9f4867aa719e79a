"""Compiled programs: compiled ahead of use, and cached across runs."""

import functools
import os
import platform
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from cot_jax.batch import Batch
from cot_jax.training.console import say
from cot_jax.training.step import Frozen, Metrics, TrainState

# On CPU XLA uses the library YNNPACK for matrix products only: a small student's step then takes 0.7 of the
# time (docs/performance.md). Experimental: an XLA without this option compiles without it.
# On a GPU cuBLAS computes all matrix products: otherwise XLA compiles and times dozens of kernels for each,
# which takes minutes.
_OPTIONS: dict[str, dict[str, str | bool]] = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"},
    "gpu": {"xla_gpu_enable_triton_gemm": False},
}


@functools.cache
def compiler_options(platform: str) -> dict[str, str | bool]:
    """Returns `compiler_options` of `jax.jit` for a platform, e.g. "cpu"; without those that XLA rejects."""
    options = _OPTIONS.get(platform, {})
    if not options:
        return {}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except Exception:  # XLA has types of its own
        return {}
    return options


def keep_compiled() -> None:
    """Caches compiled programs on disk, so that later runs with the same shapes start at once.

    The cache is JAX_COMPILATION_CACHE_DIR if set, else in the user's cache directory. It is per machine: XLA
    compiles for the local processor, which is not part of JAX's cache key.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "cot_jax" / "xla" / platform.node()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{directory} cannot be written ({error.strerror}): every run recompiles", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(directory))


class CompiledAhead:
    """A jitted train step whose programs compile in the background, in the order of their first use.

    Training starts as soon as its first program is ready. One Python thread suffices: XLA releases the
    interpreter lock. An unforeseen program is compiled when its batch comes. A context manager; leaving it
    waits for the current compilation and cancels the others.
    """

    def __init__(
        self,
        step: jax.stages.Wrapped,
        mesh: jax.sharding.Mesh,
        state: TrainState,
        batches: Mapping[str, Batch],
        frozen: Frozen,
    ):
        """
        Args:
          state: its shapes and shardings.
          batches: shapes and shardings of one batch of every shape, by name, in order of first use.
        """
        self._pool, self._frozen = ThreadPoolExecutor(1), frozen

        def compile_(name, batch):
            began = time.monotonic()
            with jax.set_mesh(mesh):
                compiled = step.lower(state, batch, frozen).compile()
            say(f"compiled {name} in {time.monotonic() - began:.1f} s")
            return compiled

        self._compile = compile_
        self._compiled = {
            _shape(batch): self._pool.submit(compile_, f"{count} of {len(batches)} programs: {name}", batch)
            for count, (name, batch) in enumerate(batches.items(), start=1)
        }

    def __enter__(self) -> "CompiledAhead":
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shape = _shape(batch)
        if shape not in self._compiled:
            self._compiled[shape] = self._pool.submit(self._compile, "one more program", batch)
        return self._compiled[shape].result()(state, batch, self._frozen)


def _shape(batch: Batch) -> Any:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple(x.shape for x in leaves)
