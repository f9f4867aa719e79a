"""The mutual-information term between the label's and the rationale's vocabulary maps.

Chen et al. 2024, "Learning to Maximize Mutual Information for Chain-of-Thought Distillation"
(Findings of ACL), Eq. 8-10, and its released code. A map is softmax(z) reduced over the positions of
a target by max or mean, (B, V); p is the label view's map, q the rationale view's.

The released code passes q, which already is a probability, to a cross-entropy *as logits*; since q
lies in [0, 1] the value is nearly log V whatever the model does and only -<p, q> carries a signal.
`reference` reproduces that, its maxima over padding included. The other forms are ours: all leave
padding out; `masked` is otherwise the published formula, `normalized` the cross-entropy of the maps
rescaled to sum to 1, `kl` the divergence of the same.
"""

import jax
import jax.numpy as jnp

VARIANTS = ("reference", "masked", "normalized", "kl")
REDUCTIONS = ("max", "mean")
DETACHABLE = ("label", "rationale", "none")


def map_mask(variant: str, length_B: jax.Array, width: int) -> jax.Array:
    """Returns the positions, (B, width) bool, whose probabilities enter a view's map.

    `reference` takes every position up to the batch's longest target, as the released code does by
    padding to it; the other variants take real tokens only. Either way nothing depends on how far
    the arrays happen to be padded.
    """
    position_1T = jnp.arange(width)[None, :]
    if variant == "reference":
        return jnp.broadcast_to(position_1T < length_B.max(), (len(length_B), width))
    return position_1T < length_B[:, None]


def mutual_information_loss(
    label_map_BV: jax.Array,
    rationale_map_BV: jax.Array,
    counts_B: jax.Array,
    *,
    variant: str,
    detach: str,
) -> jax.Array:
    """Mean over the examples that count of the mutual-information loss.

    Args:
      label_map_BV: probabilities reduced over the label's positions, float32, entries in [0, 1].
      rationale_map_BV: the same for the rationale.
      counts_B: bool, examples that have both a label and a rationale.
      variant: one of `VARIANTS`.
      detach: the map that carries no gradient, one of `DETACHABLE` (the released code: "label").
    """
    p_BV = jax.lax.stop_gradient(label_map_BV) if detach == "label" else label_map_BV
    q_BV = jax.lax.stop_gradient(rationale_map_BV) if detach == "rationale" else rationale_map_BV
    if variant in ("reference", "masked"):
        loss_B = p_BV.sum(-1) * jax.nn.logsumexp(q_BV, axis=-1) - (p_BV * q_BV).sum(-1)
    else:
        p_BV, log_q_BV = _normalize(p_BV), _safe_log(_normalize(q_BV))
        loss_B = -(p_BV * log_q_BV).sum(-1)
        if variant == "kl":
            loss_B += (p_BV * _safe_log(p_BV)).sum(-1)
    return jnp.where(counts_B, loss_B, 0).sum() / jnp.maximum(counts_B.sum(), 1)


def _normalize(map_BV: jax.Array) -> jax.Array:
    # An example without a target has an empty map; it must not divide by zero even where masked.
    total_B1 = map_BV.sum(-1, keepdims=True)
    return map_BV / jnp.where(total_B1 > 0, total_B1, 1)


def _safe_log(x: jax.Array) -> jax.Array:
    # A softmax underflows to exact zeros in float32; log's gradient there would be infinite.
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
