"""The pages: links from the front page lead somewhere, and commands name what there is.

Links between the pages of docs/ are checked by `mkdocs build --strict`, in .ci/run.
"""

import importlib
import re
from pathlib import Path

import pytest

from cot_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
FRONT = [*sorted(ROOT.glob("*.md")), ROOT / "launch" / "README.md"]
PAGES = [*FRONT, *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", FRONT, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        headings = re.findall(r"(?m)^#+ (.*)$", target.read_text()) if anchor else []
        assert not anchor or anchor in map(_anchor, headings), link


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_commands_of_the_pages_name_what_there_is():
    for page in PAGES:
        text = page.read_text()
        for module in re.findall(r"python -m ((?:cot_jax|benchmarks|tests)\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{page.name}: {module}"
        for file in re.findall(r"\b(configs/[\w/]+\.py)", text):
            assert (ROOT / file).is_file(), f"{page.name}: {file}"


def test_commands_of_the_pages_have_the_flags_that_they_use(capsys):
    keys = set(re.findall(r"`(config\.[\w.]+)`", (ROOT / "docs" / "config.md").read_text()))
    known = {}
    for name in COMMANDS:
        argv = [name, "--help"] if name in ("train", "plan") else ["--help"]
        with pytest.raises(SystemExit):
            importlib.import_module(f"cot_jax.{name}").main(argv)
        known[name] = set(re.findall(r"--([a-z]\w*)", capsys.readouterr().out)) | {"debug"}
    takes_keys = {"train", "plan", "sweep"}
    used = 0
    for page in PAGES:
        for name, rest in re.findall(
            r"(?:python -m cot_jax\.|cot-jax )(\w+)\b([^|>`#\n]*)", page.read_text().replace("\\\n", " ")
        ):
            if name not in COMMANDS:
                continue
            for flag in re.findall(r"(?<=\s)--([a-z][\w.]*)", rest):
                used += 1
                fits = flag in known[name] or (name in takes_keys and flag in keys)
                assert fits, f"{page.name}: {name} has no --{flag}"
    assert used > 100


def test_what_the_pages_set_is_a_key():
    keys = set(re.findall(r"`config\.(?:\w+\.)*(\w+)`", (ROOT / "docs" / "config.md").read_text()))
    setting = re.compile(r"`(?:[a-z_]+\.)*([a-z_]+)=[^`\s]*`")
    used = [(page.name, name) for page in PAGES for name in setting.findall(page.read_text())]
    assert len(used) > 40
    assert [(page, name) for page, name in used if name not in keys] == []
