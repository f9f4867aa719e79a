"""The command, as a user runs it: results on disk, resume after a kill, exit statuses, plain errors."""

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

import cot_jax as cj
from cot_jax import api
from cot_jax.answers.equality import is_correct
from cot_jax.config import Config, TrainConfig, parse_command_line
from cot_jax.errors import UserError
from cot_jax.files import locked, write_json_lines
from cot_jax.train import main
from cot_jax.training import loop, showing
from cot_jax.training.data import load_splits
from cot_jax.training.run import Run
from cot_jax.training.saved import load

ROOT = Path(__file__).parents[1]
DEMO = f"--config={ROOT / 'configs' / 'demo_mi.py'}"
SMALL = (
    DEMO,
    "--config.data.word_problems.train=48",
    "--config.data.word_problems.valid=8",
    "--config.data.word_problems.test=8",
    "--config.train.batch_size=8",
    "--config.train.steps=12",
    "--config.train.eval_every=6",
    "--config.train.checkpoint_every=2",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=4",
    "--show=0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=4e-3",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Runs share compiled programs: what is tested is not the compiler."""
    cache = tmp_path_factory.mktemp("compiled")
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


def _start(workdir, environment, *more):
    command = [sys.executable, "-m", "cot_jax.train", *SMALL, f"--workdir={workdir}", *more]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workdir.parent,
    )


def _finish(workdir, environment, *more):
    process = _start(workdir, environment, *more)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def _rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, _finish(workdir, environment)


@pytest.mark.slow
def test_what_a_run_prints_and_writes(uninterrupted):
    workdir, printed = uninterrupted
    for words in (
        "task word_problems, method mi",
        "parameters",
        "program to compile, slots (longest text) of each view's inputs > targets: ",
        "cut at 1024",
        "valid: 8 of 8 answers cut at config.evaluation.max_new_tokens=4",
        "test accuracy: ",
    ):
        assert words in printed
    rows = _rows(workdir)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    for row in steps:
        assert row.keys() == {"step", "loss", "loss/label", "loss/rationale", "loss/mi", "grad_norm"}
        total = 0.5 * row["loss/label"] + 0.5 * row["loss/rationale"] + 0.1 * row["loss/mi"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    assert [row["step"] for row in rows if "valid/accuracy" in row] == [6, 12]
    result = json.loads((workdir / "result.json").read_text())
    assert result["best_step"] in (6, 12)
    trained = load(workdir)  # what predict and export begin with
    assert (trained.by_value, trained.labels) == (True, None)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained.params)) == result["parameters"]
    assert result["example_visits"] == 96
    assert result["versions"]["jax"]
    assert (workdir / "tokenizer" / "tokenizer.json").is_file()
    assert list((workdir / "tensorboard").glob("events*"))
    assert not list(workdir.glob("*.partial"))


@pytest.mark.slow
def test_a_run_shows_its_learning_curve_and_its_own_answers(uninterrupted, capsys):
    workdir, _ = uninterrupted
    trained = cj.load(workdir)
    trained.show(2)
    shown = capsys.readouterr().out.splitlines()
    (workdir / showing.PICTURE).unlink()  # Matplotlib wrote it
    values = [row["valid/accuracy"] for row in _rows(workdir) if "valid/accuracy" in row]
    bars = [
        f"{step:9}{100 * value:7.1f} % {'#' * round(40 * value)}"
        for step, value in zip((6, 12), values, strict=True)
    ]
    assert shown[:4] == ["", "valid/accuracy by step", *(bar.rstrip() for bar in bars)]
    asked = load_splits(trained.saved.config.data, 0, trained.saved.student.format).test[:2]
    answers = trained.predict([example.text for example in asked], explain=True, batch_size=2)
    for example, answer, block in zip(asked, answers, (shown[5:9], shown[9:]), strict=True):
        assert block[1] == example.text
        assert block[2].removeprefix("  rationale:").strip() == answer["rationale"].strip()
        right = is_correct(answer["label"], example.label, by_value=True)
        verdict = "correct" if right else f"wrong, it is {example.label}"
        assert block[3] == f"  answer:    {answer['label']} ({verdict})"


def test_the_answers_shown_are_logged_to_wandb_if_the_run_is(tmp_path, monkeypatch, capsys):
    write_json_lines(tmp_path / "metrics.jsonl", [{"step": 1, "valid/accuracy": 0.5}])
    rows = [{"question": "How?", "answer": "5", "label": "3", "correct": False}]
    logged = []
    wandb = types.SimpleNamespace(
        init=lambda **given: (
            logged.append(given["config"]["seed"])
            or types.SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))
        ),
        Table=lambda **given: given,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(showing, "draw", lambda *given: [])
    monkeypatch.setattr(showing, "answers", lambda *given: rows)
    for config in (Config(seed=3), Config(seed=4, train=TrainConfig(wandb=True))):
        trained = api.Trained(tmp_path, {"metric": "accuracy"})
        trained.__dict__["saved"] = types.SimpleNamespace(config=config)
        trained.show(1)
        assert "answer:    5 (wrong, it is 3)" in capsys.readouterr().out
    table = {"columns": ["question", "answer", "label", "correct"], "data": [["How?", "5", "3", False]]}
    assert logged == [4, {"answers": table}, "finished"]


def test_a_complete_run_is_not_shown_again(uninterrupted, tmp_path, capsys):
    """Its checkpoints may be gone."""
    whole = tmp_path / "whole"
    shutil.copytree(uninterrupted[0], whole, ignore=shutil.ignore_patterns("checkpoints"))
    assert main(["train", *SMALL, "--show=2", f"--workdir={whole}"]) == 0
    said = capsys.readouterr().out
    assert "is complete" in said
    assert "answer:" not in said


def test_a_curve_has_few_lines_and_the_last_evaluation(tmp_path):
    rows = [{"step": step, "valid/f1": step / 100} for step in range(1, 31)]
    write_json_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}, *rows])
    title, *lines = showing.learning_curve(tmp_path, "f1")
    assert title == "valid/f1 by step"
    assert [int(line.split()[0]) for line in lines] == list(range(2, 31, 2))
    assert lines[-1].split()[1:] == ["30.0", "%", "#" * 12]


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(uninterrupted, capsys):
    workdir, _ = uninterrupted
    before = (workdir / "metrics.jsonl").stat().st_mtime_ns
    assert main(["train", *SMALL, f"--workdir={workdir}"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert (workdir / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(uninterrupted, environment, tmp_path):
    """SIGKILL: tests/kill_and_resume.py."""
    workdir = tmp_path / "stopped"
    process = _start(workdir, environment)
    deadline = time.monotonic() + 240
    # A committed checkpoint is a directory named by its step.
    while not any(path.name.isdigit() for path in (workdir / "checkpoints" / "latest").glob("*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert not (workdir / "result.json").exists()
    assert "resuming from step" in _finish(workdir, environment)
    _assert_equal(workdir, uninterrupted[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_stops_the_command(tmp_path, monkeypatch, capsys, number):
    def load(_):
        try:
            os.kill(os.getpid(), number)
        except Exception:  # as libraries do
            raise UserError("cannot be loaded") from None

    monkeypatch.setattr(api, "prepare", load)
    before = signal.getsignal(number)
    assert main(["train", *SMALL, f"--workdir={tmp_path / 'run'}"]) == 75
    expected = "stopped outside of training; the same command resumes from the last checkpoint\n"
    assert capsys.readouterr().err == expected
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_a_signal_whose_exception_is_lost_stops_the_first_step(tmp_path, monkeypatch, capsys):
    """Python drops what is raised in a callback of its garbage collector."""
    prepare, dropped = api.prepare, []

    def signaled(*_):
        gc.callbacks.remove(signaled)
        os.kill(os.getpid(), signal.SIGTERM)

    def load(config):
        gc.callbacks.append(signaled)
        gc.collect()
        return prepare(config)

    monkeypatch.setattr(sys, "unraisablehook", lambda lost: dropped.append(lost.exc_type))
    monkeypatch.setattr(api, "prepare", load)
    assert main(["train", *SMALL, f"--workdir={tmp_path / 'run'}"]) == 75
    assert dropped == [loop.Preempted]
    assert "stopped at step 1 and saved; the same command resumes from there" in capsys.readouterr().err


def test_a_signal_during_the_imports_stops_the_command(environment, tmp_path):
    # Exceptions are lost or fatal where a library imports from C++, or catches all of them as here.
    (tmp_path / "sitecustomize.py").write_text(
        "import contextlib, os, signal, sys\n"
        "class Signals:\n"
        "    def find_spec(self, name, *_):\n"
        "        with contextlib.suppress(BaseException):\n"
        "            name == 'jaxlib' and os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Signals())\n"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "cot_jax.train", *SMALL, f"--workdir={tmp_path / 'run'}"]
    status = subprocess.run(command, env=environment | {"PYTHONPATH": path}, timeout=100).returncode
    assert status == 75
    assert not (tmp_path / "run").exists()


EPOCHS = (
    "--config.objective.method=standard",
    "--config.train.steps=0",
    "--config.train.epochs=10",
    "--config.train.eval_every=0",
    "--config.train.checkpoint_every=0",
    "--config.train.patience=2",
    "--config.data.word_problems.train=16",
    "--config.optimizer.warmup_steps=0",
    "--config.optimizer.warmup_ratio=0.1",
)


class _Killed(Exception):
    pass


@pytest.fixture
def scripted(monkeypatch):
    """Replaces evaluation: each epoch of two steps has a set accuracy, unless the run is killed there."""
    kills = set()

    def evaluate(self, params, split, before_batch):
        # The sum of all parameters tells how far training is, and that a resumed run equals the whole one.
        progress = float(sum(leaf.sum() for leaf in jax.tree.leaves(params)))
        epoch = seen.setdefault((split, progress), sum(name == split for name, _ in seen) + 1)
        if (split, epoch) in kills:
            kills.remove((split, epoch))
            raise _Killed
        return {f"{split}/accuracy": [0.0, 0.25, 0.5, 0.25, 0.5, 0.75][epoch - 1]}

    seen: dict[tuple[str, float], int] = {}
    monkeypatch.setattr(Run, "evaluate", evaluate)
    return kills


@pytest.mark.slow
def test_sigterm_ends_an_evaluation_between_batches_and_the_same_command_repeats_it(
    tmp_path, monkeypatch, capsys
):
    make, asked, signaled = Run._make_generate, [], set()

    def make_counted(self):
        generate = make(self)

        def counted(*questions):
            asked.append(1)
            if len(asked) in signaled:
                os.kill(os.getpid(), signal.SIGTERM)
            return generate(*questions)

        return counted

    def train(name, *at):
        asked.clear()
        signaled.clear()
        signaled.update(at)
        more = ("--config.objective.method=standard", "--config.train.steps=4", "--config.train.eval_every=2")
        more += tuple(f"--config.data.word_problems.{split}=32" for split in ("valid", "test"))  # 4 batches
        return main(["train", *SMALL, *more, f"--workdir={tmp_path / name}"]), len(asked)

    monkeypatch.setattr(Run, "_make_generate", make_counted)
    assert train("whole") == (0, 12)
    capsys.readouterr()
    said = []
    for at, expected in ((2, (75, 2)), (7, (75, 7)), (6, (75, 6))):
        assert train("stopped", at) == expected
        said.append(capsys.readouterr().err.splitlines()[-1])
    # At last that of the best parameters, on test.
    again = "; the same command starts it again"
    assert said == [f"stopped in the evaluation of step {step}{again}" for step in (2, 4, 2)]
    assert train("stopped") == (0, 4)
    assert _rows(tmp_path / "stopped") == _rows(tmp_path / "whole")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "stopped")]
    timed = {"wall_seconds", "train_seconds", "examples_per_second"}
    whole, stopped = ({k: v for k, v in result.items() if k not in timed} for result in results)
    assert stopped == whole


@pytest.mark.slow
def test_patience_ends_a_run_by_epochs_at_the_same_step_killed_or_not(tmp_path, scripted, capsys):
    def train(name):
        return main(["train", *SMALL, *EPOCHS, f"--workdir={tmp_path / name}"])

    assert train("whole") == 0
    printed = capsys.readouterr().out
    assert "20 steps of 8 examples, 10.0 epochs, 10.0 visits of each" in printed
    # The third epoch is best; the fifth is as good, and so is the second without anything better.
    assert "step 10: no better valid/accuracy than at step 6, so training stops" in printed
    rows = _rows(tmp_path / "whole")
    assert [row["step"] for row in rows if "valid/accuracy" in row] == [2, 4, 6, 8, 10]
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    expected = {
        "metric": "accuracy",
        "best_step": 6,
        "valid/accuracy": 0.5,
        "steps": 10,
        "example_visits": 80,
    }
    assert result.items() >= expected.items()
    assert result["stopped_early"] is True
    saved = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (saved["train"]["epochs"], saved["train"]["steps"], saved["train"]["eval_every"]) == (10, 20, 2)
    assert saved["optimizer"]["warmup_steps"] == 2

    # Before the evaluation that ends it, and behind it.
    scripted |= {("valid", 2), ("valid", 5), ("test", 1)}
    for _ in range(3):
        with pytest.raises(_Killed):
            train("killed")
    assert train("killed") == 0
    assert _rows(tmp_path / "killed") == rows
    again = json.loads((tmp_path / "killed" / "result.json").read_text())
    assert {key: again[key] for key in expected} == expected
    assert again["stopped_early"] is True
    assert again["test/accuracy"] == result["test/accuracy"]
    assert "resuming from step 10" in capsys.readouterr().out


def test_lost_files_of_a_run_are_refused(uninterrupted, tmp_path, scripted, capsys):
    workdir, metrics = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    shutil.copytree(uninterrupted[0], workdir)
    (workdir / "result.json").unlink()
    best, latest, away = (workdir / "checkpoints" / name for name in ("best", "latest", "away"))
    rows = metrics.read_bytes()

    def refused():
        assert main(["train", *SMALL, f"--workdir={workdir}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    metrics.unlink()
    assert "its rows end at step 0, the checkpoint is of step 12: restore the file" in refused()
    metrics.write_bytes(rows)
    best.rename(away)
    assert "best lacks the parameters of step 6, the best by metrics.jsonl: restore them" in refused()
    shutil.rmtree(best)
    away.rename(best)
    latest.rename(away)
    assert "latest has no checkpoint, but metrics.jsonl has rows until step 12: restore it" in refused()
    shutil.rmtree(latest)
    away.rename(latest)
    assert metrics.read_bytes() == rows
    # On purpose, as the line says.
    metrics.write_text('{"step": 12}\n')
    assert main(["train", *SMALL, f"--workdir={workdir}"]) == 0
    assert [row["step"] for row in _rows(workdir)] == [12, 12]


@pytest.mark.slow
def test_a_profile_ends_with_training_in_any_thread(tmp_path, scripted):
    """Patience ends training at step 10, before the last traced step; only the main thread gets signals."""
    config = parse_command_line(["train", *SMALL, *EPOCHS, "--config.train.epochs=15"], "").config
    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(cj.train, config, tmp_path, profile_steps=5).result()
    assert trained.result["steps"] == 10
    assert list((tmp_path / "profile").rglob("*.trace.json.gz"))


def test_another_number_of_epochs_is_another_run(tmp_path, scripted, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_steps", lambda *_: (_ for _ in ()).throw(_Killed))
    command = ["train", *SMALL, *EPOCHS, f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(_Killed):
        main(command)
    assert main([*command, "--config.train.epochs=5"]) == 2
    assert re.search(r"holds a run with config\.\w+\.\w+=\d+(\.0)?, not \d+", capsys.readouterr().err)
    assert main([*command, "--config.train.steps=7"]) == 2
    assert "config.train.epochs=10 makes 20 steps, but config.train.steps=7: give" in capsys.readouterr().err


def _assert_equal(workdir, whole):
    assert _rows(workdir) == _rows(whole)
    results = [json.loads((d / "result.json").read_text()) for d in (workdir, whole)]
    assert results[0]["best_step"] == results[1]["best_step"]
    assert results[0]["test/accuracy"] == results[1]["test/accuracy"]


# A file system of its own, in a namespace of its own: nothing outside sees or fills it.
_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=16k tmpfs disk && for size in 16k 4m 64m; do
    mount -o remount,size=$size disk && "$@" 2>&1 >log; echo "status $?"
done && cp -r disk kept
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="a small disk needs unprivileged namespaces (unshare -rm)",
)
@pytest.mark.slow
def test_a_full_disk_is_one_line_and_with_more_room_the_same_command_resumes(
    uninterrupted, environment, tmp_path
):
    (tmp_path / "disk").mkdir()
    train = [sys.executable, "-m", "cot_jax.train", *SMALL, "--workdir=disk/run"]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", _ON_A_SMALL_DISK, "sh", *train],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    again = "and run the same command again\nstatus 2\n"
    assert re.fullmatch(
        rf"error: disk/run cannot be written: No space left on device.*; fix that {again}"
        rf"error: .*/latest: the checkpoint of step 4 needs .* MiB, .* are free; free some space {again}"
        "status 0\n",
        done.stdout,
    )
    assert "resuming from step 2" in (tmp_path / "log").read_text()
    _assert_equal(tmp_path / "kept" / "run", uninterrupted[0])


@pytest.mark.slow
def test_another_config_is_refused(uninterrupted, capsys):
    workdir, _ = uninterrupted
    assert main(["train", *SMALL, f"--workdir={workdir}", "--config.objective.beta=0.2"]) == 2
    assert capsys.readouterr().err == (
        f"error: {workdir} holds a run with config.objective.beta=0.1, not 0.2: "
        "to resume it give its value; else choose another directory, or delete it\n"
    )


def test_a_work_directory_in_use_is_refused_and_unchanged(tmp_path, capsys):
    workdir = tmp_path / "run"
    with locked(workdir):
        assert main(["train", *SMALL, f"--workdir={workdir}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {workdir} is in use by another process: ")
    assert said.count("\n") == 1
    assert [path.name for path in workdir.iterdir()] == [".lock"]


def test_without_wandb_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    workdir = tmp_path / "run"
    assert main(["train", *SMALL, "--config.train.wandb=True", f"--workdir={workdir}"]) == 2
    assert "config.train.wandb=True needs wandb: pip install" in capsys.readouterr().err
    assert not workdir.exists()


def test_checkpoints_without_a_config_are_refused(tmp_path, capsys):
    workdir = tmp_path / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    assert main(["train", *SMALL, f"--workdir={workdir}"]) == 2
    assert "has checkpoints, but no config.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, environment):
    workdir = tmp_path / "diverged"
    process = _start(
        workdir, environment, "--config.optimizer.learning_rate=1e30", "--config.optimizer.clip_norm=1e30"
    )
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.fullmatch(r"error: step \d+: (grad_norm|loss).* not finite; .* is kept\)\n", err)
    assert all(row["loss"] < float("inf") for row in _rows(workdir))


def test_dry_run_writes_nothing(tmp_path, capsys):
    workdir = tmp_path / "nothing"
    assert main(["train", *SMALL, f"--workdir={workdir}", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "view explain writes: " in printed
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.task=svamp"], "give their folder with --config.data.root=DIR"),
        (
            ["--config.data.task=svamp", "--config.data.root=/nowhere"],
            "a student from scratch needs a tokenizer",
        ),
        (["--config.model.pretrained=/nowhere/t5"], "/nowhere/t5"),
        (["--config.train.batch_size=12"], "not divisible by the 8 devices"),
        (["--config.evaluation.batch_size=12"], "not divisible by the 8 devices"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path, capsys, arguments, message):
    workdir = tmp_path / "nothing"
    assert main(["train", *SMALL, *arguments, f"--workdir={workdir}"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not workdir.exists()


def test_a_work_directory_that_cannot_be_written(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert main(["train", *SMALL, f"--workdir={file}/run"]) == 2
    assert f"{file}/run cannot be written" in capsys.readouterr().err
