"""Measure the quality of a student's rationales: `python -m cot_jax.judge RUN [--split=test] [--task=T]`

Reads predictions.jsonl and evaluation.json from RUN/evaluation/TASK_SPLIT, as `python -m cot_jax.evaluate`
writes them. Writes beside them rationales.json (corpus measures) and rationales.jsonl (measures per example);
with --endpoint also judge_cache.jsonl (requests to a judge model and its answers); with --against also
case_studies.md (two runs on the same examples, side by side).
"""

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cot_jax.answers.equality import is_correct
from cot_jax.answers.reading import choices, final_answer
from cot_jax.data.teacher.endpoint import Endpoint, chat
from cot_jax.errors import UserError, argument_parser, command, writing
from cot_jax.files import local, write_json, write_json_lines, write_text
from cot_jax.limits import check_ranges
from cot_jax.metrics import quality
from cot_jax.training.predictions import OUTCOMES, Evaluation, Prediction, outcome, paired, read_evaluation

# The scale is from Chen et al. 2024; the wording around it is ours.
JUDGE_PROMPT = """\
Somebody answered a question and gave a reason. Grade the reason, not the answer: does it help a reader to \
understand why one would answer so?

Question:
{question}

Answer: {label}

Reason: {rationale}

Grades:
1 - completely incoherent and irrelevant
2 - somewhat incoherent and irrelevant
3 - coherent and relevant, but not helpful
4 - somewhat helpful
5 - helpful, explains the answer well

Reply with the grade, one digit from 1 to 5, and nothing else."""

# Columns of rationales.jsonl that are correlated with correctness.
QUALITIES = ("bleu", "chrf", "rouge_l", "similarity", "agrees_with_prediction", "grade")

Measures = dict[str, Any]  # of one example or of all; a None value: nothing to measure


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    check_ranges(vars(options), positive=("examples", "samples", "concurrency"))
    evaluation = read_evaluation(options.run, options.split, options.task)
    if all(prediction.rationale is None for prediction in evaluation.predictions):
        raise UserError(f"{evaluation.where}: this student wrote no rationales to measure")
    written = ["rationales.json", "rationales.jsonl", *(["judge_cache.jsonl"] if options.endpoint else [])]
    with writing(evaluation.where):
        if options.against:
            against = read_evaluation(options.against, options.split, options.task)
            studies = _case_studies(evaluation, against, options.examples)
            write_text(evaluation.where / "case_studies.md", studies)
            written.append("case_studies.md")
        measures, rows = _measure(evaluation, options)
        write_json(evaluation.where / "rationales.json", measures)
        write_json_lines(evaluation.where / "rationales.jsonl", rows)
    print("\n".join(_summary(measures)))
    print(f"written to {evaluation.where}: {', '.join(written)}")
    return 0


def _measure(evaluation: Evaluation, options: argparse.Namespace) -> tuple[Measures, list[Measures]]:
    """Returns the corpus measures, and those of each example with a rationale."""
    explained = [prediction for prediction in evaluation.predictions if prediction.rationale is not None]
    rows: list[Measures] = [{"id": prediction.id, "correct": prediction.correct} for prediction in explained]
    measures: Measures = {
        "predictions": len(evaluation.predictions),
        "rationales": len(explained),
        "against_teacher": _against_teacher(explained, rows, options.encoder),
        "consistency": _consistency(evaluation, explained, rows),
        "judge": _judge(evaluation.where, explained, rows, options) if options.endpoint else None,
        "correlation_with_correctness": {},
    }
    for name in QUALITIES:
        known = [(row[name], row["correct"]) for row in rows if row.get(name) is not None]
        if known:
            found = quality.correlations(*zip(*known, strict=True))
            measures["correlation_with_correctness"][name] = found
    return measures, rows


def _against_teacher(
    explained: Sequence[Prediction], rows: Sequence[Measures], encoder: str | None
) -> Measures | None:
    """Compares with the teacher's rationales, if there are any; adds each example's measures to `rows`."""
    compared = [(p, row) for p, row in zip(explained, rows, strict=True) if p.teacher_rationale]
    if not compared:
        return None
    written = [prediction.rationale or "" for prediction, _ in compared]
    references = [prediction.teacher_rationale or "" for prediction, _ in compared]
    corpus, each = quality.likeness(written, references)
    if encoder:
        each["similarity"] = quality.similarity(written, references, encoder)
        corpus["similarity"] = statistics.fmean(each["similarity"])
    for index, (_, row) in enumerate(compared):
        row.update({name: values[index] for name, values in each.items()})
    return {"examples": len(compared)} | corpus


def _consistency(
    evaluation: Evaluation, explained: Sequence[Prediction], rows: Sequence[Measures]
) -> Measures:
    """Counts the rationales that arrive at the predicted and at the gold label; adds both to `rows`."""
    for prediction, row in zip(explained, rows, strict=True):
        candidates = evaluation.labels or choices(prediction.question)
        answer = final_answer(prediction.rationale or "", evaluation.by_value, candidates)
        row["answer"] = answer
        labels = {"agrees_with_prediction": prediction.label, "agrees_with_gold": prediction.gold}
        for name, label in labels.items():
            row[name] = None if answer is None else is_correct(answer, label, evaluation.by_value)
    counts = {
        "agrees_with_prediction": sum(bool(row["agrees_with_prediction"]) for row in rows),
        "agrees_with_gold": sum(bool(row["agrees_with_gold"]) for row in rows),
        "no_readable_answer": sum(row["answer"] is None for row in rows),
    }
    return {name: {"count": count, "share": count / len(rows)} for name, count in counts.items()}


def _judge(
    where: Path, explained: Sequence[Prediction], rows: Sequence[Measures], options: argparse.Namespace
) -> Measures:
    """Lets a judge model grade a sample of the rationales; adds the grades to `rows`.

    Each is graded `samples` times, with seeds counting up from `seed`. Replies that are not one digit from 1
    to 5 are counted as unparsable. Standard deviations are sample standard deviations (n - 1).
    """
    drawn = np.random.default_rng(options.seed).permutation(len(explained))[: options.examples].tolist()
    requests = []
    for index in drawn:
        one = explained[index]
        prompt = JUDGE_PROMPT.format(question=one.question, label=one.label, rationale=one.rationale)
        message = {"role": "user", "content": prompt}
        sampling = {"temperature": options.temperature, "max_tokens": options.max_tokens}
        requests += [
            chat(options.model, [message], seed=options.seed + sample, **sampling)
            for sample in range(options.samples)
        ]
    with Endpoint(options.endpoint, where / "judge_cache.jsonl", concurrency=options.concurrency) as endpoint:
        replies = list(endpoint.ask(requests))
        sent = endpoint.sent
    for number, index in enumerate(drawn):
        own = replies[number * options.samples :][: options.samples]
        grades = [int(reply.text) for reply in own if re.fullmatch(r"\s*[1-5]\s*", reply.text, re.ASCII)]
        rows[index].update(grades=grades, grade=_mean(grades), grade_std=_std(grades))
    graded = [rows[index] for index in drawn if rows[index]["grades"]]
    means, stds = ([row[key] for row in graded if row[key] is not None] for key in ("grade", "grade_std"))
    return {
        "model": options.model,
        "temperature": options.temperature,
        "seed": options.seed,
        "examples": len(drawn),
        "samples": options.samples,
        "unparsable": len(replies) - sum(len(row["grades"]) for row in graded),
        "without_grade": len(drawn) - len(graded),
        "mean": _mean(means),
        "std_over_examples": _std(means),
        "mean_std_over_samples": _mean(stds),
        "requests_sent": sent,
        "prompt_tokens": sum(reply.prompt_tokens for reply in replies),
        "completion_tokens": sum(reply.completion_tokens for reply in replies),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _case_studies(a: Evaluation, b: Evaluation, most: int) -> str:
    """Returns both runs' answers in Markdown: first where only one is right, then where labels differ.

    Raises:
      UserError: the runs have no example in common, or an example differs between them.
    """
    pairs = paired(a, b)

    def agreement(pair: tuple[Prediction, Prediction]) -> int:
        ours, theirs = pair
        if ours.correct != theirs.correct:
            return 0
        same = ours.label == theirs.label or is_correct(ours.label, theirs.label, a.by_value)
        return 2 if same else 1

    counts = Counter(map(outcome, pairs))
    parts = [
        "# Case studies",
        f"A: {_escape(str(a.where))}  \nB: {_escape(str(b.where))}",
        f"{len(pairs):,} examples in common: "
        + ", ".join(f"{name} {counts[name]:,}" for name in OUTCOMES)
        + ". Those on which A and B disagree come first.",
    ]
    for number, (ours, theirs) in enumerate(sorted(pairs, key=agreement)[:most], start=1):
        parts += [
            f"## {number}. {_escape(ours.id)}: {outcome((ours, theirs))}",
            f"> {_escape(ours.question)}",
            f"Gold: **{_escape(ours.gold)}**",
            "| | A | B |\n|---|---|---|\n"
            f"| label | {_marked(ours)} | {_marked(theirs)} |\n"
            f"| rationale | {_escape(ours.rationale or '')} | {_escape(theirs.rationale or '')} |",
        ]
        if ours.teacher_rationale:
            parts.append(f"Teacher: {_escape(ours.teacher_rationale)}")
    return "\n\n".join(parts) + "\n"


def _marked(prediction: Prediction) -> str:
    return f"{'✓' if prediction.correct else '✗'} {_escape(prediction.label)}"


def _escape(text: str) -> str:
    """Returns Markdown, on one line, that renders as `text`."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~$&])", r"\\\1", text.strip())
    escaped = re.sub(r"^(\d*)([-+.)])", r"\1\\\2", escaped)  # else an item of a list
    return "<br>".join(escaped.splitlines())


def _summary(measures: Measures) -> list[str]:
    def shown(value: float | None, digits: int = 2) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    lines = [f"{measures['rationales']:,} rationales of {measures['predictions']:,} predictions"]
    if teacher := measures["against_teacher"]:
        names = {"bleu": "BLEU", "chrf": "chrF", "rouge_l": "ROUGE-L", "similarity": "similarity"}
        likeness = ", ".join(
            f"{title} {shown(teacher[name])}" for name, title in names.items() if name in teacher
        )
        lines.append(f"similarity to the teacher's ({teacher['examples']:,}): {likeness}")
    for name, found in measures["consistency"].items():
        lines.append(f"{name.replace('_', ' ')}: {found['count']:,} ({100 * found['share']:.1f} %)")
    if judge := measures["judge"]:
        lines.append(
            f"judge {judge['model']}: {shown(judge['mean'])}, standard deviation over {judge['examples']:,} "
            f"examples {shown(judge['std_over_examples'])}, over {judge['samples']:,} samples "
            f"{shown(judge['mean_std_over_samples'])}; {judge['unparsable']:,} unparsable replies"
        )
        lines.append(
            f"{judge['requests_sent']:,} requests sent; {judge['prompt_tokens']:,} + "
            f"{judge['completion_tokens']:,} tokens in all answers"
        )
    for name, found in measures["correlation_with_correctness"].items():
        pearson, spearman = found["pearson"], found["spearman"]
        if pearson:
            lines.append(
                f"{name.replace('_', ' ')} and correctness ({found['n']:,}): Pearson {shown(pearson['r'])} "
                f"(p {pearson['p']:.2g}), Spearman {shown(spearman['r'])} (p {spearman['p']:.2g})"
            )
    return lines


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argument_parser("judge", __doc__)
    add = parser.add_argument
    add("run", type=local, metavar="RUN", help="work directory of a run, or its export")
    add("--split", choices=("valid", "test"), default="test")
    add("--task", help="data set, if the run was evaluated on several")
    add("--against", type=local, metavar="RUN", help="another run: adds case studies")
    add("--encoder", help="sentence encoder, Hugging Face id or directory: adds similarity")
    add("--endpoint", metavar="URL", help="of a judge model, as http://HOST:PORT/v1: adds grades")
    add("--model", help="the judge's name at the endpoint")
    add("--examples", type=int, default=50, help="number of examples to judge, and of case studies")
    add("--samples", type=int, default=4, help="grades per example")
    add("--temperature", type=float, default=0.7, help="of the judge")
    add("--max_tokens", type=int, default=16, help="of a grade; 0 = any, for reasoning models")
    add("--concurrency", type=int, default=8, help="parallel requests")
    add("--seed", type=int, default=0, help="of the choice of examples and of the judge")
    options = parser.parse_args(argv)
    if bool(options.endpoint) != bool(options.model):
        parser.error("give --endpoint and --model together")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
