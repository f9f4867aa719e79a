"""Configuration: published defaults, and one line for every mistake."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from cot_jax.config import (
    Config,
    default_config,
    describe_keys,
    freeze,
    make,
    name_of,
    parse_command_line,
    reference,
    refuse_other_config,
    to_json,
    with_defaults,
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


def test_a_shipped_config_has_a_name_in_every_directory(tmp_path, monkeypatch):
    by_file = _parse(DEMO)
    monkeypatch.chdir(tmp_path)
    assert _parse("--config=demo_mi") == by_file
    (tmp_path / "demo_mi.py").write_text("from cot_jax.configs.demo_dss import get_config")
    assert _parse("--config=demo_mi.py").config.objective.method == "dss"
    assert [name_of(given) for given in (str(CONFIGS / "demo_mi.py"), "demo_mi", "demo_mi.py")] == [
        "demo_mi",
        "demo_mi",
        "demo_mi.py",
    ]


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
        ([], "give one --config=NAME or --config=FILE"),
        (["--config=configs/nowhere.py"], "configs/nowhere.py: no such config file; the shipped ones are in"),
        ([f"--config={CONFIGS}/demo_m.py"], "did you mean .*/demo_mi.py"),
        (["--config=demo_m"], "demo_m: no such config file; did you mean demo_mi?"),
        (
            [DEMO, "--config.train.stepz=7"],
            "config.train.stepz: no such key; did you mean config.train.steps",
        ),
        ([DEMO, "--config.train=7"], "config.train: no such key"),
        ([DEMO, "--config.train.steps=seven"], "config.train.steps.*seven"),
        ([DEMO, "--config.train.steps=1.5"], "config.train.steps.*1.5"),
        ([DEMO, "--config.train.steps=-1"], "config.train.steps=-1: must be at least 0"),
        ([DEMO, "--config.train.batch_size=0"], "config.train.batch_size=0: must be at least 1"),
        ([DEMO, "--config.train.batch_size=1000000000"], "batch_size=1000000000: must be at most 65536"),
        ([DEMO, "--config.seed=4294967296"], "config.seed=4294967296: must be at most 4294967295"),
        ([DEMO, "--config.data.word_problems.max_number=1000000000"], "must be at most 100000"),
        ([DEMO, "--config.objective.alpha=1.5"], r"config.objective.alpha=1.5: must be at most 1"),
        ([DEMO, "--config.objective.alpha=-0.1"], r"config.objective.alpha=-0.1: must be at least 0"),
        ([DEMO, "--config.objective.alpha=nan"], "config.objective.alpha=nan: must be a finite number"),
        ([DEMO, "--config.optimizer.learning_rate=inf"], "learning_rate=inf: must be a finite number"),
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


def test_python_overrides_as_the_command_line_does():
    given = {"data.root": Path("data"), "train.steps": 7, "train.wandb": True, "objective.beta": 1}
    config = make("demo_mi", **given)
    flags = (f"--config.{key}={value}" for key, value in given.items())
    assert config == _parse(DEMO, *flags).config
    assert (config.data.root, config.train.wandb, config.objective.beta) == ("data", True, 1.0)
    with pytest.raises(UserError, match=r"^config\.data\.teacher=None: leave the key out"):
        make("demo_mi", **{"data.teacher": None})
    with pytest.raises(UserError, match=r"config\.train\.stepz: no such key"):
        make("demo_mi", **{"train.stepz": 7})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("def get_config(:", "SyntaxError"),
        ("x = 1", r"broken\.py: no function get_config\(\), which every such file defines$"),
        ("get_config = 3", r"broken\.py: no function get_config\(\)"),
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


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--config.train.steps=abc", "a whole number"),
        ("--config.train.steps=1.5", "a whole number"),
        ("--config.train.epochs=x: y", "a number"),
        ("--config.train.wandb=maybe", "True or False"),
        ("--show=abc", "a whole number"),
        ("--dry_run=maybe", "True or False"),
    ],
)
def test_a_value_of_another_type_is_named(flag, expected):
    with pytest.raises(UserError) as caught:
        _parse(DEMO, flag)
    assert str(caught.value) == f"{flag}: expected {expected}"


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


def test_a_run_that_records_a_retired_key_is_read_if_it_used_what_is_left():
    values = json.loads(to_json(Config()))
    values["self_distillation"]["difficulty"] = "clip"
    assert freeze(with_defaults(values)[0]) == Config()
    values["self_distillation"]["difficulty"] = "sqrt"
    with pytest.raises(UserError, match=r"config\.self_distillation\.difficulty: no such key"):
        freeze(with_defaults(values)[0])


@pytest.mark.parametrize("rate", [-0.5, -0.01])
def test_a_dropout_rate_below_zero_is_none_but_the_sign_for_the_usual_one(rate):
    config = _parse(DEMO, f"--config.model.dropout_rate={rate}").config
    with pytest.raises(UserError, match=r"dropout_rate=.*: must be -1 or from 0 to 0\.9"):
        config.resolved(T5.usual)
    assert _parse(DEMO, "--config.model.dropout_rate=-1").config.resolved(T5.usual).model.dropout_rate == 0.1


BY_EPOCHS = (
    DEMO,
    "--config.train.steps=0",
    "--config.train.epochs=2.5",
    "--config.train.eval_every=0",
    "--config.train.checkpoint_every=0",
    "--config.optimizer.warmup_steps=0",
    "--config.optimizer.warmup_ratio=0.07",
)


def test_epochs_and_shares_become_steps():
    config = _parse(*BY_EPOCHS).config.resolved(T5.usual)
    assert (config.train.steps, config.optimizer.warmup_steps) == (0, 0)
    found = config.scheduled(39.2)
    assert (found.train.steps, found.train.eval_every, found.train.checkpoint_every) == (98, 40, 40)
    assert found.optimizer.warmup_steps == 7  # 6.86
    assert found.scheduled(39.2) == found
    # 0.07 * 100 is 7.000000000000001.
    assert config.scheduled(40).optimizer.warmup_steps == 7
    assert config.scheduled(0.1).train.steps == config.scheduled(0.1).train.eval_every == 1
    by_steps = _parse(DEMO).config.resolved(T5.usual)
    assert by_steps.scheduled(39.2) == by_steps
    assert Config().resolved(T5.usual).train.steps == 10_000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--config.train.epochs=3",
            r"config\.train\.epochs=3 makes 30 steps, but config\.train\.steps=2000: give only one of them, "
            r"with --config\.train\.steps=0 or --config\.train\.epochs=0",
        ),
        (
            "--config.optimizer.warmup_ratio=0.06",
            r"config\.optimizer\.warmup_ratio=0\.06 makes 120 steps, but .*warmup_steps=100: .*",
        ),
    ],
)
def test_one_key_says_how_many_steps(flag, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        _parse(DEMO, flag).config.resolved(T5.usual).scheduled(10)


def test_a_run_by_epochs_is_known_again_before_its_data_is_read(tmp_path):
    asked = _parse(*BY_EPOCHS).config.resolved(T5.usual)
    (tmp_path / "config.json").write_text(to_json(asked.scheduled(40)))
    assert refuse_other_config(tmp_path, asked)
    assert refuse_other_config(tmp_path, asked.scheduled(40))
    with pytest.raises(UserError, match=r"holds a run with config\.\w+\.\w+=\d+, not \d+: "):
        refuse_other_config(tmp_path, asked.scheduled(41))
    others = ("train.epochs=3", "optimizer.warmup_ratio=0.5", "train.eval_every=7", "train.patience=1")
    for other in others:
        with pytest.raises(UserError, match=f"not {other.split('=')[1]}"):
            refuse_other_config(tmp_path, _parse(*BY_EPOCHS, f"--config.{other}").config.resolved(T5.usual))
    no_ratio = _parse(*BY_EPOCHS, "--config.optimizer.warmup_ratio=0").config.resolved(T5.usual)
    with pytest.raises(UserError, match=r"optimizer\.warmup_(ratio|steps)=.*, not 0"):
        refuse_other_config(tmp_path, no_ratio)
