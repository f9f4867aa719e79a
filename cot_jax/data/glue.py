"""GLUE and SuperGLUE, in three file layouts.

A task is read from the first of these places that has its development set:

* the authors' unpacked zip archives, `root`/RTE, or `root`/glue/RTE and `root`/superglue/RTE if a folder
  holds both: GLUE's tables (`dev.tsv`), SuperGLUE's JSON lines (`val.jsonl`). Case and hyphens in folder
  names do not matter;
* a copy of the Hub's files, `root`/rte/validation-*.parquet;
* if `root` is not a folder, the repository of that name on the Hub: nyu-mll/glue or aps/super_glue.

The published test sets have no labels. The development set is the test set here, and a tenth of the training
set is the validation set. Students that read one text get the wording of Raffel et al. 2020 (appendix D and
the released code).
"""

import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cot_jax.data import hub
from cot_jax.data.examples import Example
from cot_jax.errors import UserError
from cot_jax.files import Row, parse_text, read_json_lines

_GLUE = "https://gluebenchmark.com/tasks, or nyu-mll/glue on the Hub"
_SUPERGLUE = "https://super.gluebenchmark.com/tasks, or aps/super_glue on the Hub"

# jiant's wording of COPA's two questions.
_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}

# Copies of BoolQ without the passages of the training set have FewGLUE's rows, and the bare questions.
_FEW_SHOT = {"train": "fewshot_train32.jsonl", "valid": "fewshot_dev32.jsonl"}
_QUESTIONS_ONLY = "train_question_only.jsonl"


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a GLUE table.

    Attributes:
      columns: of the task's fields, from 0.
      label: column of the label's number; -1: the last column of the header has the label's text.
      header: whether the first line names the columns.
      skips_short: whether rows with too few columns are skipped and counted.
    """

    columns: tuple[int, ...]
    label: int
    header: bool = True
    skips_short: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of GLUE or SuperGLUE.

    Attributes:
      fields: the texts of a row, by their names on the Hub.
      labels: in the Hub's order.
      metrics: names in `metrics.classification.METRICS`; the first one selects students.
      table: layout of GLUE's table; None: SuperGLUE, which has JSON lines.
      dev: suffix of "dev" in the table's name, and of "validation" on the Hub.
      multiple_choice: the parts are a text and the choices (`_copa`), not the fields.
      alias: its name on the Hub and in the wording of Raffel et al. 2020, where not `name`.
    """

    name: str
    fields: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    table: Table | None = None
    dev: str = ""
    multiple_choice: bool = False
    alias: str = ""

    @property
    def hub(self) -> str:
        return self.alias or self.name

    @property
    def source(self) -> str:
        return _GLUE if self.table else _SUPERGLUE

    def example(self, row: Row, label: str, key: str) -> Example:
        texts = {field: row.text(field) for field in self.fields}
        parts = _copa(row) if self.multiple_choice else tuple(texts.values())
        # The released code sorts the fields by name: MNLI's hypothesis comes first.
        asked = " ".join([self.hub, *(f"{field}: {texts[field]}" for field in sorted(texts))])
        return Example(key, parts, label, asked=asked)


def _copa(row: Row) -> tuple[str, ...]:
    if (question := _COPA_QUESTIONS.get(row.text("question"))) is None:
        raise row.error(f"the question {row.text('question')!r} is not one of cause, effect")
    return f"{row.text('premise')} {question}", row.text("choice1"), row.text("choice2")


_SENTENCES, _NLI = ("sentence1", "sentence2"), ("premise", "hypothesis")
_ENTAILED, _TRUE = ("entailment", "not_entailment"), ("false", "true")
_ACCURACY_F1 = ("accuracy", "f1")
_MNLI = Task(
    "mnli", _NLI, ("entailment", "neutral", "contradiction"), table=Table((8, 9), -1), dev="_matched"
)
TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews", "accuracy"),
            Table((3,), 1, header=False),
        ),
        Task("sst2", ("sentence",), ("negative", "positive"), table=Table((0,), 1)),
        Task("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), _ACCURACY_F1, Table((3, 4), 0)),
        Task(
            "qqp",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            _ACCURACY_F1,
            Table((3, 4), 5, skips_short=True),
        ),
        _MNLI,
        dataclasses.replace(_MNLI, name="mnli_mm", dev="_mismatched", alias="mnli"),
        Task("qnli", ("question", "sentence"), _ENTAILED, table=Table((1, 2), -1)),
        Task("rte", _SENTENCES, _ENTAILED, table=Table((1, 2), -1)),
        Task("boolq", ("passage", "question"), _TRUE),
        Task("cb", _NLI, ("entailment", "contradiction", "neutral"), ("accuracy", "macro_f1")),
        Task(
            "copa",
            ("premise", "question", "choice1", "choice2"),
            ("choice1", "choice2"),
            multiple_choice=True,
        ),
        Task("wic", ("word", *_SENTENCES), _TRUE),
        Task("superglue_rte", _NLI, _ENTAILED, alias="rte"),
    )
}


def read(task: Task, root: Path) -> tuple[dict[str, list[Example]], list[str]]:
    """Returns the examples of "train" and "test" (few-shot BoolQ: also "valid"), and notes for the user.

    Raises:
      UserError: a file is missing, or a row is malformed; names it.
    """
    notes: list[str] = []
    found = _find(task, root, notes)
    read = {split: list(_examples(task, split, rows, notes)) for split, (_, rows) in found.items()}
    dev, _ = found["test"]
    notes.append(f"{task.name}: test is the published {dev}; the published test set has no labels")
    return read, notes


_Found = dict[str, tuple[str, Iterable[Row]]]  # split -> file name and rows


def _find(task: Task, root: Path, notes: list[str]) -> _Found:
    """Returns the rows of each split, from the first layout with a development set."""
    if not root.is_dir():
        return _hub(task, str(root))
    if task.table:
        looked_for, train = [f"dev{task.dev}.tsv"], "train.tsv"
    else:
        looked_for, train = ["val.jsonl"], "train.jsonl"
    looked_for.append(f"validation{task.dev}-*.parquet")
    folders = [folder for folder in _folders(task, root) if folder.is_dir()]
    for folder in folders:
        if (dev := folder / looked_for[0]).is_file():
            found = {"train": folder / train, "test": dev}
            if task.name == "boolq" and not found["train"].exists():
                found = _few_shot(folder, notes) | {"test": dev}
            return {split: (path.name, _rows(task, path, notes)) for split, path in found.items()}
        if any(folder.glob(looked_for[1])):
            files = {"train": "train-*.parquet", "test": looked_for[1]}
            return {split: (name, _parquet(task, folder, name)) for split, name in files.items()}
    where = ", ".join(map(str, folders)) or f"{root} (which has no folder {task.hub})"
    needs = " or ".join(looked_for)
    raise UserError(f"{where}: {task.name} needs {needs}, found neither; it is from {task.source}")


def _folders(task: Task, root: Path) -> Iterator[Path]:
    """Yields the possible folders of the task, those of its own benchmark first."""
    benchmarks = ("glue",) if task.table else ("superglue", "super_glue")
    names = [folder for folder in sorted(root.iterdir()) if folder.name.lower() in benchmarks]
    for parent in (*names, root):
        for folder in sorted(parent.iterdir()):
            if folder.name.lower().replace("-", "") == task.hub:
                yield folder


def _few_shot(folder: Path, notes: list[str]) -> dict[str, Path]:
    """Returns FewGLUE's training and validation files of BoolQ, where only they have passages."""
    found = {split: folder / name for split, name in _FEW_SHOT.items()}
    if not all(path.is_file() for path in found.values()):
        return {"train": folder / "train.jsonl"}  # reported as missing later
    notes.append(f"boolq: {folder} has no train.jsonl: using {' and '.join(_FEW_SHOT.values())} instead")
    if (questions := folder / _QUESTIONS_ONLY).is_file():
        taken = {row.values.get("idx") for path in found.values() for row in read_json_lines(path)}
        left = sum(row.values.get("idx") not in taken for row in read_json_lines(questions))
        notes.append(f"boolq: {left:,} train rows of {questions.name} have no passage and are left out")
    return found


def _rows(task: Task, path: Path, notes: list[str]) -> Iterator[Row]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; it is from {task.source}")
    return _table_rows(task, task.table, path, notes) if task.table else read_json_lines(path)


def _table_rows(task: Task, table: Table, path: Path, notes: list[str]) -> Iterator[Row]:
    """Yields the rows of a table, separated by tabs and line feeds; quotes have no meaning."""
    label = table.label
    needed = max(*table.columns, label) + 1
    skipped = read = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            row = Row(f"{path}:{number}", {})
            try:
                columns = parse_text(line.rstrip(b"\r\n")).split("\t")
            except ValueError as error:
                raise row.error(str(error)) from None
            if number == 1 and table.header:
                if label == -1:
                    label, needed = len(columns) - 1, len(columns)
                continue
            if columns == [""]:
                continue
            read += 1
            if len(columns) < needed:
                if table.skips_short:
                    skipped += 1
                    continue
                raise row.error(f"a row of {task.name} has {needed} columns; found {len(columns)}")
            values: dict[str, Any] = {f: columns[n] for f, n in zip(task.fields, table.columns, strict=True)}
            word = columns[label]
            values["label"] = int(word) if table.label >= 0 and word in ("0", "1") else word
            yield dataclasses.replace(row, values=values)
    if skipped:
        notes.append(
            f"{task.name}: {skipped:,} of {read:,} rows of {path.name} have too few columns and are left out"
        )


def _parquet(task: Task, folder: Path, pattern: str) -> Iterator[Row]:
    files = sorted(map(str, folder.glob(pattern)))
    if not files:
        raise UserError(f"{folder / pattern}: no such file; it is from {task.source}")
    library = hub.library(str(folder))
    # A temporary cache, so that a file that changed under the same name is read again.
    with tempfile.TemporaryDirectory() as cache:
        try:
            data = library.Dataset.from_parquet(files, cache_dir=cache, keep_in_memory=True)
        except Exception as error:  # the library and Arrow raise many classes
            raise UserError(f"{folder / pattern}: cannot be read ({hub.reason(error)})") from None
    return hub.rows(data, str(folder / pattern))


def _hub(task: Task, root: str) -> _Found:
    if not hub.REPOSITORY.fullmatch(root):
        raise UserError(f"{root}: no such folder; {task.name} is from {task.source}")
    library = hub.library(root)
    found: _Found = {}
    for split, name in (("train", "train"), ("test", f"validation{task.dev}")):
        try:
            data = library.load_dataset(root, task.hub, split=name)
        except Exception as error:  # from the network, the Hub or the library
            raise UserError(
                f"{root}: no such folder, and the Hub has no {task.hub} {name} ({hub.reason(error)}); "
                f"{task.name} is from {task.source}"
            ) from None
        found[split] = (name, hub.rows(data, f"{root} {task.hub} {name}"))
    return found


def _examples(task: Task, split: str, rows: Iterable[Row], notes: list[str]) -> Iterator[Example]:
    read = without = 0
    for index, row in enumerate(rows):
        read += 1
        if task.name == "boolq" and row.optional_text("passage") is None:
            without += 1
            continue
        yield task.example(row, _label(task, row), f"{task.name}-{split}-{index:04d}")
    if without:
        notes.append(f"boolq: {without:,} of {read:,} {split} rows have no passage and are left out")


def _label(task: Task, row: Row) -> str:
    """Returns the label as text; files have the text, its index in the Hub's order, or true and false."""
    label, labels = row.values.get("label"), task.labels
    if type(label) is int and 0 <= label < len(labels):
        return labels[label]
    word = str(label).lower() if isinstance(label, str | bool) else None
    if word not in labels:
        known = ", ".join(f"{word} ({number})" for number, word in enumerate(labels))
        raise row.error(
            f"the label {label!r} is not one of {known}; use the published training and development files"
        )
    return word
