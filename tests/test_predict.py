"""predict and export: a student that leaves the house says there what it says here."""

import dataclasses
import io
import json
import re
import shutil

import httpx2
import huggingface_hub
import jax
import numpy as np
import pytest
import yaml

import cot_jax as cj
from cot_jax import evaluate, export, predict
from cot_jax.answers.voting import vote
from cot_jax.config import Config
from cot_jax.text import formats
from cot_jax.training.saved import ANSWERS_FILE, load

QUESTIONS = ["Tom has 3 pens .", "Ann buys 12 apples and 3 pens .", "How many pens has Tom ?"]


@pytest.fixture(scope="module")
def run(random_run, tmp_path_factory):
    config = Config()
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, max_new_tokens=6, batch_size=2)
    )
    return random_run(tmp_path_factory.mktemp("run"), config, [*QUESTIONS, "predict: explain:"], 64)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "student"
    assert export.main([str(run), f"--output={directory}"]) == 0
    return directory


def _say(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


def _predict(model, capsys, monkeypatch, *arguments, rows=None):
    rows = rows or [{"id": f"q{n}", "input": question} for n, question in enumerate(QUESTIONS)]
    _say(monkeypatch, "".join(json.dumps(row) + "\n" for row in rows))
    status = predict.main([str(model), "--batch_size=8", "--max_new_tokens=6", *arguments])
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
    (program,) = re.findall("```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(exported)
    for row in rows:
        exec(compile(program, "README.md", "exec"), {"question": row["input"]})
        assert capsys.readouterr().out == row["label"] + "\n"


def test_a_run_and_its_export_agree_whatever_the_batch(run, exported, capsys, monkeypatch):
    _, whole, _ = _predict(run, capsys, monkeypatch)
    _, one_by_one, _ = _predict(exported, capsys, monkeypatch, "--batch_size=1")
    assert whole == one_by_one
    _, beams, _ = _predict(exported, capsys, monkeypatch, "--beams=3")
    assert [row["id"] for row in beams] == ["q0", "q1", "q2"]


def test_python_says_what_the_command_says(run, tmp_path, capsys, monkeypatch):
    _, rows, _ = _predict(run, capsys, monkeypatch, "--explain", rows=[{"input": q} for q in QUESTIONS])
    options = {"batch_size": 8, "max_new_tokens": 6, "explain": True}
    student = cj.load(run)
    listed = {"id": 7, "input": [QUESTIONS[0]]}
    assert student.predict([*QUESTIONS, listed], **options) == [*rows, rows[0] | listed]
    assert student.result == {}
    for question, message in ((3, "question 2: 'input' must be"), ({"id": 1}, "question 2: .*'input'")):
        with pytest.raises(cj.UserError, match=message):
            student.predict([QUESTIONS[0], question], **options)
    for one in (QUESTIONS[0], {"input": QUESTIONS[0]}):
        with pytest.raises(cj.UserError, match=r"predict takes a list of questions, found one: put it in a"):
            student.predict(one, **options)
    with pytest.raises(TypeError, match="sample"):
        student.predict(QUESTIONS, sample=3)
    with pytest.raises(cj.UserError, match="is neither a run"):
        cj.load(tmp_path)


def test_python_trains_a_config_only():
    with pytest.raises(cj.UserError, match=r"found str: make one with cot_jax\.config\('svamp_mi'\)$"):
        cj.train("svamp_mi", "runs/mine")


def test_a_student_whose_tokenizer_is_lost_says_so(run, tmp_path, capsys, monkeypatch):
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("tokenizer"))
    monkeypatch.chdir(tmp_path)
    # copy/tokenizer could be the name of a repository of the Hub.
    status, _, said = _predict("copy", capsys, monkeypatch)
    assert status == 2
    assert said.endswith("error: copy/tokenizer: no such directory; restore the tokenizer of copy\n")


def test_a_student_goes_to_the_hub_with_its_card(run, tmp_path, capsys, monkeypatch):
    uploaded, command = [], [str(run), f"--output={tmp_path / 'student'}", "--push_to_hub=me/student"]

    def upload(repo_id, folder_path, commit_message):
        uploaded.append((repo_id, {file.name for file in folder_path.iterdir()}))
        return "https://huggingface.co/me/student/tree/main"

    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *given, **how: uploaded.append((given, how)))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert export.main(command) == 0
    assert "uploaded: https://huggingface.co/me/student" in capsys.readouterr().out
    created, (repository, files) = uploaded
    assert created == (("me/student",), {"exist_ok": True})
    assert repository == "me/student"
    assert files >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "cot_jax.json"}

    def refuse(*_, **__):
        raise httpx2.ConnectError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    command[1] = f"--output={tmp_path / 'again'}"
    assert export.main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --push_to_hub=me/student: ConnectError: Name or service not known; ")
    assert said.count("\n") == 1
    assert (tmp_path / "again" / "README.md").is_file()
    assert export.main([*command, "--adapter"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_an_input_of_several_parts_is_a_list_in_and_out(run, capsys, monkeypatch):
    pair, end = ["Tom has 3 pens .", "He buys 4 more ."], load(run).format.tokenizer.eos_token
    rows = [{"id": 0, "input": pair}, {"id": 1, "input": end.join(pair)}]
    _, (listed, joined), _ = _predict(run, capsys, monkeypatch, "--explain", rows=rows)
    assert listed == joined | {"id": 0, "input": pair}


def test_the_model_card_says_how_to_ask(exported):
    card = (exported / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["license"] == "other"
    assert "base_model" not in front
    assert "| the answer | `predict: ` | 6 |" in body
    assert "| its rationale | `explain: ` | 256 |" in body
    assert "| test | not measured |" in body
    assert "--config.evaluation.max_new_tokens=6\n" in body
    generation = json.loads((exported / "generation_config.json").read_text())
    assert (generation["max_new_tokens"], generation["decoder_start_token_id"]) == (6, 0)


def test_the_label_is_the_vote_over_samples_whatever_the_batch(run, exported, capsys, monkeypatch):
    rows = [{"id": n, "input": question} for n, question in enumerate(QUESTIONS)]
    draw = ("--samples=6", "--temperature=0.8", "--top_k=20", "--top_p=0.9", "--seed=3")
    status, answers, said = _predict(run, capsys, monkeypatch, *draw, "--explain", rows=rows)
    assert status == 0, said
    for row in answers:
        assert list(row) == ["id", "input", "label", "votes", "samples", "rationale"]
        labels = [sample["label"] for sample in row["samples"]]
        log_probs = [sample["log_prob"] for sample in row["samples"]]
        assert len(labels) == 6
        assert max(log_probs) < 0
        assert (row["label"], row["votes"]) == vote(labels, log_probs, by_value=True)
    assert any(len({sample["label"] for sample in row["samples"]}) > 1 for row in answers)
    # The same from an export, in another order, one by one, with others in between.
    mixed = [rows[2], {"id": 3, "input": "Ann has 12 apples ."}, rows[0], rows[1]]
    _, again, _ = _predict(exported, capsys, monkeypatch, *draw, "--batch_size=1", rows=mixed)
    again = {row["id"]: row for row in again}
    for row in answers:
        assert [x["label"] for x in row["samples"]] == [x["label"] for x in again[row["id"]]["samples"]]
        assert row["votes"] == again[row["id"]]["votes"]


def test_a_student_that_chose_among_labels_still_does(exported, tmp_path, capsys, monkeypatch):
    _copy(exported, tmp_path)
    labels = ("3 apples", "12 pens", "Tom")
    (tmp_path / ANSWERS_FILE).write_text(json.dumps({"by_value": False, "labels": labels}))
    _, answers, _ = _predict(tmp_path, capsys, monkeypatch)
    assert {row["label"] for row in answers} <= set(labels)
    _, written, _ = _predict(tmp_path, capsys, monkeypatch, "--beams=1")
    assert not {row["label"] for row in written} & set(labels)


def test_load_gives_back_what_was_saved(run, exported):
    a, b = load(run), load(exported)
    assert (a.config, a.by_value, a.labels) == (b.config, b.by_value, b.labels)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"input"', "standard input:2: not valid JSON"),
        ("[]", "standard input:2: expected one whole JSON object a line, found a list"),
        ('{"text": "a"}', "standard input:2: no field 'input'; the row has text"),
        ('{"input": ["a", 3]}', "standard input:2: 'input' must be a text in quotes or a list of texts"),
        ('{"input": " \\n"}', "standard input:2: the input is blank"),
        ('{"input": ["", " "]}', "standard input:2: the input is blank"),
        ('{"input": 3}', "standard input:2: 'input' must be a text in quotes or a list of texts"),
        ('{"input": "a", "rationale": 3}', "standard input:2: 'rationale' must be a text in quotes"),
    ],
)
def test_a_bad_row_is_named(run, text, message, capsys, monkeypatch):
    _say(monkeypatch, '{"input": "Tom has 3 pens ."}\n' + text + "\n")
    assert predict.main([str(run), "--batch_size=8", "--max_new_tokens=2"]) == 2
    assert message in capsys.readouterr().err


def test_an_answer_file_is_replaced_when_it_is_whole(run, tmp_path, capsys, monkeypatch):
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    rows = "".join(json.dumps({"input": question}) + "\n" for question in QUESTIONS)
    asked.write_text(rows)
    answers.write_text("older\n")
    command = [str(run), f"--input={asked}", f"--output={answers}", "--batch_size=1", "--max_new_tokens=2"]
    for broken, written in (("{\n" + rows, 0), (rows + "{\n", 3)):
        asked.write_text(broken)
        assert predict.main(command) == 2
        assert answers.read_text() == "older\n"
        assert len((tmp_path / "answers.jsonl.partial").read_text().splitlines()) == written
    asked.write_text(rows)
    assert predict.main(command) == 0
    assert len(answers.read_text().splitlines()) == 3
    assert not (tmp_path / "answers.jsonl.partial").exists()
    assert predict.main([str(run), f"--input={asked}", "--output=/dev/null", "--max_new_tokens=2"]) == 0


@pytest.mark.parametrize("output", ["asked.jsonl", "link.jsonl", "half"])
def test_what_is_read_is_not_written_over(run, tmp_path, capsys, output):
    asked = tmp_path / ("half.partial" if output == "half" else "asked.jsonl")
    asked.write_text('{"input": "Tom has 3 pens ."}\n')
    (tmp_path / "link.jsonl").symlink_to(asked)
    assert predict.main([str(run), f"--input={asked}", f"--output={tmp_path / output}"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: --output={tmp_path / output} would write over --input: choose another file\n"
    assert asked.read_text() == '{"input": "Tom has 3 pens ."}\n'


def test_mistakes_are_one_line(run, exported, tmp_path, capsys):
    assert predict.main([str(tmp_path), "--input=-"]) == 2
    assert "is neither a run" in capsys.readouterr().err
    assert predict.main([str(run), f"--input={tmp_path / 'none.jsonl'}"]) == 2
    assert "none.jsonl: no such file" in capsys.readouterr().err
    assert predict.main([str(run), f"--output={tmp_path / 'no' / 'where'}"]) == 2
    assert "where cannot be written: No such file" in capsys.readouterr().err
    (tmp_path / "cot_jax.json").write_text('{"seed": ')
    assert predict.main([str(tmp_path)]) == 2
    assert "cot_jax.json: not valid JSON" in capsys.readouterr().err
    assert export.main([str(run), f"--output={exported}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_method_without_rationales_cannot_explain(exported, tmp_path, capsys):
    _copy(exported, tmp_path)
    config = json.loads((exported / "cot_jax.json").read_text())
    config["objective"]["method"] = "standard"
    (tmp_path / "cot_jax.json").write_text(json.dumps(config))
    assert predict.main([str(tmp_path), "--explain"]) == 2
    assert "method=standard learned no separate rationale" in capsys.readouterr().err


def test_a_student_that_writes_has_no_classes_to_weigh(run, capsys, monkeypatch):
    status, rows, said = _predict(run, capsys, monkeypatch, "--log_probs")
    assert (status, rows) == (2, [])
    assert said == "error: --log_probs: the student writes its answers, it has no classes\n"


def _copy(exported, directory):
    for file in exported.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())


def test_an_export_needs_to_know_what_is_equal(exported, tmp_path, capsys):
    _copy(exported, tmp_path)
    for values, message in (
        ('{"by_value": "yes", "labels": null}', "by_value is 'yes', expected true or false"),
        ('{"by_value": true, "labels": []}', "labels is [], expected some, or null"),
        ("{}", "no 'by_value'"),
    ):
        (tmp_path / ANSWERS_FILE).write_text(values)
        assert predict.main([str(tmp_path)]) == 2
        assert f"answers.json: {message}" in capsys.readouterr().err
    (tmp_path / ANSWERS_FILE).unlink()
    assert predict.main([str(tmp_path)]) == 2
    assert "answers.json: no such file" in capsys.readouterr().err


def test_another_tokenizer_is_refused(run, exported, tmp_path, capsys):
    other = formats.train(["Anne hat 17 Birnen ; wie viele hat Tom ?"], 64, tmp_path / "other", "seq2seq")
    copied = tmp_path / "run", tmp_path / "exported"
    for source, copy in zip((run, exported), copied, strict=True):
        shutil.copytree(source, copy)
    for directory, student in ((copied[0] / "tokenizer", copied[0]), (copied[1], copied[1])):
        other.save(directory)
        for command in (predict, evaluate, export):
            assert command.main([str(student), f"--output={tmp_path / 'out'}"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            expected = f"{directory}: not the tokenizer that {student} was trained with; restore it"
            assert line == f"error: {expected}"
        for file in directory.glob("tokenizer*"):
            file.unlink()
        assert predict.main([str(student)]) == 2
        assert "tokenizer" in capsys.readouterr().err


def test_a_damaged_student_is_refused(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    arrays = max((copy / "checkpoints").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(arrays.read_bytes())
    content[len(content) // 2] ^= 1
    arrays.write_bytes(content)
    for command in (predict, evaluate, export):
        assert command.main([str(copy), f"--output={tmp_path / 'out'}"]) == 2
        assert re.fullmatch(
            rf"error: {copy}/checkpoints/best/1 cannot be read \(ValueError: default/\S+ is damaged: .*\n",
            capsys.readouterr().err,
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch_size=0"], "--batch_size=0: must be from 1 to 65,536"),
        (["--samples=-1"], "--samples=-1: must be from 0 to 1,000"),
        (["--samples=1000000000"], "--samples=1000000000: must be from 0 to 1,000"),
        (["--beams=1000000000"], "--beams=1000000000: must be from 0 to 100"),
        (["--max_new_tokens=1000000000"], "--max_new_tokens=1000000000: must be from 0 to 32,768"),
        (["--batch_size=1000000000"], "--batch_size=1000000000: must be from 1 to 65,536"),
        (["--samples=2", "--seed=4294967296"], "--seed=4294967296: must be from 0 to 4,294,967,295"),
        (["--samples=2", "--seed=-1"], "--seed=-1: must be from 0 to 4,294,967,295"),
        (["--samples=2", "--temperature=0"], "--temperature must be above 0"),
        (["--samples=2", "--temperature=nan"], "--temperature=nan: must be from 0 to 1,000"),
        (["--samples=2", "--top_p=1.5"], "--top_p above 0 and at most 1"),
        (["--samples=2", "--beams=2"], "give one of them"),
        (["--top_p=0.9"], "need --samples"),
        (["--log_probs", "--explain"], "--log_probs excludes --samples"),
        (["--log_probs", "--samples=2"], "--log_probs excludes --samples"),
    ],
)
def test_flags_that_do_not_go_together(flags, message, capsys):
    assert predict.main(["anything", *flags]) == 2
    assert message in capsys.readouterr().err


def test_questions_come_from_one_place(capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["anything", "--split=train", "--input=questions.jsonl"])
    assert stopped.value.code == 2
    assert "--input those of a file: give one" in capsys.readouterr().err
