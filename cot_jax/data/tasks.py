"""Data sets: from files to examples.

Published files are under `root` in the layout of Hsieh et al. 2023: `NAME/NAME_{split}.json`, with the
teacher's raw outputs in `NAME/llm/{split}_CoT_{k}.json`. `jsonl` is the user's own data.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cot_jax.answers.arithmetic import evaluate
from cot_jax.answers.equality import is_correct
from cot_jax.data import glue, hub, problems
from cot_jax.data.examples import Example
from cot_jax.data.problems import Problem
from cot_jax.data.teacher import outputs, published_programs
from cot_jax.data.teacher.published_programs import Published
from cot_jax.errors import UserError
from cot_jax.files import Row, read_json_lines, read_rows

ALL_SPLITS = ("train", "valid", "test")

_Row = TypeVar("_Row")


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set.

    Attributes:
      label_set: all labels; None: an open set.
      by_value: whether answers are equations or numbers, compared by value (`answers.equality`), or text.
      notes: what was left out or changed, for the user.
      metrics: names in `metrics.classification.METRICS`; the first one selects students.
      multiple_choice: the parts of an example are a text and the choices, and `label_set` names the choices.
    """

    task: str
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    test: tuple[Example, ...]
    label_set: tuple[str, ...] | None
    by_value: bool
    notes: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    multiple_choice: bool = False

    @property
    def report(self) -> tuple[str, ...]:
        """The notes, and the counts of each split."""
        splits = {split: getattr(self, split) for split in ALL_SPLITS}
        counts = (
            f"{split}: {count(examples, self.by_value)}" for split, examples in splits.items() if examples
        )
        return (*self.notes, *counts)


class Options(NamedTuple):
    """The options of `load`."""

    parser: str
    compare: str = "auto"


def load(task: str, root: Path, *, parser: str = "corrected", compare: str = "auto") -> Splits:
    """Reads the data set `task`, a key of `TASKS`, from `root`.

    Without a validation file, 10 % of the training examples are for validation: the same ones as in the
    released code, `datasets.Dataset.train_test_split(test_size=0.1, seed=0)`.

    Args:
      parser: of raw teacher outputs, corrected | reference (`data.teacher.outputs`).
      compare: how answers of `jsonl` compare, text | value | auto: by value if every label has one. The
        published data sets define their own comparison.

    Raises:
      UserError: an unknown task, or files are missing, malformed or inconsistent.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}: the known ones are {', '.join(TASKS)}")
    return TASKS[task](Path(root), Options(parser, compare))


class Counts(NamedTuple):
    """Counts of examples and of what they have; blank text counts as none."""

    examples: int
    rationales: int
    teacher_labels: int
    right: int  # teacher labels that equal the gold label

    def __str__(self) -> str:
        share = f" ({100 * self.right / self.teacher_labels:.2f} %)" if self.teacher_labels else ""
        return (
            f"{self.examples:,} examples, {self.rationales:,} with a rationale, {self.teacher_labels:,} with "
            f"a teacher label, which equals the label in {self.right:,}{share}"
        )


def count(examples: Sequence[Example], by_value: bool) -> Counts:
    rationales = [e for e in examples if e.rationale and e.rationale.strip()]
    labels = [(e.teacher_label, e.label) for e in examples if e.teacher_label and e.teacher_label.strip()]
    right = sum(is_correct(said, gold, by_value) for said, gold in labels)
    return Counts(len(examples), len(rationales), len(labels), right)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published data set.

    Attributes:
      problem: row -> problem; None leaves the row out.
      splits: the splits that have a file.
      id_key: the id's column; None: ids are made of split and row number, `svamp-train-0007`.
      file: file name in `root`/NAME, with {split}; default: `NAME_{split}.json`.
      split_names: names of splits in file names, where not train, valid or test.
      optional: splits whose file may be missing.
      kept: describes the rows that are kept, if some are left out.
      source: where it is published, a GitHub repository or a page; empty: `cot_jax.prepare_data` fetches it.
    """

    name: str
    problem: Callable[[Row], Problem | None]
    splits: tuple[str, ...] = ("train", "test")
    id_key: str | None = None
    label_set: tuple[str, ...] | None = None
    by_value: bool = False
    file: str = ""
    split_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    kept: str = ""
    source: str = ""

    def path(self, split: str, root: Path) -> Path:
        file = self.file or f"{self.name}_{{split}}.json"
        return root / self.name / file.format(split=self.split_names.get(split, split))

    def read(self, split: str, root: Path, parser: str) -> list[Example]:
        """Returns the examples of one file; `parser` as in `load`."""
        path = self.path(split, root)
        if not path.is_file():
            fix = f"fetch it with `python -m cot_jax.prepare_data {self.name} --root {root}`"
            raise UserError(f"{path}: no such file; {f'it is from {self.source}' if self.source else fix}")
        rows = list(read_rows(path))
        folder = path.parent / "llm"
        raw = outputs.read_outputs(folder, split)
        if raw is not None and len(raw) != len(rows):
            raise UserError(
                f"{folder}/{split}_CoT_*.json: {len(raw):,} teacher outputs for the {len(rows):,} rows "
                f"of {path}: there must be one output for each row, in the same order"
            )
        published = published_programs.read(self.name, split, root, rows)
        examples = []
        for index, row in enumerate(rows):
            if (problem := self.problem(row)) is None:
                continue
            if problem.choices and problem.label not in problem.choices:
                raise row.error(f"the label {problem.label!r} is not one of {', '.join(problem.choices)}")
            if self.by_value and evaluate(problem.label) is None:
                raise row.error(f"the label {problem.label!r} is not an equation")
            key = row.text(self.id_key) if self.id_key else f"{self.name}-{split}-{index:04d}"
            beside = published[index] if published else Published()
            rationale, label = problem.rationale, None
            if raw is not None:
                rationale, label = self._parse(raw[index], problem, parser, row)
            elif beside.output and parser == "corrected":
                rationale, label = self._parse(beside.output, problem, parser, row)
            rationales = () if rationale is None else (rationale,)
            programs = beside.programs if published else problem.programs
            examples.append(Example(key, problem.parts, problem.label, label, rationales, programs))
        return examples

    def _parse(self, output: str, problem: Problem, parser: str, row: Row) -> outputs.ParsedOutput:
        try:
            parsed = outputs.parse(self.name, output, parser)
        except ValueError:
            fix = "use --config.data.parser=corrected"
            raise row.error(f"the released parser fails on this row's teacher output: {fix}") from None
        if parser == "corrected":
            return parsed._replace(label=outputs.among(problem.choices, parsed.label))
        return parsed


_ONE_NUMBER = "those whose answer is one number"
DATA_SETS = {
    data.name: data
    for data in (
        DataSet("svamp", problems.svamp, by_value=True),
        DataSet("cqa", problems.cqa, id_key="id"),
        DataSet("anli1", problems.nli, ALL_SPLITS, id_key="uid", label_set=outputs.NLI_LABELS),
        DataSet("esnli", problems.nli, ALL_SPLITS, label_set=outputs.NLI_LABELS),
        DataSet("asdiv", problems.asdiv, by_value=True, kept=_ONE_NUMBER),
        DataSet(
            "gsm8k", problems.gsm8k, by_value=True, file="{split}.jsonl", source="openai/grade-school-math"
        ),
        DataSet("aqua", problems.aqua, label_set=problems.LETTERS, source="google-deepmind/AQuA"),
        DataSet(
            "mathqa",
            problems.mathqa,
            ALL_SPLITS,
            label_set=problems.LETTERS,
            file="{split}.json",
            split_names={"valid": "dev"},
            kept="those with five readable options",
            source="https://math-qa.github.io (MathQA.zip)",
        ),
        DataSet(
            "strategyqa",
            problems.strategyqa,
            id_key="qid",
            label_set=problems.YES_NO,
            source="eladsegal/strategyqa",
        ),
        DataSet(
            "hellaswag",
            problems.hellaswag,
            label_set=problems.ENDINGS,
            file="hellaswag_{split}.jsonl",
            split_names={"test": "val"},
            optional=("train",),
            source="rowanz/hellaswag",
        ),
    )
}
_MATHQA_TEST = dataclasses.replace(
    DATA_SETS["mathqa"],
    problem=problems.mathqa_instruct,
    splits=("test",),
    file="mathqa_{split}_instruct.json",
    split_names={},
    source="AGI-Edgerunners/LLM-Adapters, as dataset/mathqa/test.json",
)


def hold_out(examples: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
    """Returns (training, validation): the split that `load` describes, without the `datasets` library."""
    order = np.random.default_rng(0).permutation(len(examples))
    size = math.ceil(0.1 * len(examples))
    return [examples[i] for i in order[size:]], [examples[i] for i in order[:size]]


def _published(data: DataSet, root: Path, options: Options) -> Splits:
    missing = {s: path for s in data.optional if not (path := data.path(s, root)).is_file()}
    read = {split: data.read(split, root, options.parser) for split in data.splits if split not in missing}
    notes = [f"{data.name}: no {split} problems, since there is no {path}" for split, path in missing.items()]
    notes += [_left_out(data, split, root, examples) for split, examples in read.items()]
    return as_splits(data.name, read, data.label_set, data.by_value, *notes)


def _left_out(data: DataSet, split: str, root: Path, examples: Sequence[Example]) -> str:
    if not data.kept:
        return ""
    rows = sum(1 for _ in read_rows(data.path(split, root)))
    left_out = rows > len(examples)
    return f"{data.name}: {len(examples):,} of {rows:,} {split} problems, {data.kept}" if left_out else ""


def _mathqa(root: Path, options: Options) -> Splits:
    """The authors' three files or, without a train.json, the test set only, in LLM-Adapters' form."""
    data = DATA_SETS["mathqa"]
    return _published(data if data.path("train", root).is_file() else _MATHQA_TEST, root, options)


def _hellaswag(root: Path, options: Options) -> Splits:
    """Validation is a tenth of the training file; test is the published validation file."""
    splits = _published(DATA_SETS["hellaswag"], root, options)
    note = "hellaswag: test is the published validation set; the published test set has no labels"
    return dataclasses.replace(splits, notes=(*splits.notes, note))


def _glue(task: glue.Task, root: Path, options: Options) -> Splits:
    read, notes = glue.read(task, root)
    splits = as_splits(task.name, read, task.labels, False, *notes)
    return dataclasses.replace(splits, metrics=task.metrics, multiple_choice=task.multiple_choice)


def _svamp_asdiv(root: Path, options: Options) -> Splits:
    """SVAMP with ASDiv's training problems added; validation and test are SVAMP's."""
    svamp, asdiv = DATA_SETS["svamp"], DATA_SETS["asdiv"]
    train, valid = hold_out(svamp.read("train", root, options.parser))
    added = asdiv.read("train", root, options.parser)
    read = {"train": train + added, "valid": valid, "test": svamp.read("test", root, options.parser)}
    return as_splits("svamp_asdiv", read, None, True, _left_out(asdiv, "train", root, added))


def _jsonl(root: Path, options: Options) -> Splits:
    """`{split}.jsonl` with rows `{id, input, label, rationale?, program?}` and unique ids.

    A row may instead have question and answer as `prompt` and `completion` or as `messages` (`_as_own`).
    `root` may be a data set of the Hub with such rows.

    An input of several parts is a list of texts. Several rationales or programs are lists, `rationales` and
    `programs`.

    A teacher's outputs may be in separate files, joined by id: `teacher.jsonl` for all splits or
    `{split}_teacher.jsonl` for one. Such a file has a row for every example of a split or for none. A row
    with only an id means that the teacher gave no output.
    """
    rows: dict[str, Row] = {}
    read: dict[str, list[Example]] = {}
    for split, its in _own_rows(root).items():
        read[split] = [_own_example(_as_own(row, f"{split}-{n}"), rows) for n, row in enumerate(its, start=1)]
    words = next((row for row in rows.values() if evaluate(row.text("label")) is None), None)
    if options.compare == "value" and words:
        raise words.error(f"the label {words.text('label')!r} has no value: use --config.data.compare=text")
    by_value = options.compare != "text" and words is None
    return as_splits("jsonl", _join_teacher(read, rows, root), None, by_value)


def _own_rows(root: Path) -> dict[str, Iterator[Row]]:
    """The rows of a folder, or of a data set of the Hub, where the row number replaces a missing id."""
    if root.is_dir() or not hub.REPOSITORY.fullmatch(str(root).partition(":")[0]):
        paths = {split: root / f"{split}.jsonl" for split in ALL_SPLITS}
        for split, path in paths.items():
            if split != "valid" and not path.is_file():
                raise UserError(
                    f"{path}: no such file; jsonl reads train.jsonl, test.jsonl and any valid.jsonl"
                )
        return {split: read_json_lines(path) for split, path in paths.items() if path.is_file()}
    found = hub.splits(str(root))
    if not {"train", "test"} <= found.keys():
        raise UserError(
            f"{root}: needs the splits train and test, optionally validation; found {', '.join(found)}"
        )
    names = {"train": "train", "valid": "validation", "test": "test"}
    return {split: _numbered(found[name], split) for split, name in names.items() if name in found}


def _numbered(rows: Iterator[Row], split: str) -> Iterator[Row]:
    for n, row in enumerate(rows, start=1):
        yield dataclasses.replace(row, values={"id": f"{split}-{n}"} | row.values)


def _as_own(row: Row, name: str) -> Row:
    """Returns `row` with `input` and `label`, converted from `prompt` and `completion` or from `messages`.

    Prompt and completion are texts or messages. `name` replaces a missing id.
    """
    match row.values:
        case {"messages": messages}:
            question, answer = _question_and_answer(row, messages)
        case {"prompt": list() as prompt, "completion": list() as completion}:
            question, answer = _question_and_answer(row, prompt + completion)
        case {"prompt": _, "completion": _}:
            question, answer = row.text("prompt"), row.text("completion")
        case _:
            return row
    if taken := {"input", "label"} & row.values.keys():
        raise row.error(f"has {' and '.join(sorted(taken))} beside a prompt or messages: leave one out")
    return dataclasses.replace(
        row, values={"id": name, "input": question, "label": answer.strip()} | row.values
    )


def _question_and_answer(row: Row, messages: Any) -> tuple[str, str]:
    """Returns the user's question, after any system text, and the assistant's answer."""
    match messages:
        case [{"role": "user", "content": str(question)}, {"role": "assistant", "content": str(answer)}]:
            return question, answer
        case [
            {"role": "system", "content": str(system)},
            {"role": "user", "content": str(question)},
            {"role": "assistant", "content": str(answer)},
        ]:
            return f"{system}\n\n{question}", answer
        case list():
            messages = [m.get("role") if isinstance(m, dict) else m for m in messages]
    raise row.error(
        "messages must be one user message and one assistant message, optionally after a system message; "
        f"found the roles {messages!r}"
    )


def _own_example(row: Row, earlier: dict[str, Row]) -> Example:
    row.require("id", "input", "label")
    if (key := row.id()) in earlier:
        raise row.error(f"the id {key!r} is already used by {earlier[key].where}")
    earlier[key] = row
    if not row.text("label").strip():
        raise row.error("the label is blank")
    rationales, programs = row.texts("rationale"), row.texts("program")
    return Example(key, row.question(), row.text("label"), rationales=rationales, programs=programs)


def _join_teacher(
    read: dict[str, list[Example]], rows: dict[str, Row], root: Path
) -> dict[str, list[Example]]:
    said: dict[str, Row] = {}
    files = {f"{split}_teacher": {example.id for example in examples} for split, examples in read.items()}
    for name, known in ({"teacher": set(rows)} | files).items():
        if (path := root / f"{name}.jsonl").is_file():
            said = outputs.read_by_id(path, known, said)
    joined = {}
    for split, examples in read.items():
        missing = [example.id for example in examples if example.id not in said]
        if missing and len(missing) < len(examples):
            raise rows[missing[0]].error(
                f"the teacher's file has rows for other {split} examples but none with the id {missing[0]!r}"
            )
        joined[split] = examples if missing else [outputs.join(e, said[e.id]) for e in examples]
    return joined


def as_splits(
    task: str, read: dict[str, list[Example]], label_set: tuple[str, ...] | None, by_value: bool, *notes: str
) -> Splits:
    """Returns the splits; without "valid", it is a tenth of "train"; without "train", both are empty.

    Raises:
      UserError: a given split is empty.
    """
    if "train" in read and "valid" not in read:
        read["train"], read["valid"] = hold_out(read["train"])
    for split, examples in read.items():
        if not examples:
            raise UserError(f"{task}: the {split} split has no examples")
    train, valid, test = (tuple(read.get(split, ())) for split in ALL_SPLITS)
    return Splits(task, train, valid, test, label_set, by_value, tuple(filter(None, notes)))


def as_text(splits: Splits) -> Splits:
    """Returns `splits` for students that read one text: `asked`, if given, becomes the only part."""
    train, valid, test = (tuple(map(_asked, getattr(splits, split))) for split in ALL_SPLITS)
    return dataclasses.replace(splits, train=train, valid=valid, test=test)


def _asked(example: Example) -> Example:
    return (
        example if example.asked is None else dataclasses.replace(example, parts=(example.asked,), asked=None)
    )


def taught_by(splits: Splits, path: Path) -> Splits:
    """Returns `splits` with the outputs of a teacher's file in place of those of the data's own teacher.

    `outputs.read_by_id` defines its rows; examples without a row have no teacher outputs.

    Raises:
      UserError: the file is missing or malformed, or has a row with an unknown id.
    """
    known = {example.id for split in ALL_SPLITS for example in getattr(splits, split)}
    said = outputs.read_by_id(path, known, {})
    taught, counts = [], []
    for split in ALL_SPLITS:
        examples = getattr(splits, split)
        alone = [dataclasses.replace(e, teacher_label=None, rationales=(), programs=()) for e in examples]
        taught.append(tuple(outputs.join(e, said[e.id]) if e.id in said else e for e in alone))
        if rows := sum(example.id in said for example in examples):
            counts.append(f"{rows:,} of {len(examples):,} {split} examples")
    note = f"teacher: {path} has rows for {', '.join(counts) or 'no example'}"
    train, valid, test = taught
    return dataclasses.replace(splits, train=train, valid=valid, test=test, notes=(*splits.notes, note))


def only_right(splits: Splits) -> Splits:
    """Returns `splits` without the training rationales whose teacher label is not correct."""
    train, counts = [], {"kept": 0, "left out for a wrong label": 0, "left out without a label": 0}
    for example in splits.train:
        said = example.teacher_label or ""
        right = is_correct(said, example.label, splits.by_value)
        if example.rationales:
            counts["kept" if right else f"left out {'for a wrong' if said else 'without a'} label"] += 1
        train.append(example if right else dataclasses.replace(example, rationales=()))
    found = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    note = f"rationales=right, training examples with a rationale: {found}"
    return dataclasses.replace(splits, train=tuple(train), notes=(*splits.notes, note))


TASKS: dict[str, Callable[[Path, Options], Splits]] = {
    **{name: functools.partial(_published, data) for name, data in DATA_SETS.items()},
    "svamp_asdiv": _svamp_asdiv,
    "mathqa": _mathqa,
    "hellaswag": _hellaswag,
    **{name: functools.partial(_glue, task) for name, task in glue.TASKS.items()},
    "jsonl": _jsonl,
}
