"""Runs in a bucket: the real clients, gcsfs and TensorStore, ask a server in memory (`bucket_server`)."""

import contextlib
import importlib.util
import json
import os
import signal
import sys
import zlib
from pathlib import Path

import bucket_server
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_jax import compare, evaluate, export, files, judge, predict, prepare_data, rationalize, sweep, train
from cot_jax.errors import UserError
from cot_jax.files import in_bucket, local_copy, place, whole
from cot_jax.metrics.writers import MetricsWriter
from cot_jax.training import loop
from cot_jax.training.checkpoints import SUMS, Checkpoints
from cot_jax.training.run import Run
from cot_jax.training.saved import load

if importlib.util.find_spec("gcsfs") is None:  # not imported yet: it reads the environment
    pytest.skip("buckets need cot-jax[buckets]", allow_module_level=True)

SMALL = (
    "--config=demo_standard",
    "--config.data.word_problems.train=48",
    "--config.data.word_problems.valid=8",
    "--config.data.word_problems.test=8",
    "--config.train.batch_size=8",
    "--config.train.steps=6",
    "--config.train.eval_every=3",
    "--config.train.checkpoint_every=2",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=4",
)
RUN = "gs://bucket/runs/demo"


@pytest.fixture(scope="module")
def server():
    with bucket_server.served() as served, pytest.MonkeyPatch.context() as patch:
        # Read once by TensorStore, so one server for all.
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", served.url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
        patch.setenv("STORAGE_EMULATOR_HOST", served.url)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for credentials
        yield served
        assert served.refused == []


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in an empty folder, which no path of a bucket may end up in."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(":")]


def _stop_at(step):
    """Replaces a batch's making by one that also stops the run at a step, as Ctrl-C does."""

    def batch(self, n):
        if n == step:
            os.kill(os.getpid(), signal.SIGINT)
        return made(self, n)

    made = Run.batch
    return batch


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory):
    """The directory of an uninterrupted run on disk; the same run in the bucket was stopped and resumed."""
    local = tmp_path_factory.mktemp("runs") / "demo"
    assert train.main(["train", *SMALL, f"--workdir={local}", "--show=0"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "batch", _stop_at(3))
        assert train.main(["train", *SMALL, f"--workdir={RUN}", "--show=0"]) == 75
    assert "result.json" not in server.files(RUN)
    assert train.main(["train", *SMALL, f"--workdir={RUN}", "--show=1"]) == 0
    return local


def _rows(content):
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.slow
def test_a_run_stopped_and_resumed_in_a_bucket_equals_one_on_disk(runs, server):
    found = server.files(RUN)
    assert _rows(found["metrics.jsonl"]) == _rows((runs / "metrics.jsonl").read_bytes())
    measured, expected = (
        json.loads(text) for text in (found["result.json"], (runs / "result.json").read_text())
    )
    timed = {"wall_seconds", "train_seconds", "examples_per_second"}
    assert {key: measured[key] for key in measured if key not in timed} == {
        key: expected[key] for key in expected if key not in timed
    }
    small = {name for name in found if not name.startswith(("checkpoints/", "tensorboard/"))}
    on_disk = {str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file()}
    on_disk = {name for name in on_disk if not name.startswith(("checkpoints/", "tensorboard/"))}
    assert small == on_disk - {".lock"} | {"curves.png"}  # the run on disk was not shown
    for name in small & on_disk - {"metrics.jsonl", "result.json"}:
        assert found[name] == (runs / name).read_bytes(), name
    events = [data for name, data in found.items() if name.startswith("tensorboard/events")]
    assert events
    assert b"valid/accuracy" in b"".join(events)


@pytest.mark.slow
def test_every_command_that_reads_a_run_reads_it_in_a_bucket(runs, server, capsys):
    assert train.main(["train", *SMALL, f"--workdir={RUN}"]) == 0
    assert f"{RUN} is complete" in capsys.readouterr().out
    assert evaluate.main([RUN, "--output=gs://bucket/evaluation"]) == 0
    assert "written to gs://bucket/evaluation: evaluation.json" in capsys.readouterr().out
    written = server.files("gs://bucket/evaluation")
    assert json.loads(written["evaluation.json"])["examples"] == len(_rows(written["predictions.jsonl"])) == 8
    assert written["reliability_sequence.png"].startswith(b"\x89PNG")
    Path("questions.jsonl").write_text('{"input": "Tom has 2 cats."}\n')
    assert predict.main([RUN, "--input=questions.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == "Tom has 2 cats."
    loaded, expected = load(place(RUN)), load(runs)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, expected.params)
    assert loaded.format.tokenizer.fingerprint() == expected.format.tokenizer.fingerprint()


@pytest.mark.slow
def test_an_export_from_a_bucket_and_to_one(runs, server, capsys):
    exported = f"{RUN}_exported"
    assert export.main([RUN, "--output=exported"]) == 0
    assert export.main([RUN, f"--output={exported}"]) == 0
    copies = {
        str(path.relative_to("exported")): path for path in Path("exported").rglob("*") if path.is_file()
    }
    assert server.files(exported).keys() == copies.keys()
    assert server.files(exported)["model.safetensors"] == copies["model.safetensors"].read_bytes()
    assert export.main([RUN, f"--output={exported}"]) == 2
    assert f"{exported} is not empty" in capsys.readouterr().err
    assert export.main([RUN, f"--output={exported}2", "--push_to_hub=a/b"]) == 2
    assert "--push_to_hub uploads from a disk" in capsys.readouterr().err
    assert load(place(exported)).config == load(Path("exported")).config


@pytest.mark.slow
def test_a_sweep_in_a_bucket_is_compared_there(runs, server, monkeypatch, capsys):
    output = "gs://bucket/sweep"

    def train_here(command, stdout, **_):
        """Stands in for a process: copies the finished run."""
        target = next(a for a in command if a.startswith("--workdir=")).removeprefix("--workdir=")
        for path in files.files_below(runs):
            server.put(f"{target.removeprefix('gs://')}/{path.relative_to(runs)}", path.read_bytes())
        stdout.write("trained\n")
        return type("Done", (), {"wait": lambda self: 0})()

    monkeypatch.setattr(sweep.subprocess, "Popen", train_here)
    settings = [flag for flag in SMALL if not flag.startswith("--config=")]
    flags = ["--config=demo_standard", "--methods=standard", "--seeds=0", f"--output={output}", *settings]
    assert sweep.main(flags) == 0
    assert server.files(output)["standard/100_of_train/seed0/train.log"] == b"trained\n"
    assert compare.main([output]) == 0
    assert f"written to {output}/report.md" in capsys.readouterr().out
    assert {"report.md", "report.csv", "differences.csv"} <= server.files(output).keys()
    assert sweep.main(flags) == 0
    assert "1 runs, 1 of them done" in capsys.readouterr().out


# Checkpoints


def _tree(step):
    return {"w": jnp.full((3, 2), float(step)), "step": jnp.int32(step)}


def test_checkpoints_have_sums_of_what_is_in_the_bucket(server):
    with Checkpoints(place("gs://bucket/sums")) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _tree(step))
            checkpoints.save_if_best(step, _tree(step), float(-step))
    for name, steps in (("latest", {"2", "3"}), ("best", {"1"})):
        found = server.files(f"gs://bucket/sums/{name}")
        assert {path.split("/")[0] for path in found} == steps
        for step in steps:
            sums = json.loads(found[f"{step}/{SUMS}"])
            for path, crc in sums.items():
                assert crc == zlib.crc32(found[f"{step}/{path}"])
            below = {path.removeprefix(f"{step}/") for path in found if path.startswith(f"{step}/default/")}
            # Written last, after all arrays, with no content of its own.
            assert below - sums.keys() <= {"default/commit_success.txt"}


def test_a_damaged_or_unfinished_checkpoint_in_a_bucket_is_not_read(server, capsys):
    where = "gs://bucket/damaged"
    with Checkpoints(place(where)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _tree(step))

    def fail(name):
        if name.endswith("latest/3/commit_success.txt"):
            raise OSError("the process was killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "before_write", fail)
        with (
            pytest.raises(UserError, match="latest: a checkpoint cannot be written"),
            Checkpoints(place(where)) as checkpoints,
        ):
            checkpoints.save(3, _tree(3))
    assert any(name.startswith("latest/3/") for name in server.files(where))
    data = max(
        (name for name in server.objects if name.startswith("bucket/damaged/latest/2/default/")), key=len
    )
    server.objects[data] = server.objects[data][:-1] + b"!"
    with Checkpoints(place(where), clean=True) as checkpoints:
        assert not any(name.startswith("latest/3/") for name in server.files(where))
        restored = checkpoints.restore_latest(_tree(0))
    np.testing.assert_array_equal(restored["w"], np.full((3, 2), 1.0))
    assert f"{where}/latest/2 cannot be read" in capsys.readouterr().out


# What a bucket does not have


def test_a_second_run_in_a_bucket_is_noticed_before_its_rows_are_lost(server):
    where = place("gs://bucket/twice")
    with contextlib.ExitStack() as both:
        first = both.enter_context(MetricsWriter(where, 0))
        first.write(1, {"loss": 1.0})
        first.flush()
        with MetricsWriter(where, 1) as second:
            second.write(2, {"loss": 2.0})
        first.write(2, {"loss": 3.0})
        with pytest.raises(UserError, match=r"gs://bucket/twice/metrics.jsonl: another process writes here"):
            both.close()
    assert _rows(server.files("gs://bucket/twice")["metrics.jsonl"])[-1] == {"step": 2, "loss": 2.0}


def test_a_file_that_fails_does_not_replace_the_one_before(server):
    for text, error in (("whole", None), ("half", OSError("no more"))):
        try:
            with whole(place("gs://bucket/a/b.txt")) as file:
                file.write(text)
                if error:
                    raise error
        except OSError:
            assert text == "half"
    assert server.files("gs://bucket/a") == {"b.txt": b"whole"}


def test_paths_of_buckets(server, folder):
    run = place("gs://bucket/a//run/")
    assert (str(run), in_bucket(run)) == ("gs://bucket/a/run", True)
    assert str(place(Path("gs://bucket/run") / "x")) == "gs://bucket/run/x"  # pathlib makes gs:/bucket of it
    assert place(run) == run
    assert place("runs/demo") == Path("runs/demo")
    assert not in_bucket(place(folder))
    (run / "c.txt").write_bytes(b"text")
    with local_copy(run) as copy:
        assert [path.name for path in copy.iterdir()] == ["c.txt"]
    server.put("bucket/a/run/d.txt", b"by another process")
    assert sorted(path.name for path in run.iterdir()) == ["c.txt", "d.txt"]


def test_a_profile_is_copied_to_the_bucket(server, monkeypatch):
    def start(directory, **_):
        (directory / "trace.json").write_text("{}")

    monkeypatch.setattr(jax.profiler, "start_trace", start)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    profile = loop._Profile(place("gs://bucket/profiled/profile"), 0, 1)
    for step in range(1, 13):
        profile.after(step, _tree(step))
    assert server.files("gs://bucket/profiled") == {"profile/trace.json": b"{}"}


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (train.main, ["train", "--config=demo_mi", "--workdir=s3://b/r"], "s3://b/r: give gs://BUCKET/DIR"),
        (
            train.main,
            ["train", "--config=demo_mi", "--workdir=gs://none/r"],
            "gs://none: there is no such bucket",
        ),
        (train.main, ["train", "--config=demo_mi", "--workdir=gs://"], "gs://: give gs://BUCKET/DIR"),
        (
            train.main,
            ["train", "--config=demo_mi", "--workdir=gs://forbidden/r"],
            "gs://forbidden: there is no such bucket, or this account may not see it",
        ),
        (evaluate.main, ["gs://broken/r"], "gs://broken cannot be reached (HttpError: "),
        (evaluate.main, ["az://b/r"], "az://b/r: give gs://BUCKET/DIR"),
        (evaluate.main, ["run", "--root=gs://bucket/data"], "gs://bucket/data: only a local path"),
        (evaluate.main, ["run", "--output=gcs://b/out"], "gcs://b/out: give gs://BUCKET/DIR"),
        (predict.main, ["run", "--output=gs://b/out"], "gs://b/out: only a local path"),
        (predict.main, ["run", "--input=gs://b/in"], "gs://b/in: only a local path"),
        (export.main, ["run", "--output=s3://b/out"], "s3://b/out: give gs://BUCKET/DIR"),
        (compare.main, ["s3://b/sweep"], "s3://b/sweep: give gs://BUCKET/DIR"),
        (judge.main, ["gs://bucket/run"], "gs://bucket/run: only a local path"),
        (prepare_data.main, ["svamp", "--root=gs://b/data"], "gs://b/data: only a local path"),
        (
            rationalize.main,
            ["--task=svamp", "--root=data", "--model=m", "--endpoint=http://x", "--output=gs://b/o"],
            "gs://b/o: only a local path",
        ),
        (
            sweep.main,
            ["--config=demo_mi", "--methods=mi", "--seeds=0", "--output=s3://b/o"],
            "s3://b/o: give gs://BUCKET/DIR",
        ),
    ],
)
def test_what_is_not_for_buckets_is_one_line_and_writes_nothing(
    server, folder, capsys, caplog, main, arguments, message
):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert caplog.text == "", "a library logs to the terminal"
    assert list(folder.iterdir()) == []


def test_without_a_client_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    files._bucket.cache_clear()
    assert train.main(["train", "--config=demo_mi", "--workdir=gs://bucket/new"]) == 2
    assert capsys.readouterr().err == "error: gs://bucket needs a client: pip install 'cot-jax[buckets]'\n"
