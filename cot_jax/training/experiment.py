"""From a config to what a run needs: examples, tokenizer, student, token ids, batches."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.answers.sandbox import make_interpreter
from cot_jax.config import LORA_LEARNING_RATE, Config, DataConfig, ModelConfig
from cot_jax.data import selection, tasks, views, word_problems
from cot_jax.data.batches import Batches, TokenizedView
from cot_jax.data.examples import Example
from cot_jax.data.views import View
from cot_jax.errors import UserError
from cot_jax.losses.objective import MutualInformation, Objective, make_objective
from cot_jax.losses.soft_targets import SelfDistillation
from cot_jax.models import student as students
from cot_jax.models.lora import Lora, fingerprint
from cot_jax.models.student import Options, Student
from cot_jax.models.weights import Params
from cot_jax.text import codec, formats
from cot_jax.text.formats import Format
from cot_jax.text.tokenizer import Tokenizer
from cot_jax.training.encoding import fit, learned, tokenize, training_label

# Of a student's architecture: the checksum of the weights that its adapter adapts.
BASE = "base_crc32"

# Room for every word of the generated problems as one piece, which is about 200.
_WORD_PROBLEM_PIECES = 512


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run reads; `report` says in plain lines what was counted on the way."""

    config: Config
    splits: tasks.Splits
    format: Format
    student: Student
    pretrained: Params | None  # None: from scratch
    lora: Lora | None  # None: every parameter is trained
    views: tuple[View, ...]
    train_examples: tuple[Example, ...]
    tokenized: Mapping[str, TokenizedView]  # the training examples
    self_distillation: SelfDistillation | None
    report: tuple[str, ...]

    def batches(self, groups: int) -> Batches:
        """The training batches in so many groups: data-parallel devices times micro-batches."""
        config, distillation = self.config, self.self_distillation
        terms = ("label", "rationale") if _reads_padding(config) else ()
        return Batches(
            self.tokenized,
            batch_size=config.train.batch_size,
            steps=config.train.steps,
            seed=config.seed,
            order=config.data.order,
            overlap=distillation is not None and distillation.distills,
            groups=groups,
            padded=[view.name for view in self.views if view.term in terms],
            flops=self.student.flops,
            pad_id=self.student.pad_id,
        )

    def architecture(self) -> dict[str, Any]:
        """What says of the student all that its parameters, or its adapter, do not."""
        base = {BASE: fingerprint(self.pretrained)} if self.lora and self.pretrained else {}
        return self.student.architecture() | base

    @property
    def answer_view(self) -> View:
        """The view that answers the question at test time."""
        return self.views[0]


def prepare(config: Config, *, weights: bool = True, platform: str = "") -> Experiment:
    """Loads and checks everything `config` names; writes nothing.

    Without `weights` no parameters are read: enough to know what a run would need. `platform` is the one that
    will train, e.g. "tpu"; empty is the one at hand.

    Raises:
      UserError: data, tokenizer or weights that are missing or do not fit.
    """
    config = config.resolved()
    method = views.METHODS[config.objective.method]
    self_distillation = _self_distillation(config, method)
    splits = load_splits(config.data, config.seed)
    format = _load_format(config.model, splits, method)
    train_examples, report = _training_examples(config, splits, method)
    student, pretrained, found = load_student(
        config.model, format.tokenizer, weights=weights, platform=platform
    )
    format = fit(format, method, train_examples, config.data)
    tokenized = tokenize(method, train_examples, format, config.data)
    return Experiment(
        config=config,
        splits=splits,
        format=format,
        student=student,
        pretrained=pretrained,
        tokenized=tokenized.views,
        lora=make_lora(config.model, student),
        views=method,
        train_examples=train_examples,
        self_distillation=self_distillation,
        report=(*splits.report, *report, *tokenized.report, *found, *_check_lora(config, weights)),
    )


def _reads_padding(config: Config) -> bool:
    """Whether the method's loss reads what is decoded behind a target, as the published one does."""
    objective = config.objective
    return objective.method in views.WITH_MUTUAL_INFORMATION and objective.mi_variant == "reference"


def build_objective(experiment: Experiment, batch_axes: tuple[str, ...] = ()) -> Objective:
    """Returns the loss of the configured method (`batch_axes` as in `make_objective`)."""
    config = experiment.config.objective
    terms = {view.name: view.term for view in experiment.views}
    if len(terms) == 1:
        weights = dict.fromkeys(terms.values(), 1.0)
    else:
        weights = {
            "label": config.alpha,
            "rationale": 1.0 - config.alpha,
            "program": config.program_weight,
        }
    mi = None
    if config.method in views.WITH_MUTUAL_INFORMATION:
        by_term = {term: name for name, term in terms.items()}
        mi = MutualInformation(
            label_view=by_term["label"],
            rationale_view=by_term["rationale"],
            weight=config.beta,
            variant=config.mi_variant,
            reduction=config.mi_reduction,
            detach=config.mi_detach,
        )
    return make_objective(
        experiment.student,
        terms,
        weights,
        mi,
        experiment.self_distillation,
        batch_axes,
        experiment.config.train.micro_batches,
    )


def _self_distillation(config: Config, method: Sequence[View]) -> SelfDistillation | None:
    section = config.self_distillation
    if section.method == "none":
        return None
    chosen = tuple(view.name for view in method if section.views in (view.term, "all"))
    if not chosen:
        terms = ", ".join(view.term for view in method)
        raise UserError(
            f"config.self_distillation.views={section.views}, but method={config.objective.method} learns "
            f"{terms} only: choose one of these, or all"
        )
    if config.train.batch_size % 2:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size}: self-distillation needs an even number, "
            "half of each batch was in the one before"
        )
    return SelfDistillation(
        method=section.method,
        views=chosen,
        weight=section.weight,
        temperature=section.temperature,
        output=section.output,
        map_logits=section.map_logits,
        difficulty=section.difficulty,
        uncertainty=section.uncertainty,
        top_k=section.top_k,
        dtype=jnp.dtype(section.dtype),
    )


def answer_labels(experiment: Experiment) -> tuple[str, ...] | None:
    """Returns the labels that answers are chosen among; None where they are written.

    Where the task does not define its labels, they are those of the training split.

    Raises:
      UserError: there is no closed set of labels, or the answer view does not write a label alone.
    """
    splits, view, config = experiment.splits, experiment.answer_view, experiment.config
    if config.evaluation.answers == "generate":
        return None

    def refuse(why: str) -> UserError:
        mend = "take --config.evaluation.answers=generate"
        return UserError(f"config.evaluation.answers=score chooses among labels, but {why}: {mend}")

    if view.term != "label":
        raise refuse(f"method={config.objective.method} writes a rationale first")
    if splits.by_value:
        raise refuse(f"those of task={config.data.task} are equations, an open set")
    labels = splits.label_set or tuple(sorted({example.label for example in splits.train}))
    for example in (*splits.valid, *splits.test):
        if example.label not in labels:
            raise refuse(f"{example.label!r}, that of {example.id}, is none of the training split's")
    return labels


def _load_format(model: ModelConfig, splits: tasks.Splits, method: Sequence[View]) -> Format:
    if source := model.tokenizer or model.pretrained:
        return formats.load(source)
    if splits.task != "word_problems":
        raise UserError(
            "a student from scratch needs a tokenizer: give a directory or repository id with "
            "--config.model.tokenizer=DIR"
        )
    return _train_format(splits, method)


def load_splits(data: DataConfig, seed: int) -> tasks.Splits:
    """Returns the data set that `data` names.

    Raises:
      UserError: files that are missing or do not fit.
    """
    if data.task == "word_problems":
        problems = word_problems.splits(seed=seed, **dataclasses.asdict(data.word_problems))
        splits = tasks.as_splits(data.task, problems, None, by_value=True)
    else:
        _require_root(data)
        splits = tasks.load(data.task, Path(data.root), parser=data.parser, compare=data.compare)
    if data.teacher:
        splits = tasks.taught_by(splits, Path(data.teacher))
    return tasks.only_right(splits) if data.rationales == "right" else splits


def _require_root(data: DataConfig) -> None:
    if data.task != "word_problems" and not data.root:
        raise UserError(
            f"config.data.task={data.task} reads files: give their folder with --config.data.root=DIR"
        )


def _train_format(splits: tasks.Splits, method: Sequence[View]) -> Format:
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
        return formats.train(texts, _WORD_PROBLEM_PIECES, directory)


def _training_examples(
    config: Config, splits: tasks.Splits, method: Sequence[View]
) -> tuple[tuple[Example, ...], list[str]]:
    """Selects the share of the training split that is asked for and that has something to learn."""
    data, report = config.data, []
    if not splits.train:
        raise UserError(
            f"config.data.task={data.task} has a test set only: train on another task and ask its questions "
            f"with `python -m cot_jax.evaluate --workdir=RUN --task={data.task}`"
        )
    examples = list(splits.train)
    keep = round(data.train_fraction * len(examples))
    keep = min(keep, data.max_train_examples or keep)
    if keep < len(examples):
        # The smaller of two shares is part of the larger one.
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
    teachable = [example for example, *some in zip(examples, *has.values(), strict=True) if any(some)]
    if len(teachable) < len(examples):
        report.append(
            f"train: {len(examples) - len(teachable)} examples have nothing to learn and are left out"
        )
    if not teachable:
        raise UserError(
            f"config.objective.method={config.objective.method} has no training example: the data has no "
            f"{data.label_source} labels or rationales that it could learn from"
        )
    if not any(has.get("program", [True])):
        raise UserError(
            f"config.objective.method={config.objective.method} learns from programs, but no training "
            "example has one that answers right: add them to the data, or take another method"
        )
    return tuple(teachable), report


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """Returns the dtype of the arithmetic on this backend."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")


def make_lora(config: ModelConfig, student: Student) -> Lora | None:
    if not config.lora_rank:
        return None
    return Lora(student.weights, rank=config.lora_rank, alpha=config.lora_alpha, targets=config.lora_targets)


def _check_lora(config: Config, weights: bool) -> list[str]:
    """Returns a warning where LoRA would learn next to nothing.

    Raises:
      UserError: it would adapt nothing worth adapting, or by steps that B = 0 makes too small.
    """
    if not config.model.lora_rank:
        return []
    key = f"config.model.lora_rank={config.model.lora_rank}"
    if weights and not config.model.pretrained:
        raise UserError(f"{key} adapts pretrained weights: give them with --config.model.pretrained=DIR")
    if config.optimizer.name == "adafactor":
        raise UserError(
            f"{key} with config.optimizer.name=adafactor: its steps are relative to the parameters, which "
            "begin at 0; take adamw, whose moments of an adapter are small"
        )
    if (rate := config.optimizer.learning_rate) > 1e-4:
        return []
    return [f"warning: {key} learns little at learning rate {rate:g}; usual is {LORA_LEARNING_RATE:g}"]


def load_student(
    config: ModelConfig, tokenizer: Tokenizer, *, weights: bool, platform: str = ""
) -> tuple[Student, Params | None, list[str]]:
    """Returns the student, its parameters where they are pretrained, and lines for the user.

    Raises:
      UserError: weights that are missing or malformed, or a tokenizer that does not fit.
    """
    options = Options(
        dropout_rate=config.dropout_rate,
        dtype=compute_dtype(config),
        unroll=(platform or jax.default_backend()) == "cpu",
        remat=config.remat,
    )
    if not config.pretrained:
        ids = {"vocab_size": tokenizer.size, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
        return students.from_scratch(config.preset, options=options, **ids), None, []
    params: Params | None = None
    report: list[str] = []
    if weights:
        student, params, report = students.from_pretrained(config.pretrained, options)
    else:
        student = students.without_weights(config.pretrained, options)
    if student.outputs < tokenizer.size:
        raise UserError(
            f"{config.pretrained} has {student.outputs} embedding rows but the tokenizer {tokenizer.size} "
            "tokens: use the tokenizer that the model was trained with (--config.model.tokenizer=)"
        )
    return student, params, report
