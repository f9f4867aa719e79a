"""Checkpoints: the newest state to go on from, and the parameters best on validation."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from cot_jax.models.student import Params
from cot_jax.training.step import TrainState

_ACCURACY = "valid/accuracy"


class Checkpoints:
    """One train state under `directory/latest`, one set of parameters under `directory/best`.

    Both are written in the background, and each is complete or absent. A context manager; leaving it
    waits for what is being written.
    """

    def __init__(self, directory: Path):
        latest = ocp.CheckpointManagerOptions(max_to_keep=1)
        best = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=lambda metrics: metrics[_ACCURACY])
        self._latest = ocp.CheckpointManager(directory.absolute() / "latest", options=latest)
        self._best = ocp.CheckpointManager(directory.absolute() / "best", options=best)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._latest.close()
        self._best.close()

    @property
    def latest_step(self) -> int | None:
        return self._latest.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and validation accuracy of the best parameters; None before the first evaluation."""
        self._best.wait_until_finished()
        step = self._best.latest_step()
        return None if step is None else (step, self._best.metrics(step)[_ACCURACY])

    def save(self, step: int, state: TrainState) -> None:
        """Makes `state` the one to go on from."""
        self._latest.save(step, args=ocp.args.StandardSave(state))

    def save_if_best(self, step: int, params: Params, accuracy: float) -> None:
        """Keeps `params` if they are better than the best so far; the earlier one of equals stays."""
        if self.best is None or accuracy > self.best[1]:
            self._best.save(step, args=ocp.args.StandardSave(params), metrics={_ACCURACY: accuracy})

    def restore_latest(self, like: TrainState) -> TrainState:
        """Returns the newest state; `like` has its shapes and shardings."""
        return _restore(self._latest, like)

    def restore_best(self, like: Params) -> Params:
        """Returns the parameters best on validation."""
        return _restore(self._best, like)


def _restore(manager: ocp.CheckpointManager, like: Any) -> Any:
    manager.wait_until_finished()
    return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(like))
