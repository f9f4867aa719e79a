"""From a config to an experiment: examples, format, student, token ids and loss."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cot_jax.config import Config
from cot_jax.data import tasks, views
from cot_jax.data.batches import Batches, TokenizedView
from cot_jax.data.examples import Example
from cot_jax.data.views import View
from cot_jax.errors import UserError
from cot_jax.losses.objective import MutualInformation, Objective, make_objective
from cot_jax.losses.soft_targets import SelfDistillation
from cot_jax.models.lora import Lora, fingerprint
from cot_jax.models.student import Student
from cot_jax.models.weights import Params
from cot_jax.text.formats import Format
from cot_jax.training.data import closed_labels, load_format, load_splits, require_sources, training_examples
from cot_jax.training.encoding import fit, tokenize
from cot_jax.training.evaluation import require_positions
from cot_jax.training.students import BASE, LORA, check_lora, family, load_student, make_lora
from cot_jax.training.teachers import Loaded, Stored, load_teacher


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run reads; `report` lists the counts made while loading."""

    config: Config
    splits: tasks.Splits
    format: Format
    student: Student
    pretrained: Params | None  # None: from scratch
    lora: Lora | None  # None: every parameter is trained
    adapter: Params | None  # the initial adapter; None: a fresh one
    views: tuple[View, ...]
    train_examples: tuple[Example, ...]
    tokenized: Mapping[str, TokenizedView]  # the training examples
    self_distillation: SelfDistillation | None
    teaching: Loaded | None  # a teacher in the step
    report: tuple[str, ...]

    def batches(self, groups: int) -> Batches:
        """Returns the training batches; `groups`: data-parallel devices times micro-batches."""
        config = self.config
        terms = ("label", "rationale") if _reads_padding(config) else ()
        return Batches(
            self.tokenized,
            batch_size=config.train.batch_size,
            steps=config.train.steps,
            seed=config.seed,
            order=config.data.order,
            overlap=self.overlaps,
            groups=groups,
            padded=[view.name for view in self.views if view.term in terms],
            flops=self.student.flops,
            pad_id=self.student.pad_id,
        )

    def architecture(self) -> dict[str, Any]:
        """Returns the student's architecture and, for an adapter, the checksum of the pretrained weights."""
        adapts = {}
        if self.lora and self.pretrained:
            adapts = {BASE: fingerprint(self.pretrained), LORA: self.lora.settings}
        return self.student.architecture() | adapts

    def checksum(self) -> int:
        """Returns the checksum of the tokenized training examples."""
        crc = 0
        for view in self.tokenized.values():
            crc = view.checksum(crc)
        return crc

    @property
    def selecting(self) -> str:
        """The name of the score that selects the best parameters."""
        return f"valid/{self.splits.metrics[0]}"

    @property
    def overlaps(self) -> bool:
        """Whether half of each batch repeats the one before."""
        return _overlaps(self.self_distillation)

    @property
    def teacher(self) -> Student | Stored | None:
        """The teacher in the step, if there is one."""
        return self.teaching.student if self.teaching else None

    @property
    def steps_an_epoch(self) -> float:
        """Steps in which every example is newly drawn once."""
        return _steps_an_epoch(self.config, self.self_distillation, len(self.train_examples))

    @property
    def answer_view(self) -> View:
        """The view that answers the question at test time."""
        return self.views[0]

    def answer_labels(self) -> tuple[str, ...] | None:
        """Returns the labels to choose among; None if the student writes its answers.

        Raises:
          UserError: labels are not a closed set, or the answer view does not write a label alone.
        """
        why = "config.evaluation.answers=score, unlike generate, chooses among labels"
        if self.config.evaluation.answers == "generate":
            return None
        if self.answer_view.term != "label":
            method = self.config.objective.method
            raise UserError(f"{why}, but method={method} writes a rationale first")
        return closed_labels(self.splits, why)


def prepare(config: Config, *, weights: bool = True, platform: str = "") -> Experiment:
    """Loads and checks everything `config` names; writes nothing.

    Args:
      weights: whether to read parameters; plans do without.
      platform: that will train, e.g. "tpu"; empty: this machine's.

    Raises:
      UserError: data, tokenizer or weights are missing or do not fit together.
    """
    require_sources(config)
    of_family = family(config.model)
    config = config.resolved(of_family.usual)
    method = views.METHODS[config.objective.method]
    self_distillation = _self_distillation(config, method)
    splits = load_splits(config.data, config.seed, of_family.format)
    format = load_format(config.model, config.data, splits, method, of_family.format)
    train_examples, report = training_examples(config, splits, method)
    config = config.scheduled(_steps_an_epoch(config, self_distillation, len(train_examples)))
    student, pretrained, found = load_student(config.model, format, weights=weights, platform=platform)
    format = fit(format, method, train_examples, config.data)
    tokenized = tokenize(method, train_examples, format, config.data)
    for view in tokenized.views.values():
        require_positions(student, view.inputs)
    lora, adapter = make_lora(config.model, student)
    return Experiment(
        config=config,
        splits=splits,
        format=format,
        student=student,
        pretrained=pretrained,
        tokenized=tokenized.views,
        lora=lora,
        adapter=adapter,
        views=method,
        train_examples=train_examples,
        self_distillation=self_distillation,
        teaching=load_teacher(config, student, format, train_examples),
        report=(*splits.report, *report, *tokenized.report, *found, *check_lora(config, weights)),
    )


def _overlaps(distillation: SelfDistillation | None) -> bool:
    return distillation is not None and distillation.distills


def _steps_an_epoch(config: Config, distillation: SelfDistillation | None, examples: int) -> float:
    return examples / (config.train.batch_size // (2 if _overlaps(distillation) else 1))


def _reads_padding(config: Config) -> bool:
    """Whether the loss reads padding behind a target, as the published one does."""
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
        experiment.teaching.matched if experiment.teaching else None,
        _class_weights(experiment),
    )


def _class_weights(experiment: Experiment) -> np.ndarray | None:
    """(V,) n / (K n_c) for each of K classes, n_c of n training examples having class c; None: no weights."""
    student = experiment.student
    if experiment.config.objective.class_weights == "none":
        return None
    if student.format != "classes":
        raise UserError(
            "config.objective.class_weights=balanced is for students that choose among classes; this one "
            "writes: use none"
        )
    view = next(view.name for view in experiment.views if view.term == "label")
    targets = experiment.tokenized[view].targets
    classes = [targets[row][0] for row in np.flatnonzero(targets.lengths).tolist()]
    count_V = np.bincount(classes, minlength=student.outputs)
    if not count_V.all():
        empty = experiment.format.decode(view, [int(np.argmin(count_V))])
        raise UserError(
            f"config.objective.class_weights=balanced: class {empty} has no training example; use none, or "
            "add an example"
        )
    return len(classes) / (student.outputs * count_V)


def _self_distillation(config: Config, method: Sequence[View]) -> SelfDistillation | None:
    section = config.self_distillation
    if section.method == "none":
        return None
    chosen = tuple(view.name for view in method if section.views in (view.term, "all"))
    if not chosen:
        terms = ", ".join(view.term for view in method)
        raise UserError(
            f"config.self_distillation.views={section.views}, but method={config.objective.method} learns "
            f"{terms} only: use one of these, or all"
        )
    if config.train.batch_size % 2:
        raise UserError(
            f"config.train.batch_size={config.train.batch_size}: self-distillation needs an even batch size, "
            "half of each batch repeats the one before"
        )
    return SelfDistillation(**vars(section) | {"views": chosen, "dtype": jnp.dtype(section.dtype)})
