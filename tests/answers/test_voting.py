import pytest

from cot_jax.answers.voting import elect, vote


def test_the_most_frequent_answer_wins_whatever_its_probability():
    assert vote(["no", "yes", "yes "], [-0.1, -5.0, -4.0], by_value=False) == ("yes ", pytest.approx(2 / 3))


def test_by_value_forms_of_one_answer_vote_together_and_the_likeliest_speaks():
    answers = ["7", "( 2 + 3 )", "5", "7", "( 10.0 / 2 )"]
    log_probs = [-0.1, -3.0, -2.0, -0.1, -2.5]
    assert vote(answers, log_probs, by_value=True) == ("5", 0.6)
    assert vote(answers, log_probs, by_value=False) == ("7", 0.4)


def test_numbers_as_people_write_them_vote_as_numbers():
    assert vote(["7", "$1,080.", "1080 dollars", "7", "( 540 * 2 )"], [-1.0] * 5, by_value=True) == (
        "1080",
        0.6,
    )
    assert vote(["5 pens", "7", "5"], [-1.0] * 3, by_value=False) == ("5 pens", pytest.approx(1 / 3))


def test_a_tie_goes_to_the_higher_sum_then_to_the_first():
    # "a" has the likeliest member, "b" the higher sum.
    assert vote(["a", "b", "b", "a"], [-0.5, -1.0, -1.2, -2.0], by_value=False) == ("b", 0.5)
    assert vote(["b", "a"], [-1.0, -1.0], by_value=False) == ("b", 0.5)
    assert vote([" a", "a"], [-1.0, -1.0], by_value=False) == (" a", 1.0)


def test_what_is_no_answer_wins_only_where_there_is_no_other():
    assert vote(["", " ", "yes"], [-0.1, -0.1, -9.0], by_value=False) == ("yes", pytest.approx(1 / 3))
    assert vote(["1 / 0", "pens", "1 / 0", "6"], [-0.1] * 4, by_value=True) == ("6", 0.25)
    assert vote(["five", "no pens", "five"], [-3.0, -0.1, -2.0], by_value=True) == (
        "five",
        pytest.approx(2 / 3),
    )
    assert vote(["", ""], [-1.0, -1.0], by_value=False) == ("", 1.0)


def test_the_first_k_of_every_path_elect():
    cot = (["4", "5", "5", "9", "", "8"], [-1.0] * 6)  # two questions, three samples each
    pot = (["( 2 + 3 )", "5", "4", "8", "8.0", "7"], [-2.0] * 6)
    assert elect([cot], 2, by_value=True) == [["4", "9"], ["4", "9"], ["5", "9"]]
    # "4" against "5" and "9" against "8": one vote each, so the sum of log-probabilities decides.
    assert elect([cot, pot], 2, by_value=True) == [["4", "9"], ["5", "8"], ["5", "8"]]
