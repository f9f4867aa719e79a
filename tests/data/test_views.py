"""Views: what each method reads and writes, and how an answer is read back."""

import pytest

from cot_jax.data.examples import Example
from cot_jax.data.views import METHODS, answer_of

EXAMPLE = Example(id="1", input="2 pens and 3 more?", label="( 2 + 3 )", rationales=("2 and 3 are 5.",))
BARE = Example(id="2", input="2 pens and 3 more?", label="( 2 + 3 )")


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
    assert [(v.source(EXAMPLE), v.writes(EXAMPLE, EXAMPLE.label)) for v in METHODS[method]] == expected


def test_what_is_missing_is_none_and_never_a_blank():
    explain = METHODS["dss"][1]
    assert explain.writes(BARE, BARE.label) is None
    (joint,) = METHODS["single_task"]
    assert joint.writes(BARE, BARE.label) is None
    assert joint.writes(EXAMPLE, None) is None
    (informed,) = METHODS["rationale_input"]
    assert informed.source(BARE) is None
    # The reference parser's blank is text, and is trained on as published.
    blank = Example(id="3", input="q", label="l", rationales=(" ",))
    assert explain.writes(blank, "l") == " "


def test_answers_are_read_back():
    (joint,) = METHODS["single_task"]
    assert answer_of(joint, joint.writes(EXAMPLE, EXAMPLE.label)) == EXAMPLE.label
    assert answer_of(joint, "So the answer is 1. No! So the answer is 2") == "2"
    assert answer_of(joint, "2 and 3 are 5.") == ""
    assert answer_of(METHODS["dss"][0], "( 2 + 3 )") == "( 2 + 3 )"
