"""A run: an experiment compiled for a device mesh, with its batches and its evaluation."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.answers.equality import accuracy
from cot_jax.batch import Batch
from cot_jax.data.batches import Ragged, question_shapes
from cot_jax.data.examples import Example
from cot_jax.data.lengths import describe
from cot_jax.losses.soft_targets import LastBatch
from cot_jax.metrics.classification import scores
from cot_jax.models.weights import Params, init, shapes
from cot_jax.training.checkpoints import Checkpoints
from cot_jax.training.compiled import CompiledAhead, compiler_options
from cot_jax.training.console import say
from cot_jax.training.encoding import encode_questions, tokenize
from cot_jax.training.evaluation import Answers, Generate, answer_questions, make_choose, make_generate
from cot_jax.training.experiment import Experiment, build_objective
from cot_jax.training.information import InformationEstimate, compared
from cot_jax.training.mesh import (
    BATCH_AXES,
    abstract,
    by_example,
    by_weights,
    group_count,
    make_mesh,
    of_state,
    replicated,
    require_divisible,
    spread,
)
from cot_jax.training.optimizer import make_optimizer
from cot_jax.training.step import Frozen, TrainState, init_state, make_train_step

# Steps searched for the shapes to compile ahead: nearly all appear early, and the search takes time.
_LOOK_AHEAD = 500


class Run:
    """An experiment on a device mesh.

    Its `params` are the trained ones: with LoRA the adapter.
    """

    def __init__(self, experiment: Experiment, devices: Sequence[jax.Device] | None = None):
        """
        Args:
          devices: None: all. Devices that do not exist are good for `compile` only.

        Raises:
          UserError: the batch or a dimension is not divisible among them.
        """
        config = experiment.config
        self.experiment = experiment
        # If half of a batch repeats the one before, each device gets as many rows of either half.
        parts = (2 if experiment.overlaps else 1) * config.train.micro_batches
        self.mesh = make_mesh(config.mesh, devices)
        require_divisible(self.mesh, config.train.batch_size, parts)
        require_divisible(self.mesh, config.evaluation.batch_size)
        self.batches = experiment.batches(group_count(self.mesh) * config.train.micro_batches)
        student, lora = experiment.student, experiment.lora
        trained = lora.weights if lora else student.weights
        optimizer = make_optimizer(config.optimizer, config.train.steps, trained)
        whole, self._batch_sharding = replicated(self.mesh), by_example(self.mesh)
        given = experiment.adapter if lora else experiment.pretrained

        def create(given):
            init_rng, step_rng = jax.random.split(jax.random.key(config.seed))
            params = lora.init(init_rng, given) if lora else init(student.weights, init_rng, given)
            return init_state(params, optimizer, step_rng, self._empty_last_batch())

        like = jax.eval_shape(create, given)
        state_sharding = of_state(self.mesh, like, trained, experiment.self_distillation)
        self._abstract_state = abstract(like, state_sharding)
        # Each device initialises its own shard of every parameter.
        create = jax.jit(create, out_shardings=state_sharding)
        self._create = lambda: create(given and spread(given, by_weights(self.mesh, given, trained)))
        teacher = experiment.teacher
        self._frozen_sharding = Frozen(
            by_weights(self.mesh, self._frozen_shapes.base, student.weights) if lora else None,
            by_weights(self.mesh, self._frozen_shapes.teacher, teacher.weights) if teacher else None,
        )
        self._step = jax.jit(
            make_train_step(
                build_objective(experiment, BATCH_AXES),
                optimizer,
                lora.attach if lora else None,
                with_layer_norms=config.train.layer_norms_every > 0,
            ),
            in_shardings=(state_sharding, self._batch_sharding, self._frozen_sharding),
            out_shardings=(state_sharding, whole),
            donate_argnums=0,
            compiler_options=compiler_options(self.mesh.devices.flat[0].platform),
        )
        self._generate = self._make_generate()
        self._information = self._make_information() if config.evaluation.mutual_information else None
        self._questions: dict[str, Ragged] = {}

    def _make_generate(self) -> Generate:
        student, evaluation = self.experiment.student, self.experiment.config.evaluation
        if (labels := self.experiment.answer_labels()) is None:
            return make_generate(student, self.mesh, evaluation.max_new_tokens, evaluation.beams)
        view, most = self.experiment.answer_view, self.experiment.config.data.max_target_tokens
        encoded = self.experiment.format.targets(view.name, labels, most)
        say(f"labels: {encoded.report}")
        return make_choose(student, self.mesh, Ragged(encoded.ids))

    def _make_information(self) -> InformationEstimate:
        experiment, config = self.experiment, self.experiment.config
        views = compared(experiment.views, config.objective.method)
        held_out = tokenize(views, self.examples("valid"), experiment.format, config.data)
        train = {view.name: experiment.tokenized[view.name] for view in views}
        estimate = InformationEstimate(
            experiment.student, self.mesh, train, held_out.views, batch_size=config.evaluation.batch_size
        )
        trained_on, judged_on = estimate.counts
        say(
            f"mutual information: critic trained on {trained_on} examples, evaluated on {judged_on}, shows "
            f"at most {estimate.most:.2f} nats"
        )
        return estimate

    @property
    def _frozen_shapes(self) -> Frozen:
        """Shapes of the frozen parameters: the pretrained weights below an adapter, and the teacher's."""
        experiment = self.experiment
        dtype = jnp.dtype(experiment.config.model.frozen_dtype)
        student = shapes(experiment.student.weights)
        base = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), student)
        teacher = shapes(experiment.teacher.weights) if experiment.teacher else None
        return Frozen(base if experiment.lora else None, teacher)

    @property
    def parameters(self) -> int:
        """Number of the student's parameters."""
        return sum(math.prod(weight.shape) for weight in self.experiment.student.weights.values())

    @property
    def trained_parameters(self) -> int:
        return sum(math.prod(x.shape) for x in jax.tree.leaves(self._abstract_state.params))

    @functools.cached_property
    def _frozen(self) -> Frozen:
        """The frozen parameters, on the mesh."""
        base = self.experiment.pretrained if self.experiment.lora else None
        teaching = self.experiment.teaching
        given = Frozen(base, teaching.params if teaching else None)
        narrowed = jax.tree.map(lambda x, like: x.astype(like.dtype), given, self._frozen_shapes)
        return spread(narrowed, self._frozen_sharding)

    @property
    def stored_bytes(self) -> int:
        """Memory of the outputs that self-distillation stores, over all devices."""
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self._abstract_state.last_batch))

    def _empty_last_batch(self) -> LastBatch | None:
        experiment, distillation = self.experiment, self.experiment.self_distillation
        if distillation is None or not distillation.distills:
            return None
        widths = np.max(self.batches.shapes, axis=0)[:, 1, 1].tolist()
        return distillation.empty(
            experiment.config.train.batch_size // 2,
            experiment.student.outputs,
            dict(zip(self.batches.views, widths, strict=True)),
        )

    def abstract_arguments(self) -> tuple[TrainState, Batch, Frozen]:
        """Shapes and shardings of the step's arguments, with the batch of the costliest shape."""
        batch = self.batches.largest()
        frozen = abstract(self._frozen_shapes, self._frozen_sharding)
        return self._abstract_state, abstract(batch, self._batch_sharding), frozen

    def compile(self) -> jax.stages.Compiled:
        """Returns the step, compiled for `abstract_arguments`."""
        with jax.set_mesh(self.mesh):
            return self._step.lower(*self.abstract_arguments()).compile()

    def initial_state(self) -> TrainState:
        return self._create()

    def restore_latest(self, checkpoints: Checkpoints) -> TrainState:
        return checkpoints.restore_latest(self._abstract_state)

    def restore_best(self, checkpoints: Checkpoints) -> Params:
        return checkpoints.restore_best(self._abstract_state.params)

    def batch(self, step: int) -> Batch:
        """Returns the batch of training step `step` (from 0), on the mesh."""
        return spread(self.batches(step), self._batch_sharding)

    def compiled_ahead(self, first: int) -> CompiledAhead:
        """Returns the step, which donates the state, compiling in the background from step `first` on."""
        batches, found = self.batches, {}
        for step in range(first, min(first + _LOOK_AHEAD, self.experiment.config.train.steps)):
            if (name := describe(batches.shape(step))) not in found:
                found[name] = abstract(batches(step), self._batch_sharding)
            if len(found) == len(batches.shapes):
                break
        return CompiledAhead(self._step, self.mesh, self._abstract_state, found, self._frozen)

    def examples(self, split: str) -> tuple[Example, ...]:
        examples = tuple(getattr(self.experiment.splits, split))
        most = self.experiment.config.evaluation.max_examples
        return examples[:most] if split == "valid" and most else examples

    def answer(self, params: Params, split: str, before_batch: Callable[[], None] = lambda: None) -> Answers:
        """Returns the answers of a student with `params` to the split's questions.

        `before_batch` is called before each batch of questions; what it raises ends the evaluation.
        """
        experiment, config = self.experiment, self.experiment.config
        if split not in self._questions:
            self._questions[split], line = encode_questions(
                experiment.answer_view,
                self.examples(split),
                experiment.format,
                config.data.max_input_tokens,
            )
            say(f"{split} questions: {line}")
        questions, batch_size = self._questions[split], config.evaluation.batch_size
        question_shape = question_shapes(
            questions,
            batch_size=batch_size,
            groups=group_count(self.mesh),
            new_tokens=config.evaluation.max_new_tokens,
            flops=experiment.student.flops,
        )

        def generate(params, tokens):
            before_batch()
            return self._generate(params, tokens)

        return answer_questions(
            generate,
            params,
            questions,
            experiment.answer_view,
            experiment.format,
            student=experiment.student,
            mesh=self.mesh,
            batch_size=batch_size,
            shapes=question_shape,
        )

    def evaluate(
        self, params: Params, split: str, before_batch: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Returns the scores of a student with `params` on a split, by name; `before_batch` as in `answer`.

        `SPLIT/METRIC` for each metric of the task; on validation also `valid/mutual_information` in nats
        (`InformationEstimate`), if the config asks for it.
        """
        if self.experiment.lora and self._frozen.base:
            params = self.experiment.lora.attach(self._frozen.base, params)
        labels = [example.label for example in self.examples(split)]
        answers = self.answer(params, split, before_batch)
        if cut := answers.cut.sum():
            limit = f"config.evaluation.max_new_tokens={self.experiment.config.evaluation.max_new_tokens}"
            say(f"{split}: {cut} of {len(labels)} answers cut at {limit}")
        splits = self.experiment.splits
        if splits.metrics == ("accuracy",):
            found = {"accuracy": accuracy(answers.answers, labels, splits.by_value)}
        else:
            found = scores(splits.metrics, labels, answers.answers, splits.label_set or ())
        row = {f"{split}/{name}": value for name, value in found.items()}
        if self._information and split == "valid":
            row["valid/mutual_information"] = self._information(params)
        return row
