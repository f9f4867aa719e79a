"""The package: a wheel works outside the clone, extras that we name are there."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from cot_jax import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what the wheel of this clone holds."""
    pytest.importorskip("setuptools", minversion="77", reason="builds a wheel without the network")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("cot_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", f"--wheel-dir={built}", "."], cwd=source, check=True)
    (wheel,) = built.glob("*.whl")
    assert wheel.name.startswith(f"cot_jax-{__version__}-")
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def _run(site, directory, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def test_a_wheel_holds_every_config_and_table(site):
    files = {file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.py")}
    assert {
        file.relative_to(site / "cot_jax/configs") for file in site.glob("cot_jax/configs/**/*.py")
    } == files
    assert (site / "cot_jax" / "py.typed").is_file()
    assert len([*site.glob("cot_jax/data/teacher/demonstrations/*.jsonl")]) == 5
    assert (site / "cot_jax/training/model_card.md").is_file()
    assert "cot-jax = cot_jax.__main__:main" in next(site.glob("*/entry_points.txt")).read_text()
    assert not (site / "configs").exists()


def test_the_commands_of_a_wheel_work_elsewhere(site, tmp_path):
    status, said = _run(site, tmp_path, "-m", "cot_jax", "train", "--help")
    assert (status, "--config.train.steps=" in said) == (0, True)
    status, said = _run(
        site, tmp_path, "-m", "cot_jax", "sweep", "--table=minilm", "--seeds=0", "--output=out", "--dry_run"
    )
    assert (status, said.count("--config=glue"), said.count(str(site))) == (0, 36, 0)
    asked = "import cot_jax as cj; print(cj.__file__, cj.config('svamp_mi').data.task)"
    assert _run(site, tmp_path, "-c", asked) == (0, f"{site / 'cot_jax' / '__init__.py'} svamp\n")


def test_the_one_command_says_what_there_is(site, tmp_path):
    assert _run(site, tmp_path, "-m", "cot_jax", "--version") == (0, f"{__version__}\n")
    status, said = _run(site, tmp_path, "-m", "cot_jax", "trian")
    assert (status, said) == (2, "error: trian: no such command; cot-jax --help lists them\n")


def test_extras_that_are_named_are_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "launch").glob("*.*")]
    named = {"cuda", "tpu"}
    for file in [*pages, *(ROOT / "cot_jax").rglob("*.py"), ROOT / "pyproject.toml"]:
        for found in re.findall(r"cot-jax\[([\w,]+)\]|'\.\[([\w,]+)\]'|`\.\[([\w,]+)\]`", file.read_text()):
            named |= {extra for names in found for extra in names.split(",") if extra}
    assert named >= {"dev", "hub", "parity", "plots"}
    assert named <= extras.keys()


def test_the_version_and_the_least_jax_are_said_once_and_repeated_truly():
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert re.findall(r"(?m)^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text())[0] == __version__
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yaml").read_text())
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]
    assert f"jax>={matrix['jax'][0]}" in project["dependencies"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    said = (ROOT / ".ci" / "run").read_text()
    assert all(hook["entry"].removesuffix(" --fix") in said for hook in hooks)
