"""The pages: their links lead somewhere, and the front page stays short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "launch" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _anchor(heading):
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text()):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        headings = re.findall(r"(?m)^#+ (.*)$", target.read_text()) if anchor else []
        assert not anchor or anchor in map(_anchor, headings), link


def test_every_page_is_linked_from_the_front_page():
    linked = {(ROOT / link).resolve() for link in _LINK.findall((ROOT / "README.md").read_text())}
    assert {page for page in PAGES if page.parent.name == "docs"} <= linked


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_commands_of_the_pages_name_what_there_is():
    for page in PAGES:
        text = page.read_text()
        for module in re.findall(r"python -m ((?:cot_jax|benchmarks|tests)\.\w+)", text):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"{page.name}: {module}"
        for file in re.findall(r"\b(configs/[\w/]+\.py)", text):
            assert (ROOT / file).is_file(), f"{page.name}: {file}"
