"""Questions to a model that was taught nothing: what it is shown or told, and how it is read."""

import dataclasses

import pytest

from cot_jax.data import prompting
from cot_jax.data.examples import Example
from cot_jax.data.tasks import Splits
from cot_jax.data.views import ANSWER_MARK, Reading, answer_of, rationale_of
from cot_jax.errors import UserError

TRAIN = (
    Example("0", ("How many?",), "3"),
    Example("1", ("Tom has 2.", "And now?"), "4", teacher_label="5", rationales=("2 + 2", "2 * 2")),
    Example("2", ("One?",), "1", rationales=("It is one.",)),
)
SPLITS = Splits("own", TRAIN, (), TRAIN, None, by_value=True, notes=())
LETTERS = dataclasses.replace(SPLITS, train=TRAIN[:1], label_set=("A", "B"), by_value=False)


def test_a_model_is_asked_for_reasons_where_there_are_some_to_show():
    assert prompting.method_of(SPLITS) == "single_task"
    assert prompting.method_of(LETTERS) == "standard"
    assert prompting.method_of(dataclasses.replace(SPLITS, train=())) == "standard"


def test_shots_are_the_first_examples_that_have_what_is_written():
    view = prompting.prompted(SPLITS, 2)
    assert prompting.examples_of(view, SPLITS, 2) == [
        (("Tom has 2.", "And now?"), f"2 + 2 {ANSWER_MARK} 4"),
        (("One?",), f"It is one. {ANSWER_MARK} 1"),
    ]
    assert prompting.examples_of(view, SPLITS, 1) == prompting.examples_of(view, SPLITS, 2)[:1]
    with pytest.raises(UserError, match=r"^--shots=3: task=own has 2 training examples to show; use fewer$"):
        prompting.examples_of(view, SPLITS, 3)
    assert prompting.examples_of(prompting.prompted(LETTERS, 1), LETTERS, 1) == [(("How many?",), "3")]


def test_without_shots_the_question_says_what_to_write():
    said = 'And now?\nThink step by step, then end with "So the answer is" and the answer.'
    assert prompting.prompted(SPLITS, 0).reads(TRAIN[1]) == ("Tom has 2.", said)
    assert prompting.prompted(SPLITS, 1).reads(TRAIN[1]) == TRAIN[1].parts
    said = "How many?\nAnswer with one of: A, B."
    assert prompting.prompted(LETTERS, 0).reads(TRAIN[0]) == (said,)
    numbers = dataclasses.replace(SPLITS, train=TRAIN[:1])
    assert prompting.prompted(numbers, 0).reads(TRAIN[0]) == ("How many?\nAnswer with a number alone.",)
    words = dataclasses.replace(LETTERS, label_set=None)
    assert prompting.prompted(words, 0).reads(TRAIN[0]) == TRAIN[0].parts


@pytest.mark.parametrize(
    ("text", "answer", "unmarked"),
    [
        ("2 + 2 = 4. So the answer is 4", "4", False),
        ("So the answer is: **18**.\nLet me check: 3", "18", False),
        ("So the answer is 3. No. So the answer is ( 2 + 2 ).", "( 2 + 2 )", False),
        ("So the answer is $1,250.50.", "1250.50", False),
        ("So the answer is 1600 + 1600 = 3200 emails. Jack received 5", "3200", False),
        ("So the answer is ( 2.0 + 2.0 ) / 2 = 1.00 cups of flour.", "1.00", False),
        ("So the answer is ( 150 + 18 = 168 ).", "168", False),
        ("So the answer is 200 emails.", "200", False),
        ("So, the final answer is **18** apples.\n\nStep 2", "18", False),
        ("The answer is 44 - 9 = 35.\nThe answer is unclear: 12 or 13", "13", False),
        ("He has 4 pens. The answer is unclear.", "4", True),
        ("So the answer is\n\n 4", "4", False),
        ("First 2, then 4.", "4", True),
        ("It costs $1,250.50.", "1250.50", True),
        ("It fell to -3 degrees", "-3", True),
        ("7-3", "-3", True),  # as lm-evaluation-harness reads it
        ("He has 4 pens. So the answer is", "4", True),
        ("#### .5", ".5", True),
    ],
)
def test_an_answer_follows_the_mark_or_is_the_last_number(text, answer, unmarked):
    view = prompting.prompted(SPLITS, 0)
    assert answer_of(view, text) == Reading(answer, None, unmarked)
    assert rationale_of(view, "2 + 2 = 4. So the answer is 4") == "2 + 2 = 4."


def test_what_has_neither_answers_nothing():
    assert answer_of(prompting.prompted(SPLITS, 2), "I do not know.") == Reading("", "NoAnswer")
    reasons = dataclasses.replace(SPLITS, by_value=False)
    assert answer_of(prompting.prompted(reasons, 2), "It is 4.") == Reading("", "NoAnswer")
    assert answer_of(prompting.prompted(reasons, 2), "So the answer is yes.") == Reading("yes")


def test_without_reasons_the_first_line_answers():
    assert answer_of(prompting.prompted(LETTERS, 0), " A.\nB") == Reading("A")
    numbers = prompting.prompted(dataclasses.replace(SPLITS, train=TRAIN[:1]), 0)
    assert answer_of(numbers, "( 2 + 2 )\nyes") == Reading("( 2 + 2 )")
    assert answer_of(numbers, "There are 4 pens") == Reading("4", None, unmarked=True)
