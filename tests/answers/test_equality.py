import pytest

from cot_jax.answers.equality import accuracy, is_correct


def test_text_is_compared_exactly_but_for_white_space_around_it():
    assert is_correct(" neutral\n", "neutral", by_value=False)
    assert not is_correct("Neutral", "neutral", by_value=False)
    assert not is_correct("neutral.", "neutral", by_value=False)
    assert not is_correct("42.0", "42", by_value=False)


def test_equations_are_compared_by_value():
    assert is_correct("(84 / 2)", "( 84.0 / 2.0 )", by_value=True)
    assert not is_correct("( 84.0 / 2.0", "( 84.0 / 2.0", by_value=True)


def test_accuracy():
    assert accuracy(["1 + 1", "3", "x", "4"], ["2", "2", "x", "( 2.0 * 2.0 )"], by_value=True) == 0.5
    assert accuracy(["yes", "no", "no"], ["yes", "no", "yes"], by_value=False) == pytest.approx(2 / 3)


def test_accuracy_needs_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        accuracy(["1"], ["1", "2"], by_value=True)
    with pytest.raises(ValueError, match="no answers"):
        accuracy([], [], by_value=True)
