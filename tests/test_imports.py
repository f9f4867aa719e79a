"""A command waits neither for PyTorch nor, before it is asked to do something, for JAX."""

import importlib.util
import subprocess
import sys

import pytest

from cot_jax.__main__ import COMMANDS


def _python(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _imported(*arguments):
    """What Python imports; a module that is refused is listed, too."""
    said = _python("-X", "importtime", *arguments)
    return {line.split("|")[-1].strip() for line in said.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize(
    "command",
    [
        ["cot_jax.train", "--config=svamp_mi"],
        ["cot_jax", "export", "nonesuch", "--output=nonesuch"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_imports_no_torch(command):
    found = _imported("-m", *command)
    assert {"jax", "transformers"} <= found
    assert not [module for module in found if module.startswith("torch.")]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_waits_for_no_jax(command):
    found = _imported("-m", "cot_jax", command, "--help")
    assert "cot_jax.errors" in found
    assert not found & {"jax", "transformers", "flax", "scipy.stats"}


def test_a_reader_that_stops_reading_is_no_error():
    command = [sys.executable, "-m", "cot_jax.plan", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_a_config_waits_for_no_jax():
    asked = (
        "import cot_jax as cj; print(cj.config('demo_mi', **{'train.steps': 7}).train.steps, cj.UserError)"
    )
    assert not _imported("-c", asked) & {"jax", "transformers", "flax", "scipy"}
    assert _python("-c", asked).startswith("7 ")


def test_a_missing_torch_is_no_complaint(tmp_path, monkeypatch):
    hides = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
"""
    (tmp_path / "sitecustomize.py").write_text(hides)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "PyTorch was not found" in _python("-c", "import transformers")
    for command in ("predict nonesuch --input=nonesuch", "export nonesuch --output=nonesuch"):
        said = _python("-m", "cot_jax", *command.split())
        assert "nonesuch" in said
        assert "PyTorch" not in said


def test_a_program_that_imports_us_has_torch():
    pytest.importorskip("torch")
    asked = "import cot_jax.train, transformers.utils as u, sys; print(u.is_torch_available())"
    assert _python("-c", asked).splitlines()[-1] == "True"
    assert importlib.util.find_spec("torch")
