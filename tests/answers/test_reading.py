"""Answers read in texts: hand-made sentences, generated rationales and the teacher's real outputs."""

import time

import pytest

from cot_jax.answers.equality import is_correct
from cot_jax.answers.reading import choices, final_answer
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
