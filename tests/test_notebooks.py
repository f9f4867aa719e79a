"""Notebooks: what is committed was executed, and each runs from top to bottom on a sweep's directory."""

import base64
import dataclasses
import json
import re
import runpy
import shutil
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.head import plain_vocabulary_pass
from cot_jax import api, evaluate, experiments
from cot_jax.config import Config, to_json
from cot_jax.losses.mutual_information import map_length
from cot_jax.losses.vocabulary import VocabularyMap
from cot_jax.training.data import load_splits
from cot_jax.training.saved import load

plt = pytest.importorskip("matplotlib.pyplot", reason="notebooks need cot-jax[notebooks]")
pytest.importorskip("IPython", reason="notebooks need cot-jax[notebooks]")
jupytext = pytest.importorskip("jupytext", reason="notebooks need cot-jax[notebooks]")
for package in ("pandas", "rouge_score", "sacrebleu"):
    pytest.importorskip(package, reason="notebooks need cot-jax[notebooks]")

NAMES = ("quickstart", "mi_curves", "calibration", "rationales")
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
METHODS = ("standard", "dss", "mi", "mi:normalized", "mi:kl")
SPLIT = Path("evaluation", "word_problems_test")


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_those_of_the_code(name):
    scripted = jupytext.read(NOTEBOOKS / f"{name}.py")
    executed = jupytext.read(NOTEBOOKS / f"{name}.ipynb")
    assert [(c.cell_type, c.source) for c in executed.cells] == [
        (c.cell_type, c.source) for c in scripted.cells
    ]
    assert scripted.metadata["jupytext"]["formats"] == "ipynb,py:percent"
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    # Of questions, what was counted; no warning.
    warned = "".join(o.text for o in outputs if o.get("name") == "stderr").splitlines()
    assert all(re.match(r"(predict|explain): [\d,]+ texts, ", line) for line in warned), warned
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert pictures
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    # Of the machine that they were executed on, nothing.
    said = json.dumps(
        [o.get("text") or {k: v for k, v in o.data.items() if k != "image/png"} for o in outputs]
    )
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", said)
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 400_000


def test_every_script_has_its_notebook_and_the_other_way_round():
    scripts, notebooks = ({f.stem for f in NOTEBOOKS.glob(f"*.{kind}")} for kind in ("py", "ipynb"))
    assert scripts == notebooks == {*NAMES}


@pytest.fixture(scope="module")
def runs(random_run, tmp_path_factory):
    """A sweep's directory: one student evaluated under many names; not as `standard`; `mi:kl` unfinished."""
    directory = tmp_path_factory.mktemp("runs")
    sweep = experiments.grid("configs/demo_mi.py", METHODS, [1.0])
    sweep.save(directory)
    workdirs = {cell.row: directory / cell.path / "seed0" for cell in sweep.cells}
    config = Config()
    problems = dataclasses.replace(config.data.word_problems, train=8, valid=8, test=8)
    data = dataclasses.replace(config.data, word_problems=problems, max_input_tokens=64, max_target_tokens=48)
    evaluation = dataclasses.replace(config.evaluation, max_new_tokens=4, batch_size=8)
    config = dataclasses.replace(config, data=data, evaluation=evaluation)
    texts = [text for e in load_splits(data, 0).train for text in (e.text, e.label, e.rationale)]
    workdirs["dss"].mkdir(parents=True)
    random_run(workdirs["dss"], config, [*texts, "predict: explain:"], 128)
    rows = [
        {"step": step, **dict.fromkeys(("loss/label", "loss/rationale", "loss/mi"), 1 / step)}
        for step in range(1, 201)
    ]
    (workdirs["dss"] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdirs["dss"] / "result.json").write_text('{"valid/accuracy": 0.5, "test/accuracy": 0.5}')
    for row in METHODS[2:]:
        shutil.copytree(workdirs["dss"], workdirs[row], ignore=shutil.ignore_patterns(str(SPLIT)))
    shutil.copytree(workdirs["dss"], workdirs["standard"])
    assert evaluate.main([str(workdirs["dss"]), "--mutual_information"]) == 0
    file = workdirs["dss"] / SPLIT / "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for n, row in enumerate(rows):
        row["correct"] = n % 3 == 0
        row["rationale"] = row["rationale"] if n else row["teacher_rationale"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row, workdir in workdirs.items():
        method, _, variant = row.partition(":")
        objective = dataclasses.replace(
            config.objective, method=method, mi_variant=variant or config.objective.mi_variant
        )
        (workdir / "config.json").write_text(to_json(dataclasses.replace(config, objective=objective)))
        if method == "mi":
            shutil.copytree(workdirs["dss"] / SPLIT, workdir / SPLIT)
    (workdirs["mi:kl"] / "result.json").unlink()
    return directory, workdirs


@pytest.fixture
def run_notebook(runs, monkeypatch):
    def run(name):
        monkeypatch.setenv("COT_JAX_RUNS", str(runs[0]))
        return runpy.run_path(str(NOTEBOOKS / f"{name}.py"))

    plt.switch_backend("Agg")
    yield run
    plt.close("all")


@pytest.mark.slow
def test_quickstart(runs, run_notebook, monkeypatch, capsys):
    run, asked = runs[0] / "quickstart", []
    shutil.copytree(runs[1]["dss"], run)
    # The command's tests train.
    monkeypatch.setattr(api, "train", lambda *arguments: asked.append(arguments) or api.load(run))
    found = run_notebook("quickstart")
    ((config, directory),) = asked
    assert (config.train.steps, config.objective.method, directory) == (600, "dss", run)
    assert found["same"] == found["answers"]
    assert [row["input"] for row in found["answers"]] == found["questions"]
    assert all(isinstance(row["rationale"], str) for row in found["answers"])
    assert found["evaluation"] == json.loads((run / SPLIT / "evaluation.json").read_text())
    assert "8 questions: accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_mi_curves(runs, run_notebook, monkeypatch):
    directory, workdirs = runs
    # One run was evaluated without the bound: the notebook has it evaluated again.
    file = workdirs["mi:normalized"] / SPLIT / "evaluation.json"
    complete = file.read_text()
    file.write_text(json.dumps({k: v for k, v in json.loads(complete).items() if k != "mutual_information"}))
    asked = []
    monkeypatch.setattr(evaluate, "main", lambda argv: asked.append(argv) or file.write_text(complete))
    found = run_notebook("mi_curves")
    assert asked == [[str(workdirs["mi:normalized"]), "--mutual_information"]]
    assert list(found["runs"]) == ["dss", "mi", "mi:normalized"]
    assert (directory / "mi_curves.png").stat().st_size > 5000
    assert found["curve"](workdirs["dss"], "loss/mi").mean[0] == pytest.approx(
        np.mean(1 / np.arange(101, 126))
    )

    # The maps are those that the objective makes.
    saved, maps = load(workdirs["dss"]), found["maps"]["dss"]

    @partial(jax.jit, static_argnums=2)
    def map_of(params, batch, name):
        hidden, view = saved.student.hidden(params, batch, None), batch.views[name]
        kind = {"mi": VocabularyMap("max", map_length("masked", view))}
        found = plain_vocabulary_pass(hidden[name], saved.student.head(params), view.targets, kind)
        return found.maps["mi"][0]

    for name, map_NV in (("predict", maps.p_NV), ("explain", maps.q_NV)):
        np.testing.assert_allclose(map_NV, map_of(saved.params, maps.batch, name), rtol=1e-4, atol=1e-6)
    (ids,), *_ = saved.format.targets(
        "predict", [maps.examples[3].label], saved.config.data.max_target_tokens
    )
    assert list(maps.of_label(3)) == sorted(set(ids))
    # Gain and price: the value that the published form has without a bracket, minus <p, q> with it.
    bracket = maps.pieces.index("▁)")
    low, high = found["mi_loss"]("masked", 0), found["mi_loss"]("masked", 1)
    q_NV = maps.q_NV.copy()
    q_NV[:, bracket] = 1
    loss = [
        (maps.p_NV.sum(1) * np.log(np.exp(q).sum(1)) - (maps.p_NV * q).sum(1)).mean()
        for q in (maps.q_NV, q_NV)
    ]
    assert [low, high] == pytest.approx(loss, rel=1e-4)


def test_calibration(runs, run_notebook, capsys):
    _, workdirs = runs
    found = run_notebook("calibration")
    assert "8 questions: accuracy" in capsys.readouterr().out  # of `standard`
    assert list(found["evaluations"]) == ["standard", "dss", "mi"]
    written = json.loads((workdirs["dss"] / SPLIT / "evaluation.json").read_text())["calibration"][
        "per_token"
    ]
    cells = found["table"]["dss", "per_token"]
    assert cells["", "temperature"] == written["temperature"]
    assert cells["as trained", "ECE"] == written["as_trained"]["expected_calibration_error"]
    assert cells["scaled", "MCE"] == written["scaled"]["maximum_calibration_error"]
    answers = found["evaluations"]["dss"][1]
    metrics = pytest.importorskip("sklearn.metrics", reason="the area is compared with scikit-learn's")
    assert found["area_under_roc"](answers["confidence"], answers["correct"]) == pytest.approx(
        metrics.roc_auc_score(answers["correct"], answers["confidence"])
    )
    assert found["area_under_roc"](answers["confidence"], answers["correct"] & False) is None


def test_rationales(runs, run_notebook, capsys):
    _, workdirs = runs
    found = run_notebook("rationales")
    assert capsys.readouterr().out.count("8 rationales of 8 predictions") == 5  # three runs, two comparisons
    assert list(found["measures"]) == ["dss", "mi", "mi:normalized"]
    studies = found["case_studies"]("mi")
    assert studies.startswith("### A: mi, B: dss\n\n8 examples in common: both right 3,")
    assert studies.count("#### ") == 2
    assert str(workdirs["mi"]) not in studies
    coefficients = found["coefficients"](found["measures"]["dss"])
    assert (
        coefficients["rouge l", "r"]
        == found["measures"]["dss"]["correlation_with_correctness"]["rouge_l"]["pearson"]["r"]
    )
    constant = {"correlation_with_correctness": {"agrees": {"pearson": None, "spearman": None}}}
    assert set(found["coefficients"](constant).values()) == {None}
