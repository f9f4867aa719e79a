"""Data sets from files to examples, on the real files and on a user's own."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cot_jax.config import DataConfig
from cot_jax.data import tasks
from cot_jax.data.examples import Example
from cot_jax.data.tasks import Counts
from cot_jax.data.teacher import outputs
from cot_jax.errors import UserError
from cot_jax.training.data import load_splits

# (rows, rationales, teacher labels, right ones) of each file, in both forms. The released parser's 1,000 rows
# with 9 unparsed and 66.8 % right are Counts(1000, 991, 991, 668).
ORACLE = {
    ("svamp", "train"): (Counts(800, 789, 787, 588), Counts(800, 789, 766, 594)),
    ("svamp", "test"): (Counts(200, 198, 198, 148), Counts(200, 198, 193, 155)),
    ("cqa", "train"): (Counts(9741, 9741, 9738, 7234), Counts(9741, 9741, 9423, 7334)),
    ("cqa", "test"): (Counts(1221, 1221, 1221, 943), Counts(1221, 1221, 1190, 955)),
    ("anli1", "train"): (Counts(9877, 9877, 9877, 9877), Counts(9877, 9877, 9877, 9877)),
    ("anli1", "valid"): (Counts(1000, 991, 991, 668), Counts(1000, 999, 999, 675)),
    ("anli1", "test"): (Counts(1000, 990, 990, 656), Counts(1000, 1000, 1000, 664)),
    ("esnli", "train"): (Counts(15145, 15144, 14903, 10593), Counts(15145, 14944, 14903, 10638)),
    ("esnli", "valid"): (Counts(9842, 9842, 9838, 7201), Counts(9842, 9838, 9838, 7201)),
    ("esnli", "test"): (Counts(9824, 9824, 9824, 7171), Counts(9824, 9824, 9824, 7171)),
}


@pytest.mark.parametrize(("name", "split"), ORACLE)
def test_parsers_meet_the_oracle_to_the_row(data_root, name, split):
    data = tasks.DATA_SETS[name]
    for parser, expected in zip(("reference", "corrected"), ORACLE[name, split], strict=True):
        examples = data.read(split, data_root, parser)
        assert tasks.count(examples, data.by_value) == expected
        if parser == "corrected":
            said = [e.rationale for e in examples] + [e.teacher_label for e in examples if name != "cqa"]
            assert all(text and text == text.strip() for text in said if text is not None)
            if data.label_set:
                assert {e.teacher_label for e in examples} <= {*data.label_set, None}


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("svamp", (720, 80, 200)),
        ("cqa", (8766, 975, 1221)),
        ("anli1", (9877, 1000, 1000)),
        ("esnli", (15145, 9842, 9824)),
        ("svamp_asdiv", (720 + 1607, 80, 200)),
    ],
)
def test_published_splits(data_root, task, sizes):
    splits = tasks.load(task, data_root)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == sizes
    assert splits.by_value == task.startswith("svamp")
    assert splits.label_set == (outputs.NLI_LABELS if "nli" in task else None)
    ids = [e.id for e in (*splits.train, *splits.valid, *splits.test)]
    assert len(set(ids)) == len(ids)
    assert [line.split(":")[0] for line in splits.report[-3:]] == ["train", "valid", "test"]
    assert f"train: {sizes[0]:,} examples, " in splits.report[-3]


@pytest.mark.parametrize("rows", [2, 7, 10, 11, 800, 9741])
def test_held_out_examples_are_those_of_the_datasets_library(rows):
    datasets = pytest.importorskip("datasets", reason="the published split is the datasets library's")
    examples = [Example(str(i), ("",), "") for i in range(rows)]
    expected = datasets.Dataset.from_dict({"row": range(rows)}).train_test_split(test_size=0.1, seed=0)
    train, valid = tasks.hold_out(examples)
    assert [int(e.id) for e in train] == expected["train"]["row"]
    assert [int(e.id) for e in valid] == expected["test"]["row"]


@pytest.mark.slow
def test_inputs_are_the_published_ones(data_root):
    svamp = tasks.load("svamp", data_root)
    assert dataclasses.replace(svamp.train[0], programs=()) == Example(
        id="svamp-train-0792",
        parts=(
            "The Ferris wheel in paradise park has 18 seats. Each seat can hold 15 people. "
            "If 10 seats are broken\nHow many people can ride the Ferris wheel at the same time?",
        ),
        label="( ( 18.0 - 10.0 ) * 15.0 )",
        teacher_label="((18 - 10) * 15)",
        rationales=(
            "The Ferris wheel has 18 seats. 10 seats are broken. So there are 18 - 10 = 8 seats left. "
            "Each seat can hold 15 people. So 8 seats can hold 8 * 15 = 120 people.",
        ),
    )
    cqa = {e.id: e for e in tasks.load("cqa", data_root).valid}["3a1b3c21a11f4ec53c166b0559df7369"]
    assert cqa.label == "bridge"
    assert cqa.text == (
        "A John is a bum.  Much like the stereotype, he lives near this sort of transportation "
        "infrastructure. Where does he live?\nAnswer Choices:\n(a) bus depot\n(b) beach\n(c) train station\n"
        "(d) bridge\n(e) bridge"
    )
    esnli = tasks.load("esnli", data_root).train[0]
    assert (esnli.id, esnli.label) == ("esnli-train-0000", "neutral")
    assert esnli.parts == (
        "A person on a horse jumps over a broken down airplane.",
        "A person is training his horse for a competition.",
    )
    anli = tasks.load("anli1", data_root).test[0]
    assert (anli.id, anli.label) == ("4aae63a8-fcf7-406c-a2f3-50c31c5934a9", "entailment")
    premise, hypothesis = anli.parts
    assert premise.endswith("Emporio Armani. Ernest Jones is part of the Signet Jewelers group.")
    assert hypothesis.startswith("The first Ern")
    assert anli.text == f"{premise}\n{hypothesis}"


def test_cqa_labels_are_choices_whatever_their_capitals(data_root):
    cqa = tasks.load("cqa", data_root)
    for example in (*cqa.train, *cqa.valid, *cqa.test):
        choices = example.text.split("\n(")[1:]
        assert {example.label, example.teacher_label or example.label} <= {
            c[3:].rstrip("\n") for c in choices
        }
    by_label = {e.teacher_label for e in cqa.train}
    assert {"french government", "kentucky derby", "to defend themselves."} <= by_label


def test_asdiv_adds_training_problems_that_write_equations(data_root):
    plain, added = tasks.load("svamp", data_root), tasks.load("svamp_asdiv", data_root)
    assert (added.valid, added.test) == (plain.valid, plain.test)
    assert added.train[: len(plain.train)] == plain.train
    asdiv = {e.id: e for e in added.train[len(plain.train) :]}
    assert asdiv["asdiv-train-0000"] == Example(
        "asdiv-train-0000",
        ("Seven red apples and two green apples are in the basket.\nHow many apples are in the basket?",),
        "( 7.0 + 2.0 )",
    )
    assert sum("(" in str(e.label) for e in asdiv.values()) == 1176
    # From another teacher than SVAMP's, if its file is there.
    assert sum(e.rationale is not None for e in asdiv.values()) == 677
    assert added.report[0].startswith("asdiv: 1,607 of 1,776 train problems")


def test_asdiv_teacher_outputs_are_used_where_there_are_any(data_root, tmp_path):
    for name in ("svamp", "asdiv"):
        shutil.copytree(data_root / name, tmp_path / name, ignore=shutil.ignore_patterns("nfolds", "*.xml"))
    _writable(tmp_path)
    outputs = [f"Row {row}. The answer is (7 + 2)." for row in range(1776)]
    (tmp_path / "asdiv/llm").mkdir()
    (tmp_path / "asdiv/llm/train_CoT_0.json").write_text(json.dumps(outputs))
    for example in tasks.load("svamp_asdiv", tmp_path).train[720:]:
        assert example.rationale == f"Row {int(example.id[-4:])}."
        assert example.teacher_label == "(7 + 2)"


def _writable(folder):
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


NLI_ROW = {"premise": "p", "hypothesis": "h", "label": 1, "uid": "u"}
CQA_ROW = {"id": "q", "question": "?", "choices": list("vwxyz"), "answer": "x"}
SVAMP_ROW = {"input": "b\nq", "label": "( 1.0 + 2.0 )"}


def _published(folder, name, rows, outputs=None):
    for split in ("train", "valid", "test"):
        path = folder / name / f"{name}_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if outputs is not None:
            (folder / name / "llm").mkdir(exist_ok=True)
            (folder / name / f"llm/{split}_CoT_0.json").write_text(json.dumps(outputs))


@pytest.mark.parametrize(
    ("name", "good", "change", "message"),
    [
        (
            "esnli",
            NLI_ROW,
            {"label": -1},
            r"esnli_train\.json:2: the label -1 is not one of 0 \(entailment\)",
        ),
        ("esnli", NLI_ROW, {"label": 3}, r"esnli_train\.json:2: the label 3 is not one of"),
        ("anli1", NLI_ROW, {"label": "neutral"}, r"anli1_train\.json:2: the label 'neutral' is not one of"),
        ("anli1", NLI_ROW, {"label": True}, r"anli1_train\.json:2: the label True is not one of"),
        ("anli1", NLI_ROW, {"premise": None}, r"anli1_train\.json:2: 'premise' must be a text .*found None"),
        ("anli1", NLI_ROW, {"uid": 7}, r"anli1_train\.json:2: 'uid' must be a text in quotes; found 7"),
        ("cqa", CQA_ROW, {"answer": "b"}, r"cqa_train\.json:2: the label 'b' is not one of v, w, x, y, z"),
        (
            "cqa",
            CQA_ROW,
            {"choices": ["x", "y"]},
            r"cqa_train\.json:2: 'choices' must be a list of five texts",
        ),
        (
            "svamp",
            SVAMP_ROW,
            {"label": "3 apples"},
            r"svamp_train\.json:2: the label '3 apples' is not an eq",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, name, good, change, message):
    _published(tmp_path, name, [good, good | change])
    with pytest.raises(UserError, match=message) as error:
        tasks.load(name, tmp_path)
    assert "\n" not in str(error.value)


def test_good_rows_need_no_teacher(tmp_path):
    _published(tmp_path, "esnli", [NLI_ROW])
    splits = tasks.load("esnli", tmp_path)
    assert splits.train == (Example("esnli-train-0000", ("p", "h"), "neutral"),)
    assert splits.report[0] == (
        "train: 1 examples, 0 with a rationale, 0 with a teacher label, which equals the label in 0"
    )


def test_teacher_outputs_must_be_as_many_as_rows(tmp_path):
    _published(tmp_path, "svamp", [SVAMP_ROW] * 3, ["A. The answer is (1)."] * 2)
    with pytest.raises(
        UserError, match=r"svamp/llm/train_CoT_\*\.json: 2 .* the 3 rows of .*svamp_train\.json"
    ):
        tasks.load("svamp", tmp_path)


def test_where_the_released_parser_stops(tmp_path):
    _published(tmp_path, "cqa", [CQA_ROW] * 11, ["A. So the answer is (c) X."] * 10 + ["It is (c) x."])
    assert tasks.load("cqa", tmp_path).test[0].teacher_label == "x"
    with pytest.raises(UserError, match=r"cqa_train\.json:11: the released parser fails"):
        tasks.load("cqa", tmp_path, parser="reference")


def test_unknown_task_and_missing_data(tmp_path):
    with pytest.raises(UserError, match=r"unknown task 'svmap': the known ones are svamp, cqa, .*jsonl"):
        tasks.load("svmap", tmp_path)
    with pytest.raises(
        UserError, match=r"esnli_train\.json: .*`python -m cot_jax\.prepare_data esnli --root "
    ):
        tasks.load("esnli", tmp_path)
    with pytest.raises(UserError, match=r"svamp_train\.json: no such file.*prepare_data svamp"):
        tasks.load("svamp_asdiv", tmp_path)
    with pytest.raises(UserError, match=r"train\.jsonl: no such file; jsonl reads train\.jsonl, test\.jsonl"):
        tasks.load("jsonl", tmp_path)


def test_a_missing_validation_file_of_published_data_is_an_error(tmp_path):
    _published(tmp_path, "esnli", [NLI_ROW] * 20)
    (tmp_path / "esnli/esnli_valid.json").unlink()
    with pytest.raises(UserError, match=r"esnli_valid\.json: no such file"):
        tasks.load("esnli", tmp_path)


# A user's own data.


def _rows(split, count, **more):
    return [{"id": f"{split}-{i}", "input": f"{i} + 1?", "label": str(i + 1), **more} for i in range(count)]


def _own(folder, **files):
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_own_data_inline(tmp_path):
    train = _rows("train", 3)
    train[0] |= {"rationale": "r", "program": "p = 1"}
    train[1] |= {"rationale": " ", "program": None, "note": "ignored"}
    train[2] |= {"id": 2, "input": ["premise", "hypothesis"]}
    splits = tasks.load("jsonl", _own(tmp_path, train=train, valid=_rows("valid", 1), test=_rows("test", 2)))
    assert splits.train == (
        Example("train-0", ("0 + 1?",), "1", None, ("r",), ("p = 1",)),
        Example("train-1", ("1 + 1?",), "2"),
        Example("2", ("premise", "hypothesis"), "3"),
    )
    assert (len(splits.valid), len(splits.test)) == (1, 2)


def _turns(*texts, roles=("system", "user", "assistant")):
    return [{"role": role, "content": text} for role, text in zip(roles[-len(texts) :], texts, strict=True)]


def test_own_data_as_prompts_or_messages(tmp_path):
    train = [
        {"prompt": "1 + 1?", "completion": " 2", "rationale": "r"},
        {"messages": _turns("2 + 1?", "3")},
        {"id": "mine", "messages": _turns("Be brief.", "3 + 1?", "4")},
        {"prompt": _turns("4 + 1?", "", roles=("user", "assistant"))[:1], "completion": _turns("5")},
    ]
    splits = tasks.load("jsonl", _own(tmp_path, train=train, valid=_rows("valid", 1), test=_rows("test", 2)))
    assert splits.train == (
        Example("train-1", ("1 + 1?",), "2", None, ("r",)),
        Example("train-2", ("2 + 1?",), "3"),
        Example("mine", ("Be brief.\n\n3 + 1?",), "4"),
        Example("train-4", ("4 + 1?",), "5"),
    )
    assert splits.by_value


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": _turns("2 + 1?", "3") * 2},
            r"found the roles \['user', 'assistant', 'user', 'assistant'\]",
        ),
        ({"messages": _turns("3")}, r"one user message and one assistant message, .*\['assistant'\]"),
        ({"messages": "3"}, r"found the roles '3'"),
        ({"prompt": "1?", "completion": 2}, r"'completion' must be a text in quotes; found 2"),
        ({"prompt": "1?", "completion": " "}, r"the label is blank"),
        ({"prompt": "1?", "completion": "2", "label": "3"}, r"has label beside a prompt or messages"),
    ],
)
def test_what_is_no_question_with_its_answer_is_named(tmp_path, row, message):
    _own(tmp_path, train=[*_rows("train", 2), row], test=_rows("test", 2))
    with pytest.raises(UserError, match=r"train\.jsonl:3: .*" + message):
        tasks.load("jsonl", tmp_path)


def test_own_data_of_the_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="reads the Hub's data sets")
    rows = {
        split: [{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(20)]
        for split in ("train", "test")
    }
    rows["validation"] = [{"id": "v", "input": "1?", "label": "1"}]
    asked = []

    def load_dataset(repository, subset):
        asked.append((repository, subset))
        if repository == "no/such":
            raise ConnectionError("Couldn't reach the Hub")
        return datasets.DatasetDict({split: datasets.Dataset.from_list(its) for split, its in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    splits = load_splits(DataConfig(task="jsonl", root="me/sums:small"), 0)
    assert asked == [("me/sums", "small")]
    assert splits.train[0] == Example("train-1", ("0 + 1?",), "1")
    assert (len(splits.train), splits.valid, len(splits.test)) == (20, (Example("v", ("1?",), "1"),), 20)
    del rows["test"]
    with pytest.raises(UserError, match=r"me/sums: needs the splits train and test, .*; found train, val"):
        tasks.load("jsonl", Path("me/sums"))
    with pytest.raises(UserError, match=r"no/such: no such folder, and not a data set on the Hub \(Conn"):
        tasks.load("jsonl", Path("no/such"))


def test_own_data_gives_a_tenth_for_validation(tmp_path):
    splits = tasks.load("jsonl", _own(tmp_path, train=_rows("train", 800), test=_rows("test", 2)))
    assert len(splits.train) == 720
    assert [e.id for e in splits.valid[:3]] == ["train-759", "train-697", "train-2"]


@pytest.mark.parametrize(
    ("label", "compare", "by_value"),
    [
        ("( 1 + 2 )", "auto", True),
        ("three", "auto", False),
        ("( 1 + 2 )", "text", False),
        ("( 1 + 2 )", "value", True),
        ("three", "value", None),
    ],
)
def test_own_answers_are_compared_as_configured(tmp_path, label, compare, by_value):
    test = _rows("test", 2)
    test[1]["label"] = label
    _own(tmp_path, train=_rows("train", 20), test=test)
    if by_value is None:
        with pytest.raises(UserError, match=r"test\.jsonl:2: the label 'three' has no value"):
            tasks.load("jsonl", tmp_path, compare=compare)
    else:
        assert tasks.load("jsonl", tmp_path, compare=compare).by_value is by_value


def _said(rows):
    # In another order than the data: only the ids join them.
    return [{"id": row["id"], "rationale": f"because {row['id']}", "label": "0"} for row in reversed(rows)]


@pytest.mark.parametrize("layout", ["shared", "by split"])
def test_teacher_rows_are_joined_by_id(tmp_path, layout):
    train, test = _rows("train", 30), _rows("test", 4)
    _own(tmp_path, train=train, test=test)
    if layout == "shared":
        _own(tmp_path, teacher=_said(train + test))
    else:
        _own(tmp_path, train_teacher=_said(train), test_teacher=_said(test))
    splits = tasks.load("jsonl", tmp_path)
    for example in (*splits.train, *splits.valid, *splits.test):
        assert (example.rationale, example.teacher_label) == (f"because {example.id}", "0")
    assert splits.report[0].startswith("train: 27 examples, 27 with a rationale, 27 with a teacher label")


def test_teacher_rows_for_one_split_only_and_with_nothing_to_say(tmp_path):
    train = _rows("train", 20)
    said = [*_said(train[1:]), {"id": "train-0"}]
    splits = tasks.load("jsonl", _own(tmp_path, train=train, test=_rows("test", 4), teacher=said))
    rationales = {e.id: e.rationale for e in (*splits.train, *splits.valid, *splits.test)}
    assert rationales.pop("train-0") is None
    assert {key for key, text in rationales.items() if text is None} == {f"test-{i}" for i in range(4)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train": _rows("train", 2) * 2},
            r"train\.jsonl:3: the id 'train-0' is already used by .*train\.jsonl:1",
        ),
        ({"test": _rows("train", 2)}, r"test\.jsonl:1: the id 'train-0' is already used by .*train\.jsonl:1"),
        ({"train": [{"id": 1.5, "input": "?", "label": "1"}]}, r"train\.jsonl:1: every row needs an 'id'"),
        (
            {"train": [{"id": "a", "question": "?", "answer": "1"}]},
            r"train\.jsonl:1: no field 'input' and no field 'label'; the row has id, question, answer$",
        ),
        ({"train": [{"question": "?"}]}, r"train\.jsonl:1: no field 'id' and no field 'input' and no"),
        ({"train": [{"id": "a", "input": " \n", "label": "1"}]}, r"train\.jsonl:1: the input is blank"),
        ({"train": [{"id": "a", "prompt": " ", "completion": "1"}]}, r"train\.jsonl:1: the input is blank"),
        *(
            ({"train": [{"id": "a", "input": parts, "label": "1"}]}, r"'input' must be a text in quotes or a")
            for parts in ([], ["?", 1])
        ),
        (
            {"train": [{"id": "a", "input": "?", "label": 1}]},
            r"train\.jsonl:1: 'label' must be a text in quotes",
        ),
        ({"train": [{"id": "a", "input": "?", "label": " "}]}, r"train\.jsonl:1: the label is blank"),
        (
            {"train": _rows("train", 2, rationale=["r"])},
            r"train\.jsonl:1: 'rationale' must be a text in quotes",
        ),
        ({"test": []}, r"jsonl: the test split has no examples"),
        ({"train": _rows("train", 1)}, r"jsonl: the train split has no examples"),
        (
            {"teacher": _said(_rows("train", 19))},
            r"train\.jsonl:20: the teacher's file has rows for other train",
        ),
        ({"teacher": _said(_rows("train", 21))}, r"teacher\.jsonl:1: the data has no example .* 'train-20'"),
        ({"train_teacher": _said(_rows("test", 2))}, r"train_teacher\.jsonl:1: the data has no example"),
        (
            {"teacher": _said(_rows("train", 20)) * 2},
            r"teacher\.jsonl:21: the id 'train-19' is already used by .*:1",
        ),
        (
            {"teacher": _said(_rows("train", 20)), "train_teacher": _said(_rows("train", 1))},
            r"train_teacher\.jsonl:1: the id 'train-0' is already used by .*/teacher\.jsonl:20",
        ),
    ],
)
def test_own_data_that_does_not_fit(tmp_path, files, message):
    _own(tmp_path, **{"train": _rows("train", 20), "test": _rows("test", 2)} | files)
    with pytest.raises(UserError, match=message) as error:
        tasks.load("jsonl", tmp_path)
    assert "\n" not in str(error.value)


def test_json_lines_with_a_byte_order_mark_and_other_encodings(tmp_path):
    _own(tmp_path, train=_rows("train", 20), test=_rows("test", 2))
    content = (tmp_path / "train.jsonl").read_bytes()
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n"))
    assert len(tasks.load("jsonl", tmp_path).train) == 18
    (tmp_path / "test.jsonl").write_bytes(b'{"id": "caf\xe9", "input": "?", "label": "1"}')
    with pytest.raises(UserError, match=r"test\.jsonl:1: not UTF-8"):
        tasks.load("jsonl", tmp_path)


def test_examples_are_frozen_and_data_needs_no_jax():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("a", ("b",), "c").label = "d"  # type: ignore[misc]
    code = "import sys, cot_jax.data.tasks; sys.exit('jax' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _taught(tmp_path):
    _published(tmp_path, "svamp", [SVAMP_ROW] * 20, ["A. The answer is (1)."] * 20)
    return tasks.load("svamp", tmp_path)


def _teacher_file(tmp_path, *rows):
    path = tmp_path / "teacher.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_teachers_file_replaces_the_published_outputs(tmp_path):
    splits = _taught(tmp_path)
    first, second, *_ = splits.train
    assert first.rationale == "A."
    row = {"id": first.id, "label": "(2)", "rationales": ["B.", "C."], "programs": ["ans = 2"], "hinted": []}
    other = tasks.taught_by(splits, _teacher_file(tmp_path, row, {"id": splits.test[0].id, "label": "(3)"}))
    assert (other.train[0].teacher_label, other.train[0].rationales) == ("(2)", ("B.", "C."))
    assert other.train[0].programs == ("ans = 2",)
    assert other.test[0].teacher_label == "(3)"
    assert other.train[1] == dataclasses.replace(second, teacher_label=None, rationales=())
    without = [e for e in (*other.train, *other.valid, *other.test) if e.teacher_label is None]
    assert len(without) == 38
    assert all(e.rationales == e.programs == () for e in without)
    assert other.report[0].startswith("teacher: ")
    assert other.report[0].endswith(
        "teacher.jsonl has rows for 1 of 18 train examples, 1 of 20 test examples"
    )
    assert other.report[1].startswith("train: 18 examples, 1 with a rationale, 1 with a teacher label")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "svamp-train-0099"}], r"teacher\.jsonl:1: the data has no example with the id"),
        ([{"id": "svamp-train-0001"}] * 2, r"teacher\.jsonl:2: the id 'svamp-train-0001' is already used by"),
    ],
)
def test_a_teachers_file_of_other_data_is_refused(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        tasks.taught_by(_taught(tmp_path), _teacher_file(tmp_path, *rows))
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        tasks.taught_by(_taught(tmp_path), tmp_path / "none.jsonl")


def test_only_right_rationales_are_left(tmp_path):
    splits = _taught(tmp_path)
    ids = [example.id for example in splits.train]
    gold = splits.train[0].label
    rows = [
        {"id": ids[0], "label": gold, "rationale": "A."},
        {"id": ids[1], "label": "(99)", "rationales": ["B.", "C."], "program": "ans = 1"},
        {"id": ids[2], "rationale": "D."},
        {"id": ids[3], "label": "(98)"},
        {"id": splits.test[0].id, "label": "(97)", "rationale": "E."},
    ]
    taught = tasks.taught_by(splits, _teacher_file(tmp_path, *rows))
    right = tasks.only_right(taught)
    assert [e.rationale for e in right.train[:4]] == ["A.", None, None, None]
    assert [e.teacher_label for e in right.train] == [e.teacher_label for e in taught.train]
    assert right.train[1].programs == ("ans = 1",)
    assert (right.valid, right.test) == (taught.valid, taught.test)
    assert right.report[1] == (
        "rationales=right, training examples with a rationale: 1 kept, 1 left out for a wrong label, "
        "1 left out without a label"
    )


def test_right_rationales_of_the_published_data(data_root):
    right = tasks.only_right(tasks.load("svamp", data_root))
    assert sum(example.rationale is not None for example in right.train) == 530
    assert ": 530 kept, 158 left out for a wrong label, 22 left out without a label" in right.report[0]
