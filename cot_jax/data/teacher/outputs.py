"""A teacher's outputs: raw continuations of a few-shot prompt, and files of rationales joined by id.

A raw continuation answers the question and then often invents the next one:

    Luke scored 84 points in 2 rounds. So he scored 84 / 2 = 42 points each round. The answer is (84 / 2).

    Q: ...

`parse` extracts rationale and label, in one of two forms. `reference` equals the released parser of Hsieh et
al. 2023 byte for byte: a failure is `' '` or `''`, and students are trained on that blank. `corrected`
differs:

* A failure is None, to be counted and left out. A rationale fails if the words that introduce the answer are
  missing (the output repeats itself or was cut off) or if nothing precedes them.
* SVAMP: the label is the whole equation; the released expression ends at the last bracket, so that
  `(16 * 17) * 4` becomes `(16 * 17)`. Text without a value (`(2 * x)`, `((491 - 21`) is a failure, and so are
  two equations (`(53 + 17) and (14 - 10)`).
* CQA: the label is one of the choices (`among`). An answer that names several ("either (a) aquarium or (e)
  pond") is a failure, not the text `aquarium or`.
* ANLI: "..., so the answer is" and "The answer is" also introduce an answer.
* NLI: the label is one of the classes: `neutral` is found in `neutral\\n\\nPre`, a truncated output of
  e-SNLI, and a truncated class (`entail`) is completed.
* Rationales and labels have no surrounding white space.

Without a released parser, numbers may have any common form ("$1,080", "18 apples", "60 + 18 = 78", "#### 72",
"A: 72"), options may be "(B)", "B." or "option B", and yes and no may be true and false. A user's own task
has the parser `text`: "So the answer is", to the end of the line.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.reading import final_answer
from cot_jax.data.examples import Example
from cot_jax.errors import UserError
from cot_jax.files import Row, read_json, read_json_lines

NLI_LABELS = ("entailment", "neutral", "contradiction")  # in the order of the data sets' integers


class ParsedOutput(NamedTuple):
    """A teacher's rationale and answer; None: missing."""

    rationale: str | None
    label: str | None


Parser = Callable[[str], ParsedOutput]


def parse(task: str, text: str, form: str) -> ParsedOutput:
    """Returns rationale and answer of the raw teacher output `text`.

    Args:
      task: a key of `PARSERS["corrected"]`.
      form: corrected | reference (see above); without a released parser both are ours.

    Raises:
      ValueError: in the reference form, like the released parser: a CQA output does not say "So the answer
        is" exactly once.
    """
    return PARSERS[form].get(task, PARSERS["corrected"][task])(text)


def _reference_math(text: str) -> ParsedOutput:
    parts = text.split("Q:")[0].rstrip().split("The answer is")
    if len(parts) != 2:
        return ParsedOutput(" ", " ")
    equation = re.search(r"\(.*\)", parts[1])
    return ParsedOutput(parts[0].rstrip(), equation.group() if equation else " ")


def _reference_cqa(text: str) -> ParsedOutput:
    rationale, answer = text.split("Q:")[0].rstrip().split("So the answer is")
    _, *options = re.split(r"\(.\)", answer)
    label = options[0].strip() if options else ""
    return ParsedOutput(rationale.rstrip(), label.removesuffix(".") if label else " ")


def _reference_anli(text: str) -> ParsedOutput:
    parts = text.split("Premise:")[0].rstrip().split("So the answer is")
    if len(parts) != 2:
        return ParsedOutput("", "")
    # The released parser takes the last character for a full stop.
    return ParsedOutput(parts[0].rstrip(), parts[1].lstrip()[:-1])


def _reference_esnli(text: str) -> ParsedOutput:
    _, *answers = text.split("Answer: ")
    label = answers[0].split("Premise")[0].rstrip() if answers else " "
    return ParsedOutput(text.split("Answer:")[0].rstrip(), label)


def _corrected(next_question: str, introduction: str, read_label: Callable[[str], str | None]) -> Parser:
    """Returns a parser of `rationale introduction answer [next_question ...]`, by the last introduction."""

    def parse_output(text: str) -> ParsedOutput:
        answered = text.split(next_question)[0]
        found = list(re.finditer(introduction, answered, re.IGNORECASE | re.MULTILINE))
        if not found:
            return ParsedOutput(None, None)
        rationale = answered[: found[-1].start()].strip().removesuffix(",")
        return ParsedOutput(rationale or None, read_label(answered[found[-1].end() :].strip()))

    return parse_output


def _equation(answer: str) -> str | None:
    equation = answer.partition("\n")[0].removesuffix(".")
    return equation if evaluate(equation) is not None and " and " not in equation else None


def _option(answer: str) -> str | None:
    _, *options = re.split(r"(?<!\w)\([A-Za-z]\)", answer)  # "tool(s)" is a plural
    return options[0].strip().removesuffix(".") or None if len(options) == 1 else None


def _nli_class(answer: str) -> str | None:
    words = re.findall(r"\w+", answer.lower())
    # No two classes begin with the same letter.
    return next((label for label in NLI_LABELS if words and label.startswith(words[0])), None)


def _number(answer: str) -> str | None:
    return _equation(answer) or final_answer(answer.partition("\n")[0], by_value=True)


def _only(characters: str, answer: str) -> str | None:
    """Returns the one of `characters` that is a word of the first line; None: there are none or several."""
    found = set(re.findall(rf"\b[{characters}]\b", answer.partition("\n")[0]))
    return found.pop() if len(found) == 1 else None


_letter, _ending = functools.partial(_only, "A-E"), functools.partial(_only, "0-3")


def _yes_no(answer: str) -> str | None:
    found = re.match(r"\W*(yes|true|no|false)\b", answer, re.IGNORECASE)
    return None if found is None else "yes" if found[1].lower() in ("yes", "true") else "no"


def _line(answer: str) -> str | None:
    return answer.partition("\n")[0].strip().removesuffix(".") or None


_SO = "(?:so )?the answer is:?"
# Also the marks of human solutions: those of GSM8K, of its published model outputs, of AQuA.
_HENCE = r"(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:correct |final )?answer(?: is|\s*:)|####|^A:"
PARSERS: dict[str, dict[str, Parser]] = {
    "corrected": {
        "svamp": _corrected("Q:", _SO, _equation),
        "asdiv": _corrected("Q:", _HENCE, _number),
        "gsm8k": _corrected("Q:", _HENCE, _number),
        "aqua": _corrected("Q:", _HENCE, _letter),
        "mathqa": _corrected("Q:", _HENCE, _letter),
        "strategyqa": _corrected("Q:", _HENCE, _yes_no),
        "hellaswag": _corrected("Q:", _HENCE, _ending),
        "cqa": _corrected("Q:", _SO, _option),
        "anli1": _corrected("Premise:", _SO, _nli_class),
        "esnli": _corrected("Premise:", "answer:", _nli_class),
        "text": _corrected("Q:", _SO, _line),
    },
    "reference": {
        "svamp": _reference_math,
        "asdiv": _reference_math,
        "cqa": _reference_cqa,
        "anli1": _reference_anli,
        "esnli": _reference_esnli,
    },
}


def among(labels: Collection[str], said: str | None) -> str | None:
    """Returns the label equal to `said`, ignoring case and a final dot, or None; without labels, `said`."""
    if not labels or said is None:
        return said
    bare = _bare(said)
    return next((label for label in labels if _bare(label) == bare), None)


def _bare(label: str) -> str:
    return label.strip().rstrip(".").casefold()


def read_outputs(folder: Path, split: str) -> list[str] | None:
    """Returns the raw outputs in `folder`/{split}_CoT_{k}.json, in the order of k; None without such files.

    Raises:
      UserError: a file is not a JSON list of texts.
    """
    chunks = {
        int(found[1]): path
        for path in folder.glob(f"{split}_CoT_*.json")
        if (found := re.fullmatch(rf"{split}_CoT_(\d+)\.json", path.name))
    }
    outputs: list[str] = []
    for _, path in sorted(chunks.items()):
        chunk = read_json(path, list)
        if not all(isinstance(output, str) for output in chunk):
            raise UserError(f"{path}: expected a JSON list of texts, the teacher's outputs")
        outputs += chunk
    return outputs if chunks else None


def read_by_id(path: Path, ids: Collection[str], earlier: Mapping[str, Row]) -> dict[str, Row]:
    """Returns `earlier` and the rows of a teacher's file, by id.

    A row is `{id, label?, rationale?, program?}`, or with lists `{id, label?, rationales?, programs?}`.

    Raises:
      UserError: a row's id is missing, repeated, or not one of `ids`; names file and line.
    """
    rows = dict(earlier)
    for row in read_json_lines(path):
        if (key := row.id()) not in ids:
            raise row.error(f"the data has no example with the id {key!r}")
        if key in rows:
            raise row.error(f"the id {key!r} is already used by {rows[key].where}")
        rows[key] = row
    return rows


def join(example: Example, row: Row) -> Example:
    """Returns `example` with the label and texts of a teacher's row in place of those of the data file."""
    return dataclasses.replace(
        example,
        teacher_label=row.optional_text("label"),
        rationales=row.texts("rationale") or example.rationales,
        programs=row.texts("program") or example.programs,
    )
