import random
import string

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


WAYS = (
    "{}", " {} ", "{}.", "{:,}", "{:,}.", "${:,}", "${:,}.", "$ {}", "{:,} dollars", "{} apples.", "{:,} km",
    "{} km/h", "{}%", "{:,} %", "{:,.2f}", "${:,.2f}", "{:.3f}", "{:.2f} dollars a year", "#### {:,}",
)  # fmt: skip


def _numbers(draw):
    """Whole numbers and such with two decimals, small and large, of either sign."""
    while True:
        whole = draw.randrange(10 ** draw.randrange(1, 13)) * draw.choice([1, 1, 1, -1])
        yield draw.choice([whole, whole / 100 if abs(whole) < 10**9 else whole])


def test_a_number_written_as_people_do_is_itself_and_no_other_number():
    draw = random.Random(0)
    numbers = _numbers(draw)
    for _ in range(3000):
        a, b, way = next(numbers), next(numbers), draw.choice(WAYS)
        assert is_correct(way.format(a), str(a), by_value=True), (way, a)
        for other in (b, a + 1, a - 0.01, -a, 10 * a):
            assert is_correct(way.format(other), str(a), by_value=True) is (a == other), (way, a, other)


@pytest.mark.parametrize(
    ("prediction", "gold", "right"),
    [
        ("( 9 * 2 )", "18", True),
        ("18 dollars", "18.0", True),
        ("18.00005", "18", True),
        ("18.0002", "18", False),
        ("1 / 3", "0.33333", True),
        ("0.00002", "0.00001", False),  # 1e-4 would make all small numbers one
        ("0.00001", "0", False),
        ("1000000001", "1000000000", False),
        ("5 apples", "5 pears", True),  # units are left out, not compared
        ("5 million", "5", False),
        ("18 or 20", "18", False),
        ("3/4 cup", "0.75", False),
        ("", "0", False),
        ("apples", "0", False),
        # The gold answer is an equation: only equations compare, and exactly.
        ("42 apples", "( 84.0 / 2.0 )", False),
        ("$42", "( 84.0 / 2.0 )", False),
        ("1,000", "( 500.0 + 500.0 )", False),
        ("42.00001", "( 84.0 / 2.0 )", False),
        ("42", "( 84.0 / 2.0 )", True),
    ],
)
def test_numbers_and_equations(prediction, gold, right):
    assert is_correct(prediction, gold, by_value=True) is right


def test_any_text_is_compared():
    draw = random.Random(1)
    letters = string.printable + "\u0665\u00b2\u00bd\u2212\u20ac\x00\ud800\U0001f600"
    parts = ["1", "23", ",456", ".5", "$", "%", "-", " ", "####", "km", "/", "(", "e9", "inf", "nan"]
    for _ in range(3000):
        texts = ["".join(draw.choices([*letters, *parts * 4], k=draw.randrange(12))) for _ in range(2)]
        for gold in (*texts, "18", "( 84.0 / 2.0 )"):
            assert is_correct(texts[0], gold, by_value=True) in (True, False)
    for text in ("1" * 10**5, "$" * 10**5, "(" * 10**5, "1e" + "9" * 300):
        assert not is_correct(text, "18", by_value=True)


def test_accuracy():
    assert accuracy(["1 + 1", "3", "x", "4"], ["2", "2", "x", "( 2.0 * 2.0 )"], by_value=True) == 0.5
    assert accuracy(["yes", "no", "no"], ["yes", "no", "yes"], by_value=False) == pytest.approx(2 / 3)


def test_accuracy_needs_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        accuracy(["1"], ["1", "2"], by_value=True)
    with pytest.raises(ValueError, match="no answers"):
        accuracy([], [], by_value=True)
