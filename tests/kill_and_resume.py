"""Kills a small training run with SIGKILL again and again, and compares every row with the undisturbed run's.

    python -m tests.kill_and_resume --kills=20 [--processes=2] [--seed=1] [--directory=DIR] [--config.KEY=...]

With --config.model.preset=tiny-llama, a decoder.

Every second kill waits for a checkpoint to be begun and hits its save; the others come at any moment. A run
that reaches its end is compared, bit for bit, and the next one begins. Ends with status 1 at a difference.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = (
    *(sys.executable, "-m", "cot_jax.train", f"--config={ROOT / 'configs' / 'demo_dynsdpb.py'}"),
    "--show=0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=4e-3",
    "--config.data.word_problems.train=48",
    "--config.data.word_problems.valid=8",
    "--config.data.word_problems.test=8",
    "--config.train.batch_size=8",
    "--config.train.steps=36",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=2",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=4",
)
TIMINGS = ("wall_seconds", "train_seconds", "examples_per_second")
SECONDS_TO_FOLLOW = 180


class Run:
    """A training run of some processes in one work directory."""

    def __init__(self, workdir: Path, processes: int, flags: Sequence[str]):
        self.workdir, self._count, self._flags = workdir, processes, flags

    def start(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_NUM_CPU_DEVICES": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.workdir.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        with socket.create_server(("localhost", 0)) as free:
            join = [f"--coordinator=localhost:{free.getsockname()[1]}", f"--processes={self._count}"]
        self.processes = []
        for i in range(self._count):
            more = [*join, f"--process={i}"] if self._count > 1 else []
            with self.log(i).open("w") as log:
                command = [*TRAIN, *self._flags, f"--workdir={self.workdir}", *more]
                self.processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

    def log(self, process: int) -> Path:
        return self.workdir.parent / f"{self.workdir.name}.{process}.log"

    @property
    def ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def unfinished(self) -> set[tuple[str, int]]:
        """The checkpoints that are being, or were half, written."""
        return {
            (path.name, path.stat().st_ino) for path in self.workdir.glob("checkpoints/*/*checkpoint-tmp*")
        }

    def rows(self) -> str:
        return (self.workdir / "metrics.jsonl").read_text()

    def result(self) -> dict:
        result = json.loads((self.workdir / "result.json").read_text())
        return {key: value for key, value in result.items() if key not in TIMINGS}

    def finish(self) -> None:
        """Waits until all processes end well.

        Raises:
          RuntimeError: one does not.
        """
        for i, process in enumerate(self.processes):
            if process.wait() != 0:
                said = self.log(i).read_text()[-2000:]
                raise RuntimeError(f"process {i} ended with status {process.returncode}:\n{said}")

    def kill(self, victims: Sequence[int]) -> str:
        """Kills some processes and waits for the others; returns how they ended.

        Raises:
          RuntimeError: the others hang.
        """
        for i in victims:
            self.processes[i].send_signal(signal.SIGKILL)
        began, others = time.monotonic(), []
        for i, process in enumerate(self.processes):
            try:
                status = process.wait(SECONDS_TO_FOLLOW)
            except subprocess.TimeoutExpired:
                process.kill()
                raise RuntimeError(f"process {i} hangs {SECONDS_TO_FOLLOW} s after another's death") from None
            if i not in victims:
                after = time.monotonic() - began
                last = (self.log(i).read_text().splitlines() or [""])[-1]
                others.append(f"; process {i} ended {after:.1f} s later, status {status}: {last[:150]}")
        return "".join(others)


def disturb(run: Run, seconds: float, in_save: bool, draw: random.Random) -> str | None:
    """Starts the run and kills it; returns what was hit, or None if it reached its end before."""
    before, seen, saves = run.unfinished(), set(), draw.randint(1, 3)
    run.start()
    began, moment = time.monotonic(), draw.uniform(0.0, seconds)
    while not run.ended:
        if in_save:
            seen |= run.unfinished() - before
            if len(seen) >= saves:
                time.sleep(draw.uniform(0.0, 0.03))
                break
        elif time.monotonic() - began > moment:
            break
        time.sleep(0.001)
    else:
        run.finish()
        return None
    count = len(run.processes)
    victims = range(count) if draw.random() < 0.5 else [draw.randrange(count)]
    after, others = time.monotonic() - began, run.kill(victims)
    hit = sorted(name for name, _ in run.unfinished() - before)
    what = f"half written: {', '.join(hit)}" if hit else "no save under way"
    which = f"process {', '.join(map(str, victims))} " if count > 1 else ""
    return f"{which}killed after {after:.1f} s, {what}{others}"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1, help="one of them, or all, are killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--directory", type=Path, help="where the runs are kept; else nowhere")
    options, flags = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        undisturbed = Run(directory / "undisturbed", options.processes, flags)
        began = time.monotonic()
        undisturbed.start()
        undisturbed.finish()
        seconds, draw = time.monotonic() - began, random.Random(options.seed)
        kills, hits, different, round_ = 0, 0, 0, 0
        while kills < options.kills:
            run, round_ = Run(directory / f"round{round_}", options.processes, flags), round_ + 1
            while kills < options.kills and (what := disturb(run, seconds, kills % 2 == 0, draw)):
                kills, hits = kills + 1, hits + ("half written" in what)
                print(f"kill {kills}: {what}", flush=True)
            run.start()
            run.finish()
            same = (run.rows(), run.result()) == (undisturbed.rows(), undisturbed.result())
            different += not same
            print(
                f"{run.workdir.name}: {'all rows and the result equal' if same else 'DIFFERENT'}", flush=True
            )
        print(f"{kills} kills, {hits} of them in a save: {round_ - different} of {round_} runs equal")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
