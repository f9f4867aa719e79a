"""HellaSwag by likelihood: contexts and endings as lm-evaluation-harness prepares them."""

import json
import re

import pytest

from cot_jax.data import continuations, tasks
from cot_jax.data.continuations import Continuations
from cot_jax.errors import UserError

ROW = {
    "ind": 4,
    "activity_label": "Removing ice from car",
    "ctx_a": "A man writes over the snow.",
    "ctx_b": "the Woman",
    "ctx": "A man writes over the snow. the Woman",
    "endings": ["smiles.", "is [shown] gone.", "[header] How [title] Take  it.", " waits   . "],
    "label": "3",
}


def _write(root, *rows):
    (root / "hellaswag").mkdir(exist_ok=True)
    path = root / "hellaswag/hellaswag_val.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_published_row(tmp_path):
    wikihow = ROW | {
        "activity_label": "Home and Garden",
        "ctx_a": "[header] How to rest [title] Sit down. [step] Sit.",
        "ctx_b": "",
        "label": 0,
    }
    _write(tmp_path, ROW, wikihow)
    questions, notes = continuations.hellaswag(tmp_path)
    assert notes == ()
    assert questions[0] == Continuations(
        "hellaswag-test-0000",
        # capitalize() makes the other letters small.
        "Removing ice from car: A man writes over the snow. The woman",
        ("smiles.", "is gone.", " How. Take it.", "waits  ."),
        3,
    )
    assert (questions[1].context, questions[1].gold) == ("Home and Garden: How to rest. Sit down. Sit.", 0)


def test_where_the_two_parts_are_missing_it_is_said(tmp_path):
    joined = {key: value for key, value in ROW.items() if key not in ("ctx_a", "ctx_b")}
    _write(tmp_path, ROW, joined)
    questions, (note,) = continuations.hellaswag(tmp_path)
    assert questions[1].context == "Removing ice from car: A man writes over the snow. the Woman"
    assert note.startswith("hellaswag_likelihood: 1 rows of the file have 'ctx' without 'ctx_a' and 'ctx_b'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endings": ["a", "b", "c"]}, "'endings' must be a list of four texts"),
        ({"endings": ["a", "b", "c", "[gone]"]}, "'endings' must be a list of four texts"),
        ({"endings": [1, 2, 3, 4]}, "'endings' must be a text in quotes or a list of texts"),
        ({"endings": None}, "'endings' must be a text"),
        ({"activity_label": None}, "'activity_label' must be a text"),
        ({"ctx_b": None}, "'ctx_b' must be a text"),
        ({"ctx_a": None, "ctx_b": None, "ctx": 5}, "'ctx' must be a text"),
        ({"label": ""}, "the label '' is not one of 0, 1, 2, 3"),
        ({"label": True}, "the label True is not one of"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, message):
    path = _write(tmp_path, ROW, ROW | change)
    with pytest.raises(UserError) as error:
        continuations.hellaswag(tmp_path)
    assert str(error.value).startswith(f"{path}:2: {message}")
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_empty_is_named(tmp_path):
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl: no such file; it is from rowanz/hellaswag"):
        continuations.hellaswag(tmp_path)
    _write(tmp_path)
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl: the file has no questions"):
        continuations.hellaswag(tmp_path)


def test_training_rows_are_divided_as_those_of_the_task(tmp_path):
    path = _write(tmp_path, ROW)
    rows = [ROW | {"ctx_a": f"A man has {n}."} for n in range(24)]
    path.with_name("hellaswag_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = tasks.load("hellaswag", tmp_path)
    for split in ("train", "valid", "test"):
        questions, _ = continuations.hellaswag(tmp_path, split)
        assert [q.id for q in questions] == [e.id for e in getattr(splits, split)]


def test_the_validation_file_is_that_of_the_task(data_root):
    questions, notes = continuations.hellaswag(data_root)
    assert [str(q.gold) for q in questions] == [e.label for e in tasks.load("hellaswag", data_root).test]
    texts = [text for q in questions for text in (q.context, *q.endings)]
    assert not [text for text in texts if re.search(r"\[.*\]", text)]
    assert len(notes) == 1
