"""The training objective: named terms over the views of a batch, and their weighted sum."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cot_jax import backend
from cot_jax.batch import Batch, Segments, ViewArrays
from cot_jax.losses.mutual_information import losses, map_length, mutual_information_loss
from cot_jax.losses.soft_targets import (
    Distilled,
    LastBatch,
    SelfDistillation,
    Teacher,
    gradient_loss,
    left,
    patience_loss,
    right,
    teacher_loss,
)
from cot_jax.losses.vocabulary import (
    MapLoss,
    VocabularyMap,
    cross_entropy_pass,
    logits,
    matching_pass,
    vocabulary_pass,
)
from cot_jax.models.student import Student
from cot_jax.models.weights import Params


class Found(NamedTuple):
    """What an objective returns beside its value.

    Attributes:
      terms: the summands before weighting, float32 scalars. Those of soft targets are sums over the views,
        weighted as the views' cross-entropies; "self_distillation" also with its own weight.
      diagnostics: other float32 scalars to log.
      last_batch: what the next step needs of this one, or None.
    """

    terms: dict[str, jax.Array]
    diagnostics: dict[str, jax.Array]
    last_batch: LastBatch | None


# (params, batch, dropout key or None, last batch or None, the teacher's parameters or None)
Objective = Callable[..., tuple[jax.Array, Found]]


@dataclasses.dataclass(frozen=True)
class MutualInformation:
    """The mutual-information term between two views (see `losses.mutual_information`)."""

    label_view: str
    rationale_view: str
    weight: float
    variant: str
    reduction: str
    detach: str

    def differentiates(self, view: str) -> bool:
        """Whether the term has a gradient through the view's map."""
        sides = {self.label_view: "label", self.rationale_view: "rationale"}
        return view in sides and sides[view] != self.detach

    def against(self, target: jax.Array, map_: jax.Array) -> jax.Array:
        """The losses (...) of maps (..., V) that have a gradient, against those that have none."""
        sides = (target, map_) if self.detach == "label" else (map_, target)
        return losses(*sides, self.variant)


def make_objective(
    student: Student,
    terms: Mapping[str, str],
    weights: Mapping[str, float],
    mutual_information: MutualInformation | None = None,
    self_distillation: SelfDistillation | None = None,
    batch_axes: tuple[str, ...] = (),
    micro_batches: int = 1,
    teacher: Teacher | None = None,
    class_weights: ArrayLike | None = None,
) -> Objective:
    """Builds the loss of a method.

    Each view's term is a cross-entropy, the mean over all real target tokens of the batch (Hsieh et al. 2023,
    Eq. 3-4). The total is `sum(weight * term)`, plus the mutual-information term of methods that have one
    (Chen et al. 2024, Eq. 10). Self-distillation adds its term to the cross-entropy of each of its views,
    under the same weight. So does a teacher, which also scales down every cross-entropy
    (`soft_targets.Teacher`).

    Args:
      terms: view name -> name of its cross-entropy.
      weights: name of a cross-entropy -> its weight in the total.
      batch_axes: axes of the ambient mesh that shard batches (see `vocabulary_pass`).
      micro_batches: parts in which the batch goes through the student (`hidden_in_parts`).
      class_weights: (V,), weights of the tokens in the term "label"; None: all equal.

    Returns:
      A pure function (params, batch, dropout key or None, last batch or None, the teacher's parameters or
      None) -> (total, Found). Examples with nothing to learn (`learned` 0) count in no term.
    """
    mi = mutual_information
    # The cross-entropies' share beside a teacher.
    share = 1 - teacher.weight if teacher else 1.0
    patient = teacher is not None and bool(teacher.layers)
    sensitive = patient and teacher is not None and teacher.gradient_weight > 0
    class_weight_V = None if class_weights is None else jnp.asarray(class_weights, jnp.float32)

    def objective(params, batch, dropout_rng, last_batch, teacher_params=None):
        head_DV = student.head(params)
        if sensitive:
            hidden, layers, gradients = with_gradients(student, params, batch, dropout_rng)
        else:
            hidden, layers = hidden_in_parts(student, params, batch, dropout_rng, micro_batches, patient)
        linked_h = None if last_batch is None else left(batch.example) == last_batch.example_h
        total = jnp.float32(0)
        values: dict[str, jax.Array] = {}
        maps: dict[str, jax.Array] = {}
        distilled: dict[str, Distilled] = {}
        if mi:
            views = batch.views
            counts_GE = (views[mi.label_view].learned > 0) & (views[mi.rationale_view].learned > 0)
        # The side of the mutual information without a gradient comes first: it is the other one's target.
        for name in sorted(terms, key=lambda name: mi is not None and mi.differentiates(name)):
            term, view = terms[name], batch.views[name]
            sd = self_distillation if self_distillation and name in self_distillation.views else None
            wanted = {}
            if mi and name in (mi.label_view, mi.rationale_view):
                wanted["mi"] = VocabularyMap(mi.reduction, map_length(mi.variant, view))
            if sd and sd.distills and sd.output == "vmm":
                wanted["sum"] = VocabularyMap("sum", view.learned)
            options: Any = {"entropy": sd is not None and sd.dynamic, "batch_axes": batch_axes}
            inputs = (hidden[name], head_DV, view.targets)
            weight_GY = token_weight(view, class_weight_V if term == "label" else None)
            # A GPU's host would wait for the bounds of a loop.
            matches = not sd and backend.platform() != "gpu"
            if mi and mi.differentiates(name) and mi.detach != "none" and matches:
                (target_GEV,), mean_GE = maps.values(), counts_GE / jnp.maximum(counts_GE.sum(), 1)
                matched = MapLoss(wanted["mi"], mi.against, target_GEV, mi.weight * mean_GE)
                scaled_GY = share * weights[term] * weight_GY
                joint, nll_GY, loss_GE = matching_pass(*inputs, scaled_GY, matched, batch_axes=batch_axes)
                values |= {term: jnp.sum(weight_GY * nll_GY), "mi": jnp.sum(mean_GE * loss_GE)}
                total += joint
                continue
            general = (mi and mi.differentiates(name)) or (sd and sd.differentiates_outputs)
            if general:
                passed = vocabulary_pass(*inputs, wanted, **options)
            else:
                values[term], passed = cross_entropy_pass(*inputs, weight_GY, wanted, **options)
            if "mi" in passed.maps:
                maps[name] = passed.maps["mi"]
            if sd:
                stored = last_batch.outputs[name] if last_batch else None
                states = (hidden[name], head_DV)
                distilled[name] = found = sd(passed, *states, view, stored, linked_h, batch_axes)
                total += weights[term] * found.loss
            if general:
                if sd and (example_weight_GE := distilled[name].example_weight_GE) is not None:
                    weight_GY *= Segments.of(view.targets).spread(example_weight_GE)
                values[term] = jnp.sum(weight_GY * passed.nll_GY)
            total += share * weights[term] * values[term]
        if mi and "mi" not in values:
            values["mi"] = mutual_information_loss(
                maps[mi.label_view], maps[mi.rationale_view], counts_GE, variant=mi.variant, detach=mi.detach
            )
            total += mi.weight * values["mi"]
        if teacher:
            if sensitive:
                taught, of_layers, of_teacher = with_gradients(teacher.model, teacher_params, batch, None)
            else:
                taught, of_layers = hidden_in_parts(
                    teacher.model, teacher_params, batch, None, micro_batches, patient
                )
            teacher_head_DV = teacher.head(teacher_params)
            for name, term in terms.items():
                view = batch.views[name]
                sides = (hidden[name], head_DV, taught[name], teacher_head_DV)
                losses = {"distillation": teacher_loss(*sides, token_weight(view), teacher.temperature)}
                if patient:
                    counts_GX, counts_GC = _counted(view, layers[name].shape[2])
                    states = (layers[name], of_layers[name])
                    losses["patience"] = patience_loss(*states, counts_GC, teacher.layers)
                    if sensitive:
                        slopes = (gradients[name], of_teacher[name])
                        losses["gradient"] = gradient_loss(*slopes, counts_GX, counts_GC, teacher.layers)
                for part, loss in losses.items():
                    values[part] = values.get(part, jnp.float32(0)) + weights[term] * loss
            total += teacher.weight * values["distillation"]
            total += teacher.layer_weight * values["patience"] if patient else 0
            total += teacher.gradient_weight * values["gradient"] if sensitive else 0
        if last_batch is not None:
            weighted = [weights[terms[name]] * found.loss for name, found in distilled.items()]
            values["self_distillation"] = jnp.sum(jnp.stack(weighted))
            outputs = {name: found.outputs for name, found in distilled.items()}
            last_batch = LastBatch(right(batch.example), outputs)
        diagnostics = {}
        if distilled:  # means over the views
            per_view = [found.diagnostics for found in distilled.values()]
            diagnostics = jax.tree.map(lambda *of_views: sum(of_views) / len(of_views), *per_view)
        return total, Found(values, diagnostics, last_batch)

    return objective


def hidden_in_parts(
    student: Any,
    params: Params,
    batch: Batch,
    dropout_rng: jax.Array | None,
    parts: int,
    with_layers: bool = False,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """`student.hidden` of a batch, computed for one part of its groups at a time.

    With `with_layers` the second output is that of an encoder's `hidden_and_layers`, else it is empty.

    Only one part's activations are in memory at a time; the backward pass recomputes each part. The losses
    see the whole batch, so gradients are those of one large batch for every method. Accumulating gradients of
    small batches would differ if a loss couples examples.

    Raises:
      ValueError: the number of groups is not a multiple of `parts`.
    """

    def whole(batch):
        if with_layers:
            return student.hidden_and_layers(params, batch, dropout_rng)
        return student.hidden(params, batch, dropout_rng), {}

    if parts == 1:
        return whole(batch)
    G = len(batch.example)
    if G % parts:
        raise ValueError(f"{G} groups do not divide into {parts} parts")

    # Part p has the groups p, p + parts, ...: some of each device, so none moves to another device.
    def split(x):
        return x.reshape(G // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(G, *x.shape[2:])

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(whole), jax.tree.map(split, batch)))


def with_gradients(
    student: Any, params: Params, batch: Batch, dropout_rng: jax.Array | None
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], dict[str, tuple[jax.Array, jax.Array]]]:
    """An encoder's `hidden_and_layers`, and by view the gradients of the largest probability by its states.

    Those are the embedded tokens (G, X, D) and the first tokens after all layers but the last (N - 1, G, C,
    D). They can be differentiated again.
    """

    def confidence(added):
        states, layers = student.hidden_and_layers(params, batch, dropout_rng, added)
        largest = jnp.float32(0)
        for name, view in batch.views.items():
            probabilities_GYK = jax.nn.softmax(logits(states[name], student.head(params)))
            learned_GY = Segments.of(view.targets).within(view.learned)
            largest += jnp.sum(jnp.max(probabilities_GYK, axis=-1), where=learned_GY)
        return largest, (states, layers)

    gradients, found = jax.grad(confidence, has_aux=True)(student.nothing_added(batch))
    return *found, gradients


def _counted(view: ViewArrays, sequences: int) -> tuple[jax.Array, jax.Array]:
    """(G, X) and (G, C) bool, the tokens and sequences of examples with something to learn."""
    learns_GE, inputs = view.learned > 0, Segments.of(view.inputs)
    learns_GC = jnp.repeat(learns_GE, sequences // learns_GE.shape[1], axis=1)
    return inputs.spread(learns_GE) & inputs.real_GX, learns_GC


def token_weight(view: ViewArrays, class_weight_V: jax.Array | None = None) -> jax.Array:
    """(G, Y), the weights of a mean over the learned tokens of the whole batch; all 0 if there are none.

    With class weights the mean is weighted, as in PyTorch's `CrossEntropyLoss(weight=)`.
    """
    learned_GY = Segments.of(view.targets).within(view.learned)
    if class_weight_V is None:
        return learned_GY / jnp.maximum(jnp.sum(view.learned), 1)
    weight_GY = learned_GY * class_weight_V[view.targets.ids]
    return weight_GY / jnp.maximum(jnp.sum(weight_GY), jnp.finfo(jnp.float32).tiny)
