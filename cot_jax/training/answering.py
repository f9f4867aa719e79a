"""Answers to questions, row by row; `cot_jax.predict`."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cot_jax.answers.sandbox import make_interpreter
from cot_jax.answers.voting import vote
from cot_jax.data.examples import Example, parts_as_json
from cot_jax.data.views import View, rationale_of
from cot_jax.errors import UserError
from cot_jax.files import Row
from cot_jax.limits import check_ranges
from cot_jax.models.decoding import Sampling
from cot_jax.training.compiled import keep_compiled
from cot_jax.training.data import load_splits
from cot_jax.training.evaluation import Answers
from cot_jax.training.saved import Answerer, LabelScorer, Saved


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of `cot_jax.predict`, whose --help explains them."""

    log_probs: bool = False
    explain: bool = False
    paths: str | Sequence[str] = ()
    beams: int = 0
    samples: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64
    max_new_tokens: int = 0
    sandbox: bool = False

    def __post_init__(self):
        check_ranges(vars(self), positive=("batch_size",))
        if self.temperature == 0 or not 0 < self.top_p <= 1:
            raise UserError("--temperature must be above 0, --top_p above 0 and at most 1")
        if self.samples and self.beams:
            raise UserError("--samples draws answers, --beams searches for one: give one of them")
        if self.log_probs and (self.samples or self.beams or self.paths or self.explain):
            raise UserError("--log_probs excludes --samples, --beams, --paths and --explain")
        if self.sampling != Sampling() and not self.samples:
            raise UserError("--temperature, --top_k and --top_p need --samples")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)


def predict(saved: Saved, rows: Iterator[Row], options: Options) -> Iterator[dict[str, Any]]:
    """Yields the student's answer to each row {"input", "id"?, "rationale"?}, in order.

    Raises:
      UserError: a row is not a question, or options do not suit this student.
    """
    keep_compiled()
    return (_score if options.log_probs else _predict)(saved, rows, options)


def rows_of_split(saved: Saved, split: str) -> Iterator[Row]:
    """Returns the questions of a split of the student's data set."""
    splits = load_splits(saved.config.data, saved.config.seed, saved.student.format)
    return rows_of_examples(getattr(splits, split))


def rows_of_examples(examples: Sequence[Example]) -> Iterator[Row]:
    """Yields examples as questions, without their labels."""
    for e in examples:
        yield Row("data set", {"id": e.id, "input": parts_as_json(e.parts), "rationale": e.rationale})


def _score(saved: Saved, rows: Iterator[Row], options: Options) -> Iterator[dict[str, Any]]:
    labels = saved.student.labels
    if not labels:
        raise UserError("--log_probs: the student writes its answers, it has no classes")
    scorer = LabelScorer(saved, saved.views[0], labels, batch_size=options.batch_size)
    for batch in _batches(rows, options.batch_size):
        for row, log_probs in zip(batch, scorer([_question(row) for row in batch]).tolist(), strict=True):
            of_labels = dict(zip(labels, log_probs, strict=True))
            answer = {"id": row.values["id"], "input": row.values["input"]}
            yield answer | {"label": max(labels, key=of_labels.__getitem__), "log_probs": of_labels}


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    named = itertools.starmap(_named, enumerate(rows, start=1))
    while batch := list(itertools.islice(named, size)):
        yield batch


def _named(number: int, row: Row) -> Row:
    """Returns the row, named by its number if it has no id."""
    row.require("input")
    return Row(row.where, {"id": str(number)} | row.values)


def _predict(saved: Saved, rows: Iterator[Row], options: Options) -> Iterator[dict[str, Any]]:
    chosen = saved.choose(options.paths) if options.paths else [saved.views[0]]
    explaining = [view for view in saved.views if view.term == "rationale"] if options.explain else []
    if options.explain and not explaining:
        method = saved.config.objective.method
        raise UserError(f"--explain: method={method} learned no separate rationale")
    votes, interpreter = options.samples or len(chosen) > 1, make_interpreter(options.sandbox)

    def answerers(views: Sequence[View], **how: Any) -> dict[View, Answerer]:
        return {
            view: Answerer(
                saved,
                view,
                batch_size=options.batch_size,
                max_new_tokens=options.max_new_tokens or saved.most_tokens(view),
                interpreter=interpreter,
                **how,
            )
            for view in views
        }

    draws = {"samples": options.samples, "sampling": options.sampling, "seed": options.seed}
    drawing = answerers(chosen if options.samples else [], **draws)
    writing = answerers([*([] if options.samples else chosen), *explaining], beams=options.beams)
    for batch in _batches(rows, options.batch_size):
        questions = [_question(row) for row in batch]
        drawn, written = (
            {view: _ask(view, answerer, questions) for view, answerer in some.items()}
            for some in (drawing, writing)
        )
        for n, row in enumerate(batch):
            answer = {"id": row.values["id"], "input": row.values["input"]}
            if votes:
                voters = drawn or {view: written[view] for view in chosen}
                answer |= _elect(voters, n, options.samples or 1, saved.by_value)
            else:
                answer["label"] = written[chosen[0]].answers[n]
            for view, answers in written.items():
                if view.term in ("rationale", "program"):
                    answer[view.term] = rationale_of(view, answers.texts[n])
            yield answer


def _question(row: Row) -> Example:
    rationales = () if row.values.get("rationale") is None else (row.text("rationale"),)
    return Example(str(row.values["id"]), row.question(), "", rationales=rationales)


def _ask(view: View, answerer: Answerer, questions: Sequence[Example]) -> Answers:
    answers, counted = answerer(questions)
    print(f"{view.name}: {counted}", file=sys.stderr)
    return answers


def _elect(voters: Mapping[View, Answers], n: int, each: int, by_value: bool) -> dict[str, Any]:
    """Returns the vote on row `n`; each view gives `each` answers per row."""
    samples: list[dict[str, Any]] = []
    for view, given in voters.items():
        for i in range(n * each, (n + 1) * each):
            sample = {"label": given.answers[i], "log_prob": float(given.log_probs[i])}
            how = {} if view.path == "label" else {"path": view.path, "text": given.texts[i]}
            samples.append(sample | how)
    label, share = vote([one["label"] for one in samples], [one["log_prob"] for one in samples], by_value)
    return {"label": label, "votes": share, "samples": samples}
