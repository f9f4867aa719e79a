"""Published outputs of other teachers: programs of thought, and rationales for ASDiv.

The files are in `root`/pot and are optional. Programs are read unchecked; `answers.programs` runs them.

    svamp   pot/svamp/{split}_PoT_0.json and {split}_PoT_samples.json, in the order of the rows
    gsm8k   pot/gsm8k/gsm8k_test_*.jsonl, by question; the training set's own are of its calculator notes
    asdiv   pot/asdiv/asdiv_PoT.json, by ID: `root`/asdiv/asdiv_all.json has those of the questions
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cot_jax.errors import UserError
from cot_jax.files import Row, read_json, read_json_lines


class Published(NamedTuple):
    """Distinct programs for one question, and a teacher's raw output; None: there is none."""

    programs: tuple[str, ...] = ()
    output: str | None = None


def read(name: str, split: str, root: Path, rows: Sequence[Row]) -> list[Published] | None:
    """Returns the published outputs for each of a data set's `rows`; None if there is no file of them.

    Raises:
      UserError: a file is malformed, or does not fit the rows.
    """
    folder = root / "pot" / name
    if name == "svamp" and (folder / f"{split}_PoT_0.json").is_file():
        return _svamp(folder, split, rows)
    if name == "gsm8k" and split == "test" and (files := sorted(folder.glob("gsm8k_test_*.jsonl"))):
        return _gsm8k(files, rows)
    if name == "asdiv" and (folder / "asdiv_PoT.json").is_file():
        return _asdiv(folder / "asdiv_PoT.json", root / "asdiv" / "asdiv_all.json", rows)
    return None


def _distinct(programs: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(program for program in programs if program.strip()))


def _svamp(folder: Path, split: str, rows: Sequence[Row]) -> list[Published]:
    programs: list[list[str]] = [[] for _ in rows]
    for path in (folder / f"{split}_PoT_0.json", folder / f"{split}_PoT_samples.json"):
        found = read_json(path, list)
        try:
            for its, said in zip(programs, found, strict=True):
                its += [said] if isinstance(said, str) else said
            "".join(text for its in programs for text in its)
        except (ValueError, TypeError):
            raise UserError(
                f"{path}: expected a JSON list of programs, or of lists of them, for each of {len(rows)} rows"
            ) from None
    return [Published(_distinct(its)) for its in programs]


def _gsm8k(files: Sequence[Path], rows: Sequence[Row]) -> list[Published]:
    programs: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        for row in read_json_lines(path):
            generated = row.values.get("generated")
            programs[row.text("question")] += (
                generated if isinstance(generated, list) else [row.text("generated")]
            )
    return [Published(_distinct(programs[row.text("question")])) for row in rows]


def _asdiv(path: Path, ids: Path, rows: Sequence[Row]) -> list[Published]:
    said = {row.text("ID"): row for row in read_json_lines(path)}
    published = {}
    for row in read_json_lines(ids):
        if its := said.get(row.text("ID")):
            program = its.optional_text("program")
            published[_key(row)] = Published(_distinct([program or ""]), its.optional_text("cot"))
    return [published.get(_key(row), Published()) for row in rows]


def _key(row: Row) -> tuple[str, ...]:
    return tuple(row.text(column) for column in ("Body", "Question", "Formula", "Answer"))
