"""A teacher's samples: what is read in an output, and why it is kept or not."""

import pytest

from cot_jax.data.examples import Example
from cot_jax.data.teacher import prompts, samples
from cot_jax.data.teacher.samples import Asked, Sample

SUM = Example("s", ("I have 2 and 3.",), "( 2.0 + 3.0 )")
CHOICE = Example("c", ("Where?\nAnswer Choices:\n(a) Here\n(b) there",), "Here")
MANY = Example("m", ("With?\n" + "\n".join(f"({n}) {n * 3}" for n in "abcde") + "\n(f) tool(s)",), "tool(s)")
PAIR = Example("n", ("A", "B"), "neutral")


def read(output, example=SUM, kind="cot", style=prompts.MATH, finish="stop"):
    return samples.read(Asked(example, kind, 0), output, finish, style, example is SUM)


@pytest.mark.parametrize(
    ("output", "text", "label"),
    [
        ("Two and three. The answer is (2 + 3).\n\nQ: next", "Two and three.", "(2 + 3)"),
        ("<think>The answer is (1).</think>\nTwo and 3. **The answer is (3 + 2).**", "Two and 3.", "(3 + 2)"),
        ("The answer is 1? No.\n</think>\n\nTwo and 3. The answer is: 5.", "Two and 3.", "5"),
        ("**Sum:** **2** and **3**. The answer is **5**.", "Sum: 2 and 3.", "5"),
        ("2**1 and 1.5 ** (1) * 2, x**n. **The answer is 2+3**", "2**1 and 1.5 ** (1) * 2, x**n.", "2+3"),
    ],
)
def test_rationales_are_read(output, text, label):
    assert read(output) == Sample(Asked(SUM, "cot", 0), output, text, label, True, None)


@pytest.mark.parametrize(
    ("output", "example", "style", "label"),
    [
        ("Why. So the answer is (a) here.", CHOICE, prompts.CHOICE, "Here"),
        ("Why. So the answer is (b) there.", CHOICE, prompts.CHOICE, "there"),
        ("Why. So the answer is Neutral.", PAIR, prompts.NLI, "neutral"),
        ("Why.\nAnswer: neutral", PAIR, prompts.ESNLI, "neutral"),
        ("Why. The answer is Here.", CHOICE, prompts.TEXT, "Here"),
        ("Why. So the answer is: Here.", CHOICE, prompts.TEXT, "Here"),
        ('Why. So the answer is "neutral".', PAIR, prompts.NLI, "neutral"),
        ("Why. So the answer is: neutral.", PAIR, prompts.NLI, "neutral"),
        ("Why. So the answer is (F) tool(s).", MANY, prompts.CHOICE, "tool(s)"),
    ],
)
def test_labels_are_those_of_the_question(output, example, style, label):
    said = read(output, example, style=style)
    assert (said.text, said.label, said.right) == ("Why.", label, label != "there")


def test_an_equation_may_stand_for_a_listed_number():
    listed = Example("s", ("2 and 3?\nAnswer Choices:\n(a) 5\n(b) 6",), "5")
    said = samples.read(Asked(listed, "cot", 0), "Sum. The answer is (2 + 3).", "stop", prompts.MATH, True)
    assert (said.label, said.right, said.failure) == ("(2 + 3)", True, None)


@pytest.mark.parametrize(
    ("output", "finish", "failure"),
    [
        ("", "stop", "empty"),
        ("<think>Hm", "length", "cut off"),
        ("Two and three make", "length", "cut off"),
        ("Two and three make 5.", "stop", "no answer"),
        ("The answer is (2 + 3).", "stop", "no rationale"),
        ("Why. The answer is (x + y).", None, "no readable answer"),
        ("Why. The answer is (2 ** 3).", None, "no readable answer"),
        ("", "refused: 400: too long", "refused by the server"),
    ],
)
def test_failures_have_names(output, finish, failure):
    said = read(output, finish=finish)
    assert said.failure == failure
    assert said.text is None or said.label is None
    assert said.output == (output if failure != "refused by the server" else finish)


def test_a_choice_that_is_none_is_no_answer():
    said = read("Why. So the answer is (c) nowhere.", CHOICE, style=prompts.CHOICE)
    assert (said.label, said.failure) == (None, "no readable answer")


@pytest.mark.parametrize(
    ("output", "text", "label", "failure"),
    [
        ("a = 2\nans = a + 3\n\nQ: next", "a = 2\nans = a + 3", "5", None),
        ("Here it is:\n```python\nans = 2 + 3\n```\nIt adds.", "ans = 2 + 3", "5", None),
        ("```\nans = 2 + 4\n```", "ans = 2 + 4", "6", None),
        ("ans = 2**3 - 3", "ans = 2**3 - 3", "5", None),
        ("ans = 10.0 ** 16", "ans = 10.0 ** 16", "1" + 16 * "0", None),
        ("**Program**\n```python\nans = int(5 * 1.05 ** 0)\n```", "ans = int(5 * 1.05 ** 0)", "5", None),
        ("ans = 1 / 0", "ans = 1 / 0", None, "program: ZeroDivisionError"),
        ("import os\nans = os.getpid()", "import os\nans = os.getpid()", None, "program: Unsupported"),
    ],
)
def test_programs_are_run(output, text, label, failure):
    said = read(output, kind="pot")
    assert said[2:] == (text, label, label == "5", failure)
    assert failure is None or read(output, kind="pot", finish="length").failure == "cut off"


@pytest.mark.parametrize(
    ("rationale", "label", "leak"),
    [
        ("Neutral.", "neutral", True),
        ("neutral, because nothing is said", "neutral", True),
        ("Neutral because nothing is said.", "neutral", True),
        ("( 2 + 3 ); two and three.", "( 2 + 3 )", True),
        ("The answer is neutral, since nothing is said.", "neutral", True),
        ("5 is the answer. Two and three make 5.", "(2 + 3)", True),
        ("A pond is the right answer.", "lake", True),
        ("Answer: a pond. Fish live there.", "pond", True),
        ("Pond water is where fish live.", "pond", False),
        ("2 + 3 = 5.", "2 + 3", False),
        ("Fish live in water, so the answer must be wet. A pond is the answer.", "pond", False),
        ("It costs 4.5 dollars. The answer is found by adding.", "4.5", False),
        ("The answer must be a place where fish live.", "pond", False),
    ],
)
def test_a_label_before_any_reason_is_a_leak(rationale, label, leak):
    assert samples.leaks(rationale, label) == leak


def test_filters_say_why():
    def sample(text, right=True, kind="cot", example=SUM, failure=None):
        return Sample(Asked(example, kind, 0), "", text, "(2 + 3)", right, failure)

    drawn = [
        sample("Two and three."),
        sample("two  and\nthree. "),
        sample("Two and three.", example=CHOICE),
        sample("a = 1", kind="pot"),
        sample("A = 1", kind="pot"),
        sample("a = 1", kind="pot"),
        sample("One and three.", right=False),
        sample("(2 + 3), because.", right=False),
        sample("The answer is (2 + 3)."),
        sample("One of a good many words"),
        sample(None, failure="no answer"),
    ]

    def reasons(drawn, filters, max_words=0):
        found = samples.filtered(drawn, filters, max_words)
        assert [one._replace(failure=None) for one in found] == [one._replace(failure=None) for one in drawn]
        return [one.failure for one in found]

    assert reasons(drawn, samples.FILTERS, 4) == [
        None, "duplicate", None, None, None, "duplicate", "wrong", "wrong", "leaks", "too long", "no answer",
    ]  # fmt: skip
    assert reasons(drawn, ()) == [*10 * [None], "no answer"]
    assert reasons(drawn, ("leaks",))[6:9] == [None, "leaks", "leaks"]
    # Nothing is a duplicate of a sample that is left out.
    assert reasons([drawn[6], drawn[6], drawn[0]], ("right", "duplicates")) == ["wrong", "wrong", None]


def test_the_majority_is_by_value():
    said = [
        Sample(Asked(SUM, "cot", 0), "", "t", label, True, None)
        for label in ("(1 + 3)", "(2 + 3)", "5", None)
    ]
    assert samples.majority(said, True) == "(2 + 3)"
    assert samples.majority(said, False) == "(1 + 3)"
    assert samples.majority(said[3:], True) is None
