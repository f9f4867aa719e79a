"""Raw teacher outputs: the released parser to the byte, the corrected one, and the files."""

import hashlib
import json

import pytest

from cot_jax.data.examples import Example
from cot_jax.data.teacher import outputs
from cot_jax.errors import UserError
from cot_jax.files import Row

# sha256 (first half) of the released parser's (rationale, label) pairs, one JSON list a line.
RELEASED = {
    ("svamp", "llm", "train"): "a8d9e18da538547d6f3055815b1bb4b5",
    ("svamp", "llm", "test"): "a7279f8303a095bdeb4f78b2773e4505",
    ("cqa", "llm", "train"): "4935c12503980f39eb060d986eed6ce5",
    ("cqa", "llm", "test"): "01519d5767f37a4d9bb5a075a50904d9",
    ("anli1", "llm", "train"): "c0659af8601c565e045a55ac0ced0d71",
    ("anli1", "llm", "valid"): "8fc76f54e70d30cf34b16cdab3847178",
    ("anli1", "llm", "test"): "7704669193b54523b1218ed18f23b03b",
    ("anli1", "llm_full", "train"): "cc1f64e2bce3fb83f18d2017e5690f36",
    ("esnli", "llm", "train"): "81a8d40cb0793fce560ef90c1fb9fc3c",
    ("esnli", "llm", "valid"): "ee23548389473b0517a96c781d0b4986",
    ("esnli", "llm", "test"): "0e92e9e4303d6b5ab0d20358beb0652f",
}


@pytest.mark.parametrize(("task", "folder", "split"), RELEASED)
def test_reference_is_the_released_parser_to_the_byte(data_root, task, folder, split):
    digest = hashlib.sha256()
    said = outputs.read_outputs(data_root / task / folder, split)
    assert said is not None
    for output in said:
        digest.update(json.dumps(outputs.parse(task, output, "reference")).encode() + b"\n")
    assert digest.hexdigest()[:32] == RELEASED[task, folder, split]


@pytest.mark.parametrize(
    ("task", "text", "reference", "corrected"),
    [
        (
            "svamp",
            "He has 16 * 17. The answer is (16 * 17) * 4.\n\nQ: Next (1)",
            ("He has 16 * 17.", "(16 * 17)"),
            ("He has 16 * 17.", "(16 * 17) * 4"),
        ),
        ("svamp", "So x = 3. The answer is (2 * x).", ("So x = 3.", "(2 * x)"), ("So x = 3.", None)),
        ("svamp", "A. The answer is (3 + 4) and (5 + 6).", ("A.", "(3 + 4) and (5 + 6)"), ("A.", None)),
        ("svamp", "A. The answer is ((415 - 309) - (41", ("A.", "((415 - 309)"), ("A.", None)),
        ("svamp", "A. The answer is 42.", ("A.", " "), ("A.", "42")),
        ("svamp", "He has 3. He has 3. He has", (" ", " "), (None, None)),
        ("svamp", "A. The answer is (1). The answer is (2).", (" ", " "), ("A. The answer is (1).", "(2)")),
        ("svamp", "The answer is (1).", ("", "(1)"), (None, "(1)")),
        ("asdiv", "\nA. The answer is (7 + 2).\n\nQ", ("\nA.", "(7 + 2)"), ("A.", "(7 + 2)")),
        ("cqa", "B. So the answer is (b) wooded area.\n\nQ: x", ("B.", "wooded area"), ("B.", "wooded area")),
        (
            "cqa",
            "B. So the answer is (b) washington d.c..",
            ("B.", "washington d.c."),
            ("B.", "washington d.c."),
        ),
        ("cqa", "B. So the answer is either (a) pond or (e) sea.", ("B.", "pond or"), ("B.", None)),
        ("cqa", "B. So the answer is unclear.", ("B.", " "), ("B.", None)),
        ("cqa", "B. So the answer is (a).", ("B.", ""), ("B.", None)),
        ("anli1", "C. So the answer is neutral.\n\nPremise: x", ("C.", "neutral"), ("C.", "neutral")),
        ("anli1", "C, so the answer is neutral.\n\nPremise: x", ("", ""), ("C", "neutral")),
        ("anli1", "C. The answer is 7. So the answer is neutral.", ("C. The answer is 7.", "neutral"), None),
        ("anli1", "C. So the answer is neutral", ("C.", "neutra"), ("C.", "neutral")),
        ("anli1", "C. So the answer is maybe.", ("C.", "maybe"), ("C.", None)),
        ("anli1", "C. So it is hard to", ("", ""), (None, None)),
        ("esnli", "D.\nAnswer: neutral\n\nPremise: x", ("D.", "neutral"), ("D.", "neutral")),
        ("esnli", " D.\nAnswer: neutral\n\nPre", (" D.", "neutral\n\nPre"), ("D.", "neutral")),
        ("esnli", "D.\nAnswer: entail", ("D.", "entail"), ("D.", "entailment")),
        ("esnli", "D.\nAnswer:", ("D.", " "), ("D.", None)),
        ("esnli", "D.\nAnsw", ("D.\nAnsw", " "), (None, None)),
        ("esnli", "Premise: x\nAnswer: neutral\n", ("Premise: x", "neutral"), (None, None)),
    ],
)
def test_both_forms(task, text, reference, corrected):
    assert outputs.parse(task, text, "reference") == reference
    assert outputs.parse(task, text, "corrected") == (corrected or reference)


@pytest.mark.parametrize("text", ["B. It is (b) sea.", "So the answer is (a) x. So the answer is (b) y."])
def test_released_cqa_parser_stops(text):
    with pytest.raises(ValueError, match="to unpack"):
        outputs.parse("cqa", text, "reference")


def test_chunks_are_read_in_the_order_of_their_numbers(tmp_path):
    for k in range(12):
        (tmp_path / f"train_CoT_{k}.json").write_text(json.dumps([f"{k}a", f"{k}b"] if k != 7 else []))
    (tmp_path / "train_CoT_old.json").write_text("not read")
    expected = [f"{k}{letter}" for k in range(12) if k != 7 for letter in "ab"]
    assert outputs.read_outputs(tmp_path, "train") == expected
    assert outputs.read_outputs(tmp_path, "test") is None
    assert outputs.read_outputs(tmp_path / "nowhere", "test") is None


@pytest.mark.parametrize("content", [b'["a", ', b'{"a": 1}', b'["a", 1]', b"", b'["\xff"]'])
def test_a_chunk_that_is_no_list_of_texts(tmp_path, content):
    (tmp_path / "train_CoT_3.json").write_bytes(content)
    with pytest.raises(UserError, match=r"train_CoT_3\.json: (not valid|not UTF-8|expected)"):
        outputs.read_outputs(tmp_path, "train")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"id": "a"}', '{"rationale": "r"}'], r"t\.jsonl:2: no field 'id'; the row has rationale"),
        (['{"id": "a"}', '{"id": null}'], r"t\.jsonl:2: every row needs an 'id'"),
        (['{"id": true}'], r"t\.jsonl:1: every row needs an 'id'"),
        (['{"id": "a"}', "", '{"id": "a"}'], r"t\.jsonl:3: the id 'a' is already used by .*t\.jsonl:1"),
        (['{"id": "c"}'], r"t\.jsonl:1: the data has no example with the id 'c'"),
        (['{"id": "a"}', '{"id": "b"'], r"t\.jsonl:2: not valid JSON"),
        (['{"id": "a"}', '["b"]'], r"t\.jsonl:2: expected one whole JSON object a line, found a list"),
    ],
)
def test_rows_that_cannot_be_joined(tmp_path, rows, message):
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match=message) as error:
        outputs.read_by_id(tmp_path / "t.jsonl", {"a", "b"}, {})
    assert "\n" not in str(error.value)


def test_join():
    example = Example("a", ("2 + 2?",), "4", rationales=("own",), programs=("print(4)",))
    said = outputs.join(example, Row("t:1", {"id": "a", "rationale": "said", "label": "5", "program": " "}))
    assert said == Example("a", ("2 + 2?",), "4", "5", ("said",), ("print(4)",))
    assert outputs.join(example, Row("t:1", {"id": "a", "rationale": None})) == example
    several = {"id": "a", "rationales": ["one", " ", "two", "one"], "programs": []}
    said = outputs.join(example, Row("t:1", several))
    assert said == Example("a", ("2 + 2?",), "4", None, ("one", "two"), ("print(4)",))
    assert (said.rationale, said.programs[0], Example("b", ("",), "").rationale) == ("one", "print(4)", None)
    with pytest.raises(UserError, match="t:1: 'programs' must be a list of texts; found 'p'"):
        outputs.join(example, Row("t:1", {"id": "a", "programs": "p"}))
    with pytest.raises(UserError, match="t:1: has 'program' and 'programs': move the one into the list"):
        outputs.join(example, Row("t:1", {"id": "a", "program": "p", "programs": ["q"]}))
    with pytest.raises(UserError, match="t:1: 'label' must be a text in quotes; found 4"):
        outputs.join(example, Row("t:1", {"id": "a", "label": 4}))
