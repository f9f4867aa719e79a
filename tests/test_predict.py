"""predict and export: a student that leaves the house says there what it says here."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest

from cot_jax import export, predict
from cot_jax.config import Config, to_json
from cot_jax.data import tokenizer as tokenizers
from cot_jax.models.student import T5Student
from cot_jax.models.t5 import T5Config
from cot_jax.training.checkpoints import Checkpoints
from cot_jax.training.saved import STUDENT_FILE, load

QUESTIONS = ["Tom has 3 pens .", "Ann buys 12 apples and 3 pens .", "How many pens has Tom ?"]
SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The work directory of a run that has been evaluated once, of random parameters."""
    workdir = tmp_path_factory.mktemp("run")
    tokenizer = tokenizers.train([*QUESTIONS, "predict: explain:"], 64, str(workdir / "scratch"))
    student = T5Student(T5Config(vocab_size=tokenizer.size, pad_token_id=tokenizer.pad_id, **SIZES))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    config = Config()
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, max_new_tokens=6, batch_size=2)
    )
    (workdir / "config.json").write_text(to_json(config))
    (workdir / STUDENT_FILE).write_text(json.dumps(student.architecture()))
    tokenizer.save(workdir / "tokenizer")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save_if_best(1, jax.device_put(params), 0.5)
    return workdir


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "student"
    assert export.main([f"--workdir={run}", f"--output={directory}"]) == 0
    return directory


def _predict(model, capsys, monkeypatch, *arguments, rows=None):
    rows = rows or [{"id": f"q{n}", "input": question} for n, question in enumerate(QUESTIONS)]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(row) + "\n" for row in rows)))
    status = predict.main([f"--model={model}", "--batch_size=8", "--max_new_tokens=6", *arguments])
    captured = capsys.readouterr()
    return status, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_an_exported_student_says_the_same_in_transformers(run, exported, capsys, monkeypatch):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    status, rows, said = _predict(run, capsys, monkeypatch, "--explain")
    assert status == 0
    assert [row["id"] for row in rows] == ["q0", "q1", "q2"]
    assert "3 texts" in said
    model, tokenizer = (
        AutoModelForSeq2SeqLM.from_pretrained(exported),
        AutoTokenizer.from_pretrained(exported),
    )
    for key, prefix in (("label", "predict: "), ("rationale", "explain: ")):
        for row in rows:
            ids = tokenizer(prefix + row["input"], return_tensors="pt", add_special_tokens=False).input_ids
            ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], dim=1)
            with torch.no_grad():
                tokens = model.generate(ids, max_new_tokens=6, do_sample=False, num_beams=1)
            assert row[key] == tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert len({row["label"] for row in rows}) > 1, "random weights should not say one thing"


def test_a_run_and_its_export_agree_whatever_the_batch(run, exported, capsys, monkeypatch):
    _, whole, _ = _predict(run, capsys, monkeypatch)
    _, one_by_one, _ = _predict(exported, capsys, monkeypatch, "--batch_size=1")
    assert whole == one_by_one
    _, beams, _ = _predict(exported, capsys, monkeypatch, "--beams=3")
    assert [row["id"] for row in beams] == ["q0", "q1", "q2"]


def test_load_gives_back_what_was_saved(run, exported):
    a, b = load(run), load(exported)
    assert a.config == b.config
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "-, line 2: not JSON"),
        ("[]", '-, line 2: a row is an object with a text "input"'),
        ('{"input": 3}', '-, line 2: a row is an object with a text "input"'),
        ('{"input": "a", "rationale": 3}', '-, line 2: "rationale" is not text'),
    ],
)
def test_a_bad_row_is_named(run, text, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('{"input": "Tom has 3 pens ."}\n' + text + "\n"))
    assert predict.main([f"--model={run}", "--batch_size=8", "--max_new_tokens=2"]) == 2
    assert message in capsys.readouterr().err


def test_mistakes_are_one_line(run, exported, tmp_path, capsys):
    assert predict.main([f"--model={tmp_path}", "--input=-"]) == 2
    assert "is neither a run" in capsys.readouterr().err
    assert predict.main([f"--model={run}", f"--input={tmp_path / 'none.jsonl'}"]) == 2
    assert "none.jsonl: No such file" in capsys.readouterr().err
    assert predict.main([f"--model={run}", f"--output={tmp_path / 'no' / 'where'}"]) == 2
    assert "where cannot be written: No such file" in capsys.readouterr().err
    (tmp_path / "cot_jax.json").write_text('{"seed": ')
    assert predict.main([f"--model={tmp_path}"]) == 2
    assert "cot_jax.json: not JSON" in capsys.readouterr().err
    assert export.main([f"--workdir={run}", f"--output={exported}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_method_without_rationales_cannot_explain(exported, tmp_path, capsys):
    config = json.loads((exported / "cot_jax.json").read_text())
    config["objective"]["method"] = "standard"
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "cot_jax.json").write_text(json.dumps(config))
    assert predict.main([f"--model={tmp_path}", "--explain"]) == 2
    assert "method=standard was taught no rationale" in capsys.readouterr().err
