"""A command does not wait for PyTorch; a process of somebody else's has it as it is."""

import importlib.util
import subprocess
import sys

import pytest


def _python(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("command", ["train", "predict", "export"])
def test_a_command_imports_no_torch(command):
    said = _python("-X", "importtime", "-m", f"cot_jax.{command}", "--help")
    assert "cot_jax.errors" in said
    # An import that is refused is listed, too.
    assert not [line for line in said.splitlines() if line.split("|")[-1].strip().startswith("torch.")]


def test_a_program_that_imports_us_has_torch():
    pytest.importorskip("torch")
    asked = "import cot_jax.train, transformers.utils as u, sys; print(u.is_torch_available())"
    assert _python("-c", asked).splitlines()[-1] == "True"
    assert importlib.util.find_spec("torch")
