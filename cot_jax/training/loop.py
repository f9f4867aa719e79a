"""The training loop: dispatch a step, read the metrics of the previous one, evaluate, save, stop."""

import contextlib
import dataclasses
import functools
import math
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cot_jax.answers.equality import accuracy
from cot_jax.config import TrainConfig, refuse_other_config, to_json
from cot_jax.data.lengths import describe as describe_shape
from cot_jax.errors import UserError
from cot_jax.files import locked, read_json_lines, uploaded, write_json, write_text
from cot_jax.metrics.plots import draw_layer_norms, require_matplotlib
from cot_jax.metrics.writers import MetricsWriter, last_step, only_row, require_wandb
from cot_jax.training.checkpoints import Checkpoints, best_of
from cot_jax.training.console import Clock, Progress, hardware, say
from cot_jax.training.experiment import Experiment
from cot_jax.training.mesh import leads
from cot_jax.training.result import RESULT_FILE, read_result
from cot_jax.training.run import Run
from cot_jax.training.saved import (
    EXAMPLES,
    STUDENT_FILE,
    refuse_other_base,
    refuse_other_examples,
    write_answers,
)
from cot_jax.training.step import LAYER_NORM, TrainState
from cot_jax.training.students import BASE, compute_dtype

PREEMPTED = 75  # exit status: saved, run the same command again (EX_TEMPFAIL)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Set by a signal whose `Preempted` may be lost: Python drops what is raised in a callback of its garbage
# collector, and JAX has one.
_stop = threading.Event()


class Preempted(BaseException):  # so that a library's `except Exception` does not catch it
    """SIGTERM or Ctrl-C arrived; the state is saved, or there is none yet."""


class Diverged(Exception):
    """A loss is not finite."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Makes SIGTERM and SIGINT raise `Preempted` outside training, when there is no state to save.

    With several processes JAX's coordination service handles signals, as in `_StopSignal`.
    """

    def stop(*_):
        _stop.set()
        raise Preempted("stopped outside of training; the same command resumes from the last checkpoint")

    previous = [(number, signal.signal(number, stop)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
        _stop.clear()


class _StopSignal:
    """Notes SIGTERM and SIGINT while active; a second one acts as usual.

    Of several processes, one that is told to stop by SIGTERM stops all of them, at the same place: JAX's
    coordination service listens for it, once they are joined.
    """

    def __enter__(self) -> "_StopSignal":
        self._received, self._asked = False, 0
        main = threading.current_thread() is threading.main_thread()  # Python gives signals to no other
        signals = _SIGNALS if main and not jax.distributed.is_initialized() else ()
        self._previous = [(number, signal.signal(number, self._note)) for number in signals]
        return self

    def reached(self) -> bool:
        """Whether to stop here; every process asks at the same places."""
        self._asked += 1
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._received or _stop.is_set()

    def in_evaluation(self, step: int) -> None:
        """Called before each batch of questions to the saved parameters of `step`.

        Raises:
          Preempted: stop here. The evaluation is lost.
        """
        if self.reached():
            raise Preempted(f"stopped in the evaluation of step {step}; the same command starts it again")

    def _note(self, *_) -> None:
        self._received = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous:
            signal.signal(number, handler)

    def __exit__(self, *_) -> None:
        self._restore()


class _Profile:
    """A trace of some steps, started after the first ones have compiled; for Perfetto and XProf.

    A context manager: if training ends earlier, so does the trace.
    """

    AFTER = 10

    def __init__(self, directory: Path, first: int, steps: int):
        self._directory, self._first, self._last = directory, first + self.AFTER, first + self.AFTER + steps
        self._trace = contextlib.ExitStack()

    def after(self, step: int, state: TrainState) -> None:
        """Starts or stops the trace if this step is its first or last."""
        if self._first == self._last or step not in (self._first, self._last) or not leads():
            return
        jax.block_until_ready(state)
        if step == self._first:
            directory = self._trace.enter_context(uploaded(self._directory))
            jax.profiler.start_trace(directory, create_perfetto_trace=True)
            self._trace.callback(jax.profiler.stop_trace)
        else:
            self._trace.close()
            say(f"profile of steps {self._first + 1} to {self._last} written to {self._directory}")

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, *_) -> None:
        self._trace.close()


def train(experiment: Experiment, workdir: Path, profile_steps: int = 0) -> dict[str, Any]:
    """Trains to the last step, or until patience ends; resumes where `workdir` holds a checkpoint.

    `profile_steps` steps are traced to `workdir/profile`.

    Returns:
      What `workdir/result.json` says.

    Raises:
      UserError: the work directory holds a run of another config or of other data, is in use, or cannot be
        written.
      Preempted: stopped by a signal, after saving.
      Diverged: a loss is not finite; the last good checkpoint is kept.
    """
    config = experiment.config
    if config.train.layer_norms_every:
        require_matplotlib()
        if config.train.layer_norms_every > config.train.steps:
            raise UserError(
                f"config.train.layer_norms_every={config.train.layer_norms_every} is more than "
                f"config.train.steps={config.train.steps}: choose a smaller one, or 0 for none"
            )
    if config.train.wandb and leads():
        require_wandb()
    run = Run(experiment)
    with locked(workdir) if leads() else contextlib.nullcontext(), jax.set_mesh(run.mesh):
        _claim(workdir, experiment)
        if result := read_result(workdir, shape={"best_step": int}):
            say(f"{workdir} is complete; delete it or choose another --workdir to train again")
            return result
        for line in describe(run):
            say(line)
        with Checkpoints(workdir / "checkpoints", clean=True) as checkpoints:
            result = _resume(run, workdir, checkpoints, profile_steps)
        if leads():
            if 0 < config.train.layer_norms_every <= result["steps"]:
                draw_layer_norms(workdir / "metrics.jsonl", LAYER_NORM, workdir / "layer_norms.png")
            write_json(workdir / RESULT_FILE, result)  # last: it marks the run as complete
    return result


def _resume(run: Run, workdir: Path, checkpoints: Checkpoints, profile_steps: int) -> dict[str, Any]:
    """Trains from the latest checkpoint, or from the start if there is none; returns the result."""
    experiment, config, clock = run.experiment, run.experiment.config, Clock()
    if checkpoints.latest_step is None:
        if (workdir / "metrics.jsonl").exists():
            _refuse_lost_checkpoints(workdir, config.train)
            say(f"{workdir} was stopped before its first checkpoint: it starts again")
        state = run.initial_state()
    else:
        state = run.restore_latest(checkpoints)
        say(f"resuming from step {int(state.step)} of {workdir}")
    first = int(state.step)
    wandb_config = dataclasses.asdict(config) if config.train.wandb else None
    with (
        MetricsWriter(workdir, first, wandb_config, leads(), experiment.selecting) as writer,
        _StopSignal() as stop,
        _Profile(workdir / "profile", first, profile_steps) as profile,
    ):
        _refuse_lost_best(workdir, first, writer.evaluated, checkpoints.best)
        left = config.train.steps - first
        if profile_steps and left < _Profile.AFTER + profile_steps:
            raise UserError(
                f"--profile_steps={profile_steps} follow {_Profile.AFTER} other steps, but only {left} of "
                f"config.train.steps={config.train.steps} are left: ask for fewer"
            )
        steps = _steps(run, state, checkpoints, writer, stop, clock, profile)
        return _conclude(run, checkpoints, workdir, stop, clock, steps)


def _refuse_lost_checkpoints(workdir: Path, config: TrainConfig) -> None:
    """
    Raises:
      UserError: metrics.jsonl has rows beyond the first checkpoint, so there was one.
    """
    if (last := last_step(workdir)) > min(config.checkpoint_every, config.eval_every):
        raise UserError(
            f"{workdir / 'checkpoints' / 'latest'} has no checkpoint, but metrics.jsonl has rows until step "
            f"{last}: restore it, or delete {workdir / 'metrics.jsonl'} to train from the start"
        )


def _refuse_lost_best(
    workdir: Path, step: int, evaluated: dict[int, float], best: tuple[int, float] | None
) -> None:
    """
    Raises:
      UserError: `best` belongs to none of the evaluations in metrics.jsonl, nor to a later one.
    """
    before = {n: value for n, value in evaluated.items() if n < step}  # that of `step` may not be saved yet
    if not before or (best and (best[0] >= step or best[0] == best_of(before))):
        return
    raise UserError(
        f"{workdir / 'checkpoints' / 'best'} lacks the parameters of step {best_of(before)}, the best by "
        f"metrics.jsonl: restore them or, to resume without them, {only_row(step)}"
    )


def _steps(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    stop: _StopSignal,
    clock: Clock,
    profile: _Profile,
) -> int:
    """Trains; returns the last step."""
    config = run.experiment.config.train
    first, selecting = int(state.step), run.experiment.selecting
    splits = ("valid", "test") if run.experiment.config.evaluation.reference_protocol else ("valid",)

    def due(step):
        return step > 0 and (step % config.eval_every == 0 or step == config.steps)

    def record(step, metrics):
        by_layer = config.layer_norms_every and step % config.layer_norms_every == 0
        row = {n: float(value) for n, value in metrics.items() if by_layer or not n.startswith(LAYER_NORM)}
        if broken := [name for name, value in row.items() if not math.isfinite(value)]:
            raise Diverged(
                f"step {step}: {', '.join(broken)} not finite; try a lower config.optimizer.learning_rate "
                f"(the last good checkpoint, step {checkpoints.latest_step or 0}, is kept)"
            )
        writer.write(step, row)
        progress.update(step, row)

    def evaluate(step):
        check = functools.partial(stop.in_evaluation, step)
        row: dict[str, float] = {}
        for split in splits:
            row |= run.evaluate(state.params, split, check)
        writer.write(step, row)
        writer.flush()
        say(f"step {step}: " + ", ".join(f"{name} {value:.4f}" for name, value in row.items()))
        return row[selecting]

    def ends(step, value):
        """Keeps the parameters if they are best; whether patience is at its end.

        It is counted from what is saved anyway, so a resumed run stops where an uninterrupted one does.
        """
        best = checkpoints.save_if_best(step, state.params, value, selecting)
        if not config.patience or step - best < config.patience * config.eval_every:
            return False
        say(f"step {step}: no better {selecting} than at step {best}, so training stops")
        return True

    with (
        Progress(first, config.steps, config.batch_size, config.log_every) as progress,
        run.compiled_ahead(first) as train_step,
    ):
        if due(first):  # it was stopped between saving and the end of the evaluation
            value = writer.evaluated[first] if first in writer.evaluated else evaluate(first)
            if ends(first, value):
                return first
        pending = None
        for step in range(first + 1, config.steps + 1):
            with clock:
                state, metrics = train_step(state, run.batch(step - 1))
                profile.after(step, state)
                if pending:
                    record(*pending)
                pending = (step, metrics)
                stopping = stop.reached()
                saving = due(step) or step % config.checkpoint_every == 0 or stopping
                # The first at once: the program of the second may take minutes to compile.
                if saving or step == first + 1:
                    record(*pending)
                    pending = None
            if not saving:
                continue
            writer.flush()
            checkpoints.save(step, state)
            if stopping:
                raise Preempted(f"stopped at step {step} and saved; the same command resumes from there")
            if due(step) and ends(step, evaluate(step)):
                return step
    return config.steps


def _conclude(
    run: Run, checkpoints: Checkpoints, workdir: Path, stop: _StopSignal, clock: Clock, steps: int
) -> dict[str, Any]:
    """Evaluates the best parameters on test, the only time it is looked at, and sums up the run."""
    experiment, config = run.experiment, run.experiment.config
    assert checkpoints.best  # the last step is always evaluated
    step, best = checkpoints.best
    metric = experiment.splits.metrics[0]
    params = run.restore_best(checkpoints)
    tested = run.evaluate(params, "test", functools.partial(stop.in_evaluation, step))
    result = {
        "metric": metric,
        "best_step": step,
        f"valid/{metric}": best,
        **tested,
        "test/teacher_accuracy": teacher_accuracy(experiment),
        "steps": steps,
        "stopped_early": steps < config.train.steps,
        "examples": len(experiment.train_examples),
        "example_visits": steps * config.train.batch_size,
        "parameters": run.parameters,
        "trained_parameters": run.trained_parameters,
        "wall_seconds": clock.wall,
        "train_seconds": clock.seconds,
        "examples_per_second": clock.entered * config.train.batch_size / clock.seconds
        if clock.entered
        else None,
        **hardware(),
    }
    if config.evaluation.reference_protocol:
        result["reference_protocol"] = _reference_protocol(workdir / "metrics.jsonl", f"test/{metric}")
    return result


def _reference_protocol(metrics_file: Path, name: str) -> dict[str, float]:
    """Last and best of a test metric over all evaluations: what the papers' tables seem to report."""
    rows = (row.values for row in read_json_lines(metrics_file))
    values = [row[name] for row in rows if name in row]
    return {f"{name}_last": values[-1], f"{name}_best": max(values)}


def teacher_accuracy(experiment: Experiment) -> float | None:
    """Share of test questions whose teacher label is right; None without teacher labels."""
    test = experiment.splits.test
    if all(example.teacher_label is None for example in test):
        return None
    said = [example.teacher_label or "" for example in test]
    return accuracy(said, [example.label for example in test], experiment.splits.by_value)


def describe(run: Run) -> list[str]:
    """Returns lines that say what will run: data, method, model, shapes, devices, steps."""
    experiment, config = run.experiment, run.experiment.config
    count = len(run.batches.shapes)
    programs = "1 program" if count == 1 else f"{count} programs"
    filled = "; ".join(
        f"{view} inputs {100 * inputs:.1f} %, targets {100 * targets:.1f} %"
        for view, (inputs, targets) in run.batches.filled.items()
    )
    lines = [
        f"task {config.data.task}, method {config.objective.method}, seed {config.seed}",
        *experiment.report,
        f"{programs} to compile, slots (longest text) of each view's inputs > "
        f"targets: {'; '.join(map(describe_shape, run.batches.shapes))}",
        f"slots with a token: {filled}; {100 * run.batches.efficiency:.0f} % of the arithmetic is for tokens",
        f"model: {run.parameters:,} parameters, "
        + (config.model.pretrained or f"preset {config.model.preset} from scratch"),
        *([_describe_lora(run)] if experiment.lora else []),
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}{_arrangement(run.mesh)}, "
        f"{compute_dtype(config.model)} compute",
        f"{config.train.steps} steps of {config.train.batch_size} examples, "
        f"{config.train.steps / experiment.steps_an_epoch:.1f} epochs, "
        f"{config.train.steps * config.train.batch_size / len(experiment.train_examples):.1f} visits of each",
    ]
    if distillation := experiment.self_distillation:
        line = f"self-distillation: {distillation.method} on {' and '.join(distillation.views)}"
        if distillation.distills:
            line += f", {distillation.output} of half a batch kept: {run.stored_bytes / 2**20:.2f} MiB"
        lines.append(line)
    return lines


def _arrangement(mesh: jax.sharding.Mesh) -> str:
    sizes = [f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1]
    return f" ({', '.join(sizes)})" if sizes else ""


def _describe_lora(run: Run) -> str:
    config, lora = run.experiment.config, run.experiment.lora
    assert lora
    return (
        f"LoRA of rank {config.model.lora_rank} on {len(lora.modules)} matrices: {run.trained_parameters:,} "
        f"parameters are trained, {100 * run.trained_parameters / run.parameters:.2g} % as many"
    )


def dry_run(experiment: Experiment) -> list[str]:
    """Returns what `describe` says and, of the first batch, the first example of every view, decoded."""
    run = Run(experiment)
    lines = describe(run)
    format = experiment.format
    rows = run.batches.rows(0)
    for name, view in experiment.tokenized.items():
        row = rows[np.argmax(view.longest_targets()[rows] > 0)]  # not every example has every view
        target = row if view.first is None else view.first[row]
        read = [*view.inputs.prefix.tolist(), *view.inputs[row].tolist()]
        write = view.targets[target].tolist()
        lines += [f"view {name} reads:  {format.tokenizer.decode(read)}"]
        lines += [f"view {name} writes: {format.decode(name, write)}"]
    return lines


def _claim(workdir: Path, experiment: Experiment) -> None:
    """Makes the work directory this config's, or refuses; writes what `saved.load` needs there."""
    taken = refuse_other_config(workdir, experiment.config)
    if not taken and (workdir / "checkpoints").exists():
        raise UserError(
            f"{workdir} has checkpoints, but no config.json of their run: restore it, or choose "
            "another --workdir"
        )
    architecture, examples = experiment.architecture(), experiment.checksum()
    if taken and (workdir / STUDENT_FILE).is_file():
        if experiment.lora:
            refuse_other_base(workdir / STUDENT_FILE, architecture[BASE], experiment.config.model.pretrained)
        refuse_other_examples(workdir / STUDENT_FILE, examples)
    if leads():
        workdir.mkdir(parents=True, exist_ok=True)
        if not taken:
            write_text(workdir / "config.json", to_json(experiment.config))
        write_answers(workdir, experiment.format, experiment.splits.by_value, experiment.answer_labels())
        write_json(workdir / STUDENT_FILE, architecture | {EXAMPLES: examples})
        with uploaded(workdir / "tokenizer") as directory:
            experiment.format.save(directory)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("claimed")
