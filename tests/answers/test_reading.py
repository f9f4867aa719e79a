"""Answers read in texts: hand-made sentences, generated rationales and the teacher's real outputs."""

import time

import pytest

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.equality import is_correct
from cot_jax.answers.reading import choices, final_answer, last_number, number
from cot_jax.data import tasks, word_problems


@pytest.mark.parametrize(
    ("rationale", "answer"),
    [
        ("Ben has 11. So 11 + 6 = 17. Then 17 + 2 = 19.", "19"),
        ("So she needs 10 - 7 = 3 cups of flour. She needs 2 cups of sugar.", "3"),  # the last "=" counts
        ("57 + 26 + 27 is 100.", "100"),
        ("So they planted 10 * 45 seeds.", "10 * 45"),
        ("So (12 + 4 = 16).", "16"),
        ("36 - 68 = -32. So 32 more got off.", "-32"),
        ("So 500 * 3 = $1,500.50 in all.", "1500.50"),
        ("So x = 36 / 4.", "36 / 4"),
        ("5 + 3 = many.", "5 + 3"),
        ("12 / 0", None),
        ("So 2**3 = 8.", "8"),
        ("So it is 7 + 2 ** 3.", None),
        ("So he has 4 = 2^2.", None),
        ("5 + 3 = **8** apples.", "8"),
        ("She has **8**.", "8"),
        ("Ann has some.", None),
        ("", None),
        ("( ( 4 - 2 ) * 3 )", "( ( 4 - 2 ) * 3 )"),
    ],
)
def test_the_final_answer_of_a_sum(rationale, answer):
    assert final_answer(rationale, by_value=True) == answer


def test_hostile_text_is_read_quickly():
    began = time.process_time()
    for text in ("(", "-", "1+", "1 ", "1 )", "= (", "9"):
        final_answer(text * 20_000, by_value=True)
    assert time.process_time() - began < 5  # one quadratic pattern takes 30 s


@pytest.mark.parametrize(
    ("rationale", "answer"),
    [
        ("A cabinet. Only the Kitchen Cabinet holds cups.", "kitchen cabinet"),
        ("Kitchen cabinets hold cups, and so does a cabinet", "cabinet"),
        ("Only churches have one.", "church"),
        ("Cabinetry is no choice, nor is a miscabinet.", None),
        ("In Washington D.C there are many.", "washington d.c"),
    ],
)
def test_the_final_answer_among_choices_is_the_last_whole_word(rationale, answer):
    candidates = ("cabinet", "kitchen cabinet", "church", "washington d.c")
    assert final_answer(rationale, False, candidates) == answer
    assert final_answer(rationale, False) is None


def test_a_letter_is_an_answer_only_where_it_is_called_one():
    for rationale, answer in [
        ("A man runs. E = 7, so (B) it is.", "B"),
        ("Option A is too small. The answer is D.", "D"),
        ("A man runs. B is larger", None),
    ]:
        assert final_answer(rationale, False, tuple("ABCDE")) == answer


def test_choices_are_those_that_the_question_lists():
    question = "Where (a) or (b)?\nAnswer Choices:\n(a) bank\n(b) high street\n(c) mall"
    assert choices(question) == ("bank", "high street", "mall")
    assert choices("Where?") == ()


def test_generated_rationales_arrive_at_their_label():
    for example in word_problems.generate(300, 0, max_steps=3, max_number=40, teacher_error_rate=0.3):
        answer = final_answer(example.rationale, by_value=True)
        assert is_correct(answer, example.teacher_label, by_value=True)


def test_svamps_teacher_agrees_with_itself_as_measured(data_root):
    examples = tasks.load("svamp", data_root).test
    said = [e for e in examples if e.rationale and e.teacher_label]
    answers = [final_answer(e.rationale, by_value=True) for e in said]
    agree = sum(is_correct(a, e.teacher_label, True) for a, e in zip(answers, said, strict=True) if a)
    assert (len(said), answers.count(None)) == (193, 0)
    assert agree == pytest.approx(170, abs=3)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("18", "18"),
        (" 18.\n", "18"),
        ("18.00", "18.00"),
        ("1,234", "1234"),
        ("$1,234,567.50", "1234567.50"),
        ("$ 18", "18"),
        ("-$18", "-18"),
        ("$-18", "-18"),
        ("\u221218", "-18"),
        ("+18", "18"),
        ("18$", "18"),
        ("US$18", "18"),
        ("\u20ac18", "18"),
        ("Rs. 500", "500"),
        ("18 dollars", "18"),
        ("18 dollars a day, in all.", "18"),
        ("5 apples", "5"),
        ("12km/h", "12"),
        ("5 year-old trees", "5"),
        ("30\u00b0", "30"),
        ("9 km\u00b2", "9"),
        ("25%", "25"),
        ("25 percent", "25"),
        ("007", "7"),
        (".5 km", ".5"),
        ("6 * 3 = 18\n#### 18", "18"),
        ("", None),
        ("$", None),
        ("five", None),
        ("about 5", None),
        ("18 or 20", None),
        ("18-20", None),
        ("18-twenty", None),
        ("3/4 cup", None),
        ("2:30", None),
        ("12,34", None),
        ("1234,567", None),
        ("1,2345", None),
        ("1.2.3", None),
        ("5e3", None),
        ("5 * x", None),
        ("2 + x", None),
        ("5 million", None),
        ("5k", None),
        ("5\u00bd", None),
        ("5\u00b2", None),
        ("-$-5", None),
        ("- 5 -", None),
        ("\u0665", None),
        ("( 84.0 / 2.0 )", None),
        ("9" * 300, None),
    ],
    ids=ascii,
)
def test_the_number_that_an_answer_is(answer, found):
    assert number(answer) == found
    assert found is None or evaluate(found) is not None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She has 3. Then 3 + 15 = 18.", "18"),
        ("It costs $1,234.50.", "1234.50"),
        ("#### -7", "-7"),
        ("The answer is 18 apples ...", "18"),
        ("18 of $, and so on.", "18"),
        ("10-7", "-7"),  # as lm-evaluation-harness reads it
        ("12 km2", "2"),
        ("1,080", "1080"),
        (".5", ".5"),
        ("In version 5.1.2", None),
        ("$..", None),
        ("none", None),
        ("\u0665", None),
        ("", None),
    ],
    ids=ascii,
)
def test_the_last_number_is_that_of_lm_evaluation_harness(text, found):
    assert last_number(text) == found


def test_no_equation_of_svamp_is_read_as_a_number(data_root):
    svamp = tasks.load("svamp", data_root)
    read = [number(e.label) for e in (*svamp.train, *svamp.valid, *svamp.test)]
    # One label of the test set is no equation but a number.
    assert [found for found in read if found] == ["8.0"]
    assert all(number(e.label) == e.label for e in tasks.load("gsm8k", data_root).test)


def test_gsm8ks_solutions_end_in_their_answer(data_root):
    for example in tasks.load("gsm8k", data_root).test[:300]:
        assert last_number(f"{example.rationale}\n#### {example.label}") == example.label


def test_numbers_are_read_quickly_in_any_text():
    began = time.process_time()
    for text in ("1", "1,", "1 ", "1.", "- ", "$ ", "a-", "a/", "0", "####", ",111", "\u0665"):
        for start in ("", "1", "$-"):
            number(start + text * 50_000)
            last_number(start + text * 50_000)
    assert time.process_time() - began < 5
