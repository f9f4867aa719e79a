"""Prompts for a teacher: instructions, demonstrations, and their layout as text or chat.

A question has one of six styles (`style_of`): arithmetic, a choice of words, a choice of letters, entailment,
yes or no, and any other text. Each style has an instruction and the words that introduce the answer, by which
`outputs` finds it; all but the last have demonstrations, our own and in no data set (`demonstrations/`). Only
arithmetic questions ask for programs of thought (Chen et al. 2023).

The formats are those of the published outputs (Hsieh et al. 2023): "The answer is (84 / 2).", "So the answer
is (b) wooded area.", "So the answer is neutral." and, for e-SNLI, "Answer: neutral" on its own line.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from cot_jax.answers.reading import choices
from cot_jax.data.examples import Example
from cot_jax.data.problems import LETTERS, YES_NO
from cot_jax.data.tasks import Splits
from cot_jax.data.teacher.outputs import NLI_LABELS
from cot_jax.files import read_json_lines

# Prompts list a task's labels if there are at most this many.
_MOST_LABELS = 10


class Demonstration(NamedTuple):
    question: str
    rationale: str
    answer: str
    program: str | None = None


@dataclasses.dataclass(frozen=True)
class Style:
    """The prompt of one kind of question.

    Attributes:
      parser: the task whose corrected parser in `outputs` reads the answers.
      closing: the text after the rationale, with {answer}.
      instruction: with {closing}.
      marks: the texts before a question and before its answer, outside a chat.
      labels: the possible answers, if the instruction lists them.
    """

    parser: str
    closing: str
    instruction: str
    placeholder: str
    demonstrations: tuple[Demonstration, ...] = ()
    marks: tuple[str, str] = ("Q: ", "A:")
    labels: tuple[str, ...] = ()

    def instructs(self, kind: str) -> str:
        """Returns the instruction for a rationale (`cot`) or a program (`pot`)."""
        if kind == "pot":
            return PROGRAM_INSTRUCTION
        closing = self.closing.format(answer=self.placeholder).strip()
        return self.instruction.format(closing=closing, labels=", ".join(self.labels))

    def answers(self, kind: str, demonstration: Demonstration) -> str:
        """Returns the teacher's answer in a demonstration."""
        if kind == "pot":
            return demonstration.program or ""
        return demonstration.rationale + self.closing.format(answer=demonstration.answer)

    def asks(self, example: Example) -> str:
        """Returns the question of an example; what GLUE's texts are is only said in `asked`."""
        if self.parser in ("anli1", "esnli"):
            premise, hypothesis = example.parts
            return f"Premise: {premise}\nHypothesis: {hypothesis}"
        return example.asked or example.text


HINT = (
    "\n(The right answer is known: {answer}. Write what leads to it, and do not mention that you were told.)"
)
STEPS = "Let's think step by step."
PROGRAM_INSTRUCTION = (
    "Solve the problem with a short Python program. Name its variables after what they count, use plain "
    "arithmetic and at most the math module, and leave the answer, a number, in the variable ans. Write the "
    "program and nothing else."
)


def as_chat(style: Style, kind: str, few_shot: bool, question: str) -> list[dict[str, str]]:
    """Returns `question` as chat messages; demonstrations are earlier turns."""
    messages = [{"role": "system", "content": style.instructs(kind)}]
    for demonstration in style.demonstrations if few_shot else ():
        messages += [
            {"role": "user", "content": demonstration.question},
            {"role": "assistant", "content": style.answers(kind, demonstration)},
        ]
    if not few_shot and kind == "cot":
        question = f"{question}\n{STEPS}"
    return [*messages, {"role": "user", "content": question}]


def as_prompt(style: Style, kind: str, few_shot: bool, question: str) -> str:
    """Returns `question` as a text to be continued, in the published layout."""
    before, after = style.marks
    gap = "\n" if kind == "pot" else " "
    parts = [style.instructs(kind)]
    for demonstration in style.demonstrations if few_shot else ():
        answer = style.answers(kind, demonstration)
        parts.append(f"{before}{demonstration.question}\n{after}{gap}{answer}")
    thinking = f" {STEPS}" if not few_shot and kind == "cot" else ""
    return "\n\n".join([*parts, f"{before}{question}\n{after}{thinking}"])


def stops(style: Style) -> list[str]:
    """Returns the texts that end a continuation: those before the next question."""
    return ["\n" + (style.marks[0].strip() or "Premise:")]


def style_of(task: str, splits: Splits) -> Style:
    """Returns the style of a task's questions, with our demonstrations."""
    if splits.label_set == NLI_LABELS:
        return ESNLI if task == "esnli" else NLI
    if splits.label_set == LETTERS:
        return LETTER
    if splits.label_set == YES_NO:
        return BOOLEAN
    if splits.by_value:
        return MATH
    if not splits.label_set and choices(splits.train[0].text):
        return CHOICE
    labels = splits.label_set or tuple(sorted({example.label for example in splits.train}))
    return TEXT if len(labels) > _MOST_LABELS else dataclasses.replace(LABELS, labels=labels)


def read_demonstrations(file: Path, programs: bool = False) -> tuple[Demonstration, ...]:
    """Reads JSON lines {input, rationale, label, program?}.

    Raises:
      UserError: the file is missing, or a row lacks a text.
    """
    return tuple(
        Demonstration(
            row.text("input"),
            row.text("rationale"),
            row.text("label"),
            row.text("program") if programs else row.optional_text("program"),
        )
        for row in read_json_lines(file)
    )


def _ours(name: str) -> tuple[Demonstration, ...]:
    return read_demonstrations(Path(__file__).parent / "demonstrations" / f"{name}.jsonl")


_SHORTLY = "Think step by step, in a few short sentences, and end with"
MATH = Style(
    "asdiv",
    " The answer is {answer}.",
    f'Solve the problem. {_SHORTLY} "{{closing}}", where between the brackets stands one calculation with '
    "the numbers of the problem.",
    "(...)",
    _ours("arithmetic"),
)
CHOICE = Style(
    "cqa",
    " So the answer is {answer}.",
    f'Answer the question with one of the choices. {_SHORTLY} "{{closing}}" that names your choice.',
    "(x) ...",
    _ours("choice"),
)
NLI = Style(
    "anli1",
    " So the answer is {answer}.",
    "Does the hypothesis follow from the premise (entailment), does the premise rule it out (contradiction), "
    f'or neither (neutral)? {_SHORTLY} "{{closing}}" with one of these three words.',
    "...",
    _ours("entailment"),
    ("", "Reasoning:"),
)
ESNLI = dataclasses.replace(NLI, parser="esnli", closing="\nAnswer: {answer}")
LETTER = dataclasses.replace(CHOICE, parser="aqua", placeholder="(X)", demonstrations=_ours("letter"))
BOOLEAN = Style(
    "strategyqa",
    " So the answer is {answer}.",
    f'Answer the question with yes or no. {_SHORTLY} "{{closing}}", yes or no.',
    "...",
    _ours("yes_no"),
)
TEXT = Style(
    "text",
    " So the answer is {answer}.",
    f'Answer the question. {_SHORTLY} "{{closing}}" with the bare answer.',
    "...",
)
LABELS = dataclasses.replace(
    TEXT, instruction=f'Answer the question with one of these: {{labels}}. {_SHORTLY} "{{closing}}"'
)
