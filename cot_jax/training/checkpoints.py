"""Checkpoints: the latest states, to resume from, and the best parameters on validation."""

import contextlib
import json
import logging
import math
import shutil
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from cot_jax.errors import UserError, first_line
from cot_jax.files import files_below, in_bucket, place, read_json, write_json
from cot_jax.models.weights import Params
from cot_jax.training.console import say
from cot_jax.training.mesh import another_was_lost, leads
from cot_jax.training.step import TrainState

SUMS = "crc32.json"  # in a checkpoint: the checksum of every file with arrays
_OUTER_SUMS = "crc32_commit.json"  # and of Orbax's own files, which it completes last
# Orbax limits a save by wall-clock time, and the clock may be changed during it.
_MONTH = 30 * 24 * 60 * 60
_COMMITTED = "commit_success.txt"  # in a bucket, where nothing can be renamed: a complete checkpoint has it
_ITEM = "default"  # the item's name; without one, Orbax guesses from the files beside it

# If several reads fail, Orbax raises one error; asyncio would print a traceback for each of the others.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class Checkpoints:
    """Two train states under `directory/latest`, one set of parameters under `directory/best`.

    All but the first are written in the background, and each is complete or absent. Its files have checksums,
    which are verified before it is read. The older state is a fallback if the newer one is damaged. A context
    manager; leaving it waits for pending writes.

    Raises:
      UserError: at once, the best parameters are damaged; at the next call or on leaving, a write failed (the
        earlier checkpoints are intact).
    """

    def __init__(self, directory: Path, *, clean: bool = False):
        """
        Args:
          clean: whether to remove the unfinished files of a killed run; only for the run that writes here.
        """
        directory = directory if in_bucket(directory) else directory.absolute()
        self._latest = _manager(directory / "latest", max_to_keep=2, cleanup_tmp_directories=clean)
        best = directory / "best"
        try:
            self._best = _manager(
                best,
                max_to_keep=1,
                best_fn=lambda metrics: _rank(_only(metrics)),
                cleanup_tmp_directories=clean,
            )
            if clean and self.best:  # now, rather than at the end of training
                _verify(best / str(self.best[0]))
        except Exception as error:  # whatever Orbax raises for an invalid file
            raise _unreadable_best(best, error) from None

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
        """Step and selection metric of the best parameters; None before the first evaluation.

        Raises:
          UserError: they cannot be read.
        """
        _wait(self._best)
        step = self._best.best_step()  # only steps with a metric: there may be foreign directories
        return None if step is None else (step, _only(self._best.metrics(step)))

    def save(self, step: int, state: TrainState) -> None:
        """Saves `state` as the one to resume from."""
        first = self.latest_step is None
        _wait(self._best)  # otherwise a run killed now would resume without its best parameters
        _save(self._latest, step, state)
        if first:  # so that later rows of metrics imply that a checkpoint exists
            _wait(self._latest)

    def save_if_best(self, step: int, params: Params, value: float, metric: str = "valid/accuracy") -> int:
        """Keeps `params` if they are better than the best so far; in a tie the earlier ones stay.

        Returns:
          The step of the best parameters.
        """
        best = self.best
        if best and not _rank(value) > _rank(best[1]):
            return best[0]
        _save(self._best, step, params, metrics={metric: value})
        return step

    def restore_latest(self, like: TrainState) -> TrainState:
        """Returns the latest readable state; `like` has its shapes and shardings.

        An unreadable one is reported, and deleted once an older one was read, so that it is written again.

        Raises:
          UserError: there are checkpoints, but none is readable.
        """
        _wait(self._latest)
        unreadable = []
        for step in sorted(self._latest.all_steps(), reverse=True):
            try:
                state = _restore(self._latest, step, like)
            except Exception as error:  # whatever Orbax raises for a truncated or missing file
                if another_was_lost(error):
                    raise
                say(f"{self._latest.directory / str(step)} cannot be read ({first_line(error)})")
                unreadable.append(step)
                continue
            for damaged in unreadable:
                self._latest.delete(damaged)
            return state
        raise UserError(
            f"{self._latest.directory}: no checkpoint can be read, for the reasons above; restore one, or "
            "choose another --workdir to train from the start"
        )

    def restore_best(self, like: Params) -> Params:
        """Returns the best parameters on validation.

        Raises:
          UserError: they cannot be read.
        """
        _wait(self._best)
        step = self._best.best_step()
        try:
            return _restore(self._best, step, like)
        except Exception as error:
            raise _unreadable_best(place(self._best.directory) / str(step), error) from None


class _Manager(ocp.CheckpointManager):
    """Orbax's manager; `unsealed` is the step saved here whose outer files have no checksums yet."""

    unsealed: int | None = None


def _manager(directory: Path, **options) -> _Manager:
    """Returns the manager of `directory`; each checkpoint gets its SUMS before it is complete."""

    def add_sums():
        if in_bucket(directory):
            found = (path for path in directory.iterdir() if not (path / _COMMITTED).exists())
        else:
            found = directory.glob("*.orbax-checkpoint-tmp*")
        for unfinished in found:
            # Not the files at the top, which Orbax completes later.
            items = (path for path in unfinished.iterdir() if path.is_dir())
            files = (path for item in items for path in files_below(item))
            (unfinished / SUMS).write_text(json.dumps(_sums(unfinished, files)))

    return _Manager(
        directory,
        item_names=(_ITEM,),
        options=ocp.CheckpointManagerOptions(
            async_options=ocp.AsyncOptions(
                timeout_secs=_MONTH,
                post_finalization_callback=add_sums,
                create_directories_asynchronously=False,  # Orbax waits for them by the wall clock, too
            ),
            **options,
        ),
    )


def _sums(directory: Path, files: Iterable[Path]) -> dict[str, int]:
    return {str(path.relative_to(directory)): _crc32(path) for path in sorted(files)}


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _verify(checkpoint: Path) -> None:
    """
    Raises:
      ValueError: a file of `checkpoint` has changed since it was written. With several processes, each checks
        some of the files, and all raise.
    """
    if not (checkpoint / SUMS).exists():
        if leads():
            note = f"note: {checkpoint} is older than {SUMS}: cannot check it for damage"
            print(note, file=sys.stderr)
        return
    sums = sorted(read_json(checkpoint / SUMS).items())
    if (outer := checkpoint / _OUTER_SUMS).exists():  # not if the run was killed just before it was written
        sums += sorted(read_json(outer).items())
    damaged = -1
    for n in range(jax.process_index(), len(sums), jax.process_count()):
        name, crc = sums[n]
        if not (checkpoint / name).is_file() or _crc32(checkpoint / name) != crc:
            damaged = n
    if jax.process_count() > 1:
        damaged = int(np.max(multihost_utils.process_allgather(np.int32(damaged))))
    if damaged >= 0:
        raise ValueError(f"{sums[damaged][0]} is damaged: its checksum has changed")


def _unreadable_best(path: Path, error: Exception) -> Exception:
    if another_was_lost(error):
        return error
    return UserError(
        f"{path} cannot be read ({first_line(error)}); restore it, or train again with another --workdir"
    )


def best_of(values: Mapping[int, float]) -> int:
    """Returns the step with the highest value, the earliest in a tie; NaN ranks below all numbers."""
    return max(sorted(values), key=lambda step: _rank(values[step]))


def _rank(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _only(metrics: dict[str, float]) -> float:
    (value,) = metrics.values()
    return value


def _save(manager: _Manager, step: int, tree: Any, **more) -> None:
    """Starts a save, after checking for free space: Orbax would fail with pages of tracebacks."""
    _wait(manager)
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    if (
        not in_bucket(place(manager.directory))
        and (free := shutil.disk_usage(manager.directory).free) < needed
    ):
        raise UserError(
            f"{manager.directory}: the checkpoint of step {step} needs {needed / 2**20:.1f} MiB, "
            f"{free / 2**20:.1f} are free; free some space and run the same command again"
        )
    try:
        saved = manager.save(step, args=ocp.args.Composite(**{_ITEM: ocp.args.StandardSave(tree)}), **more)
    except Exception as error:
        raise _unwritten(manager, error) from None
    if not saved:
        raise UserError(
            f"{manager.directory}: step {step} is not saved because there is a later step, "
            f"{manager.latest_step()}; move it away and run the same command again"
        )
    manager.unsealed = step


def _wait(manager: _Manager) -> None:
    try:
        manager.wait_until_finished()
    except Exception as error:  # from tensorstore or the file system, in another thread
        raise _unwritten(manager, error) from None
    if manager.unsealed is not None and leads():
        checkpoint = place(manager.directory) / str(manager.unsealed)
        outer = (path for path in checkpoint.iterdir() if path.is_file())
        try:
            write_json(checkpoint / _OUTER_SUMS, _sums(checkpoint, outer))
        except OSError as error:
            raise _unwritten(manager, error) from None
    manager.unsealed = None


def _unwritten(manager: ocp.CheckpointManager, error: Exception) -> Exception:
    if another_was_lost(error):
        return error
    return UserError(
        f"{manager.directory}: a checkpoint cannot be written ({first_line(error)}); fix that and run the "
        "same command again"
    )


def _refuse_other_shapes(item: Any, like: Any) -> None:
    """Orbax would read all arrays at once, and print a traceback for every failure but the first.

    Raises:
      ValueError: an array in the directory `item` has another shape than in `like`.
    """

    def named(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}

    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        stored = named(handler.metadata(item).tree)
    for name, leaf in named(like).items():
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) or name not in stored:
            continue  # a key is stored as its words; Orbax names what is missing
        if stored[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {stored[name].shape}, the student's has {leaf.shape}")


def _restore(manager: ocp.CheckpointManager, step: int | None, like: Any) -> Any:
    _verify(place(manager.directory) / str(step))
    _refuse_other_shapes(manager.directory / str(step) / _ITEM, like)
    return manager.restore(step, args=ocp.args.Composite(**{_ITEM: ocp.args.StandardRestore(like)}))[_ITEM]
