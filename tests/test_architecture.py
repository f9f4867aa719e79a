"""Who imports what: arrows point down only, two rooms know families of students, packages are declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from cot_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "cot_jax").rglob("*.py"))

# From the ground up: a module imports from its own room and from those before it.
ROOMS = [
    "errors",
    "imports",
    "limits",
    "files",
    "backend",
    "batch",
    "answers",
    "text",
    "data",
    "metrics",
    "models",
    "losses",
    "config",
    "training",
    "experiments",
    "api",
]
# On top of all, one command a file, and the package itself; none imports another.
TOPS = {*COMMANDS, "__init__", "__main__"}

# What belongs to one family of students: its name, its classes in Transformers, its special tokens.
FAMILY = re.compile(
    r"\b(t5|bert|roberta|albert|deberta|llama|mistral|qwen|smollm)|Seq2Seq|CausalLM|SequenceClassification|</s>|\[SEP\]",
    re.IGNORECASE,
)


def _room(file: Path) -> str:
    return file.relative_to(ROOT / "cot_jax").parts[0].removesuffix(".py")


def _imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Yields the modules that a file imports, and whether it does so as soon as it is imported itself."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node in tree.body
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute"
            if node.module in ("cot_jax", "benchmarks"):
                yield from ((f"{node.module}.{name.name}", node in tree.body) for name in node.names)
            else:
                yield str(node.module), node in tree.body


def test_every_module_has_a_room():
    assert {_room(file) for file in FILES} == {*ROOMS, *TOPS}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_arrows_point_down(file):
    room = _room(file)
    below = set(ROOMS if room in TOPS else ROOMS[: ROOMS.index(room) + 1])
    ours = {name.split(".")[1] for name, _ in _imports(file) if name.startswith("cot_jax.")}
    assert ours - {"__version__"} <= below, f"{room} may import {sorted(below)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_family_is_named_outside_models_and_text(file):
    if _room(file) not in ("models", "text"):
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        assert [(n, line) for n, line in lines if FAMILY.search(line)] == []


# Transformers renders chat templates with it, and does not say that it needs it.
NEEDED_BY_OTHERS = {"jinja2"}


def test_what_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[>=<;]", one)[0].lower() for one in requirements}

    needed = names(project["dependencies"])
    optional = set().union(*map(names, project["optional-dependencies"].values()))
    distributions = packages_distributions()
    for file in FILES:
        for name, at_once in _imports(file):
            top = name.split(".")[0]
            if top == "cot_jax" or top in sys.stdlib_module_names:
                continue
            known = {found.lower().replace("_", "-") for found in distributions.get(top, [top])}
            assert known & (needed if at_once else needed | optional), f"{file} imports {name}"
    used = {name.split(".")[0] for file in FILES for name, _ in _imports(file)}
    provided = {found.lower().replace("_", "-") for top in used for found in distributions.get(top, [top])}
    assert needed - provided == NEEDED_BY_OTHERS


def test_tests_need_no_optional_package_to_be_collected():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: " ".join(needs) for name, needs in project["optional-dependencies"].items()}
    assert "torch" in extras["parity"]
    assert "torch" not in extras["dev"]
    at_once: dict[str, set[str]] = {}
    for file in (*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/**/*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        at_once[name] = {module for module, first in _imports(file) if first}

    def all_of(name: str) -> set[str]:
        return {name}.union(*map(all_of, at_once.get(name, ())))

    waiting = {name for name in at_once if name.startswith("tests.") and "torch" in all_of(name)}
    assert not waiting, f"{waiting} import PyTorch, which only the extra 'parity' installs"
