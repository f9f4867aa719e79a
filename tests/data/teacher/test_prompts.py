"""What a teacher is asked: its demonstrations are right, and their format is what the parsers read."""

import pytest

from cot_jax.answers import programs
from cot_jax.answers.arithmetic import same_value
from cot_jax.answers.reading import choices, final_answer
from cot_jax.data import problems, tasks
from cot_jax.data.examples import Example
from cot_jax.data.tasks import Splits
from cot_jax.data.teacher import outputs, prompts

STYLES = {
    "math": prompts.MATH, "choice": prompts.CHOICE, "letter": prompts.LETTER, "nli": prompts.NLI,
    "esnli": prompts.ESNLI, "boolean": prompts.BOOLEAN,
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_parsers_read_what_is_demonstrated(style):
    assert len(style.demonstrations) == (6 if style is prompts.BOOLEAN else 10)
    for shown in style.demonstrations:
        said = outputs.parse(style.parser, style.answers("cot", shown), "corrected")
        assert said.rationale == shown.rationale
        expected = shown.answer.partition(") ")[2] if style is prompts.CHOICE else shown.answer
        assert said.label == expected
    assert len({shown.question for shown in style.demonstrations}) == len(style.demonstrations)


def test_sums_and_programs_of_the_demonstrations_are_right():
    for shown in prompts.MATH.demonstrations:
        arrived = final_answer(shown.rationale, by_value=True)
        assert arrived is not None
        assert same_value(shown.answer, arrived)
        for sum_, equals in zip(
            shown.rationale.split(" = ")[:-1], shown.rationale.split(" = ")[1:], strict=True
        ):
            assert same_value(" ".join(sum_.split()[-3:]), equals.split()[0].rstrip("."))
        assert same_value(str(programs.run(shown.program).answer), shown.answer)


def test_choices_and_classes_are_balanced():
    assert all(len(choices(shown.question)) == 5 for shown in prompts.CHOICE.demonstrations)
    letters = [shown.answer[1] for shown in prompts.CHOICE.demonstrations]
    assert sorted(letters) == sorted(2 * "abcde")
    assert sorted(shown.answer for shown in prompts.LETTER.demonstrations) == sorted(2 * "ABCDE")
    assert [shown.answer for shown in prompts.BOOLEAN.demonstrations] == 3 * ["no", "yes"]
    classes = [shown.answer for shown in prompts.NLI.demonstrations]
    assert sorted(map(classes.count, outputs.NLI_LABELS)) == [3, 3, 4]


def splits(*examples, label_set=None, by_value=False):
    return Splits("t", examples, examples, examples, label_set, by_value, ())


SUM = Example("1", ("I have 2 and 3.\nHow many?",), "( 2.0 + 3.0 )")
PAIR = Example("2", ("A dog runs.", "A cat runs."), "neutral")
CHOICE = Example("3", ("Where?\nAnswer Choices:\n(a) here\n(b) there",), "there")


@pytest.mark.parametrize(
    ("task", "example", "known", "style"),
    [
        ("svamp", SUM, {"by_value": True}, prompts.MATH),
        ("anli1", PAIR, {"label_set": outputs.NLI_LABELS}, prompts.NLI),
        ("esnli", PAIR, {"label_set": outputs.NLI_LABELS}, prompts.ESNLI),
        ("cqa", CHOICE, {}, prompts.CHOICE),
    ],
)
def test_a_task_has_the_style_of_its_questions(task, example, known, style):
    assert prompts.style_of(task, splits(example, **known)) == style


def test_other_tasks_name_their_labels_where_they_are_few():
    few = [Example(str(n), ("text",), label) for n, label in enumerate(("bad", "good", "bad"))]
    style = prompts.style_of("jsonl", splits(*few))
    assert style.labels == ("bad", "good")
    assert "one of these: bad, good." in style.instructs("cot")
    many = [Example(str(n), ("text",), f"label {n}") for n in range(11)]
    assert prompts.style_of("jsonl", splits(*many)) == prompts.TEXT
    assert prompts.style_of("t", splits(*many, label_set=("b", "a"))).labels == ("b", "a")
    # A test set alone.
    assert prompts.style_of("hellaswag", splits(label_set=problems.ENDINGS)).labels == ("0", "1", "2", "3")


def test_the_texts_of_glue_have_names():
    """Otherwise nobody could tell which text `choice1` is."""
    asked = "copa choice1: Rain. choice2: Sun. premise: It is wet. question: cause"
    copa = Example("c", ("It is wet. What was the cause of this?", "Rain.", "Sun."), "choice1", asked=asked)
    style = prompts.style_of("copa", splits(copa, label_set=("choice1", "choice2")))
    assert style.asks(copa) == asked


def test_the_published_layout():
    """As the continuations of the published outputs show it: `Q:`, `A:` and, for NLI, `Reasoning:`."""
    text = prompts.as_prompt(prompts.MATH, "cot", True, prompts.MATH.asks(SUM))
    first = prompts.MATH.demonstrations[0]
    assert text.startswith("Solve the problem. Think step by step, in a few short sentences, and end with ")
    assert f"\n\nQ: {first.question}\nA: {first.rationale} The answer is ((342 + 58) - 17).\n\nQ: " in text
    assert text.endswith("\n\nQ: I have 2 and 3.\nHow many?\nA:")
    assert text.count("\nQ: ") == 11
    text = prompts.as_prompt(prompts.NLI, "cot", True, prompts.NLI.asks(PAIR))
    assert "\nReasoning: Cyclists are people who ride" in text
    assert "and these two are riding. So the answer is entailment.\n\nPremise: " in text
    assert text.endswith("\n\nPremise: A dog runs.\nHypothesis: A cat runs.\nReasoning:")
    text = prompts.as_prompt(prompts.ESNLI, "cot", True, prompts.NLI.asks(PAIR))
    assert 'end with "Answer: ..." with one' in text
    assert "and these two are riding.\nAnswer: entailment\n\nPremise: " in text
    text = prompts.as_prompt(prompts.CHOICE, "cot", False, prompts.CHOICE.asks(CHOICE))
    assert text.endswith("\n\nQ: Where?\nAnswer Choices:\n(a) here\n(b) there\nA: Let's think step by step.")
    assert text.count("Q: ") == 1
    text = prompts.as_prompt(prompts.MATH, "pot", True, SUM.text)
    assert text.startswith(prompts.PROGRAM_INSTRUCTION)
    assert f"\n\nQ: {first.question}\nA:\n{first.program}\n\nQ: " in text
    assert [prompts.stops(style) for style in (prompts.MATH, prompts.NLI)] == [["\nQ:"], ["\nPremise:"]]


def test_demonstrations_are_turns_of_a_chat():
    messages = prompts.as_chat(prompts.CHOICE, "cot", True, CHOICE.text)
    assert [message["role"] for message in messages] == ["system", *10 * ["user", "assistant"], "user"]
    assert messages[2]["content"].endswith(" So the answer is (b) refrigerator.")
    assert messages[-1]["content"] == CHOICE.text
    system, asked = prompts.as_chat(prompts.CHOICE, "cot", False, CHOICE.text)
    assert 'end with "So the answer is (x) ...."' in system["content"]
    assert asked["content"] == f"{CHOICE.text}\nLet's think step by step."
    assert prompts.as_chat(prompts.MATH, "pot", True, SUM.text)[2]["content"].startswith(
        "novels_at_first = 342\n"
    )


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("svamp", prompts.MATH), ("asdiv", prompts.MATH), ("gsm8k", prompts.MATH),
        ("cqa", prompts.CHOICE), ("aqua", prompts.LETTER), ("mathqa", prompts.LETTER),
        ("anli1", prompts.NLI), ("esnli", prompts.ESNLI),
    ],
)  # fmt: skip
def test_no_demonstration_is_a_question_of_the_data(data_root, name, style):
    data = tasks.load(name, data_root)
    assert prompts.style_of(name, data) == style
    asked = {style.asks(example) for split in (data.train, data.valid, data.test) for example in split}
    assert not asked & {shown.question for shown in style.demonstrations}
