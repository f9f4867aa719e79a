"""A teacher that writes, in the step of a student that writes."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from cot_jax import export
from cot_jax.config import parse_command_line
from cot_jax.train import main
from cot_jax.training.experiment import prepare
from cot_jax.training.run import Run

FLAGS = (
    "train",
    f"--config={Path(__file__).parents[2] / 'configs' / 'demo_dss.py'}",
    "--config.data.word_problems.train=48",
    "--config.data.word_problems.valid=8",
    "--config.data.word_problems.test=8",
    "--config.optimizer.warmup_steps=0",
    "--config.train.batch_size=16",
    "--config.train.steps=3",
    "--config.train.eval_every=3",
    "--config.evaluation.batch_size=8",
    "--config.evaluation.max_new_tokens=6",
    "--show=0",
    "--config.optimizer.name=adamw",
    "--config.optimizer.learning_rate=4e-3",
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run, and its export."""
    folder = tmp_path_factory.mktemp("taught")
    assert main([*FLAGS, f"--workdir={folder / 'run'}"]) == 0
    assert export.main([str(folder / "run"), f"--output={folder / 'exported'}"]) == 0
    return folder


def _losses(*flags):
    run = Run(prepare(parse_command_line([*FLAGS, *flags], "").config), jax.devices()[:1])
    rows = []
    with jax.set_mesh(run.mesh):
        state = run.initial_state()
        for step in range(run.experiment.config.train.steps):
            state, metrics = run._step(state, run.batch(step), run._frozen)
            rows.append(jax.device_get(metrics))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["run", "exported"])
def test_its_own_teacher_asks_for_nothing(taught, teacher):
    own = (
        f"--config.model.pretrained={taught / 'exported'}",
        f"--config.distillation.teacher={taught / teacher}",
    )
    found = _losses(*own, "--config.train.steps=1")
    assert abs(found["loss/distillation"][0]) < 1e-5


@pytest.mark.slow
def test_every_view_is_taught(taught):
    teacher = (f"--config.distillation.teacher={taught / 'run'}", "--config.distillation.weight=0.25")
    found = _losses("--config.seed=1", *teacher, "--config.model.tokenizer=" + str(taught / "exported"))
    terms = 0.75 * 0.5 * (found["loss/label"] + found["loss/rationale"]) + 0.25 * found["loss/distillation"]
    np.testing.assert_allclose(found["loss"], terms, rtol=1e-5)
    assert found["loss/distillation"][-1] < found["loss/distillation"][0]


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["run", "model"])
def test_a_teacher_of_other_tokens_is_one_line(taught, teacher, tmp_path, capsys):
    if teacher == "model":  # as from anywhere else
        shutil.copytree(taught / "exported", tmp_path / "model")
        (tmp_path / "model" / "cot_jax.json").unlink()
    words = {"config.data.word_problems.max_number": 99, "config.seed": 5}
    more = [f"--{key}={value}" for key, value in words.items()]
    flags = [
        *FLAGS,
        *more,
        f"--config.distillation.teacher={(taught if teacher == 'run' else tmp_path) / teacher}",
        f"--workdir={tmp_path / 'run'}",
    ]
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "its tokenizer differs from the student's" in line
    assert not (tmp_path / "run").exists()


def test_patience_is_for_encoders(taught, tmp_path, capsys):
    keys = ("--config.distillation.layers=skip", f"--config.distillation.teacher={taught / 'run'}")
    tokenizer = f"--config.model.tokenizer={taught / 'exported'}"
    assert main([*FLAGS, *keys, tokenizer, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "matches states of [CLS]: for encoders only" in capsys.readouterr().err
    assert json.loads((taught / "run" / "result.json").read_text())["steps"] == 3
