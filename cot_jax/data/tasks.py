"""Data sets: from files to examples.

The published ones lie under `root` as Hsieh et al. 2023 published them, `NAME/NAME_{split}.json` with the
teacher's raw outputs in `NAME/llm/{split}_CoT_{k}.json`; `jsonl` is a user's own data.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cot_jax.data import teacher
from cot_jax.data.examples import Example, Row, read_json_lines
from cot_jax.errors import UserError
from cot_jax.metrics.accuracy import is_correct
from cot_jax.metrics.arithmetic import evaluate, in_svamp_notation, same_value

END_TOKEN = "</s>"  # T5's
ALL_SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set, ready to be learned and tested.

    Attributes:
      label_set: all labels, where the task has a closed set of them.
      by_value: answers are equations and compared by value (`metrics.arithmetic`), else as text.
      report: what was counted, in plain lines.
    """

    task: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    label_set: tuple[str, ...] | None
    by_value: bool
    report: tuple[str, ...]


class Options(NamedTuple):
    """The options of `load`."""

    parser: str
    end_token: str = END_TOKEN
    compare: str = "auto"


def load(
    task: str,
    root: Path,
    *,
    parser: str = "corrected",
    end_token: str = END_TOKEN,
    compare: str = "auto",
) -> Splits:
    """Reads the data set `task`, a key of `TASKS`, from `root`.

    A data set without a validation file gives 10 % of its training examples for validation, those that the
    released code takes with `datasets.Dataset.train_test_split(test_size=0.1, seed=0)`.

    Args:
      parser: how raw teacher outputs are read, corrected | reference (`data.teacher`).
      end_token: the text of the tokenizer's end token, which joins premise and hypothesis.
      compare: how answers of `jsonl` are compared, as text | value; auto is value if every label has one.
        The published data sets have a way of their own.

    Raises:
      UserError: an unknown task, or files that are missing, malformed or do not fit one another.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: the known ones are {', '.join(TASKS)}")
    return TASKS[task](Path(root), Options(parser, end_token, compare))


class Counts(NamedTuple):
    """What examples have; blank text counts as none."""

    examples: int
    rationales: int
    teacher_labels: int
    right: int  # teacher labels that are right by the gold label

    def __str__(self) -> str:
        share = f" ({100 * self.right / self.teacher_labels:.2f} %)" if self.teacher_labels else ""
        return (
            f"{self.examples:,} examples, {self.rationales:,} with a rationale, {self.teacher_labels:,} with "
            f"a teacher label, which equals the label in {self.right:,}{share}"
        )


def count(examples: Sequence[Example], by_value: bool) -> Counts:
    rationales = [e for e in examples if e.rationale and e.rationale.strip()]
    labels = [(e.teacher_label, e.label) for e in examples if e.teacher_label and e.teacher_label.strip()]
    right = sum(is_correct(said, gold or "", by_value) for said, gold in labels)
    return Counts(len(examples), len(rationales), len(labels), right)


class Problem(NamedTuple):
    """What a row asks, its gold answer and, where there is a choice, the answers to choose from."""

    input: str
    label: str
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
      problem: (row, end token) -> what the row asks; None leaves the row out.
      splits: the splits that have a file.
      id_key: the column with the id; None: ids are made from split and row number, `svamp-train-0007`.
    """

    name: str
    problem: Callable[[Row, str], Problem | None]
    splits: tuple[str, ...] = ("train", "test")
    id_key: str | None = None
    label_set: tuple[str, ...] | None = None
    by_value: bool = False

    def path(self, split: str, root: Path) -> Path:
        return root / self.name / f"{self.name}_{split}.json"

    def read(self, split: str, root: Path, options: Options) -> list[Example]:
        """Returns the examples of one file."""
        path = self.path(split, root)
        if not path.is_file():
            mend = f"python -m cot_jax.prepare_data {self.name} --root {root}"
            raise UserError(f"{path}: no such file; fetch it with `{mend}`")
        rows = list(read_json_lines(path))
        folder = path.parent / "llm"
        outputs = teacher.read_outputs(folder, split)
        if outputs is not None and len(outputs) != len(rows):
            raise UserError(
                f"{folder}/{split}_CoT_*.json: {len(outputs):,} teacher outputs for the {len(rows):,} rows "
                f"of {path}: there must be one output for each row, in the same order"
            )
        examples = []
        for index, row in enumerate(rows):
            if (problem := self.problem(row, options.end_token)) is None:
                continue
            if problem.choices and problem.label not in problem.choices:
                raise row.error(f"the label {problem.label!r} is not one of {', '.join(problem.choices)}")
            if self.by_value and evaluate(problem.label) is None:
                raise row.error(f"the label {problem.label!r} is not an equation")
            key = row.text(self.id_key) if self.id_key else f"{self.name}-{split}-{index:04d}"
            rationale, label = None, None
            if outputs is not None:
                rationale, label = self._parse(outputs[index], problem, options.parser, row)
            rationales = () if rationale is None else (rationale,)
            examples.append(Example(key, problem.input, problem.label, label, rationales))
        return examples

    def _parse(self, output: str, problem: Problem, parser: str, row: Row) -> teacher.ParsedOutput:
        try:
            said = teacher.parse(self.name, output, parser)
        except ValueError:
            raise row.error(
                "the released parser stops at this row's teacher output: take corrected"
            ) from None
        if parser == "corrected" and problem.choices and said.label is not None:
            same = (choice for choice in problem.choices if _bare(choice) == _bare(said.label))
            return said._replace(label=next(same, None))
        return said


def _bare(choice: str) -> str:
    return choice.strip().rstrip(".").casefold()


def _svamp(row: Row, end_token: str) -> Problem:
    return Problem(row.text("input"), row.text("label"))


def _cqa(row: Row, end_token: str) -> Problem:
    choices = row.values.get("choices")
    if not isinstance(choices, list) or len(choices) != 5 or not all(isinstance(c, str) for c in choices):
        raise row.error(f"'choices' must be a list of five texts; found {choices!r}")
    lettered = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    question = f"{row.text('question')}\nAnswer Choices:\n{lettered}"
    return Problem(question, row.text("answer"), tuple(choices))


def _nli(row: Row, end_token: str) -> Problem:
    label = row.values.get("label")
    if type(label) is not int or label not in range(3):
        raise row.error(f"the label {label!r} is not one of 0 (entailment), 1 (neutral), 2 (contradiction)")
    joined = f"{row.text('premise')}{end_token}{row.text('hypothesis')}"
    return Problem(joined, teacher.NLI_LABELS[label], teacher.NLI_LABELS)


def _asdiv(row: Row, end_token: str) -> Problem | None:
    # The label should teach what SVAMP's do, to write the equation: the left side of ASDiv's formula where it
    # has the answer's value ("7+2=9", "9 (apples)"), else the number itself ("47/6=7 r5", "5 (cookies)"),
    # which is the released code's label for every row. Left out are answers that are not one number ("Yes",
    # "3:30 p.m.", "6 (years old); 9 (years old)"): they have no value to compare with. [ours]
    answer = row.text("Answer")
    number = answer.partition(" ")[0]
    if evaluate(number) is None or ";" in answer:
        return None
    equation = row.text("Formula").partition("=")[0]
    label = in_svamp_notation(equation) if same_value(equation, number) else number
    return Problem(f"{row.text('Body')}\n{row.text('Question')}", label or number)


DATA_SETS = {
    data.name: data
    for data in (
        DataSet("svamp", _svamp, by_value=True),
        DataSet("cqa", _cqa, id_key="id"),
        DataSet("anli1", _nli, ALL_SPLITS, id_key="uid", label_set=teacher.NLI_LABELS),
        DataSet("esnli", _nli, ALL_SPLITS, label_set=teacher.NLI_LABELS),
        DataSet("asdiv", _asdiv, by_value=True),
    )
}


def hold_out(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Returns (training, validation): the split of `load`, without the library's table."""
    order = np.random.default_rng(0).permutation(len(examples))
    size = math.ceil(0.1 * len(examples))
    return [examples[i] for i in order[size:]], [examples[i] for i in order[:size]]


def _published(data: DataSet, root: Path, options: Options) -> Splits:
    read = {split: data.read(split, root, options) for split in data.splits}
    return as_splits(data.name, read, data.label_set, data.by_value)


def _svamp_asdiv(root: Path, options: Options) -> Splits:
    """SVAMP with ASDiv's training problems added to its own; validation and test stay SVAMP's."""
    svamp, asdiv = DATA_SETS["svamp"], DATA_SETS["asdiv"]
    train, valid = hold_out(svamp.read("train", root, options))
    added = asdiv.read("train", root, options)
    read = {"train": train + added, "valid": valid, "test": svamp.read("test", root, options)}
    rows = sum(1 for _ in read_json_lines(asdiv.path("train", root)))
    note = f"asdiv: {len(added):,} of {rows:,} training problems, those whose answer is one number"
    return as_splits("svamp_asdiv", read, None, True, note)


def _jsonl(root: Path, options: Options) -> Splits:
    """`{split}.jsonl` with rows `{id, input, label, rationale?, program?}`; no two have the same id.

    Several rationales or programs of one question are lists, `rationales` and `programs`.

    A teacher's outputs may stand in files of their own, joined by id: `teacher.jsonl` for all splits or
    `{split}_teacher.jsonl` for one. They are for all examples of a split or for none; a row with nothing but
    an id says that the teacher gave nothing.
    """
    rows: dict[str, Row] = {}
    read: dict[str, list[Example]] = {}
    for split in ALL_SPLITS:
        path = root / f"{split}.jsonl"
        if path.is_file():
            read[split] = [_own_example(row, rows) for row in read_json_lines(path)]
        elif split != "valid":
            raise UserError(f"{path}: no such file; jsonl reads train.jsonl, test.jsonl and any valid.jsonl")
    words = next((row for row in rows.values() if evaluate(row.text("label")) is None), None)
    if options.compare == "value" and words:
        raise words.error(f"the label {words.text('label')!r} has no value: compare as text")
    by_value = options.compare != "text" and words is None
    return as_splits("jsonl", _join_teacher(read, rows, root), None, by_value)


def _own_example(row: Row, earlier: dict[str, Row]) -> Example:
    if (key := row.id()) in earlier:
        raise row.error(f"the id {key!r} is taken by {earlier[key].where}")
    earlier[key] = row
    if not row.text("label").strip():
        raise row.error("the label is blank")
    rationales, programs = row.texts("rationale"), row.texts("program")
    return Example(key, row.text("input"), row.text("label"), rationales=rationales, programs=programs)


def _join_teacher(
    read: dict[str, list[Example]], rows: dict[str, Row], root: Path
) -> dict[str, list[Example]]:
    ids = {split: {example.id for example in examples} for split, examples in read.items()}
    said: dict[str, Row] = {}
    for name, known in {"teacher": rows.keys(), **{f"{split}_teacher": ids[split] for split in ids}}.items():
        if (path := root / f"{name}.jsonl").is_file():
            said = teacher.read_by_id(path, known, said)
    joined = {}
    for split, examples in read.items():
        missing = [example.id for example in examples if example.id not in said]
        if missing and len(missing) < len(examples):
            raise rows[missing[0]].error(
                f"the teacher's file has rows for other {split} examples but not for the id {missing[0]!r}"
            )
        joined[split] = examples if missing else [teacher.join(e, said[e.id]) for e in examples]
    return joined


def as_splits(
    task: str,
    read: dict[str, list[Example]],
    label_set: tuple[str, ...] | None,
    by_value: bool,
    *notes: str,
) -> Splits:
    """Returns the examples `read` of each split, counted; without "valid", a tenth of "train" becomes it.

    Raises:
      UserError: a split is empty.
    """
    if "valid" not in read:
        read["train"], read["valid"] = hold_out(read["train"])
    for split, examples in read.items():
        if not examples:
            raise UserError(f"{task}: there are no {split} examples")
    report = (*notes, *(f"{split}: {count(read[split], by_value)}" for split in ALL_SPLITS))
    train, valid, test = (tuple(read[split]) for split in ALL_SPLITS)
    return Splits(task, train, valid, test, label_set, by_value, report)


TASKS: dict[str, Callable[[Path, Options], Splits]] = {
    "svamp": functools.partial(_published, DATA_SETS["svamp"]),
    "cqa": functools.partial(_published, DATA_SETS["cqa"]),
    "anli1": functools.partial(_published, DATA_SETS["anli1"]),
    "esnli": functools.partial(_published, DATA_SETS["esnli"]),
    "svamp_asdiv": _svamp_asdiv,
    "jsonl": _jsonl,
}
