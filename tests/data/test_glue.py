"""GLUE and SuperGLUE: each layout and task on small files, and the real files' counts."""

import builtins
import json
import re

import pytest

from cot_jax.config import DataConfig
from cot_jax.data import glue, tasks
from cot_jax.data.teacher import outputs
from cot_jax.errors import UserError
from cot_jax.training.data import load_splits

# Of each task: the Hub's columns, and what becomes of them.
ROWS = {
    "cola": {"sentence": 'He "ran.'},
    "sst2": {"sentence": "a 'fine' film "},
    "mrpc": {"sentence1": '"I ran', "sentence2": "he said"},
    "qqp": {"question1": "Why?", "question2": "How?"},
    "mnli": {"premise": "It rains.", "hypothesis": "It is wet."},
    "mnli_mm": {"premise": "It rains.", "hypothesis": "It is wet."},
    "qnli": {"question": "Who ran?", "sentence": "Tom ran."},
    "rte": {"sentence1": "Tom ran.", "sentence2": "He moved."},
    "boolq": {"passage": "Tom -- He ran.", "question": "did tom run"},
    "cb": {"premise": "Did Tom run?", "hypothesis": "Tom ran"},
    "copa": {"premise": "Tom ran.", "question": "cause", "choice1": "He was late.", "choice2": "He slept."},
    "wic": {"word": "run", "sentence1": "A run.", "sentence2": "I run."},
    "superglue_rte": {"premise": "Tom ran.", "hypothesis": "He moved."},
}
PARTS = {name: tuple(row.values()) for name, row in ROWS.items()}
PARTS["copa"] = "Tom ran. What was the cause of this?", "He was late.", "He slept."
ASKED = {
    "cola": 'cola sentence: He "ran.',
    "sst2": "sst2 sentence: a 'fine' film ",
    "mrpc": 'mrpc sentence1: "I ran sentence2: he said',
    "qqp": "qqp question1: Why? question2: How?",
    "mnli": "mnli hypothesis: It is wet. premise: It rains.",
    "mnli_mm": "mnli hypothesis: It is wet. premise: It rains.",
    "qnli": "qnli question: Who ran? sentence: Tom ran.",
    "rte": "rte sentence1: Tom ran. sentence2: He moved.",
    "boolq": "boolq passage: Tom -- He ran. question: did tom run",
    "cb": "cb hypothesis: Tom ran premise: Did Tom run?",
    "copa": "copa choice1: He was late. choice2: He slept. premise: Tom ran. question: cause",
    "wic": "wic sentence1: A run. sentence2: I run. word: run",
    "superglue_rte": "rte hypothesis: He moved. premise: Tom ran.",
}
NLI = ("entailment", "neutral", "contradiction")
ENTAILED = ("entailment", "not_entailment")
LABELS = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": NLI,
    "mnli_mm": NLI,
    "qnli": ENTAILED,
    "rte": ENTAILED,
    "boolq": ("false", "true"),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "wic": ("false", "true"),
    "superglue_rte": ENTAILED,
}
METRICS = {
    "cola": ("matthews", "accuracy"),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "cb": ("accuracy", "macro_f1"),
}
# Folder in the authors' archive, development table, header, and a row with {texts} and {label}, in the
# authors' columns.
TABLES = {
    "cola": ("CoLA", "dev", "", "gj04\t{label}\t*\t{0}"),
    "sst2": ("SST-2", "dev", "sentence\tlabel", "{0}\t{label}"),
    "mrpc": ("MRPC", "dev", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", "{label}\t7\t8\t{0}\t{1}"),
    "qqp": ("QQP", "dev", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "1\t7\t8\t{0}\t{1}\t{label}"),
    "mnli": (
        "MNLI",
        "dev_matched",
        "\t".join("abcdefghijkl"),
        "a\tb\tc\td\te\tf\tg\th\t{0}\t{1}\tk\t{label}",
    ),
    "mnli_mm": (
        "MNLI",
        "dev_mismatched",
        "\t".join("abcdefghijkl"),
        "a\tb\tc\td\te\tf\tg\th\t{0}\t{1}\tk\t{label}",
    ),
    "qnli": ("QNLI", "dev", "index\tquestion\tsentence\tlabel", "0\t{0}\t{1}\t{label}"),
    "rte": ("RTE", "dev", "index\tsentence1\tsentence2\tlabel", "0\t{0}\t{1}\t{label}"),
}
NUMBERED = ("cola", "sst2", "mrpc", "qqp")
JSON_LINES = {"boolq": "BoolQ", "cb": "CB", "copa": "COPA", "wic": "WiC", "superglue_rte": "RTE"}
JSON_LABELS = {"boolq": (False, True), "wic": (False, True), "copa": (0, 1)}


def _write_table(folder, name, file, count=20, texts=None):
    _, _, header, line = TABLES[name]
    labels = range(2) if name in NUMBERED else LABELS[name]
    texts = texts or ROWS[name].values()
    lines = [line.format(*texts, label=labels[n % len(labels)]) for n in range(count)]
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{file}.tsv").write_text("\n".join([header, *lines][not header :]) + "\n", encoding="utf-8")


def _write_json_lines(folder, name, file, count=20, **change):
    labels = JSON_LABELS.get(name, LABELS[name])
    rows = [ROWS[name] | {"label": labels[n % len(labels)], "idx": n} | change for n in range(count)]
    folder.mkdir(exist_ok=True, parents=True)
    (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _check(splits, name, dev):
    """The splits hold 20 training rows and 6 test rows that go through the labels in turn."""
    labels = LABELS[name]
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [18, 2, 6]
    assert [e.label for e in splits.test] == [labels[n % len(labels)] for n in range(6)]
    by_id = {e.id: e for e in (*splits.train, *splits.valid)}
    assert [by_id[f"{name}-train-{n:04d}"].label for n in range(20)] == [
        labels[n % len(labels)] for n in range(20)
    ]
    assert splits.test[0].id == f"{name}-test-0000"
    assert {e.parts for e in (*by_id.values(), *splits.test)} == {PARTS[name]}
    assert splits.label_set == labels
    assert splits.metrics == METRICS.get(name, ("accuracy",))
    assert splits.multiple_choice == (name == "copa")
    assert not splits.by_value
    assert splits.notes == (f"{name}: test is the published {dev}; the published test set has no labels",)
    assert {e.parts for e in tasks.as_text(splits).train} == {(ASKED[name],)}


def test_every_task_is_registered_and_shares_the_labels_of_its_kind():
    assert glue.TASKS.keys() == ROWS.keys() == TABLES.keys() | JSON_LINES.keys()
    assert glue.TASKS.keys() <= tasks.TASKS.keys()
    assert glue.TASKS["mnli"].labels == outputs.NLI_LABELS


@pytest.mark.parametrize("place", ["{folder}", "glue/{lower}"])
@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name, place):
    folder, dev, *_ = TABLES[name]
    folder = tmp_path / place.format(folder=folder, lower=folder.lower())
    _write_table(folder, name, "train")
    _write_table(folder, name, dev, 6)
    _check(tasks.load(name, tmp_path), name, f"{dev}.tsv")


@pytest.mark.parametrize("place", ["{folder}", "superglue/{lower}"])
@pytest.mark.parametrize("name", JSON_LINES)
def test_json_lines(tmp_path, name, place):
    folder = JSON_LINES[name]
    folder = tmp_path / place.format(folder=folder, lower=folder.lower())
    _write_json_lines(folder, name, "train")
    _write_json_lines(folder, name, "val", 6)
    _check(tasks.load(name, tmp_path), name, "val.jsonl")


def _table_of(datasets, name, count, named):
    labels = LABELS[name]
    kind = datasets.ClassLabel(names=[label.capitalize() for label in labels]) if named else None
    columns = {key: [value] * count for key, value in ROWS[name].items()}
    data = datasets.Dataset.from_dict(columns | {"label": [n % len(labels) for n in range(count)]})
    return data.cast_column("label", kind) if named else data


@pytest.mark.parametrize(("name", "named"), [*((name, True) for name in ROWS), ("cb", False)])
def test_parquet_copies_of_the_hub(tmp_path, name, named):
    datasets = pytest.importorskip("datasets", reason="reads the Hub's files")
    task = glue.TASKS[name]
    folder = tmp_path / task.hub
    folder.mkdir()
    train = _table_of(datasets, name, 20, named)
    # The Hub cuts large sets into several files.
    for shard in range(2):
        rows = train.select(range(10 * shard, 10 * shard + 10))
        rows.to_parquet(folder / f"train-{shard:05d}-of-00002.parquet")
    dev = f"validation{task.dev}"
    _table_of(datasets, name, 6, named).to_parquet(folder / f"{dev}-00000-of-00001.parquet")
    _check(tasks.load(name, tmp_path), name, f"{dev}-*.parquet")


def test_labels_of_a_copy_go_by_their_names(tmp_path):
    datasets = pytest.importorskip("datasets", reason="reads the Hub's files")
    (tmp_path / "rte").mkdir()
    backwards = datasets.ClassLabel(names=["not_entailment", "entailment"])
    data = _table_of(datasets, "rte", 20, named=False).cast_column("label", backwards)
    for split in ("train", "validation"):
        data.to_parquet(tmp_path / f"rte/{split}-00000-of-00001.parquet")
    assert [e.label for e in tasks.load("rte", tmp_path).test[:2]] == ["not_entailment", "entailment"]


def test_a_repository_of_the_hub(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets", reason="reads the Hub's files")
    asked = []

    def load_dataset(root, name, split):
        asked.append((root, name, split))
        if root == "no/such":
            raise ConnectionError("Couldn't reach the Hub\nmore")
        return _table_of(datasets, "mnli_mm", 20 if split == "train" else 6, named=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    splits = load_splits(DataConfig(task="mnli_mm", root="nyu-mll/glue"), 0, "classes")
    assert asked == [("nyu-mll/glue", "mnli", "train"), ("nyu-mll/glue", "mnli", "validation_mismatched")]
    _check(splits, "mnli_mm", "validation_mismatched")
    message = (
        "no/such: no such folder, and the Hub has no rte train (ConnectionError: Couldn't reach the Hub);"
    )
    with pytest.raises(UserError, match=re.escape(message)) as error:
        tasks.load("rte", "no/such")
    assert "\n" not in str(error.value)


def test_the_hub_needs_its_library(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"pip install 'cot-jax\[hub\]'"):
        tasks.load("rte", "nyu-mll/glue")


def test_students_that_read_one_text_read_t5s_wording(tmp_path):
    _write_json_lines(tmp_path / "COPA", "copa", "train")
    _write_json_lines(tmp_path / "COPA", "copa", "val", 6)
    data = DataConfig(task="copa", root=str(tmp_path))
    assert load_splits(data, 0, "classes").test[0].parts == PARTS["copa"]
    for splits in (load_splits(data, 0), load_splits(data, 0, "causal")):
        assert splits.test[0].parts == (ASKED["copa"],)
        assert splits.test[0].label == "choice1"
        assert tasks.as_text(splits) == splits


def test_other_tasks_are_read_as_before(tmp_path):
    rows = "".join(json.dumps({"id": f"{n}", "input": ["p", "h"], "label": "x"}) + "\n" for n in range(20))
    (tmp_path / "train.jsonl").write_text(rows)
    (tmp_path / "test.jsonl").write_text(rows.replace('"id": "', '"id": "t'))
    splits = tasks.load("jsonl", tmp_path)
    assert tasks.as_text(splits) == splits
    assert splits.metrics == ("accuracy",)


def test_copas_questions(tmp_path):
    for file in ("train", "val"):
        _write_json_lines(tmp_path / "COPA", "copa", file, question="effect")
    assert tasks.load("copa", tmp_path).test[0].parts[0] == "Tom ran. What happened as a result?"
    _write_json_lines(tmp_path / "COPA", "copa", "val", question="why")
    with pytest.raises(UserError, match=r"val\.jsonl:1: the question 'why' is not one of cause, effect"):
        tasks.load("copa", tmp_path)


def test_short_rows_of_qqp_are_skipped_and_counted(tmp_path):
    _write_table(tmp_path / "QQP", "qqp", "dev", 6)
    _write_table(tmp_path / "QQP", "qqp", "train")
    path = tmp_path / "QQP/train.tsv"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *lines[:3], "1\t7\t8\tWhy?", *lines[3:], "1"]) + "\n")
    splits = tasks.load("qqp", tmp_path)
    assert len(splits.train) + len(splits.valid) == 20
    assert splits.notes[0] == "qqp: 2 of 22 rows of train.tsv have too few columns and are left out"


def test_lines_end_in_line_feeds_alone_or_behind_a_carriage_return(tmp_path):
    folder = tmp_path / "CoLA"
    _write_table(folder, "cola", "train")
    (folder / "dev.tsv").write_bytes("gj04\t1\t\tOne\x85two\u2028three.\r\n\r\ngj04\t0\t*\tFour".encode())
    test = tasks.load("cola", tmp_path).test
    assert [(e.parts[0], e.label) for e in test] == [
        ("One\x85two\u2028three.", "acceptable"),
        ("Four", "unacceptable"),
    ]


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "message"),
    [
        (
            "rte",
            "train.tsv",
            "\tnot_entailment",
            "\tmaybe",
            r"train\.tsv:3: the label 'maybe' is not one of ",
        ),
        ("rte", "dev.tsv", "\tnot_entailment", "", r"dev\.tsv:3: a row of rte has 4 columns; found 3"),
        ("mnli", "dev_matched.tsv", "\tk\tneutral", "\tneutral", r"tsv:3: .* has 12 columns; found 11"),
        (
            "mnli",
            "dev_matched.tsv",
            "neutral",
            "-",
            r"tsv:3: the label '-' is not one of entailment \(0\), neu",
        ),
        ("cola", "dev.tsv", "gj04\t1\t*\t", "1\t*\t", r"dev\.tsv:2: a row of cola has 4 columns; found 3"),
        (
            "sst2",
            "dev.tsv",
            "film \t1",
            "film \t2",
            r"dev\.tsv:3: the label '2' is not one of negative \(0\)",
        ),
        ("rte", "dev.tsv", "\tnot_entailment", "\t1", r"dev\.tsv:3: the label '1' is not one of entailment"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, name, file, old, new, message):
    folder, dev, *_ = TABLES[name]
    _write_table(tmp_path / folder, name, "train")
    _write_table(tmp_path / folder, name, dev, 6)
    path = tmp_path / folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as error:
        tasks.load(name, tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_is_utf8(tmp_path):
    _write_table(tmp_path / "SST-2", "sst2", "train")
    (tmp_path / "SST-2/dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9 \t1\n")
    with pytest.raises(UserError, match=r"dev\.tsv:2: not UTF-8 \(invalid continuation byte at byte 3\)"):
        tasks.load("sst2", tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "wic",
            {"label": "perhaps"},
            r"val\.jsonl:1: the label 'perhaps' is not one of false \(0\), true \(1\)",
        ),
        (
            "cb",
            {"label": True},
            r"val\.jsonl:1: the label True is not one of entailment \(0\), contradiction",
        ),
        ("cb", {"label": None}, r"val\.jsonl:1: the label None is not one of"),
        (
            "copa",
            {"label": -1},
            r"val\.jsonl:1: the label -1 is not one of choice1 \(0\), choice2 \(1\); use",
        ),
        ("copa", {"label": 2}, r"val\.jsonl:1: the label 2 is not one of"),
        ("superglue_rte", {"premise": None}, r"val\.jsonl:1: 'premise' must be a text in quotes; found None"),
    ],
)
def test_a_malformed_json_row_is_named(tmp_path, name, change, message):
    _write_json_lines(tmp_path / JSON_LINES[name], name, "train")
    _write_json_lines(tmp_path / JSON_LINES[name], name, "val", 1, **change)
    with pytest.raises(UserError, match=message):
        tasks.load(name, tmp_path)


def test_a_malformed_row_of_the_hub_is_named(tmp_path):
    datasets = pytest.importorskip("datasets", reason="reads the Hub's files")
    (tmp_path / "rte").mkdir()
    for split, label in (("train", 0), ("validation", -1)):
        data = datasets.Dataset.from_dict({k: [v] for k, v in ROWS["rte"].items()} | {"label": [label]})
        data.to_parquet(tmp_path / f"rte/{split}-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"rte/validation-\*\.parquet: row 1: the label -1 is not one of ent"):
        tasks.load("rte", tmp_path)
    # GLUE's columns are not SuperGLUE's.
    with pytest.raises(UserError, match=r"rte/train-\*\.parquet: row 1: no field 'premise'; the row has"):
        tasks.load("superglue_rte", tmp_path)
    (tmp_path / "rte/validation-00000-of-00001.parquet").write_bytes(b"not Parquet")
    with pytest.raises(
        UserError, match=r"validation-\*\.parquet: cannot be read \(ArrowInvalid: Parquet"
    ) as error:
        tasks.load("rte", tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "rte/train-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"rte/train-\*\.parquet: no such file; it is from https://glueb"):
        tasks.load("rte", tmp_path)


def test_a_missing_file_is_named_with_its_source(tmp_path):
    with pytest.raises(
        UserError, match=r"\(which has no folder rte\): rte needs dev\.tsv or validation-\*\.pa"
    ):
        tasks.load("rte", tmp_path)
    folder = tmp_path / "glue/RTE"
    folder.mkdir(parents=True)
    message = (
        f"{folder}: rte needs dev.tsv or validation-*.parquet, found neither; it is from "
        "https://gluebenchmark.com/tasks, or nyu-mll/glue on the Hub"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        tasks.load("rte", tmp_path)
    _write_table(folder, "rte", "dev")
    with pytest.raises(UserError, match=r"glue/RTE/train\.tsv: no such file; it is from https://glueb"):
        tasks.load("rte", tmp_path)
    with pytest.raises(UserError, match=r"no/such/folder: no such folder; cb is from https://super\.glueb"):
        tasks.load("cb", tmp_path / "no/such/folder")
    # GLUE's RTE is not SuperGLUE's, though both folders have the name.
    with pytest.raises(UserError, match=r"superglue_rte needs val\.jsonl or validation-\*\.parquet, found"):
        tasks.load("superglue_rte", tmp_path / "glue")


def test_boolq_rows_without_a_passage_are_left_out_and_counted(tmp_path):
    folder = tmp_path / "BoolQ"
    _write_json_lines(folder, "boolq", "train", 20)
    _write_json_lines(folder, "boolq", "val", 6)
    path = folder / "train.jsonl"
    path.write_text(path.read_text() + '{"question": "is it", "label": true}\n' * 3)
    splits = tasks.load("boolq", tmp_path)
    assert len(splits.train) + len(splits.valid) == 20
    assert splits.notes[0] == "boolq: 3 of 23 train rows have no passage and are left out"


def test_boolq_without_passages_falls_back_on_the_few_shot_rows(tmp_path):
    folder = tmp_path / "boolq"
    _write_json_lines(folder, "boolq", "val", 6)
    with pytest.raises(UserError, match=r"boolq/train\.jsonl: no such file; it is from https://super"):
        tasks.load("boolq", tmp_path)
    for file, first in (("fewshot_train32", 0), ("fewshot_dev32", 4)):
        _write_json_lines(folder, "boolq", file, 4)
        lines = (folder / f"{file}.jsonl").read_text().splitlines()
        rows = [json.loads(line) | {"idx": first + n} for n, line in enumerate(lines)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = ({"question": "did tom run", "label": True, "idx": n} for n in range(30))
    (folder / "train_question_only.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = tasks.load("boolq", tmp_path)
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [4, 4, 6]
    assert splits.notes[:2] == (
        f"boolq: {folder} has no train.jsonl: using fewshot_train32.jsonl and fewshot_dev32.jsonl instead",
        "boolq: 22 train rows of train_question_only.jsonl have no passage and are left out",
    )


@pytest.mark.parametrize(
    ("name", "train", "test", "majority"),
    [
        ("cola", 8551, 1043, 0.691),
        ("sst2", 67349, 872, 0.509),
        ("rte", 2490, 277, 0.527),
        ("cb", 250, 56, 0.5),
        ("copa", 400, 100, 0.55),
        ("boolq", 64, 3270, 0.622),
    ],
)
def test_the_real_files(data_root, name, train, test, majority):
    splits = tasks.load(name, data_root)
    assert (len(splits.train) + len(splits.valid), len(splits.test)) == (train, test)
    golds = [e.label for e in splits.test]
    share = max(golds.count(label) for label in LABELS[name]) / test
    assert share == pytest.approx(majority, abs=6e-4)
    assert {e.label for e in splits.train} == {*LABELS[name]}
    assert all(part.strip() for e in splits.train for part in e.parts)


def test_the_real_boolq_says_what_it_lacks(data_root):
    notes = tasks.load("boolq", data_root).notes
    assert notes[1] == "boolq: 9,363 train rows of train_question_only.jsonl have no passage and are left out"
