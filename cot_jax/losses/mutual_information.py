"""The mutual-information term between the label's and the rationale's vocabulary maps.

Chen et al. 2024, "Learning to Maximize Mutual Information for Chain-of-Thought Distillation"
(Findings of ACL), Eq. 8-10, and its released code. A map is softmax(z) reduced over the positions of
a target by max or mean, (G, E, V); p is the label view's map, q the rationale view's.

The released code passes q, which already is a probability, to a cross-entropy *as logits*; since q
lies in [0, 1] the value is nearly log V whatever the model does and only -<p, q> carries a signal.
`reference` reproduces that, its maxima over padding included. The other forms are ours: all leave
padding out; `masked` is otherwise the published formula, `normalized` the cross-entropy of the maps
rescaled to sum to 1, `kl` the divergence of the same.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cot_jax.batch import ViewArrays


def map_length(variant: str, view: ViewArrays) -> ArrayLike:
    """Returns (G, E), how many tokens of each target enter its map.

    `reference` takes the padding up to the batch's longest target too, as the released code does; batches
    then hold it behind the learned tokens. The other variants take learned tokens only.
    """
    return view.targets.length if variant == "reference" else view.learned


def mutual_information_loss(
    label_map_GEV: jax.Array,
    rationale_map_GEV: jax.Array,
    counts_GE: jax.Array,
    *,
    variant: str,
    detach: str,
) -> jax.Array:
    """Mean over the examples that count of the mutual-information loss.

    Args:
      label_map_GEV: probabilities reduced over the label's positions, float32, entries in [0, 1].
      rationale_map_GEV: the same for the rationale.
      counts_GE: bool, examples that have both a label and a rationale.
      variant: one of `choices.VARIANTS`.
      detach: the map that carries no gradient, one of `choices.DETACHABLE` (the released code: "label").
    """
    p_GEV = jax.lax.stop_gradient(label_map_GEV) if detach == "label" else label_map_GEV
    q_GEV = jax.lax.stop_gradient(rationale_map_GEV) if detach == "rationale" else rationale_map_GEV
    if variant in ("reference", "masked"):
        loss_GE = p_GEV.sum(-1) * jax.nn.logsumexp(q_GEV, axis=-1) - (p_GEV * q_GEV).sum(-1)
    else:
        p_GEV, log_q_GEV = _normalize(p_GEV), _safe_log(_normalize(q_GEV))
        loss_GE = -(p_GEV * log_q_GEV).sum(-1)
        if variant == "kl":
            loss_GE += (p_GEV * _safe_log(p_GEV)).sum(-1)
    return jnp.where(counts_GE, loss_GE, 0).sum() / jnp.maximum(counts_GE.sum(), 1)


def _normalize(map_GEV: jax.Array) -> jax.Array:
    # An example without a target has an empty map; it must not divide by zero even where masked.
    total_GE1 = map_GEV.sum(-1, keepdims=True)
    return map_GEV / jnp.where(total_GE1 > 0, total_GE1, 1)


def _safe_log(x: jax.Array) -> jax.Array:
    # A softmax underflows to exact zeros in float32; log's gradient there would be infinite.
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
