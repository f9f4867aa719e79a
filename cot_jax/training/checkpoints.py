"""Checkpoints: the newest states to go on from, and the parameters best on validation."""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from cot_jax.errors import UserError
from cot_jax.models.student import Params
from cot_jax.training.report import say
from cot_jax.training.step import TrainState

_ACCURACY = "valid/accuracy"


class Checkpoints:
    """Two train states under `directory/latest`, one set of parameters under `directory/best`.

    All are written in the background, and each is complete or absent. The older state is there in case that
    the disk lost part of the newer one. A context manager; leaving it waits for what is being written.
    """

    def __init__(self, directory: Path):
        latest = ocp.CheckpointManagerOptions(max_to_keep=2)
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
        """Returns the newest state that can be read; `like` has its shapes and shardings.

        One that cannot is reported and deleted, so that it is written again.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        self._latest.wait_until_finished()
        for step in sorted(self._latest.all_steps(), reverse=True):
            try:
                return _restore(self._latest, step, like)
            except Exception as error:  # whatever Orbax says of a file that is cut or missing
                directory = self._latest.directory / str(step)
                say(f"{directory} cannot be read ({_first_line(error)})")
                if step > min(self._latest.all_steps()):
                    self._latest.delete(step)
        raise UserError(
            f"{self._latest.directory}: no checkpoint can be read; delete {self._latest.directory.parent} to "
            "train again from the start, or choose another --workdir"
        )

    def restore_best(self, like: Params) -> Params:
        """Returns the parameters best on validation.

        Raises:
          UserError: they cannot be read.
        """
        self._best.wait_until_finished()
        try:
            return _restore(self._best, self._best.latest_step(), like)
        except Exception as error:
            raise UserError(f"{self._best.directory} cannot be read ({_first_line(error)})") from None


def _restore(manager: ocp.CheckpointManager, step: int | None, like: Any) -> Any:
    return manager.restore(step, args=ocp.args.StandardRestore(like))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
