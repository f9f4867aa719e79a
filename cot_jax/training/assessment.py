"""Evaluation of a student on a data set: accuracy, calibration, every prediction; `cot_jax.evaluate`."""

import dataclasses
import importlib.util
import itertools
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import special

from cot_jax.answers.equality import is_correct
from cot_jax.answers.programs import Interpreter
from cot_jax.answers.sandbox import make_interpreter
from cot_jax.answers.voting import elect
from cot_jax.config import Config
from cot_jax.data import continuations
from cot_jax.data.examples import Example, parts_as_json
from cot_jax.data.tasks import TASKS, Splits
from cot_jax.data.views import View, answer_of, rationale_of
from cot_jax.errors import UserError, writing
from cot_jax.files import place, write_json, write_json_lines
from cot_jax.limits import check_ranges
from cot_jax.metrics import calibration
from cot_jax.metrics.classification import METRICS, confusion_matrix, per_class, scores
from cot_jax.metrics.multiple_choice import choices
from cot_jax.metrics.plots import draw_confusion, draw_reliability, draw_votes
from cot_jax.metrics.significance import bootstrap_interval, bootstrap_interval_of
from cot_jax.models.decoding import Sampling
from cot_jax.training.compiled import keep_compiled
from cot_jax.training.data import load_splits
from cot_jax.training.encoding import tokenize
from cot_jax.training.evaluation import Answers
from cot_jax.training.information import InformationEstimate, compared
from cot_jax.training.likelihood import likelihoods
from cot_jax.training.samples import Sample, draw_samples
from cot_jax.training.saved import (
    Answerer,
    LabelScorer,
    Saved,
    is_pretrained,
    load,
    load_pretrained,
    read_pretrained,
)

# A task with more distinct labels than this is not a classification.
_MOST_LABELS = 20

# HellaSwag by the likelihood of its endings; not the task `hellaswag`.
_LIKELIHOOD = "hellaswag_likelihood"


@dataclasses.dataclass(frozen=True)
class Options:
    """The flags of `cot_jax.evaluate`, whose --help explains them."""

    run: Path
    split: str = "test"
    task: str = ""
    root: str | Path | None = None
    limit: int = 0
    shots: int | None = None
    max_new_tokens: int = 0
    chat: str = ""
    output: str | Path | None = None
    rationales: bool = True
    samples: int = 0
    paths: str | Sequence[str] = ()
    temperature: float = 1.0
    seed: int = 0
    mutual_information: bool = False
    sandbox: bool = False

    def __post_init__(self):
        check_ranges(vars(self))
        if self.split not in ("valid", "test"):
            raise UserError(f"--split={self.split}: must be valid or test")
        if self.task and self.task not in (known := sorted([*TASKS, "word_problems", _LIKELIHOOD])):
            raise UserError(f"--task={self.task}: must be one of {', '.join(known)}")
        if self.chat not in ("", "auto", "plain", "template"):
            raise UserError(f"--chat={self.chat}: must be auto, plain or template")
        if self.temperature == 0:
            raise UserError("--temperature must be above 0")
        if not self.samples and (self.paths or self.temperature != 1):
            raise UserError("--paths and --temperature need --samples")


@dataclasses.dataclass(frozen=True)
class _Confidence:
    """A student's confidence in its answers: (N,) each; log_probs (N, L) if it chose among labels."""

    confidence: np.ndarray
    correct: np.ndarray
    log_probs: np.ndarray | None = None
    gold: np.ndarray | None = None

    def temperature(self) -> float:
        """Returns the temperature at which the confidence fits best."""
        if self.log_probs is not None and self.gold is not None:
            return calibration.fit_temperature(self.log_probs, self.gold)
        return calibration.fit_binary_temperature(self.confidence, self.correct)

    def scaled(self, temperature: float) -> np.ndarray:
        """Returns the confidence at another temperature."""
        if self.log_probs is not None:
            return special.softmax(self.log_probs / temperature, axis=1).max(axis=1)
        return calibration.scale_confidence(self.confidence, temperature)


@dataclasses.dataclass(frozen=True)
class _Answered:
    """A split, the student's answers, and its confidence in them, by kind."""

    examples: Sequence[Example]
    answers: Answers
    correct: np.ndarray
    confidences: dict[str, _Confidence]


def evaluate(options: Options, student: Saved | None = None) -> dict[str, Any]:
    """Evaluates a student; writes evaluation.json, predictions.jsonl and plots, and prints a summary.

    Args:
      student: the student of `options.run`, if it is loaded already.

    Returns:
      The content of evaluation.json.

    Raises:
      UserError: options do not suit this student or this data, or files are missing.
    """
    keep_compiled()
    if options.task == _LIKELIHOOD:
        return _compare_endings(options, student)
    saved, splits = _load(options, student)
    name = f"{splits.task}_{options.split}" + (f"_{options.shots or 0}_shots" if saved.prompted else "")
    return _evaluate(saved, splits, options, _directory(options, name))


def _directory(options: Options, name: str) -> Path:
    """Returns the output directory; `name` stands for data set, split and prompting."""
    return place(options.output) if options.output else options.run / "evaluation" / name


def _load(options: Options, student: Saved | None) -> tuple[Saved, Splits]:
    """Returns the student, and the data set to evaluate on."""
    if is_pretrained(options.run):
        if not options.task:
            raise UserError(f"{options.run} was not trained here: give its data set with --task=T --root=DIR")
        config = Config().changed({"data.chat": options.chat or "auto", **_asked_data(options)})
        splits = load_splits(config.data, config.seed)
        saved = load_pretrained(options.run, config, splits, options.shots or 0)
        return saved, _limited(splits, options.limit)
    if options.shots is not None or options.chat:
        raise UserError(
            f"--shots and --chat are for pretrained models; {options.run} is a student, which is prompted as "
            "in training: leave them out"
        )
    saved = student or load(options.run)
    data = saved.config.changed(_asked_data(options)).data
    splits = load_splits(data, saved.config.seed, saved.student.format)
    return saved, _limited(splits, options.limit)


def _asked_data(options: Options) -> dict[str, Any]:
    """Returns the config keys that flags replace."""
    task = {"data.task": options.task, "data.compare": "auto", "data.teacher": ""} if options.task else {}
    return task | ({"data.root": str(options.root)} if options.root else {})


def _limited(splits: Splits, limit: int) -> Splits:
    """Returns the first `limit` questions of validation and test; 0: all."""
    most = limit or None
    return dataclasses.replace(splits, valid=splits.valid[:most], test=splits.test[:most])


def _evaluate(saved: Saved, splits: Splits, options: Options, directory: Path) -> dict[str, Any]:
    if not getattr(splits, options.split):
        raise UserError(f"task={splits.task} has no {options.split} set: use --split=test")
    # First what may be refused: answers can take hours.
    labels, interpreter = _closed_labels(splits), make_interpreter(options.sandbox)
    _refuse_other_classes(saved, splits, labels)
    reasoned = [path for path in saved.paths if path != "label"]
    voters = saved.choose(options.paths or reasoned or [*saved.paths]) if options.samples else []
    estimate = _estimate(saved, splits, options.split) if options.mutual_information else None
    most = options.max_new_tokens
    asked = _ask(saved, splits, options.split, labels, most)
    # Temperatures are fitted on the split that selected the student, never on the one that tests it. A
    # pretrained model was not selected; skipping its validation set halves the cost.
    fits = options.split == "test" and splits.valid and not saved.prompted
    fitted_on = _ask(saved, splits, "valid", labels, most) if fits else None
    low, high = bootstrap_interval(asked.correct)
    evaluation: dict[str, Any] = {
        "task": splits.task,
        "split": options.split,
        "trained_on": None if saved.prompted else saved.config.data.task,
        "method": saved.config.objective.method,
        "examples": len(asked.examples),
        "by_value": splits.by_value,
        "sandbox": options.sandbox,
        "labels": labels,
        "accuracy": float(asked.correct.mean()),
        "accuracy_interval_95": [low, high],
        "metrics": {"accuracy": float(asked.correct.mean())},
        "calibration": {
            name: _calibration(found, fitted_on.confidences[name] if fitted_on else None)
            for name, found in asked.confidences.items()
        },
    }
    if saved.prompted:
        evaluation["shots"] = options.shots or 0
        evaluation["unmarked_answers"] = asked.answers.unmarked / len(asked.examples)
    if labels:
        golds, answers = [e.label for e in asked.examples], asked.answers.answers
        counts = confusion_matrix(golds, answers, labels)
        evaluation["metrics"] = scores(splits.metrics, golds, answers, labels)
        if (chosen_by := splits.metrics[0]) != "accuracy":
            interval = bootstrap_interval_of(METRICS[chosen_by], counts)
            evaluation[f"{chosen_by}_interval_95"] = list(interval)
        evaluation["per_class"] = per_class(counts, labels)
        evaluation["confusion"] = {"columns": [*labels, "other"], "counts": counts.tolist()}
    if estimate:
        trained_on, judged_on = estimate.counts
        evaluation["mutual_information"] = {
            "nats": estimate(saved.params),
            "most_nats": estimate.most,
            "training_pairs": trained_on,
            "held_out_pairs": judged_on,
        }
    others = {
        view: _answer(saved, view, asked.examples, most, interpreter=interpreter)
        for view in (saved.views[1:] if options.rationales else ())
    }
    evaluation |= _paths(saved, asked, others, splits.by_value)
    rows = [*_predictions(asked, saved.views[0], others)]
    if voters:
        _write(directory, evaluation, rows)  # what there is, since sampling can take hours
        evaluation["votes"] = _votes(saved, voters, asked, splits.by_value, interpreter, options, directory)
    _write(directory, evaluation, rows)
    for line in _summary(evaluation):
        print(line)
    written = ["evaluation.json", "predictions.jsonl"]
    if voters:
        written += [f"samples_{path}.jsonl" for path in evaluation["votes"]["answers_nothing"]]
    if importlib.util.find_spec("matplotlib"):
        written += _draw(evaluation, asked, directory)
    else:
        print("no plots: pip install 'cot-jax[plots]'", file=sys.stderr)
    print(f"written to {directory}: {', '.join(written)}")
    return evaluation


def _compare_endings(options: Options, student: Saved | None) -> dict[str, Any]:
    """Measures how often the correct ending of HellaSwag is the most likely; as `evaluate`."""
    for name in ("shots", "chat", "samples", "max_new_tokens", "mutual_information", "sandbox"):
        if getattr(options, name):
            raise UserError(f"--{name} does not apply to --task={_LIKELIHOOD}: leave it out")
    untrained = is_pretrained(options.run)
    saved = read_pretrained(options.run, Config()) if untrained else student or load(options.run)
    if not (root := options.root or saved.config.data.root):
        raise UserError(f"--task={_LIKELIHOOD} reads files: give their folder with --root=DIR")
    questions, notes = continuations.hellaswag(Path(root), options.split)
    print(*notes, sep="\n", end="\n" * bool(notes), file=sys.stderr)
    questions = questions[: options.limit or None]
    log_probs, report = likelihoods(
        saved,
        [question.context for question in questions for _ in question.endings],
        [f" {ending}" for question in questions for ending in question.endings],
    )
    print(report, file=sys.stderr)
    log_probs_NC = log_probs.reshape(len(questions), -1)
    characters_NC = np.array([[*map(len, question.endings)] for question in questions])
    gold_N = np.array([question.gold for question in questions])
    evaluation: dict[str, Any] = {
        "task": _LIKELIHOOD,
        "split": options.split,
        "trained_on": None if untrained else saved.config.data.task,
        "examples": len(questions),
    }
    chosen = choices(log_probs_NC, characters_NC)
    for name, numbers in chosen.items():
        right = numbers == gold_N
        evaluation |= {name: float(right.mean()), f"{name}_interval_95": list(bootstrap_interval(right))}
    rows = [
        question._asdict()
        | {"log_probs": log_probs_NC[n].tolist()}
        | {f"chosen_by_{name}": int(numbers[n]) for name, numbers in chosen.items()}
        for n, question in enumerate(questions)
    ]
    directory = _directory(options, f"{_LIKELIHOOD}_{options.split}")
    _write(directory, evaluation, rows)
    print(f"{_LIKELIHOOD} {options.split}, {len(questions)} questions (95 % bootstrap interval):")
    for name in chosen:
        low, high = evaluation[f"{name}_interval_95"]
        print(f"  {name} {100 * evaluation[name]:.2f} % ({100 * low:.2f} to {100 * high:.2f})")
    print(f"written to {directory}: evaluation.json, predictions.jsonl")
    return evaluation


def _write(directory: Path, evaluation: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "evaluation.json", evaluation)
        write_json_lines(directory / "predictions.jsonl", rows)


def _closed_labels(splits: Splits) -> list[str] | None:
    """Returns the labels of a classification; None for open answers."""
    if splits.label_set:
        return list(splits.label_set)
    labels = {example.label.strip() for example in (*splits.train, *splits.valid, *splits.test)}
    return None if splits.by_value or len(labels) > _MOST_LABELS else sorted(labels)


def _refuse_other_classes(saved: Saved, splits: Splits, labels: Sequence[str] | None) -> None:
    """
    Raises:
      UserError: the student chooses among classes, and a label of the task, or every open one, is none.
    """
    if not (classes := saved.student.labels):
        return
    golds = labels or {example.label.strip() for example in (*splits.valid, *splits.test)}
    other = [label for label in golds if label not in classes]
    if other and (labels or len(other) == len(golds)):
        raise UserError(
            f"task={splits.task} has the label {min(other)!r}, but the student chooses among "
            f"{', '.join(classes)} only: choose a task with these labels"
        )


def _ask(saved: Saved, splits: Splits, split: str, labels: Sequence[str] | None, most: int) -> _Answered:
    examples = getattr(splits, split)
    view = saved.views[0]
    answers = _answer(saved, view, examples, most)
    correct = _correct(answers.answers, examples, splits.by_value)
    confidences = {"sequence": _Confidence(np.exp(answers.log_probs), correct)}
    if saved.student.format != "classes":  # a class is one token
        per_token = np.exp(answers.log_probs / answers.lengths)
        confidences["per_token"] = _Confidence(per_token, correct)
    if labels and view.term == "label":
        scorer = LabelScorer(saved, view, labels, batch_size=_batch_size(saved, examples))
        log_prob_NL = np.asarray(scorer(examples), float)
        chosen = [labels[n] for n in log_prob_NL.argmax(axis=1)]
        confidences["label_set"] = _Confidence(
            special.softmax(log_prob_NL, axis=1).max(axis=1),
            _correct(chosen, examples, by_value=False),
            log_prob_NL,
            np.array([labels.index(example.label.strip()) for example in examples]),
        )
    return _Answered(examples, answers, correct, confidences)


def _answer(saved: Saved, view: View, examples: Sequence[Example], most: int, **how: Any) -> Answers:
    answers, line = _answerer(saved, view, examples, most, **how)(examples)
    print(f"{view.name}: {line}", file=sys.stderr)
    return answers


def _answerer(saved: Saved, view: View, examples: Sequence[Example], most: int, **how: Any) -> Answerer:
    """Answers with up to `most` tokens (0: as in training); `how` are options of `Answerer`."""
    most = most or saved.most_tokens(view)
    return Answerer(saved, view, batch_size=_batch_size(saved, examples), max_new_tokens=most, **how)


def _batch_size(saved: Saved, examples: Sequence[Example]) -> int:
    return min(saved.config.evaluation.batch_size, len(examples))


def _correct(answers: Sequence[str], examples: Sequence[Example], by_value: bool) -> np.ndarray:
    pairs = zip(answers, examples, strict=True)
    return np.array([is_correct(answer, example.label, by_value) for answer, example in pairs], float)


def _paths(
    saved: Saved, asked: _Answered, written: Mapping[View, Answers], by_value: bool
) -> dict[str, dict[str, Any]]:
    """Returns the accuracy of each path, if there are several, and how many texts give no answer."""
    given = {view: answers for view, answers in written.items() if view.path}
    paths = {}
    for view, answers in {saved.views[0]: asked.answers, **given}.items():
        correct = _correct(answers.answers, asked.examples, by_value)
        paths[str(view.path)] = {
            "accuracy": float(correct.mean()),
            "accuracy_interval_95": list(bootstrap_interval(correct)),
            "answers_nothing": dict(answers.failures.most_common()),
        }
    return {"paths": paths} if given else {}


def _votes(
    saved: Saved,
    views: Sequence[View],
    asked: _Answered,
    by_value: bool,
    interpreter: Interpreter,
    options: Options,
    directory: Path,
) -> dict[str, Any]:
    """Returns the accuracy of votes of 1, 2, ... samples, for the path of each view and for all together."""
    ballots: dict[str, tuple[list[str], list[float]]] = {}
    nothing: dict[str, dict[str, int]] = {}
    for view in views:
        path, samples = str(view.path), _samples(saved, view, asked, interpreter, options, directory)
        read = [answer_of(view, sample.text, interpreter) for sample in samples]
        ballots[path] = [one.answer for one in read], [sample.log_prob for sample in samples]
        nothing[path] = dict(Counter(one.failure for one in read if one.failure).most_common())
    voters = {path: [its] for path, its in ballots.items()}
    voters["+".join(ballots)] = [*ballots.values()]
    return {
        "samples": options.samples,
        "temperature": options.temperature,
        "seed": options.seed,
        "answers_nothing": nothing,
        "accuracy": {
            name: [
                float(_correct(elected, asked.examples, by_value).mean())
                for elected in elect(paths, len(asked.examples), by_value)
            ]
            for name, paths in voters.items()
        },
    }


def _samples(
    saved: Saved,
    view: View,
    asked: _Answered,
    interpreter: Interpreter,
    options: Options,
    directory: Path,
) -> list[Sample]:
    """Draws the samples of a path, those of a question adjacent; samples_PATH.jsonl holds them."""
    most, examples = options.max_new_tokens or saved.most_tokens(view), asked.examples
    greedy = zip(asked.answers.texts, asked.answers.log_probs.tolist(), strict=True)
    how = {
        "samples": options.samples,
        "temperature": options.temperature,
        "seed": options.seed,
        "max_new_tokens": most,
        # Its answers say which student it is, and which questions these are.
        "student": zlib.crc32("\n".join(f"{text} {log_prob:.2f}" for text, log_prob in greedy).encode()),
    }
    draws = {"samples": options.samples, "sampling": Sampling(options.temperature), "seed": options.seed}
    answerer = _answerer(saved, view, examples, most, interpreter=interpreter, **draws)
    size, file = _batch_size(saved, examples), directory / f"samples_{view.path}.jsonl"
    samples = [*itertools.chain(*draw_samples(answerer, examples, file, how, batch_size=size))]
    if cut := sum(sample.cut for sample in samples):
        print(f"{view.name}: {cut} of {len(samples)} samples cut at {most} tokens", file=sys.stderr)
    return samples


def _estimate(saved: Saved, splits: Splits, split: str) -> InformationEstimate:
    """Returns the estimate of the mutual information of label and rationale view."""
    views = compared(saved.views, saved.config.objective.method)
    if not splits.train:
        raise UserError(f"--mutual_information needs a training set; task={splits.task} has none")
    batch_size = -(-saved.config.evaluation.batch_size // jax.device_count()) * jax.device_count()
    train, held_out = (
        tokenize(views, examples, saved.format, saved.config.data).views
        for examples in (splits.train, getattr(splits, split))
    )
    return InformationEstimate(saved.student, saved.mesh, train, held_out, batch_size=batch_size)


def _calibration(asked: _Confidence, fitted_on: _Confidence | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "accuracy": float(asked.correct.mean()),
        "as_trained": calibration.summary(asked.confidence, asked.correct),
    }
    if fitted_on:
        temperature = fitted_on.temperature()
        found["temperature"] = temperature
        found["scaled"] = calibration.summary(asked.scaled(temperature), asked.correct)
    return found


def _predictions(asked: _Answered, view: View, written: Mapping[View, Answers]) -> Iterator[dict[str, Any]]:
    for n, example in enumerate(asked.examples):
        row: dict[str, Any] = {
            "id": example.id,
            "input": parts_as_json(example.parts),
            "gold": example.label,
            "label": asked.answers.answers[n],
            "correct": bool(asked.correct[n]),
            "confidence": float(asked.confidences["sequence"].confidence[n]),
        }
        if "per_token" in asked.confidences:
            row["confidence_per_token"] = float(asked.confidences["per_token"].confidence[n])
        if view.path == "cot":
            row["rationale"] = rationale_of(view, asked.answers.texts[n])
        for other, answers in written.items():
            row[other.term] = rationale_of(other, answers.texts[n])
            if other.path:
                row[other.path] = answers.answers[n]
        row["teacher_rationale"] = example.rationale
        yield row


def _summary(evaluation: dict[str, Any]) -> list[str]:
    low, high = evaluation["accuracy_interval_95"]
    lines = [
        f"{evaluation['task']} {evaluation['split']}, {evaluation['examples']} questions: accuracy "
        f"{100 * evaluation['accuracy']:.2f} % (95 % bootstrap interval {100 * low:.2f} to {100 * high:.2f})"
    ]
    for name, value in evaluation["metrics"].items():
        if name != "accuracy":
            interval = ""
            if found := evaluation.get(f"{name}_interval_95"):
                interval = " (95 % bootstrap interval {:.3f} to {:.3f})".format(*found)
            lines.append(f"  {name} {value:.3f}{interval}")
    if evaluation["by_value"] and "unmarked_answers" in evaluation:
        share = 100 * evaluation["unmarked_answers"]
        lines.append(f"  {share:.2f} % of the answers are unmarked: the last number was taken")
    for row in evaluation.get("per_class", ()):
        lines.append(
            f"  {row['label']}: precision {row['precision']:.3f}, recall {row['recall']:.3f}, "
            f"F1 {row['f1']:.3f}, {row['questions']} questions"
        )
    for name, found in evaluation["calibration"].items():
        trained = found["as_trained"]
        line = (
            f"confidence by {name}: mean {trained['mean_confidence']:.3f} at accuracy "
            f"{found['accuracy']:.3f}, expected calibration error {trained['expected_calibration_error']:.3f}"
        )
        if "scaled" in found:
            line += (
                f", {found['scaled']['expected_calibration_error']:.3f} at temperature "
                f"{found['temperature']:.2f} fitted on validation"
            )
            if calibration.at_limit(found["temperature"]):
                line += " (limit of the range: the fit has no optimum)"
        lines.append(line)
    for path, found in evaluation.get("paths", {}).items():
        low, high = found["accuracy_interval_95"]
        line = f"path {path}: accuracy {100 * found['accuracy']:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
        lines.append(line + _nothing(found["answers_nothing"]))
    if votes := evaluation.get("votes"):
        for name, accuracies in votes["accuracy"].items():
            shown = ", ".join(
                f"{100 * accuracies[k - 1]:.2f} % of {k}"
                for k in sorted({1, votes["samples"], *(2**n for n in range(votes["samples"].bit_length()))})
            )
            nothing = votes["answers_nothing"].get(name, {})
            lines.append(f"vote of {name}, samples of each path: {shown}" + _nothing(nothing))
    if found := evaluation.get("mutual_information"):
        lines.append(
            f"mutual information of label and rationale view: at least {found['nats']:.2f} nats (InfoNCE, "
            f"at most {found['most_nats']:.2f} with {found['held_out_pairs']} pairs)"
        )
    return lines


def _nothing(failures: dict[str, int]) -> str:
    why = ", ".join(f"{reason} {count:,}" for reason, count in failures.items())
    return f"; {sum(failures.values()):,} without an answer ({why})" if failures else ""


def _draw(evaluation: dict[str, Any], asked: _Answered, directory: Path) -> list[str]:
    pictures = []
    for name, found in asked.confidences.items():
        after = None
        if temperature := evaluation["calibration"][name].get("temperature"):
            after = calibration.equal_width_bins(found.scaled(temperature), found.correct)
        before = calibration.equal_width_bins(found.confidence, found.correct)
        pictures.append(f"reliability_{name}.png")
        title = f"{evaluation['task']} {evaluation['split']}, confidence by {name}"
        draw_reliability(before, after, title, directory / pictures[-1])
    if votes := evaluation.get("votes"):
        pictures.append("votes.png")
        alone = {path: found["accuracy"] for path, found in evaluation.get("paths", {}).items()}
        draw_votes(votes["accuracy"], alone, directory / pictures[-1])
    if "confusion" in evaluation:
        confusion = evaluation["confusion"]
        pictures.append("confusion.png")
        draw_confusion(confusion["columns"], np.array(confusion["counts"]), directory / pictures[-1])
    return pictures
