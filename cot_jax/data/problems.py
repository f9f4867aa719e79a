"""Rows of the published data sets as problems: input, gold answer, human rationale."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from cot_jax.answers.arithmetic import evaluate, in_svamp_notation, same_value
from cot_jax.data.teacher import outputs
from cot_jax.files import Row

LETTERS = ("A", "B", "C", "D", "E")
YES_NO = ("yes", "no")
ENDINGS = ("0", "1", "2", "3")

_CALCULATION = re.compile(r"<<(.*?)>>")  # GSM8K's calculator notes: "48/2 = <<48/2=24>>24"
_NUMBER = re.compile(r"\d*\.?\d+")
# The usual end of AQuA's rationales: "Answer : A", "The correct option is C.", "( Option C )", "\nD".
_NAMED_LETTER = re.compile(
    r"(?:[\s(]|\b(?:so|hence|the|correct|final)\b)*(?:\b(?:ans|answer|option)\b[^\n.]{0,12}\W|\n\W*)[A-E]\W*$",
    re.IGNORECASE,
)
_LONGEST_NAMING = 50  # characters: the pattern is slow on long texts
_BETWEEN_OPTIONS = re.compile(r"['\"]? ?, ['\"]?(?=[A-E] \) )", re.IGNORECASE)
_LETTERED = re.compile(r"(?:[A-E] \) )+", re.IGNORECASE)


class Problem(NamedTuple):
    """A question in one or several parts, its gold answer, and choices, rationale and programs, if any."""

    parts: tuple[str, ...]
    label: str
    choices: tuple[str, ...] = ()
    rationale: str | None = None
    programs: tuple[str, ...] = ()


def svamp(row: Row) -> Problem:
    return Problem((row.text("input"),), row.text("label"))


def cqa(row: Row) -> Problem:
    choices = _texts(row, "choices", 5)
    lettered = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    question = f"{row.text('question')}\nAnswer Choices:\n{lettered}"
    return Problem((question,), row.text("answer"), tuple(choices))


def nli(row: Row) -> Problem:
    label = row.values.get("label")
    if type(label) is not int or label not in range(3):
        raise row.error(f"the label {label!r} is not one of 0 (entailment), 1 (neutral), 2 (contradiction)")
    pair = row.text("premise"), row.text("hypothesis")
    return Problem(pair, outputs.NLI_LABELS[label], outputs.NLI_LABELS)


def asdiv(row: Row) -> Problem | None:
    # As in SVAMP, the label should be an equation: the left side of ASDiv's formula if it has the answer's
    # value ("7+2=9", "9 (apples)"), else the number itself ("47/6=7 r5", "5 (cookies)"), which is every
    # label in the released code. Answers that are not one number ("Yes", "3:30 p.m.", "6 (years old); 9
    # (years old)") are left out: they have no value to compare with. [ours]
    answer = row.text("Answer")
    number = answer.partition(" ")[0]
    if evaluate(number) is None or ";" in answer:
        return None
    equation = row.text("Formula").partition("=")[0]
    label = in_svamp_notation(equation) if same_value(equation, number) else number
    return Problem((f"{row.text('Body')}\n{row.text('Question')}",), label or number)


def gsm8k(row: Row) -> Problem:
    worked, mark, answer = row.text("answer").rpartition("####")
    if not mark:
        raise row.error("the answer has no '####' before its number")
    programs = _calculator_program(_CALCULATION.findall(worked))
    worked = _CALCULATION.sub("", worked).strip()
    label = answer.strip().replace(",", "")
    return Problem((row.text("question"),), label, rationale=worked or None, programs=programs)


def _calculator_program(notes: Sequence[str]) -> tuple[str, ...]:
    """Returns a program of thought with a line per note; none without notes. [ours]

    A number that an earlier note computed is replaced by the variable of the last such note: ["48/2=24",
    "48+24=72"] gives "n1 = 48/2\\nn2 = 48+n1\\nans = n2". Programs are checked against the label where they
    are used.
    """
    lines, names = [], dict[str, str]()
    for number, note in enumerate(notes, start=1):
        expression, _, value = note.partition("=")
        expression = _NUMBER.sub(lambda found: names.get(found.group(), found.group()), expression)
        lines.append(f"n{number} = {expression}")
        names[value] = f"n{number}"
    return ("\n".join([*lines, f"ans = n{len(lines)}"]),) if lines else ()


def aqua(row: Row) -> Problem:
    # The label is the letter, as in the published results: in 2 % of the questions options repeat, and their
    # texts contain characters that some vocabularies lack.
    options = _texts(row, "options", len(LETTERS))
    if [option[:2] for option in options] != [f"{letter})" for letter in LETTERS]:
        raise row.error(f"'options' must begin with A) to E); found {options!r}")
    texts = [option[2:].strip() for option in options]
    asked = _lettered(row.text("question"), texts)
    return Problem((asked,), row.text("correct"), LETTERS, _without_letter(row.text("rationale")))


def mathqa(row: Row) -> Problem | None:
    """A row of MathQA's authors, worded like `aqua`; None if its options cannot be read."""
    if (texts := _mathqa_options(row.text("options"))) is None:
        return None
    worked = _without_letter(row.text("Rationale").strip().strip('"'))
    return Problem((_lettered(row.text("Problem"), texts),), row.text("correct").upper(), LETTERS, worked)


def mathqa_instruct(row: Row) -> Problem:
    """A row of LLM-Adapters' copy of MathQA's test set, worded like `mathqa`."""
    question, _, listed = row.text("instruction").partition(" The options: ")
    if (texts := _mathqa_options(listed)) is None:
        raise row.error("the instruction does not end in 'The options: A ) .., B ) .., .. E ) ..'")
    return Problem((_lettered(question, texts),), row.text("answer"), LETTERS)


def _mathqa_options(listed: str) -> list[str] | None:
    options = _BETWEEN_OPTIONS.split(listed.strip("[]'\""))  # 66 test rows have them as a Python list
    if [option[:4].upper() for option in options] != [f"{letter} ) " for letter in LETTERS]:
        return None
    # LLM-Adapters' file has every a to e of the options in capitals ("DAtA inADEquAtE").
    return [_LETTERED.sub("", option, count=1).strip().lower() for option in options]


def _without_letter(rationale: str) -> str | None:
    """Returns a rationale without the letter at its end."""
    worked = rationale[:-_LONGEST_NAMING] + _NAMED_LETTER.sub("", rationale[-_LONGEST_NAMING:])
    return worked.strip() or None


def strategyqa(row: Row) -> Problem:
    if not isinstance(answer := row.values.get("answer"), bool):
        raise row.error(
            f"'answer' must be true or false; found {answer!r} (the official test set has no answers: hold "
            "out questions of the training file)"
        )
    facts = " ".join(fact.strip() for fact in _texts(row, "facts")) if row.values.get("facts") else None
    return Problem((row.text("question"),), YES_NO[not answer], YES_NO, facts)


def hellaswag(row: Row) -> Problem:
    """Asks for an ending as in DynSDPB's tables: the endings are numbered, the answer is the number.

    Fu et al. 2024 follow ResLoRA, whose code has this wording. `data.continuations.hellaswag` is for scoring
    by likelihood.
    """
    endings = _texts(row, "endings", len(ENDINGS))
    numbered = "\n".join(f"{n}: {ending}" for n, ending in enumerate(endings))
    question = (
        f'Here is a sentence to be continued: "{row.text("ctx")}"\nThere are 4 options as an ending:\n'
        f"{numbered}\nPlease select the correct option and answer with a number between 0 and 3."
    )
    return Problem((question,), hellaswag_label(row), ENDINGS)


def hellaswag_label(row: Row) -> str:
    """Returns the number of the correct ending: an integer in the authors' files, a string on the Hub."""
    label = row.values.get("label")
    if isinstance(label, bool) or str(label) not in ENDINGS:
        raise row.error(
            f"the label {label!r} is not one of {', '.join(ENDINGS)} (the published test set has no labels: "
            "use the validation set)"
        )
    return str(label)


def _lettered(question: str, options: list[str]) -> str:
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=True))
    return f"{question}\nAnswer Choices:\n{listed}"


def _texts(row: Row, key: str, count: int | None = None) -> list[str]:
    row.require(key)
    found = row.values[key]
    if (
        not isinstance(found, list)
        or not all(isinstance(text, str) for text in found)
        or len(found) != (count or len(found))
    ):
        many = {None: "", len(ENDINGS): "four ", len(LETTERS): "five "}[count]
        raise row.error(f"{key!r} must be a list of {many}texts; found {found!r}")
    return found
