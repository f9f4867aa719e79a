"""Ask a language model for rationales and programs.

    python -m cot_jax.rationalize --task=svamp --root=DATA --endpoint=http://localhost:8000/v1 \\
        --model=MODEL --samples=4 --output=DIR

Sends every question of a split to a teacher behind an OpenAI-compatible endpoint. Writes to DIR:
teacher.jsonl, which training reads (--config.data.teacher=DIR/teacher.jsonl); samples.jsonl, with every
output and why it was left out; report.md and report.json; and cache.jsonl, with every request and its answer.
The same command, run again, sends only what is missing, so changing the filters costs nothing.
"""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cot_jax.answers.equality import is_correct
from cot_jax.answers.programs import Interpreter
from cot_jax.answers.reading import choices
from cot_jax.answers.sandbox import make_interpreter
from cot_jax.data import tasks, word_problems
from cot_jax.data.examples import Example
from cot_jax.data.tasks import Splits
from cot_jax.data.teacher import prompts
from cot_jax.data.teacher.endpoint import Batch, Endpoint, Reply, Request, chat, completion
from cot_jax.data.teacher.prompts import Style
from cot_jax.data.teacher.samples import FILTERS, KINDS, Asked, Sample, filtered, majority, read
from cot_jax.errors import UserError, argument_parser, command, printable, writing
from cot_jax.files import local, locked, write_json, write_json_lines, write_text
from cot_jax.limits import check_ranges

_SHOWN = 3  # examples shown for each reason
_FIELDS = {"cot": "rationales", "pot": "programs"}  # kind -> field of a teacher's file


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 2: wrong arguments or files, 130: interrupted."""
    options = _options(argv)
    check_ranges(vars(options), positive=("samples", "concurrency", "timeout"))
    try:
        _run(options)
    except KeyboardInterrupt:
        print("stopped; the same command sends only what has no answer yet", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    splits = _load(options)
    kinds = KINDS if options.kind == "both" else (options.kind,)
    examples = getattr(splits, options.split)[: options.limit or None]
    if not examples:
        raise UserError(f"task={options.task} has no {options.split} questions: choose another --split")
    style, interpreter = _style(options, splits, kinds), make_interpreter(options.sandbox)
    seeds = range(options.seed, options.seed + options.samples)
    asked = [Asked(example, kind, seed) for example in examples for kind in kinds for seed in seeds]
    with locked(options.output), _source(options) as source:
        replies, samples = _ask(source, asked, style, splits.by_value, interpreter, options)
        if options.hint:
            again = _never_right(samples, options.seed)
            more = _ask(source, again, style, splits.by_value, interpreter, options)
            replies, samples = replies + more[0], samples + more[1]
        if isinstance(source, Batch):
            print(f"{len(source.missing):,} of {len(replies):,} requests have no answer yet")
            if options.write_batch:
                source.write(options.write_batch)
                print(f"they are in {options.write_batch}: read the answers with --read_batch")
                return
        sent = source.sent if isinstance(source, Endpoint) else 0
    samples = filtered(samples, options.filters, options.max_words)
    rows = _rows(examples, samples, splits.by_value)
    report = _report(options, examples, rows, samples, splits.by_value) | _usage(options, replies, sent)
    summary = _summary(report)
    with writing(options.output):
        write_json_lines(options.output / "teacher.jsonl", rows)
        write_json_lines(options.output / "samples.jsonl", map(_sample_row, samples))
        write_json(options.output / "report.json", report)
        write_text(options.output / "report.md", "\n".join([*summary, *_left_out(report)]) + "\n")
    print("\n".join(summary))
    keys = {"data.teacher": options.output / "teacher.jsonl"}
    if options.task == "word_problems":
        keys |= {"seed": options.seed}
        keys |= {f"data.word_problems.{name}": value for name, value in word_problems.DIFFICULTY.items()}
    print("\ntrain on it with", " ".join(f"--config.{key}={value}" for key, value in keys.items()))


def _load(options: argparse.Namespace) -> Splits:
    if options.task != "word_problems":
        return tasks.load(options.task, options.root)
    # The first N training problems do not depend on their number.
    problems = word_problems.splits(options.limit, 1, 1, options.seed)
    return tasks.as_splits(options.task, problems, None, by_value=True)


def _style(options: argparse.Namespace, splits: Splits, kinds: Sequence[str]) -> Style:
    """Returns how to ask; raises UserError without demonstrations, or for programs without numbers."""
    style = prompts.style_of(options.task, splits)
    if options.demonstrations:
        own = prompts.read_demonstrations(options.demonstrations, programs="pot" in kinds)
        style = dataclasses.replace(style, demonstrations=own)
    if "pot" in kinds and not splits.by_value:
        raise UserError(
            f"--kind={options.kind}: the labels of {options.task} are not numbers: use --kind=cot"
        )
    if options.prompt == "few_shot" and not style.demonstrations:
        fix = "give your own with --demonstrations=FILE, or use --prompt=zero_shot"
        raise UserError(f"there are no demonstrations for task={options.task}: {fix}")
    return style


def _source(options: argparse.Namespace) -> Endpoint | Batch:
    cache = options.output / "cache.jsonl"
    if options.endpoint:
        limits = {name: getattr(options, name) for name in ("concurrency", "per_minute", "timeout")}
        return Endpoint(options.endpoint, cache, **limits)
    batch = Batch(cache)
    if options.read_batch:
        batch.read(options.read_batch)
    return batch


def _ask(
    source: Endpoint | Batch,
    asked: Sequence[Asked],
    style: Style,
    by_value: bool,
    interpreter: Interpreter,
    options: argparse.Namespace,
) -> tuple[list[Reply | None], list[Sample]]:
    replies = list(source.ask([_request(one, style, options) for one in asked]))
    return replies, [
        read(one, reply.text, reply.finish_reason, style, by_value, interpreter)
        if reply
        else Sample(one, "", None, None, False, "not answered")
        for one, reply in zip(asked, replies, strict=True)
    ]


def _request(asked: Asked, style: Style, options: argparse.Namespace) -> Request:
    question, few_shot = style.asks(asked.example), options.prompt == "few_shot"
    if asked.hinted:
        question += prompts.HINT.format(answer=_lettered(asked.example))
    sampling = {"temperature": options.temperature, "seed": asked.seed, "max_tokens": options.max_tokens}
    if options.api == "chat":
        return chat(options.model, prompts.as_chat(style, asked.kind, few_shot, question), **sampling)
    prompt = prompts.as_prompt(style, asked.kind, few_shot, question)
    return completion(options.model, prompt, stop=prompts.stops(style), **sampling)


def _lettered(example: Example) -> str:
    """Returns the label as the question writes it, e.g. "(b) pond" for a choice."""
    letters = dict(zip(choices(example.text), "abcdefghijklmnopqrstuvwxyz", strict=False))
    return f"({letters[example.label]}) {example.label}" if example.label in letters else example.label


def _never_right(samples: Sequence[Sample], seed: int) -> list[Asked]:
    """Returns what to ask with a hint: each question and kind with answers, none of them correct."""
    outcomes: dict[tuple[Example, str], list[bool]] = {}
    for sample in samples:
        settled = sample.failure == "not answered" or (sample.right and not sample.failure)
        outcomes.setdefault(sample.asked[:2], []).append(settled)
    return [Asked(*key, seed, hinted=True) for key, settled in outcomes.items() if not any(settled)]


def _rows(examples: Sequence[Example], samples: Sequence[Sample], by_value: bool) -> list[dict[str, Any]]:
    """Returns the rows of the teacher's file: one per question, without empty fields."""
    by_id: dict[str, list[Sample]] = {example.id: [] for example in examples}
    for sample in samples:
        by_id[sample.asked.example.id].append(sample)
    rows = []
    for key, these in by_id.items():
        kept = [sample for sample in these if sample.failure is None]
        unhinted = [sample for sample in these if not sample.asked.hinted]
        row = {
            "id": key,
            "label": majority(unhinted, by_value),
            **{name: [s.text for s in kept if s.asked.kind == kind] for kind, name in _FIELDS.items()},
            "hinted": sorted({_FIELDS[s.asked.kind] for s in kept if s.asked.hinted}),
        }
        rows.append({name: value for name, value in row.items() if value})
    return rows


def _sample_row(sample: Sample) -> dict[str, Any]:
    example, kind, seed, hinted = sample.asked
    return {
        "id": example.id, "kind": kind, "seed": seed, "hinted": hinted, "output": sample.output,
        "text": sample.text, "label": sample.label, "right": sample.right, "left_out": sample.failure,
    }  # fmt: skip


def _report(
    options: argparse.Namespace,
    examples: Sequence[Example],
    rows: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    by_value: bool,
) -> dict[str, Any]:
    """Returns the settings and, for each kind with and without hint, the outcome."""
    kinds: dict[str, Any] = {}
    for kind, hinted in sorted({(sample.asked.kind, sample.asked.hinted) for sample in samples}):
        these = [s for s in samples if (s.asked.kind, s.asked.hinted) == (kind, hinted)]
        kept = [s for s in these if s.failure is None]
        left_out: dict[str, Any] = {}
        for reason, count in Counter(s.failure for s in these if s.failure).most_common():
            different = {s.output: s.asked.example for s in these if s.failure == reason}
            shown = [
                {"id": example.id, "gold": example.label, "output": output}
                for output, example in list(different.items())[:_SHOWN]
            ]
            left_out[reason] = {"count": count, "examples": shown}
        kinds[f"{_FIELDS[kind]}{', hinted' if hinted else ''}"] = {
            "samples": len(these),
            "answers_read": sum(sample.label is not None for sample in these),
            "right": sum(sample.right for sample in these),
            "kept": len(kept),
            "questions_with_one": len({sample.asked.example.id for sample in kept}),
            "left_out": left_out,
        }
    labels = [
        (row["label"], example.label) for row, example in zip(rows, examples, strict=True) if "label" in row
    ]
    settings = ("task", "split", "model", "api", "prompt", "samples", "temperature", "seed", "max_words")
    return {
        **{name: getattr(options, name) for name in settings},
        "filters": sorted(options.filters),
        "questions": len(examples),
        "labels": len(labels),
        "labels_right": sum(is_correct(said, gold, by_value) for said, gold in labels),
        "questions_with_nothing": sum(not row.keys() & set(_FIELDS.values()) for row in rows),
        "kinds": kinds,
    }


def _usage(options: argparse.Namespace, replies: Sequence[Reply | None], sent: int) -> dict[str, Any]:
    answered = [reply for reply in replies if reply]
    tokens = {
        name: sum(getattr(reply, name) for reply in answered)
        for name in ("prompt_tokens", "completion_tokens")
    }
    prices = options.price and zip(tokens.values(), options.price, strict=True)
    cost = sum(count * price for count, price in prices) / 1e6 if prices else None
    return {"requests_sent": sent, "answers": len(answered), **tokens, "cost": cost}


def _summary(report: dict[str, Any]) -> list[str]:
    """Returns the report in Markdown, without the samples that were left out."""
    lines = [
        f"# {report['model']} on {report['task']}, {report['split']}",
        "",
        f"{report['questions']:,} questions, {report['samples']} samples of each kind, {report['prompt']} "
        f"prompts ({report['api']}), temperature {report['temperature']:g}, seeds from {report['seed']}; "
        f"filters: {', '.join(report['filters']) or 'none'}"
        + (f", at most {report['max_words']} words" if report["max_words"] else ""),
        "",
        "| | samples | answer read | right | kept | questions with one | left out |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of in report["kinds"].items():
        shares = [
            f"{of[key]:,} ({100 * of[key] / of['samples']:.1f} %)"
            for key in ("answers_read", "right", "kept")
        ]
        reasons = ", ".join(f"{reason} {found['count']:,}" for reason, found in of["left_out"].items())
        cells = [name, f"{of['samples']:,}", *shares, f"{of['questions_with_one']:,}", reasons or "none"]
        lines.append(f"| {' | '.join(cells)} |")
    labels, right = report["labels"], report["labels_right"]
    cost = "" if report["cost"] is None else f", {report['cost']:,.2f} at the given prices"
    return [
        *lines,
        "",
        f"Majority label: {labels:,} questions have one, it is right for {right:,}"
        + (f" ({100 * right / labels:.2f} %)." if labels else "."),
        f"Questions with nothing kept: {report['questions_with_nothing']:,}.",
        f"{report['requests_sent']:,} requests sent now; {report['answers']:,} answers in all: "
        f"{report['prompt_tokens']:,} + {report['completion_tokens']:,} tokens{cost}.",
    ]


def _left_out(report: dict[str, Any]) -> list[str]:
    """Returns examples of the samples that were left out, in Markdown."""
    lines = []
    for name, of in report["kinds"].items():
        for reason, found in of["left_out"].items():
            lines += ["", f"## {name}: {reason} ({found['count']:,})"]
            for example in found["examples"]:
                lines += ["", f"{example['id']}, gold `{example['gold']}`:", ""]
                lines += [
                    f"    {printable(line)}" for line in example["output"].splitlines() or ["(no text)"]
                ]
    return lines


def _filters(text: str) -> frozenset[str]:
    found = frozenset(filter(None, text.split(",")))
    if unknown := found - set(FILTERS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: the filters are {', '.join(FILTERS)}"
        )
    return found


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argument_parser("rationalize", __doc__)
    add = parser.add_argument
    add("--task", required=True, choices=sorted([*tasks.TASKS, "word_problems"]), help="as config.data.task")
    add("--root", type=local, help="as config.data.root")
    add("--split", default="train", choices=tasks.ALL_SPLITS)
    add("--limit", type=int, default=0, help="ask the first N questions only; 0 = all")
    add("--model", required=True, help="the model's name at the endpoint")
    add("--output", type=local, required=True, metavar="DIR", help="directory to write to and resume from")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--endpoint", metavar="URL", help="e.g. http://localhost:8000/v1")
    write = "send nothing: write the missing requests for a batch service"
    source.add_argument("--write_batch", type=local, metavar="FILE", help=write)
    read_help = "send nothing: read the results of a batch service"
    source.add_argument("--read_batch", type=local, metavar="FILE", help=read_help)
    add("--kind", default="cot", choices=("cot", "pot", "both"), help="rationales, programs of thought")
    add("--samples", type=int, default=1, help="samples per question and kind")
    add("--hint", action="store_true", help="ask again with the gold label where no sample was right")
    prompt = "with or without demonstrations"
    add("--prompt", default="few_shot", choices=("few_shot", "zero_shot"), help=prompt)
    own = "JSON lines {input, rationale, label, program?} that replace our demonstrations"
    add("--demonstrations", type=local, metavar="FILE", help=own)
    add("--api", default="chat", choices=("chat", "completions"), help="completions: for models without chat")
    add("--temperature", type=float, default=0.7)
    add("--max_tokens", type=int, default=512, help="longest answer; 0 = the server's limit")
    seed = "seed of the first sample; further samples count up (word_problems: also the problems' seed)"
    add("--seed", type=int, default=0, help=seed)
    leave_out = f"filters to apply, of {','.join(FILTERS)} (default: all three)"
    add("--filters", type=_filters, default=frozenset(FILTERS), metavar="LIST", help=leave_out)
    add("--max_words", type=int, default=0, help="longest rationale or program; 0 = any")
    add("--sandbox", action="store_true", help="run programs that the interpreter refuses, in bubblewrap")
    add("--concurrency", type=int, default=8, help="parallel requests")
    add("--per_minute", type=float, default=0.0, help="maximum requests per minute; 0 = any")
    add("--timeout", type=float, default=120.0, help="seconds to wait for an answer before a retry")
    add("--price", type=float, nargs=2, metavar=("IN", "OUT"), help="per million tokens: reports the cost")
    options = parser.parse_args(argv)
    if options.task != "word_problems" and not options.root:
        parser.error(f"--task={options.task} reads files: give their folder with --root=DIR")
    if options.task == "word_problems" and (options.split != "train" or not options.limit):
        parser.error("--task=word_problems generates --limit=N training problems, and no other split")
    if options.hint and "right" not in options.filters:
        parser.error("--hint replaces wrong answers: it needs right in --filters")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
