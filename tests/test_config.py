"""Configuration: published defaults, and one line for every mistake."""

import dataclasses
import math
from pathlib import Path

import pytest

from cot_jax.config import (
    Config,
    default_config,
    describe_keys,
    freeze,
    parse_command_line,
    reference,
    to_json,
)
from cot_jax.errors import UserError
from cot_jax.models.t5 import T5

CONFIGS = Path(__file__).parents[1] / "configs"
DEMO = f"--config={CONFIGS / 'demo_mi.py'}"


def _parse(*arguments):
    return parse_command_line(["train", *arguments], "summary")


def test_every_config_file_is_a_valid_experiment():
    files = sorted(CONFIGS.glob("*.py"))
    assert len(files) >= 20
    for file in files:
        config = _parse(f"--config={file}").config.resolved(T5.usual)
        if "_" in file.stem and not file.stem.startswith(("demo", "smollm2")):
            task, method = file.stem.split("_", 1)
            distilled = config.self_distillation.method
            if distilled != "none":
                method = {distilled: "standard"}.get(method, method.removesuffix(f"_{distilled}"))
            assert (config.data.task, config.objective.method) == (task, method)
            # The published hyperparameters.
            assert (config.optimizer.learning_rate, config.train.steps, config.train.batch_size) == (
                5e-5,
                10_000,
                64,
            )
            assert (config.objective.alpha, config.objective.beta, config.model.dropout_rate) == (
                0.5,
                0.1,
                0.1,
            )
            assert config.objective.mi_variant == "reference"
            assert f"configs/{file.name}" in file.read_text()


def test_overrides_reach_the_dataclass():
    command = _parse(
        DEMO,
        "--config.train.steps=7",
        "--config.objective.alpha=1",
        "--config.model.pretrained=",
        "--workdir=x",
    )
    assert command.config.train.steps == 7
    assert command.config.objective.alpha == 1.0
    assert command.config.model.pretrained == ""
    assert command.workdir == Path("x")
    assert _parse(DEMO).workdir == Path("runs/demo_mi")
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.config.train.steps = 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one --config=FILE is needed"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py: no such config file"),
        ([f"--config={CONFIGS}/demo_m.py"], "did you mean .*/demo_mi.py"),
        (
            [DEMO, "--config.train.stepz=7"],
            "config.train.stepz: no such key; did you mean config.train.steps",
        ),
        ([DEMO, "--config.train=7"], "config.train: no such key"),
        ([DEMO, "--config.train.steps=seven"], "config.train.steps.*seven"),
        ([DEMO, "--config.train.steps=1.5"], "config.train.steps.*1.5"),
        ([DEMO, "--config.train.steps=0"], "config.train.steps=0: must be at least 1"),
        ([DEMO, "--config.train.batch_size=0"], "config.train.batch_size=0: must be at least 1"),
        ([DEMO, "--config.objective.alpha=1.5"], r"config.objective.alpha=1.5: must be at most 1"),
        ([DEMO, "--config.objective.alpha=-0.1"], r"config.objective.alpha=-0.1: must be at least 0"),
        ([DEMO, "--config.objective.alpha=nan"], r"config.objective.alpha=nan: must be at least 0"),
        ([DEMO, "--config.objective.method=dsss"], "must be one of dss, mi, "),
        ([DEMO, "--config.data.task=svanp"], "config.data.task='svanp': must be one of .*svamp"),
        ([DEMO, "--workdirr=x"], "workdirr"),
        ([DEMO, "positional"], "unexpected argument 'positional'"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        _parse(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", "get_config"),
        (
            "from cot_jax.config import default_config\ndef get_config():\n"
            "    config = default_config()\n    config.train.steps = None\n    return config",
            "config.train.steps=None: expected int, found NoneType",
        ),
        (
            "from cot_jax.config import default_config\ndef get_config():\n"
            "    config = default_config()\n    config.train.stops = 3\n    return config",
            "config.train.stops: no such key; did you mean config.train.steps",
        ),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, text, message):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        _parse(f"--config={file}")
    assert "\n" not in str(caught.value)


def test_help_lists_every_key(capsys):
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    for name, _, _ in describe_keys():
        assert f"--{name}=" in printed


def test_the_reference_is_of_these_keys():
    file = CONFIGS.parent / "docs" / "config.md"
    assert file.read_text() == reference(), "python -m cot_jax.config > docs/config.md"


def test_json_holds_the_whole_config():
    config = freeze(default_config())
    assert config == Config()
    assert '"learning_rate": 5e-05' in to_json(config.resolved(T5.usual))
    assert all(math.isfinite(v) for _, v, _ in describe_keys() if isinstance(v, float))


@pytest.mark.parametrize("rate", [-0.5, -0.01])
def test_a_dropout_rate_below_zero_is_none_but_the_sign_for_the_usual_one(rate):
    config = _parse(DEMO, f"--config.model.dropout_rate={rate}").config
    with pytest.raises(UserError, match=r"dropout_rate=.*: must be -1 or from 0 to 0\.9"):
        config.resolved(T5.usual)
    assert _parse(DEMO, "--config.model.dropout_rate=-1").config.resolved(T5.usual).model.dropout_rate == 0.1
