"""Which of a teacher's samples are learned from."""

from cot_jax.data.examples import Example
from cot_jax.data.selection import keep_right
from cot_jax.data.tasks import load


def test_programs_are_kept_that_answer_as_the_label_does():
    programs = ("ans = 2 + 3", "ans = 6", "ans = 2 + 3", "ans = 10 / 2", "ans = 1 / 0", "2 and", "pass")
    example = Example("a", "?", "( 2 + 3 )", "5", ("r",), programs)
    (kept,), lines = keep_right([example], ["( 2 + 3 )"], by_value=True)
    assert kept == Example("a", "?", "( 2 + 3 )", "5", ("r",), ("ans = 2 + 3", "ans = 10 / 2"))
    assert lines == [
        "1 of 1 rationales arrive at the label, 1 examples have one (left out: none)",
        "2 of 7 programs arrive at the label, 1 examples have one (left out: wrong 1, ZeroDivisionError 1, "
        "SyntaxError 1, NoAnswer 1, repeated 1)",
    ]


def test_as_text_a_truth_value_is_yes_or_no():
    examples = [Example("a", "?", "yes", programs=("ans = 2 < 3", "ans = 'yes'", "ans = 'Yes'", "ans = 1"))]
    assert keep_right(examples, ["yes"], by_value=False)[0][0].programs == ("ans = 2 < 3", "ans = 'yes'")


def test_rationales_are_kept_with_the_right_label_or_where_nobody_is_labelled():
    own, right = Example("a", "?", "2", rationales=("r", "s", "r")), Example("b", "?", "2", "2.0", ("r",))
    wrong, unread = Example("c", "?", "2", "3", ("r", "s")), Example("d", "?", "2", None, ("r",))
    kept, (line, _) = keep_right([right, wrong, unread], ["2"] * 3, by_value=True)
    assert [e.rationales for e in kept] == [("r",), (), ()]
    assert line.startswith("1 of 4 rationales arrive at the label, 1 examples")
    assert keep_right([own], ["2"], by_value=True)[0][0].rationales == ("r", "s")
    # The label that is trained on may be the teacher's.
    assert keep_right([wrong], ["3"], by_value=True)[0] == [wrong]
    assert keep_right([right], [None], by_value=True)[0][0].rationales == ()


def test_svamp(data_root):
    examples = load("svamp", data_root).train
    kept, (line, _) = keep_right(examples, [e.label for e in examples], by_value=True)
    assert line.startswith("530 of 710 rationales arrive at the label, 530 examples")
    assert [e.id for e in kept] == [e.id for e in examples]
