"""What a run prints: lines, progress, and the seconds and hardware that it reports."""

import importlib.metadata
import os
import platform
import sys
import time
from typing import Any

import jax
from tqdm import tqdm

from cot_jax import __version__
from cot_jax.training.mesh import leads


def say(line: str) -> None:
    """Prints a line at once, above a progress bar if there is one; of several processes, one does."""
    if leads():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


class Clock:
    """Seconds spent inside its `with` blocks, their number, and seconds since it was made."""

    def __init__(self):
        self._made, self.seconds, self.entered = time.monotonic(), 0.0, 0

    @property
    def wall(self) -> float:
        return time.monotonic() - self._made

    def __enter__(self):
        self._entered_at = time.monotonic()

    def __exit__(self, *_):
        self.seconds += time.monotonic() - self._entered_at
        self.entered += 1


class Progress:
    """A progress bar on a terminal, a line every `every` steps elsewhere, with the time that is left."""

    def __init__(self, first: int, steps: int, batch_size: int, every: int):
        self._bar = tqdm(
            initial=first,
            total=steps,
            unit="step",
            disable=not sys.stdout.isatty() or not leads(),
            leave=False,
        )
        self._every, self._batch_size, self._steps = every, batch_size, steps
        self._seen = (first, time.monotonic())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def update(self, step: int, row: dict[str, float]) -> None:
        self._bar.update()
        if step % self._every:
            return
        seen, now = self._seen, time.monotonic()
        seconds = (now - seen[1]) / (step - seen[0])
        examples, left = self._batch_size / seconds, tqdm.format_interval((self._steps - step) * seconds)
        speed = f"{examples:.{0 if examples >= 10 else 1}f}"
        self._seen = (step, now)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in row.items() if name.startswith("loss"))
        if self._bar.disable:
            say(f"step {step}: {losses}, {speed} examples/s, {left} left")
        else:
            self._bar.set_postfix_str(f"{losses}, {speed} examples/s")


def hardware() -> dict[str, Any]:
    """Returns where this runs: devices, processor, library versions."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    return {
        "hardware": {
            "processes": jax.process_count(),
            "devices": jax.device_count(),
            "device_kind": jax.devices()[0].device_kind,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "versions": {
            "cot_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
    }
