"""Answer questions: python -m cot_jax.predict RUN [--input=FILE] [--output=FILE] [--explain]

Reads JSON lines {"input": ..., "id"?: ..., "rationale"?: ...}, writes {"id", "input", "label", "rationale"?}
in the same order, a batch as soon as it is there; a file is OUTPUT.partial until it is whole. An input is a
text, or a list of several such as premise and hypothesis. With --samples=K the label is the one that most of
K drawn answers agree on; "votes" is their share and "samples" lists all, [{"label", "log_prob"}, ...]. With
--paths=cot it is what the student's own rationale ends in, with --paths=pot what its program gives (which is
interpreted, never executed but with --sandbox), with --paths=cot,pot what most of both agree on, with
--samples=K of K of each. A student that chooses among classes also writes, with --log_probs, "log_probs",
{label: number} of every label; of the training examples (--split=train) they teach another student
(--config.distillation.teacher=FILE).
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cot_jax.answers.sandbox import make_interpreter
from cot_jax.answers.voting import vote
from cot_jax.data.examples import Example, parts_as_json
from cot_jax.data.tasks import ALL_SPLITS
from cot_jax.data.views import View, rationale_of
from cot_jax.errors import UserError, command, writing
from cot_jax.files import Row, partial, read_json_lines, rows_of, whole
from cot_jax.models.decoding import Sampling
from cot_jax.training.compiled import keep_compiled
from cot_jax.training.data import load_splits
from cot_jax.training.evaluation import Answers
from cot_jax.training.saved import Answerer, LabelScorer, Saved, load


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    keep_compiled()
    with contextlib.ExitStack() as files:
        _refuse_one_file(options)
        if options.input == "-":
            rows = rows_of(sys.stdin.buffer, "standard input")
        else:
            rows = read_json_lines(Path(options.input))
        saved = load(options.run)
        if options.split:
            rows = _rows_of_split(saved, options.split)
        sink = sys.stdout
        if options.output != "-":
            files.enter_context(writing(options.output))
            sink = files.enter_context(whole(Path(options.output)))
        answer = _score if options.log_probs else _predict
        answer(saved, rows, sink, options)
    return 0


def _rows_of_split(saved: Saved, split: str) -> Iterator[Row]:
    splits = load_splits(saved.config.data, saved.config.seed, saved.student.format)
    for example in getattr(splits, split):
        values = {"id": example.id, "input": parts_as_json(example.parts), "rationale": example.rationale}
        yield Row(split, values)


def _score(saved: Saved, rows: Iterator[Row], sink: TextIO, options: argparse.Namespace) -> None:
    labels = saved.student.labels
    if not labels:
        raise UserError(f"--log_probs: {options.run} writes its answers and chooses among no classes")
    scorer = LabelScorer(saved, saved.views[0], labels, batch_size=options.batch_size)
    for batch in _batches(rows, options.batch_size):
        for row, log_probs in zip(batch, scorer([_question(row) for row in batch]).tolist(), strict=True):
            of_labels = dict(zip(labels, log_probs, strict=True))
            answer = {"id": row.values["id"], "input": row.values["input"]}
            answer |= {"label": max(labels, key=of_labels.__getitem__), "log_probs": of_labels}
            sink.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sink.flush()


def _batches(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    # A row without an id gets its number.
    named = (Row(row.where, {"id": str(number)} | row.values) for number, row in enumerate(rows, start=1))
    while batch := list(itertools.islice(named, size)):
        yield batch


def _refuse_one_file(options: argparse.Namespace) -> None:
    """
    Raises:
      UserError: what is read would be written over.
    """
    if "-" in (options.input, options.output) or not Path(options.input).is_file():
        return
    for file in (Path(options.output), partial(Path(options.output))):
        if file.exists() and file.samefile(options.input):
            raise UserError(f"--output={options.output} would write over --input: choose another file")


def _predict(saved: Saved, rows: Iterator[Row], sink: TextIO, options: argparse.Namespace) -> None:
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
            sink.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sink.flush()


def _question(row: Row) -> Example:
    rationales = () if row.values.get("rationale") is None else (row.text("rationale"),)
    return Example(str(row.values["id"]), row.parts("input"), "", rationales=rationales)


def _ask(view: View, answerer: Answerer, questions: Sequence[Example]) -> Answers:
    answers, counted = answerer(questions)
    print(f"{view.name}: {counted}", file=sys.stderr)
    return answers


def _elect(voters: Mapping[View, Answers], n: int, each: int, by_value: bool) -> dict[str, Any]:
    """Returns the vote on the answers to row `n`, of which there are `each` for every view."""
    every: list[dict[str, Any]] = []
    for view, given in voters.items():
        for i in range(n * each, (n + 1) * each):
            said = {"label": given.answers[i], "log_prob": float(given.log_probs[i])}
            how = {} if view.path == "label" else {"path": view.path, "text": given.texts[i]}
            every.append(said | how)
    label, share = vote([said["label"] for said in every], [said["log_prob"] for said in every], by_value)
    return {"label": label, "votes": share, "samples": every}


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m cot_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="work directory of a run, or its export")
    parser.add_argument("--input", default="-", help="JSON lines; - is standard input")
    parser.add_argument("--output", default="-", help="JSON lines; - is standard output")
    parser.add_argument(
        "--split", choices=ALL_SPLITS, help="ask the questions of its own data instead of --input"
    )
    parser.add_argument(
        "--log_probs", action="store_true", help="write the log-probability of every class as well"
    )
    parser.add_argument("--explain", action="store_true", help="also write the rationale")
    parser.add_argument(
        "--paths", type=lambda text: text.split(","), help="who answers: label, cot, pot, joined by commas"
    )
    parser.add_argument(
        "--beams", type=int, default=0, help="of the search; 1 = greedy, 0 = answers as in training"
    )
    parser.add_argument("--samples", type=int, default=0, help="answers drawn to vote on; 0 = none are drawn")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws; above 0")
    parser.add_argument("--top_k", type=int, default=0, help="draw from so many likeliest tokens; 0 = all")
    parser.add_argument(
        "--top_p", type=float, default=1.0, help="draw from the fewest tokens that are so likely; 1 = all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--batch_size", type=int, default=64, help="questions at once")
    parser.add_argument("--max_new_tokens", type=int, default=0, help="longest answer; 0 = as in training")
    parser.add_argument(
        "--sandbox", action="store_true", help="run programs that the interpreter refuses, in bubblewrap"
    )
    options = parser.parse_args(argv)
    numbers = (options.beams, options.samples, options.top_k, options.seed, options.max_new_tokens)
    if options.batch_size < 1 or min(numbers) < 0:
        parser.error("--batch_size is at least 1, and no number is negative")
    # Written so that NaN fails too.
    if not (options.temperature > 0 and 0 < options.top_p <= 1):
        parser.error("--temperature is above 0, --top_p above 0 and at most 1")
    options.sampling = Sampling(options.temperature, options.top_k, options.top_p)
    if options.samples and options.beams:
        parser.error("--samples draws answers, --beams searches for one: take either")
    if options.log_probs and (options.samples or options.beams or options.paths or options.explain):
        parser.error(
            "--log_probs is of all classes: take no --samples, --beams, --paths or --explain with it"
        )
    if options.split and options.input != "-":
        parser.error("--split asks what the student's own data ask, --input what a file does: take either")
    if options.sampling != Sampling() and not options.samples:
        parser.error("--temperature, --top_k and --top_p are for draws: say how many with --samples")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
