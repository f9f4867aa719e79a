"""From a config to data: splits, text format and training examples."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cot_jax.answers.sandbox import make_interpreter
from cot_jax.config import Config, DataConfig, ModelConfig
from cot_jax.data import selection, tasks, views, word_problems
from cot_jax.data.examples import Example
from cot_jax.data.views import View
from cot_jax.errors import UserError
from cot_jax.text import codec, formats
from cot_jax.text.formats import Format, in_texts
from cot_jax.training.encoding import learned, training_label

# Enough for every word of the generated problems, about 200, as one piece.
_WORD_PROBLEM_PIECES = 512


def load_splits(data: DataConfig, seed: int, kind: str = "") -> tasks.Splits:
    """Returns the configured data set.

    Args:
      kind: the student's format, a key of `formats.FORMATS`; all but "classes" read one text
        (`tasks.as_text`), as does the default.

    Raises:
      UserError: files are missing or malformed.
    """
    if data.task == "word_problems":
        problems = word_problems.splits(seed=seed, **dataclasses.asdict(data.word_problems))
        splits = tasks.as_splits(data.task, problems, None, by_value=True)
    else:
        _require_root(data)
        splits = tasks.load(data.task, Path(data.root), parser=data.parser, compare=data.compare)
    if data.teacher:
        splits = tasks.taught_by(splits, Path(data.teacher))
    if data.rationales == "right":
        splits = tasks.only_right(splits)
    return splits if kind == "classes" else tasks.as_text(splits)


def _require_root(data: DataConfig) -> None:
    if data.task != "word_problems" and not data.root:
        raise UserError(
            f"config.data.task={data.task} reads files: give their folder with --config.data.root=DIR "
            "(evaluate: --root=DIR)"
        )


def require_sources(config: Config) -> None:
    """Checks, before any file is read, that the config names its data and tokenizer.

    Raises:
      UserError: one of them is missing.
    """
    _require_root(config.data)
    if config.data.task != "word_problems" and not (config.model.tokenizer or config.model.pretrained):
        raise UserError(
            "a student from scratch needs a tokenizer: give a directory or repository id with "
            "--config.model.tokenizer=DIR"
        )


def load_format(
    model: ModelConfig, data: DataConfig, splits: tasks.Splits, method: Sequence[View], kind: str
) -> Format:
    """Returns the format with the configured tokenizer, or one trained on word problems.

    Raises:
      UserError: there is no tokenizer, or it does not suit the format.
    """
    classes = _classes(splits, method) if kind == "classes" else None
    if source := model.tokenizer or model.pretrained:
        return formats.load(source, kind, data.chat, classes)
    if data.chat == "template":
        raise UserError(
            "config.data.chat=template: the tokenizer trained on word problems has no chat template; use "
            "plain, or a model with a template (--config.model.pretrained=DIR)"
        )
    return _train_format(splits, method, kind)


def _classes(splits: tasks.Splits, method: Sequence[View]) -> dict[str, Any]:
    """Returns what a format of classes needs to know about the data."""
    if any(view.term != "label" for view in method):
        label_only = [name for name, its in views.METHODS.items() if all(v.term == "label" for v in its)]
        raise UserError(
            "the student is an encoder: it chooses a label and writes no rationale or program; use "
            f"--config.objective.method={' or '.join(label_only)}"
        )
    labels = closed_labels(splits, "the student is an encoder, which chooses among labels")
    examples = (*splits.train, *splits.valid, *splits.test)
    parts = len(examples[0].parts)
    for example in examples:
        if len(example.parts) != parts:
            raise UserError(
                f"task={splits.task}: the input of {example.id} has {in_texts(len(example.parts))}, that of "
                f"{examples[0].id} has {parts}: an encoder needs the same number in all rows"
            )
    return {"labels": labels, "parts": parts, "multiple_choice": splits.multiple_choice}


def closed_labels(splits: tasks.Splits, why: str) -> tuple[str, ...]:
    """Returns the labels of a classification: the task's or, if it defines none, the training split's.

    Args:
      why: the reason for the need, for the error message.

    Raises:
      UserError: answers are open, there is only one label, or an example has an unknown one.
    """
    if splits.by_value:
        raise UserError(f"{why}, but those of task={splits.task} are equations, an open set")
    labels = splits.label_set or tuple(sorted({example.label.strip() for example in splits.train}))
    if len(labels) < 2:
        raise UserError(f"{why}, but task={splits.task} has {len(labels)} in its training split")
    for example in (*splits.train, *splits.valid, *splits.test):
        if example.label.strip() not in labels:
            known = ", ".join(labels) if len(labels) <= 20 else f"the {len(labels):,} of the training split"
            raise UserError(f"{why}, but the label of {example.id}, {example.label!r}, is not one of {known}")
    return labels


def _train_format(splits: tasks.Splits, method: Sequence[View], kind: str) -> Format:
    # The methods without programs share a tokenizer.
    prefixes = {v.prefix for m in views.METHODS.values() for v in m if v.term != "program" or v in method}
    marks = [views.ANSWER_MARK, *sorted(prefixes)]
    texts = [
        text
        for example in splits.train
        for text in (
            *example.parts,
            example.label,
            *example.rationales,
            *map(codec.encode, example.programs),
            *marks,
        )
    ]
    with tempfile.TemporaryDirectory() as directory:
        return formats.train(texts, _WORD_PROBLEM_PIECES, directory, kind)


def training_examples(
    config: Config, splits: tasks.Splits, method: Sequence[View]
) -> tuple[tuple[Example, ...], list[str]]:
    """Returns the configured share of the training split, without examples that teach nothing, and a report.

    Raises:
      UserError: nothing is left, or no example has what a view of the method learns from.
    """
    data, report = config.data, []
    if not splits.train:
        raise UserError(
            f"config.data.task={data.task} has a test set only: train on another task and evaluate with "
            f"`python -m cot_jax.evaluate RUN --task={data.task}`"
        )
    examples = list(splits.train)
    keep = round(data.train_fraction * len(examples))
    keep = min(keep, data.max_train_examples or keep)
    if not keep:
        raise UserError(
            f"config.data.train_fraction={data.train_fraction:g} keeps none of the {len(examples):,} "
            "training examples: raise it"
        )
    if keep < len(examples):
        # A smaller share is a subset of a larger one.
        chosen = np.sort(np.random.default_rng(config.seed).permutation(len(examples))[:keep])
        examples = [examples[i] for i in chosen]
        report.append(f"train: {keep} of {len(splits.train)} examples kept by config.data")
    if any(view.term == "program" for view in method):
        labels = [training_label(example, data.label_source) for example in examples]
        interpreter = make_interpreter(data.sandbox)
        examples, line = selection.keep_right_programs(examples, labels, splits.by_value, interpreter)
        report.append(f"train: {line}")
    has = {
        view.name: [bool(learned(view, example, data.label_source)) for example in examples]
        for view in method
    }
    for view in method:
        if not any(has[view.name]):
            raise _nothing_to_learn(view, examples, config)
    teachable = [example for example, *some in zip(examples, *has.values(), strict=True) if any(some)]
    if len(teachable) < len(examples):
        report.append(
            f"train: {len(examples) - len(teachable)} examples have nothing to learn and are left out"
        )
    return tuple(teachable), report


def _nothing_to_learn(view: View, examples: Sequence[Example], config: Config) -> UserError:
    """Returns the error for a view that none of the training examples suits."""
    data, with_label = config.data, ""
    if view.path in ("label", "cot") and data.label_source == "teacher":
        if all(example.teacher_label is None for example in examples):
            return UserError(
                "config.data.label_source=teacher, but no training example has a teacher's label: add them "
                "with config.data.teacher=FILE (field 'label'), or use gold"
            )
        with_label = " with a teacher's label"
    name, which = ("program", "a correct one") if view.term == "program" else ("rationale", "one")
    if name == "rationale" and data.rationales == "right":
        which = "one with a correct teacher's label (config.data.rationales=right)"
    return UserError(
        f"config.objective.method={config.objective.method} learns from {name}s, but no training example"
        f"{with_label} has {which}: add the field {name!r}, or a list '{name}s', to the data or to "
        "config.data.teacher=FILE, or use another method"
    )
