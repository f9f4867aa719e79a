"""Answer questions: python -m cot_jax.predict --model=RUN_OR_EXPORT --input=FILE_OR_- [--explain]

Reads JSON lines {"input": ..., "id"?: ..., "rationale"?: ...}, writes {"id", "input", "label", "rationale"?}
in the same order, a batch as soon as it is there. With --samples=K the label is the one that most of K
drawn answers agree on; "votes" is their share and "samples" lists all, [{"label", "log_prob"}, ...].
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from cot_jax.data.examples import Example
from cot_jax.errors import UserError
from cot_jax.metrics.voting import vote
from cot_jax.models.generation import Sampling
from cot_jax.training.compiled import keep_compiled
from cot_jax.training.evaluation import Answers
from cot_jax.training.saved import Answerer, Saved, load, not_recorded


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    keep_compiled()
    try:
        with contextlib.ExitStack() as files:
            source, sink = sys.stdin, sys.stdout
            if options.input != "-":
                try:
                    source = files.enter_context(open(options.input, encoding="utf-8"))
                except OSError as error:
                    raise UserError(f"{options.input}: {error.strerror}") from None
            saved = load(options.model)
            if options.output != "-":
                try:
                    sink = files.enter_context(open(options.output, "w", encoding="utf-8"))
                except OSError as error:
                    raise UserError(f"{options.output} cannot be written: {error.strerror}") from None
            _predict(saved, source, sink, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _predict(saved: Saved, source: TextIO, sink: TextIO, options: argparse.Namespace) -> None:
    views = {"label": saved.views[0]}
    if options.explain:
        explaining = [view for view in saved.views if view.term == "rationale"]
        if not explaining:
            method = saved.config.objective.method
            raise UserError(f"--explain: method={method} was taught no rationale of its own")
        views["rationale"] = explaining[0]
    if options.samples and saved.by_value is None:
        raise not_recorded("how the answers of this student compare")
    by_value = bool(saved.by_value)
    new_tokens = {
        "label": options.max_new_tokens or saved.config.evaluation.max_new_tokens,
        "rationale": options.max_new_tokens or saved.config.data.max_target_tokens,
    }
    draws = {"samples": options.samples, "sampling": options.sampling, "seed": options.seed}
    answerers = {
        key: Answerer(
            saved,
            view,
            batch_size=options.batch_size,
            max_new_tokens=new_tokens[key],
            beams=options.beams,
            **(draws if key == "label" else {}),
        )
        for key, view in views.items()
    }
    rows = _read(source, options.input)
    while batch := list(itertools.islice(rows, options.batch_size)):
        questions = [_question(row) for row in batch]
        written = {}
        for key, answerer in answerers.items():
            written[key], counted = answerer(questions)
        print(counted, file=sys.stderr)
        for n, row in enumerate(batch):
            answer = {"id": row["id"], "input": row["input"]}
            if options.samples:
                answer |= _elect(written["label"], n, options.samples, by_value)
            else:
                answer["label"] = written["label"].texts[n]
            if options.explain:
                answer["rationale"] = written["rationale"].texts[n]
            sink.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sink.flush()


def _question(row: dict[str, Any]) -> Example:
    rationale = row.get("rationale")
    return Example(str(row["id"]), row["input"], "", rationales=() if rationale is None else (rationale,))


def _elect(drawn: Answers, n: int, samples: int, by_value: bool) -> dict[str, Any]:
    """What row `n` says of the answers drawn for it."""
    its = slice(n * samples, (n + 1) * samples)
    texts, log_probs = drawn.texts[its], drawn.log_probs[its].tolist()
    label, share = vote(texts, log_probs, by_value)
    every = [{"label": text, "log_prob": value} for text, value in zip(texts, log_probs, strict=True)]
    return {"label": label, "votes": share, "samples": every}


def _read(source: TextIO, name: str) -> Iterator[dict[str, Any]]:
    """Yields the rows; those without an id get the number of their line."""
    for number, line in enumerate(source, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{name}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("input"), str):
            raise UserError(f'{name}, line {number}: a row is an object with a text "input"')
        if not isinstance(row.get("rationale"), str | None):
            raise UserError(f'{name}, line {number}: "rationale" is not text; leave it out or write text')
        yield {"id": str(number)} | row


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m cot_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", type=Path, required=True, help="work directory or exported directory")
    parser.add_argument("--input", default="-", help="JSON lines; - is standard input")
    parser.add_argument("--output", default="-", help="JSON lines; - is standard output")
    parser.add_argument("--explain", action="store_true", help="also write the rationale")
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
    if options.sampling != Sampling() and not options.samples:
        parser.error("--temperature, --top_k and --top_p are for draws: say how many with --samples")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
