"""The training objective: named terms over the views of a batch, and their weighted sum."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cot_jax.batch import Batch, ViewArrays
from cot_jax.losses.mutual_information import map_mask, mutual_information_loss
from cot_jax.losses.self_distillation import (
    Distilled,
    LastBatch,
    SelfDistillation,
    left,
    real_tokens,
    right,
)
from cot_jax.losses.vocabulary import VocabularyMap, cross_entropy_pass, vocabulary_pass
from cot_jax.models.student import Params, Student


class Found(NamedTuple):
    """What an objective knows beside its value.

    Attributes:
      terms: the summands before weighting, float32 scalars.
      diagnostics: other float32 scalars worth a curve.
      last_batch: what the next step needs of this one; None where nothing.
    """

    terms: dict[str, jax.Array]
    diagnostics: dict[str, jax.Array]
    last_batch: LastBatch | None


Objective = Callable[[Params, Batch, jax.Array | None, LastBatch | None], tuple[jax.Array, Found]]


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
        """Whether the term has a gradient in the view's map."""
        sides = {self.label_view: "label", self.rationale_view: "rationale"}
        return view in sides and sides[view] != self.detach


def make_objective(
    student: Student,
    terms: Mapping[str, str],
    weights: Mapping[str, float],
    mutual_information: MutualInformation | None = None,
    self_distillation: SelfDistillation | None = None,
    batch_axes: tuple[str, ...] = (),
    micro_batches: int = 1,
) -> Objective:
    """Builds the loss of a method.

    The views' terms are cross-entropies, means over all real target tokens of the batch (Hsieh et
    al. 2023, Eq. 3-4); the total is `sum(weight * term)`, with the mutual-information term beside
    them where the method has one (Chen et al. 2024, Eq. 10). Self-distillation adds its term to the
    cross-entropy of each view it acts on, under the same weight.

    Args:
      student: the model.
      terms: view name -> name of its cross-entropy.
      weights: name of a cross-entropy -> its weight in the total.
      mutual_information: the MI term, or None.
      self_distillation: from the last mini-batch, or None.
      batch_axes: axes of the ambient mesh over which batches are divided (see `vocabulary_pass`).
      micro_batches: parts in which the batch goes through the student (`hidden_in_parts`).

    Returns:
      A pure function (params, batch, dropout key or None, last batch or None) -> (total, Found).
      Views with an empty target (length 0) count in no term.
    """
    mi = mutual_information

    def objective(params, batch, dropout_rng, last_batch):
        hidden = hidden_in_parts(student, params, batch.views, dropout_rng, micro_batches)
        head_DV = student.head(params)
        linked_h = None if last_batch is None else left(batch.example) == last_batch.example_h
        total = jnp.float32(0)
        values: dict[str, jax.Array] = {}
        maps: dict[str, jax.Array] = {}
        distilled: dict[str, Distilled] = {}
        for view, term in terms.items():
            target = batch.views[view]
            sd = self_distillation if self_distillation and view in self_distillation.views else None
            wanted = {}
            if mi and view in (mi.label_view, mi.rationale_view):
                mask_BT = map_mask(mi.variant, target.target_length, target.target_ids.shape[1])
                wanted["mi"] = VocabularyMap(mi.reduction, mask_BT)
            if sd and sd.distills and sd.output == "vmm":
                wanted["sum"] = VocabularyMap("sum", real_tokens(target))
            entropy = sd is not None and sd.dynamic
            inputs = (hidden[view], head_DV, target.target_ids)
            if (mi and mi.differentiates(view)) or (sd and sd.differentiates_outputs):
                passed = vocabulary_pass(*inputs, wanted, entropy=entropy, batch_axes=batch_axes)
                nll = None
            else:
                nll, passed = cross_entropy_pass(
                    *inputs, token_weight(target), wanted, entropy=entropy, batch_axes=batch_axes
                )
            if "mi" in passed.maps:
                maps[view] = passed.maps["mi"]
            if sd:
                stored = last_batch.outputs[view] if last_batch else None
                states = (hidden[view], head_DV)
                distilled[view] = found = sd(passed, *states, target, stored, linked_h, batch_axes)
                total += weights[term] * found.loss
            if nll is None:
                weight_BT = token_weight(target)
                if view in distilled and (example_weight_B := distilled[view].example_weight_B) is not None:
                    weight_BT *= example_weight_B[:, None]
                nll = jnp.sum(weight_BT * passed.nll_BT)
            values[term] = nll
            total += weights[term] * values[term]
        if mi:
            views = batch.views
            counts_B = (views[mi.label_view].target_length > 0) & (views[mi.rationale_view].target_length > 0)
            values["mi"] = mutual_information_loss(
                maps[mi.label_view], maps[mi.rationale_view], counts_B, variant=mi.variant, detach=mi.detach
            )
            total += mi.weight * values["mi"]
        if last_batch is not None:
            weighted = [weights[terms[view]] * found.loss for view, found in distilled.items()]
            values["self_distillation"] = jnp.sum(jnp.stack(weighted))
            outputs = {view: found.outputs for view, found in distilled.items()}
            last_batch = LastBatch(right(batch.example), outputs)
        diagnostics = {}
        if distilled:  # means over the views
            per_view = [found.diagnostics for found in distilled.values()]
            diagnostics = jax.tree.map(lambda *of_views: sum(of_views) / len(of_views), *per_view)
        return total, Found(values, diagnostics, last_batch)

    return objective


def hidden_in_parts(
    student: Student,
    params: Params,
    views: dict[str, ViewArrays],
    dropout_rng: jax.Array | None,
    parts: int,
) -> dict[str, jax.Array]:
    """`student.hidden` of a batch, computed one part of it after the other.

    Only one part's activations are in memory at a time, in the backward pass too, for which each part is
    computed again. What the losses see is the whole batch: gradients are those of one large batch whatever
    the method, which accumulating the gradients of small ones does not give where a loss couples examples.
    Each part draws its own dropout masks.

    Raises:
      ValueError: the batch does not divide.
    """
    if parts == 1:
        return student.hidden(params, views, dropout_rng)
    B = jax.tree.leaves(views)[0].shape[0]
    if B % parts:
        raise ValueError(f"a batch of {B} does not divide in {parts} parts")

    # Part p has the rows p, p + parts, ...: some of each device, and none moves to another.
    def split(x):
        return x.reshape(B // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def join(x):
        return x.swapaxes(0, 1).reshape(B, *x.shape[2:])

    @jax.checkpoint
    def one(of_part):
        part, views = of_part
        key = None if dropout_rng is None else jax.random.fold_in(dropout_rng, part)
        return student.hidden(params, views, key)

    return jax.tree.map(join, jax.lax.map(one, (jnp.arange(parts), jax.tree.map(split, views))))


def token_weight(view: ViewArrays) -> jax.Array:
    """(B, T) of the mean over the real target tokens of the whole batch; all 0 if there is none."""
    real_BT = real_tokens(view)
    return real_BT / jnp.maximum(real_BT.sum(), 1)
