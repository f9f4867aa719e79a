"""The training objective: named terms over the views of a batch, and their weighted sum."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cot_jax.batch import Batch, ViewArrays
from cot_jax.losses.mutual_information import map_mask, mutual_information_loss
from cot_jax.losses.vocabulary import VocabularyMap, vocabulary_pass
from cot_jax.models.student import Params, Student

Objective = Callable[[Params, Batch, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True)
class MutualInformation:
    """The mutual-information term between two views (see `losses.mutual_information`)."""

    label_view: str
    rationale_view: str
    weight: float
    variant: str
    reduction: str
    detach: str


def make_objective(
    student: Student,
    terms: Mapping[str, str],
    weights: Mapping[str, float],
    mutual_information: MutualInformation | None = None,
    batch_axes: tuple[str, ...] = (),
) -> Objective:
    """Builds the loss of a method.

    The views' terms are cross-entropies, means over all real target tokens of the batch (Hsieh et
    al. 2023, Eq. 3-4); the total is `sum(weight * term)`, with the mutual-information term beside
    them where the method has one (Chen et al. 2024, Eq. 10).

    Args:
      student: the model.
      terms: view name -> name of its cross-entropy.
      weights: name of a cross-entropy -> its weight in the total.
      mutual_information: the MI term, or None.
      batch_axes: axes of the ambient mesh over which batches are divided (see `vocabulary_pass`).

    Returns:
      A pure function (params, batch, dropout key or None) -> (total, {term: value}), all float32
      scalars. Views with an empty target (length 0) count in no term.
    """
    mi = mutual_information

    def objective(params, batch, dropout_rng):
        hidden = student.hidden(params, batch, dropout_rng)
        head_DV = student.head(params)
        values: dict[str, jax.Array] = {}
        maps: dict[str, Any] = {}
        for view, term in terms.items():
            target = batch[view]
            wanted = {}
            if mi and view in (mi.label_view, mi.rationale_view):
                mask_BT = map_mask(mi.variant, target.target_length, target.target_ids.shape[1])
                wanted["mi"] = VocabularyMap(mi.reduction, mask_BT)
            passed = vocabulary_pass(hidden[view], head_DV, target.target_ids, wanted, batch_axes=batch_axes)
            values[term] = token_mean(passed.nll_BT, target)
            maps[view] = passed.maps.get("mi")
        total = sum(weights[term] * value for term, value in values.items())
        if mi:
            counts_B = (batch[mi.label_view].target_length > 0) & (batch[mi.rationale_view].target_length > 0)
            values["mi"] = mutual_information_loss(
                maps[mi.label_view], maps[mi.rationale_view], counts_B, variant=mi.variant, detach=mi.detach
            )
            total += mi.weight * values["mi"]
        return total, values

    return objective


def token_mean(values_BT: jax.Array, view: ViewArrays) -> jax.Array:
    """Returns the mean of `values_BT` over the real target tokens of the whole batch; 0 if none."""
    real_BT = jnp.arange(values_BT.shape[1])[None, :] < view.target_length[:, None]
    return jnp.where(real_BT, values_BT, 0).sum() / jnp.maximum(real_BT.sum(), 1)
