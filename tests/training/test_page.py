"""The page of two runs: what it says is what was measured, and no text of a model is more than text."""

import csv
import html.parser
import json
import re
import shutil

import pytest

from cot_jax import compare
from cot_jax.config import Config, to_json
from cot_jax.experiments import Cell, Table
from cot_jax.metrics.significance import bootstrap_interval, mcnemar_p_value

HOSTILE = (
    '</script></td></table><script>document.title="taken"</script><img src=x onerror=alert(1)>&lt;"\'<!--'
)
UNSEEN = "a\x00b\x1b[31m\u202ec\u2066\u200b\u2028\ufeff\U000e0041\r"
SHOWN = "a⟨U+0000⟩b⟨U+001B⟩[31m⟨U+202E⟩c⟨U+2066⟩⟨U+200B⟩⟨U+2028⟩⟨U+FEFF⟩⟨U+E0041⟩⟨U+000D⟩"
QUESTIONS = ["Tom has 3 pens .", HOSTILE, UNSEEN, "שלום\tعليكم\n(5)", "Ann has 4 pens .", "Ann has 5 pens ."]
RIGHT = {"standard": [1, 1, 0, 0, 0, 0], "dss": [1, 0, 1, 1, 1, 0]}
COUNTS = {"all": 6, "both right": 1, "only A right": 1, "only B right": 3, "both wrong": 1}


def _run(workdir, method, right):
    (workdir / "evaluation" / "svamp_test").mkdir(parents=True)
    config = json.loads(to_json(Config()))
    config["objective"]["method"] = method
    score = sum(right) / len(right)
    result = {
        "test/accuracy": score, "valid/accuracy": 0.5, "best_step": 2000, "examples": 8, "example_visits": 64,
        "train_seconds": 1.5, "hardware": {"devices": 1, "device_kind": "cpu"}, "versions": {"jax": "0.10.2"},
    }  # fmt: skip
    rows = [{"step": step, "loss": step**-2} for step in range(1, 51)] + [{"step": 50, "valid/accuracy": 0.5}]
    if method == "dss":
        rows.append({"step": 50, f"valid/{HOSTILE}": 1})
    predictions = [
        {"id": f"q{n}{HOSTILE}" if n == 1 else f"q{n}", "input": question, "gold": f"{n}{question[:3]}"}
        | {"label": str(n) if was_right else HOSTILE, "correct": bool(was_right)}
        | ({"rationale": f"By {method}: {question}"} if method == "dss" else {})
        for n, (question, was_right) in enumerate(zip(QUESTIONS, right, strict=True))
    ]
    for name, content in {
        "config.json": json.dumps(config),
        "result.json": json.dumps(result),
        "metrics.jsonl": "\n".join(map(json.dumps, rows)),
        "evaluation/svamp_test/evaluation.json": json.dumps({"by_value": True, "labels": None}),
        "evaluation/svamp_test/predictions.jsonl": "\n".join(map(json.dumps, predictions)),
    }.items():
        (workdir / name).write_text(content)


@pytest.fixture
def sweep(tmp_path):
    cells = tuple(Cell(method, "all", "c.py", {"data.train_fraction": 1.0}) for method in RIGHT)
    Table("A title", cells).save(tmp_path)
    for cell in cells:
        _run(tmp_path / cell.path / "seed0", cell.row, RIGHT[cell.row])
    return tmp_path


@pytest.fixture
def runs(sweep):
    return [sweep / method / "all" / "seed0" for method in RIGHT]


@pytest.fixture
def page(runs, tmp_path, capsys):
    assert compare.main([*map(str, runs), f"--html={tmp_path / 'page.html'}"]) == 0
    assert capsys.readouterr().out == f"written to {tmp_path / 'page.html'}\n"
    return tmp_path / "page.html"


class _Parsed(html.parser.HTMLParser):
    """The texts of a page by the element they are in, and the attributes of each element."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts = [], []
        self.feed(page.read_bytes().decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.texts.append((tag, ""))

    def handle_data(self, data):
        tag, text = self.texts[-1] if self.texts else ("", "")
        self.texts[-1:] = [(tag, text + data)]

    def of(self, tag):
        return [text.strip() for name, text in self.texts if name == tag]


def test_the_page_says_what_compare_and_evaluate_measure(page, sweep, monkeypatch):
    monkeypatch.setattr(compare, "_draw", lambda *given: [])
    assert compare.main([str(sweep)]) == 0
    (difference,) = csv.DictReader((sweep / "differences.csv").read_text().splitlines())
    scores = [float(row["test"]) for row in csv.DictReader((sweep / "report.csv").read_text().splitlines())]
    parsed = _Parsed(page)
    assert parsed.of("h1") == ["svamp: standard and dss"]
    cells = parsed.of("td")
    for score, right in zip(scores, RIGHT.values(), strict=True):
        low, high = bootstrap_interval(right)
        assert f"accuracy {100 * score:.2f} %" in cells
        assert f"{100 * score:.2f} % ({100 * low:.2f} to {100 * high:.2f})" in cells
    verdict = parsed.of("p")[0]
    assert "6 of 6 questions were answered by both." in verdict
    assert f"B - A: {float(difference['difference']):+.2f} points" in verdict
    assert f"Of 4 only one is right: p = {mcnemar_p_value(1, 3):.2g}" in verdict
    assert mcnemar_p_value(1, 3) == pytest.approx(2 * (1 + 4) / 2**4)
    assert (mcnemar_p_value(0, 0), mcnemar_p_value(2, 2)) == (1, 1)
    names = parsed.of("th")
    assert "config.objective.method" in names
    assert [name for name in names if name.startswith("config.")] == ["config.objective.method"]
    assert parsed.of("button") == [f"{name} {count}" for name, count in COUNTS.items()]
    outcomes = [
        attributes["data-outcome"] for tag, attributes in parsed.elements if tag == "tr" and attributes
    ]
    assert {name: outcomes.count(name) for name in COUNTS if name != "all"} | {"all": 6} == COUNTS
    assert len([tag for tag, _ in parsed.elements if tag == "svg"]) == 3
    assert "loss, logarithmic" in parsed.of("figcaption")


def test_text_is_only_text(page):
    parsed = _Parsed(page)
    content = page.read_bytes().decode()
    tags = {tag for tag, _ in parsed.elements}
    assert "img" not in tags
    assert [tag for tag, _ in parsed.elements].count("script") == 1
    assert content.count("</script>") == content.count("</style>") == content.count("</main>") == 1
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert "http" not in re.sub('http-equiv="', "", content)
    cells = parsed.of("td")
    for question in (HOSTILE, SHOWN, QUESTIONS[3]):
        assert question in cells
        assert f"By dss: {question}" in parsed.of("p")
    assert f"q1{HOSTILE}" in parsed.of("th")
    assert f"valid/{HOSTILE}" in parsed.of("figcaption")
    assert f"✗ {HOSTILE}" in parsed.of("b")
    assert not set(UNSEEN) & set(content) - set("abc[31m")


def test_the_evaluation_that_a_run_lacks_is_of_the_task_asked(runs, tmp_path, capsys):
    values = json.loads((runs[1] / "config.json").read_text())
    values["data"] |= {"task": "svamp", "root": "data"}
    (runs[1] / "config.json").write_text(json.dumps(values))
    (runs[0] / "evaluation" / "svamp_test").rename(runs[0] / "evaluation" / "jsonl_test")
    html = f"--html={tmp_path / 'page.html'}"
    assert compare.main([*map(str, runs), html, "--task=jsonl"]) == 2
    command = f"python -m cot_jax.evaluate {runs[1]}"
    said = f"error: {runs[1]}: no evaluation of jsonl on test: first {command} --task=jsonl --root=DIR\n"
    assert capsys.readouterr().err == said
    # The task that it was trained on needs no flag.
    shutil.rmtree(runs[1] / "evaluation")
    (runs[0] / "evaluation" / "jsonl_test").rename(runs[0] / "evaluation" / "svamp_test")
    assert compare.main([*map(str, runs), html, "--task=svamp"]) == 2
    assert capsys.readouterr().err == f"error: {runs[1]}: no evaluation of svamp on test: first {command}\n"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "seed0: no result.json, so the run is not finished"),
        (
            lambda run: shutil.rmtree(run / "evaluation"),
            r"(.*seed0): no evaluation of a task on test: first python -m cot_jax.evaluate \1\n",
        ),
        (lambda run: (run / "metrics.jsonl").unlink(), r"metrics\.jsonl: no such file"),
        (lambda run: (run / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    ],
)
def test_what_a_run_lacks_is_named(runs, tmp_path, capsys, break_it, message):
    break_it(runs[1])
    assert compare.main([*map(str, runs), f"--html={tmp_path / 'page.html'}"]) == 2
    said = capsys.readouterr().err
    assert re.match(f"error: .*{message}", said)
    assert said.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("arguments", [["a", "b"], ["a", "--html=x"], ["a", "b", "c", "--html=x"]])
def test_a_sweep_or_two_runs(arguments, capsys):
    with pytest.raises(SystemExit):
        compare.main(arguments)
    assert "give --output of one sweep, or RUN_A RUN_B --html=FILE" in capsys.readouterr().err


@pytest.fixture
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="a browser needs playwright")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("no browser: chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium)
        yield started
        started.close()


@pytest.mark.slow
def test_a_browser_filters_and_searches(page, browser):
    view = browser.new_page()
    said = []
    view.on("pageerror", lambda error: said.append(error.message))
    view.on("console", lambda message: said.append(message.text))
    view.on("dialog", lambda dialog: said.append(dialog.message) or dialog.dismiss())
    view.goto(page.as_uri())
    rows = view.locator("tr[data-outcome]:visible")
    for name, count in COUNTS.items():
        button = view.get_by_role("button", name=name)
        button.click()
        assert (rows.count(), button.get_attribute("aria-pressed")) == (count, "true")
        assert view.get_by_role("status").inner_text() == f"{count} shown"
    # By keyboard: back to "all", then into the search.
    view.get_by_role("button", name="all 6").focus()
    view.keyboard.press("Enter")
    for _ in range(5):
        view.keyboard.press("Tab")
    counts = {"PENS": 3, "ann has 4": 1, "right": 0, "</td>": 5, "u+202e": 1, "שלום": 1}
    for text, count in counts.items():
        view.keyboard.press("Control+a")
        view.keyboard.type(text)
        assert rows.count() == count, text
    view.get_by_role("button", name="only A right").click()
    assert rows.count() == 0
    assert view.title() == "svamp: standard and dss"
    view.set_viewport_size({"width": 390, "height": 800})
    assert view.evaluate("document.documentElement.scrollWidth") == 390
    assert said == []
