"""The mutual-information term between the label's and the rationale's vocabulary maps.

Chen et al. 2024, "Learning to Maximize Mutual Information for Chain-of-Thought Distillation"
(Findings of ACL), Eq. 8-10, and its released code. A map is softmax(z) reduced over the positions of
a target by max or mean, (G, E, V); p is the label view's map, q the rationale view's.

The released code passes q, already a probability, to a cross-entropy *as logits*. Since q is in [0, 1],
logsumexp(q) is nearly log V whatever the model does, and only `-<p, q>` carries a signal. `reference`
reproduces that, including its maxima over padding. The other forms are ours and ignore padding: `masked` is
otherwise the published formula, `normalized` the cross-entropy of the maps rescaled to sum to 1, `kl` their
divergence.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from cot_jax.batch import ViewArrays


def map_length(variant: str, view: ViewArrays) -> ArrayLike:
    """Returns (G, E), the number of tokens of each target that enter its map.

    `reference` includes the padding up to the batch's longest target, as the released code does; batches then
    hold it after the learned tokens. The other variants use learned tokens only.
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
    """The mutual-information loss, averaged over the examples that count.

    Args:
      label_map_GEV: probabilities reduced over the label's positions, float32, entries in [0, 1].
      rationale_map_GEV: the same for the rationale.
      counts_GE: bool, whether an example has both a label and a rationale.
      variant: one of `choices.VARIANTS`.
      detach: the map without gradient, one of `choices.DETACHABLE` (the released code: "label").
    """
    p_GEV = jax.lax.stop_gradient(label_map_GEV) if detach == "label" else label_map_GEV
    q_GEV = jax.lax.stop_gradient(rationale_map_GEV) if detach == "rationale" else rationale_map_GEV
    loss_GE = losses(p_GEV, q_GEV, variant)
    return jnp.where(counts_GE, loss_GE, 0).sum() / jnp.maximum(counts_GE.sum(), 1)


def losses(p: jax.Array, q: jax.Array, variant: str) -> jax.Array:
    """(...), the loss of maps (..., V) of labels and rationales; finite for empty ones."""
    if variant in ("reference", "masked"):
        return p.sum(-1) * jax.nn.logsumexp(q, axis=-1) - (p * q).sum(-1)
    p, log_q = _normalize(p), _safe_log(_normalize(q))
    loss = -(p * log_q).sum(-1)
    return loss + (p * _safe_log(p)).sum(-1) if variant == "kl" else loss


def _normalize(map_V: jax.Array) -> jax.Array:
    # An example without a target has an empty map, which must not divide by zero even if masked.
    total_1 = map_V.sum(-1, keepdims=True)
    return map_V / jnp.where(total_1 > 0, total_1, 1)


def _safe_log(x: jax.Array) -> jax.Array:
    # A softmax underflows to exact zeros in float32, where log has an infinite gradient.
    return jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
