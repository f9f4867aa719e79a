"""Metrics rows: `metrics.jsonl` always, TensorBoard events beside it, Weights & Biases on request."""

import json
import time
from pathlib import Path
from typing import Any

from cot_jax.errors import UserError
from cot_jax.files import write_text
from cot_jax.imports import without_torch

with without_torch():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary


class MetricsWriter:
    """Writes one row a step to all sinks; a context manager.

    Args:
      directory: the work directory.
      resumed_step: rows after this step are removed from `metrics.jsonl`: a run that was killed wrote
        them after its last checkpoint and is about to write them again.
      wandb_config: the run's config to log to Weights & Biases, or None for no such logging.
      writes: False in all but one of the processes of a run: these only read what is there.
      selecting: name of the value that parameters are selected by.

    Attributes:
      evaluated: the last step with an evaluation row and its selecting value; 0 before the first.
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
        kept, self.evaluated = _rows_until(path, resumed_step, selecting)
        self._writes = writes
        if not writes:
            return
        write_text(path, "".join(kept))
        self._rows = path.open("a", encoding="utf-8")
        events = directory / "tensorboard"
        events.mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then it waits for it forever.
        self._events = EventsWriter(str(events / "events"))
        if resumed_step:  # TensorBoard drops what a run that was killed wrote after it
            restart = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=resumed_step + 1, session_log=restart, wall_time=time.time()))
        self._wandb = _start_wandb(directory, wandb_config) if wandb_config is not None else None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        if not self._writes:
            return
        self._rows.close()
        self._events.close()
        if self._wandb:
            self._wandb.finish()

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
            self._events.flush()


def _rows_until(path: Path, step: int, selecting: str) -> tuple[list[str], tuple[int, float]]:
    """Returns the rows up to a step, and the last one of them that was evaluated, with its value."""
    kept, evaluated = [], (0, 0.0)
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        # A kill can tear the last line; it is beyond the last checkpoint then.
        if not line.endswith("\n") or (row := json.loads(line))["step"] > step:
            break
        kept.append(line)
        if selecting in row:
            evaluated = (row["step"], row[selecting])
    return kept, evaluated


def _start_wandb(directory: Path, config: dict[str, Any]):
    try:
        import wandb
    except ImportError:
        raise UserError("config.train.wandb=True needs wandb: pip install 'cot-jax[wandb]'") from None
    return wandb.init(dir=str(directory), config=config, id=directory.name, resume="allow")
