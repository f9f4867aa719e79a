"""Which of a teacher's programs are learned from."""

from cot_jax.data.examples import Example
from cot_jax.data.selection import keep_right_programs
from cot_jax.data.tasks import load


def test_programs_are_kept_that_answer_as_the_label_does():
    programs = ("ans = 2 + 3", "ans = 6", "ans = 2 + 3", "ans = 10 / 2", "ans = 1 / 0", "2 and", "pass")
    example = Example("a", ("?",), "( 2 + 3 )", "5", ("r",), programs)
    (kept,), line = keep_right_programs([example], ["( 2 + 3 )"], by_value=True)
    assert kept == Example("a", ("?",), "( 2 + 3 )", "5", ("r",), ("ans = 2 + 3", "ans = 10 / 2"))
    assert line == (
        "2 of 7 programs give the label, 1 examples have one (left out: wrong 1, repeated 1, "
        "ZeroDivisionError 1, SyntaxError 1, NoAnswer 1)"
    )


def test_the_label_that_is_trained_on_decides():
    example = Example("a", ("?",), "2", "3", programs=("ans = 2", "ans = 3"))
    assert keep_right_programs([example], ["3"], by_value=True)[0][0].programs == ("ans = 3",)
    assert keep_right_programs([example], [None], by_value=True)[0][0].programs == ()


def test_as_text_a_truth_value_is_yes_or_no():
    example = Example("a", ("?",), "yes", programs=("ans = 2 < 3", "ans = 'yes'", "ans = 'Yes'", "ans = 1"))
    found = keep_right_programs([example], ["yes"], by_value=False)[0][0]
    assert found.programs == ("ans = 2 < 3", "ans = 'yes'")


def test_svamp(data_root):
    examples = load("svamp", data_root).train
    kept, line = keep_right_programs(examples, [e.label for e in examples], by_value=True)
    assert line == (
        "2,678 of 3,476 programs give the label, 687 examples have one "
        "(left out: wrong 773, NoAnswer 24, SyntaxError 1)"
    )
    assert [e.id for e in kept] == [e.id for e in examples]
