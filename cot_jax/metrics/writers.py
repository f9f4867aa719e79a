"""Writes metrics to `metrics.jsonl` and TensorBoard, and to Weights & Biases on request."""

import contextlib
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cot_jax.errors import UserError, first_line
from cot_jax.files import copy_files, in_bucket, write_text
from cot_jax.imports import without_torch

with without_torch():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary


class _RowsInBucket:
    """An open `metrics.jsonl` in a bucket: nothing is appended to an object, so a flush writes all of it."""

    def __init__(self, path: Path, stored: str):
        self._path, self._stored, self._rows = path, stored, [stored]
        self.write = self._rows.append

    def flush(self) -> None:
        """
        Raises:
          UserError: another process has written the object since, and before its checkpoints mix with ours.
        """
        if self._path.read_bytes().decode() != self._stored:
            raise UserError(
                f"{self._path}: another process writes here, too: stop both, then start one again"
            )
        self._stored = "".join(self._rows)
        write_text(self._path, self._stored)

    close = flush


class MetricsWriter:
    """Writes one row per step to all sinks; a context manager.

    Args:
      directory: the work directory.
      resumed_step: later rows are removed from `metrics.jsonl`: a killed run wrote them after its last
        checkpoint and will write them again.
      wandb_config: the run's config for Weights & Biases; None: no logging there.
      writes: False in all but one process of a run: the others only read.
      selecting: name of the value by which parameters are selected.

    Attributes:
      evaluated: step -> selecting value, of every evaluation row.

    Raises:
      UserError: `metrics.jsonl` lacks rows up to `resumed_step`, or Weights & Biases does not start.
    """

    def __init__(
        self,
        directory: Path,
        resumed_step: int,
        wandb_config: dict[str, Any] | None = None,
        writes: bool = True,
        selecting: str = "valid/accuracy",
    ):
        path = directory / "metrics.jsonl"
        kept, last, self.evaluated = _rows_until(path, resumed_step, selecting)
        if last != resumed_step:
            raise UserError(
                f"{path}: its rows end at step {last}, the checkpoint is of step {resumed_step}: restore the "
                f"file or, to resume without the lost rows, {only_row(resumed_step)}"
            )
        self._writes = writes
        if not writes:
            return
        # First: if it fails, no file is open yet.
        self._wandb = _start_wandb(directory, wandb_config) if wandb_config is not None else None
        write_text(path, "".join(kept))
        self._directory, self._scratch = directory, None
        if in_bucket(directory):  # TensorBoard's files are appended to, here, and copied with each flush
            self._rows: Any = _RowsInBucket(path, "".join(kept))
            self._scratch = tempfile.TemporaryDirectory()
            directory = Path(self._scratch.name)
        else:
            self._rows = path.open("a", encoding="utf-8")
        events = directory / "tensorboard"
        events.mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies on a full disk, and then it waits for the thread forever.
        self._events = EventsWriter(str(events / "events"))
        if resumed_step:  # TensorBoard drops what a killed run wrote after it
            restart = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=resumed_step + 1, session_log=restart, wall_time=time.time()))

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        if not self._writes:
            return
        try:
            self._rows.close()
        finally:
            self._events.close()
            if self._wandb:
                self._wandb.finish()
            self._copy_events()
            if self._scratch:
                self._scratch.cleanup()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the row {"step": step, **values}."""
        if not self._writes:
            return
        self._rows.write(json.dumps({"step": step, **values}) + "\n")
        summary = Summary(value=[Summary.Value(tag=name, simple_value=x) for name, x in values.items()])
        self._events.write_event(Event(step=step, summary=summary, wall_time=time.time()))
        if self._wandb:
            self._wandb.log(values, step=step)

    def flush(self) -> None:
        if self._writes:
            self._rows.flush()
            if not self._scratch:
                os.fsync(self._rows.fileno())  # or a checkpoint may survive a crash and earlier rows not
            self._events.flush()
            self._copy_events()

    def _copy_events(self) -> None:
        if self._scratch:
            copy_files(Path(self._scratch.name) / "tensorboard", self._directory / "tensorboard")


def log_answers(directory: Path, config: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows, all with the same keys, to the run at Weights & Biases, as its table `answers`."""
    run = _start_wandb(directory, config)
    import wandb

    table = wandb.Table(columns=[*rows[0]], data=[[*row.values()] for row in rows])
    run.log({"answers": table})
    run.finish()


def last_step(directory: Path) -> int:
    """Returns the step of the last row in `directory`; 0 without rows."""
    return _rows_until(directory / "metrics.jsonl", math.inf, "")[1]


def only_row(step: int) -> str:
    """Returns the instruction to resume from `step` without the earlier rows."""
    return f'make {{"step": {step}}} the only line of metrics.jsonl'


def _rows_until(path: Path, step: float, selecting: str) -> tuple[list[str], int, dict[int, float]]:
    """Returns the rows up to a step, the last row's step, and step -> selecting value."""
    kept: list[str] = []
    last, evaluated = 0, {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = json.loads(line)
            if row["step"] > step or not line.endswith(b"\n"):
                break
        except (ValueError, TypeError, KeyError):  # a kill can truncate the last line, a disk lose all
            break
        kept.append(line.decode())
        last = row["step"]
        if selecting in row:
            evaluated[last] = row[selecting]
    return kept, last, evaluated


def require_wandb() -> None:
    """Raises UserError if Weights & Biases is not installed, or there is no login."""
    with _wandb() as wandb:
        wandb.login()


def _start_wandb(directory: Path, config: dict[str, Any]):
    # The name alone is that of other runs, too: seed0 of every method.
    whole_path = str(directory if in_bucket(directory) else directory.resolve())
    identity = hashlib.sha256(whole_path.encode()).hexdigest()[:16]
    scratch = None if in_bucket(directory) else str(directory)
    with _wandb() as wandb:
        return wandb.init(dir=scratch, config=config, id=identity, name=str(directory), resume="allow")


@contextlib.contextmanager
def _wandb() -> Iterator[Any]:
    """The module `wandb`, with its errors as a `UserError`."""
    try:
        import wandb
    except ImportError:
        raise UserError("config.train.wandb=True needs wandb: pip install 'cot-jax[wandb]'") from None
    try:
        yield wandb
    except wandb.Error as error:  # no key, no network
        raise UserError(
            f"config.train.wandb=True: Weights & Biases does not start ({first_line(error)}); log in with "
            "`wandb login`, or set WANDB_MODE=offline"
        ) from error
