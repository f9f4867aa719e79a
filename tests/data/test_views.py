"""Views: what each method reads and writes, and how an answer is read back."""

import pytest

from cot_jax.data.examples import Example
from cot_jax.data.views import METHODS, Reading, answer_of, rationale_of

EXAMPLE = Example(id="1", parts=("2 pens and 3 more?",), label="( 2 + 3 )", rationales=("2 and 3 are 5.",))
SEVERAL = Example("4", ("q",), "( 2 + 3 )", rationales=("One.", "Two."), programs=("ans = 5", "ans = 2 + 3"))
PAIR = Example("5", ("A dog runs.", "A cat runs."), "neutral", rationales=("A dog is no cat.",))
BARE = Example(id="2", parts=("2 pens and 3 more?",), label="( 2 + 3 )")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("standard", [("2 pens and 3 more?", "( 2 + 3 )")]),
        ("single_task", [("2 pens and 3 more?", "2 and 3 are 5. So the answer is ( 2 + 3 )")]),
        ("rationale_input", [("2 pens and 3 more?\nRationale: 2 and 3 are 5.", "( 2 + 3 )")]),
        (
            "dss",
            [("predict: 2 pens and 3 more?", "( 2 + 3 )"), ("explain: 2 pens and 3 more?", "2 and 3 are 5.")],
        ),
        (
            "mi",
            [("predict: 2 pens and 3 more?", "( 2 + 3 )"), ("explain: 2 pens and 3 more?", "2 and 3 are 5.")],
        ),
    ],
)
def test_methods(method, expected):
    found = [
        (v.prefix + "|".join(v.reads(EXAMPLE)), *v.writes(EXAMPLE, EXAMPLE.label)) for v in METHODS[method]
    ]
    assert found == expected


@pytest.mark.parametrize("method", ["mixed", "mixed_mi"])
def test_mixed_learns_label_chain_with_its_answer_and_program(method):
    assert {v.name: (v.prefix, v.writes(SEVERAL, "5")) for v in METHODS[method]} == {
        "predict": ("predict: ", ("5",)),
        "explain": ("explain: ", ("One. So the answer is 5", "Two. So the answer is 5")),
        "program": ("program: ", ("ans = 5", "ans = 2 + 3")),
    }
    assert [v.term for v in METHODS[method]] == ["label", "rationale", "program"]


def test_program_learns_programs_alone_and_answers_by_them():
    (view,) = METHODS["program"]
    assert (view.prefix, view.writes(SEVERAL, "5"), view.writes(BARE, "5")) == ("", SEVERAL.programs, ())
    assert answer_of(view, "ans = 2 + 3") == Reading("5")
    assert answer_of(view, "ans = 2 +").answer == ""


def test_what_is_missing_is_left_out_and_never_a_blank():
    explain = METHODS["dss"][1]
    assert explain.writes(BARE, BARE.label) == ()
    (joint,) = METHODS["single_task"]
    assert joint.writes(BARE, BARE.label) == ()
    assert joint.writes(EXAMPLE, None) == ()
    (informed,) = METHODS["rationale_input"]
    assert informed.reads(BARE) is None
    # The rationale follows the last of several parts.
    assert informed.reads(PAIR) == ("A dog runs.", "A cat runs.\nRationale: A dog is no cat.")
    # The reference parser's blank is text, and is trained on as published.
    blank = Example(id="3", parts=("q",), label="l", rationales=(" ",))
    assert explain.writes(blank, "l") == (" ",)
    assert METHODS["dss"][0].writes(EXAMPLE, None) == ()


def test_answers_are_read_back():
    (joint,) = METHODS["single_task"]
    predict, explain, program = METHODS["mixed"]
    assert answer_of(joint, *joint.writes(EXAMPLE, EXAMPLE.label)) == Reading(EXAMPLE.label, None)
    for view in (joint, explain):
        assert answer_of(view, "So the answer is 1. No! So the answer is 2") == Reading("2", None)
        assert answer_of(view, "2 and 3 are 5.") == Reading("", "NoAnswer")
        assert answer_of(view, "2 and 3 are 5. So the answer is ") == Reading("", "NoAnswer")
    assert answer_of(predict, "( 2 + 3 )") == Reading("( 2 + 3 )", None)
    assert answer_of(program, "pens = 2\nans = pens + 3") == Reading("5", None)
    assert answer_of(program, "ans = 1 / 0") == Reading("", "ZeroDivisionError")
    assert answer_of(program, "2 and 3 are 5.") == Reading("", "SyntaxError")
    # What Distilling Step-by-Step calls a rationale has no answer behind it.
    assert METHODS["dss"][1].path is None
    assert answer_of(METHODS["dss"][1], "So the answer is 2") == Reading("So the answer is 2", None)


def test_a_rationale_is_shown_without_its_answer():
    _, explain, program = METHODS["mixed"]
    assert rationale_of(explain, "2 and 3. So the answer is 5") == "2 and 3."
    assert rationale_of(explain, "2 and 3 are 5.") == "2 and 3 are 5."
    assert rationale_of(METHODS["dss"][1], "So the answer is 2") == "So the answer is 2"
    assert rationale_of(program, "ans = 5") == "ans = 5"
