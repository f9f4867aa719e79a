"""Checkpoints: the newest states, to resume from, and the parameters best on validation."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from cot_jax.errors import UserError, first_line
from cot_jax.models.weights import Params
from cot_jax.training.console import say
from cot_jax.training.mesh import another_was_lost
from cot_jax.training.step import TrainState

# Of several reads that fail Orbax takes one error; asyncio would print the others, a traceback each.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class Checkpoints:
    """Two train states under `directory/latest`, one set of parameters under `directory/best`.

    All are written in the background, and each is complete or absent. The older state is there in case that
    the disk lost part of the newer one. A context manager; leaving it waits for what is being written.

    Raises:
      UserError: at the next call or on leaving, one could not be written; those before it are whole.
    """

    def __init__(self, directory: Path, *, clean: bool = False):
        """
        Args:
          clean: whether to remove what a killed run left unfinished; only for the run that writes here.
        """
        latest = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=clean)
        best = ocp.CheckpointManagerOptions(max_to_keep=1, best_fn=_only, cleanup_tmp_directories=clean)
        try:  # it reads the metrics of all that is there
            self._best = ocp.CheckpointManager(directory.absolute() / "best", options=best)
            self._latest = ocp.CheckpointManager(directory.absolute() / "latest", options=latest)
        except Exception as error:
            if another_was_lost(error):
                raise
            raise UserError(f"{directory} cannot be read ({first_line(error)})") from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        try:
            _wait(self._latest)
            _wait(self._best)
        finally:
            self._latest.close()
            self._best.close()

    @property
    def latest_step(self) -> int | None:
        return self._latest.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and selecting metric of the best parameters; None before the first evaluation.

        Raises:
          UserError: they cannot be read.
        """
        _wait(self._best)
        if (step := self._best.latest_step()) is None:
            return None
        try:
            return step, float(_only(self._best.metrics(step)))
        except Exception as error:
            if another_was_lost(error):
                raise
            raise UserError(
                f"{self._best.directory}: its metrics cannot be read ({first_line(error)})"
            ) from None

    def save(self, step: int, state: TrainState) -> None:
        """Makes `state` the one to resume from."""
        _wait(self._best)  # else a run killed now would resume without the best of an earlier step
        _save(self._latest, step, state)

    def save_if_best(self, step: int, params: Params, value: float, metric: str = "valid/accuracy") -> int:
        """Keeps `params` if they are better than the best so far; the earlier one of equals stays.

        Returns:
          The step of the best.
        """
        best = self.best
        if best and not value > best[1]:  # nor is NaN better
            return best[0]
        _save(self._best, step, params, metrics={metric: value})
        return step

    def restore_latest(self, like: TrainState) -> TrainState:
        """Returns the newest state that can be read; `like` has its shapes and shardings.

        One that cannot is reported, and deleted once an older one was read, so that it is written again.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        unreadable = []
        for step in sorted(self._latest.all_steps(), reverse=True):
            try:
                state = _restore(self._latest, step, like)
            except Exception as error:  # whatever Orbax raises for a file that is cut or missing
                if another_was_lost(error):
                    raise
                say(f"{self._latest.directory / str(step)} cannot be read ({first_line(error)})")
                unreadable.append(step)
                continue
            for damaged in unreadable:
                self._latest.delete(damaged)
            return state
        raise UserError(
            f"{self._latest.directory}: no checkpoint can be read; delete {self._latest.directory.parent} to "
            "train again from the start, or choose another --workdir"
        )

    def restore_best(self, like: Params) -> Params:
        """Returns the parameters best on validation.

        Raises:
          UserError: they cannot be read.
        """
        _wait(self._best)
        try:
            return _restore(self._best, self._best.latest_step(), like)
        except Exception as error:
            if another_was_lost(error):
                raise
            raise UserError(f"{self._best.directory} cannot be read ({first_line(error)})") from None


def _only(metrics: dict[str, float]) -> float:
    (value,) = metrics.values()
    return value


def _save(manager: ocp.CheckpointManager, step: int, tree: Any, **more) -> None:
    """Begins to write, unless there is too little room: Orbax would find out in pages of tracebacks."""
    _wait(manager)
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    if (free := shutil.disk_usage(manager.directory).free) < needed:
        raise UserError(
            f"{manager.directory}: the checkpoint of step {step} needs {needed / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} are free; make room and run the same command again"
        )
    try:
        manager.save(step, args=ocp.args.StandardSave(tree), **more)
    except Exception as error:
        raise _unwritten(manager, error) from None


def _wait(manager: ocp.CheckpointManager) -> None:
    try:
        manager.wait_until_finished()
    except Exception as error:  # of tensorstore or the file system, from another thread
        raise _unwritten(manager, error) from None


def _unwritten(manager: ocp.CheckpointManager, error: Exception) -> Exception:
    if another_was_lost(error):
        return error
    return UserError(
        f"{manager.directory}: a checkpoint cannot be written ({first_line(error)}); fix that and run the "
        "same command again"
    )


def _restore(manager: ocp.CheckpointManager, step: int | None, like: Any) -> Any:
    return manager.restore(step, args=ocp.args.StandardRestore(like))
