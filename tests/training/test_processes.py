"""Several processes are one run: the same rows, one checkpoint, stopped together, resumed by fewer.

Those that go on arrange the devices otherwise: parameters are then divided over both processes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from cot_jax.training.mesh import another_was_lost

ROOT = Path(__file__).parents[2]
DEVICES = 4
RUN = (
    f"--config={ROOT / 'configs' / 'demo_dynsdpb.py'}",
    "--config.data.word_problems.train=48",
    "--config.data.word_problems.valid=8",
    "--config.data.word_problems.test=8",
    "--config.train.batch_size=8",
    "--config.train.steps=16",
    "--config.train.eval_every=8",
    "--config.train.checkpoint_every=100",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=4",
    "--show=0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=4e-3",
)


def _start(workdir, count, *arguments):
    """Starts `count` processes that share `DEVICES` devices."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    alone = count == 1
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "cot_jax.train", *RUN, f"--workdir={workdir}", *arguments),
                *(
                    ()
                    if alone
                    else (f"--coordinator=localhost:{port}", f"--processes={count}", f"--process={i}")
                ),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def _finish(processes):
    """Returns the exit statuses and what each printed."""
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], said


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_four_processes_are_stopped_together_and_two_go_on_as_one_would_have(tmp_path):
    reference, workdir = tmp_path / "reference", tmp_path / "run"
    statuses, said = _finish(_start(reference, 1))
    assert statuses == [0], said

    processes = _start(workdir, 4)
    deadline = time.monotonic() + 200
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    processes[2].send_signal(signal.SIGTERM)
    statuses, said = _finish(processes)
    assert statuses == [75] * 4, said
    assert ["step" in out for out, _ in said] == [True, False, False, False]
    assert "stopped at step" in said[0][1]
    stopped = _rows(workdir)[-1]["step"]
    assert 0 < stopped < 16
    assert [path.name for path in (workdir / "checkpoints" / "latest").iterdir()] == [str(stopped)]

    statuses, said = _finish(_start(workdir, 2, "--config.mesh.fsdp=2", "--config.mesh.model=2"))
    assert statuses == [0, 0], said
    assert "devices: 4 x cpu (fsdp 2, model 2)" in said[0][0]
    assert f"resuming from step {stopped}" in said[0][0]
    # Sums over devices are made in another order, which sixteen steps carry on.
    for row, expected in zip(_rows(workdir), _rows(reference), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-5)
    results = [json.loads((path / "result.json").read_text()) for path in (reference, workdir)]
    assert results[0]["test/accuracy"] == results[1]["test/accuracy"]
    assert [result["hardware"]["processes"] for result in results] == [1, 2]


@pytest.mark.slow
def test_a_process_that_is_left_alone_says_so_and_ends(tmp_path):
    """Before the first step, JAX itself may abort it: it is then that the connections are made."""
    leader, other = _start(tmp_path / "run", 2, "--config.train.steps=2000")
    for line in leader.stdout:
        if line.startswith("step 8: valid"):
            break
    other.kill()
    other.communicate()
    _, said = leader.communicate(timeout=300)
    assert leader.returncode == 1, said
    assert said.splitlines()[-1].endswith("start all of them again: they resume from the last checkpoint")


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation failed"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"), True),
        (ValueError("DATA_LOSS: Error decoding chunk"), False),
        (ValueError("expected an array of rank 2"), False),
        (OSError("UNKNOWN: "), False),
    ],
)
def test_a_lost_process_is_told_from_a_damaged_file(error, lost, monkeypatch):
    assert not another_was_lost(error)  # of one process
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert another_was_lost(error) is lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "give --coordinator=HOST:PORT, --processes=N and --process=I together"),
        (
            ["--coordinator=localhost:1", "--processes=2", "--process=2"],
            "--process=2: must be below --processes=2",
        ),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    from cot_jax.train import main

    assert main(["train", *RUN, *arguments]) == 2
    assert message in capsys.readouterr().err
