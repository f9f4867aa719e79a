"""The vocabulary pass: everything the objectives ask of logits, without ever holding the logits.

Cross-entropy needs a negative log-likelihood per position, dynamic distillation an entropy, mutual
information and vocabulary map matching a *map*: softmax(z) reduced over positions to one value per
vocabulary row. All of it comes from one pass over z = hidden @ head. `plain_vocabulary_pass` is the
definition; `vocabulary_pass` computes the same in chunks of a few positions, so that of the (B, T, V)
logits only one chunk exists at a time.

Objectives are written on top in plain JAX, over (B, T) and (B, V) arrays. Whatever they are, their
gradient comes back as three cotangents: of nll, entropy and map. With p = softmax(z),
q = softmax(z / temperature) and the entropy H of p, the logits of a position receive

    dz = dnll (p - onehot(target)) - dentropy p (log p + H) + q (g - sum_v q_v g_v) / temperature

where g_v is the map's cotangent times the weight of the position in the sum or mean; for the maximum
it is zero but at v's first maximiser, as in PyTorch. The backward pass forms z again, chunk by chunk,
and turns dz at once into the gradients of hidden and head: four matrix products instead of three are
the price of the memory.

Chunks divide positions and not examples, because examples may be divided over devices: a slice of T
leaves every row where it is.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

REDUCTIONS = ("max", "mean", "sum")

# Rows (B x positions) of a chunk. Each chunk reads and writes the head's whole gradient, which is small
# beside its matrix products only if it has this many rows.
_CPU_ROWS, _ACCELERATOR_ROWS = 512, 4096


class VocabularyPass(NamedTuple):
    """What one pass over the logits found: float32, or float64 where the hidden states are.

    Attributes:
      nll_BT: -log softmax(z) of the target.
      entropy_BT: entropy of softmax(z) in nats; None unless asked for.
      correct_BT: bool, no logit is larger than the target's. Carries no gradient.
      map_BV: softmax(z / temperature) reduced over positions; None unless asked for.
    """

    nll_BT: jax.Array
    entropy_BT: jax.Array | None
    correct_BT: jax.Array
    map_BV: jax.Array | None


def vocabulary_pass(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    target_BT: jax.Array,
    map_mask_BT: jax.Array | None = None,
    *,
    reduction: str | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_rows: int | None = None,
    batch_axes: tuple[str, ...] = (),
) -> VocabularyPass:
    """Streams z = hidden @ head and returns what objectives need of it. Differentiable in hidden and head.

    Matrix products take operands in the dtype of `hidden_BTD` and sum in float32; so does the sum of the
    head's gradient over chunks. What is not asked for is not computed, nor the gradient of what is detached.

    Args:
      hidden_BTD: decoder hidden states, bfloat16, float32 or float64.
      head_DV: output embedding, any float dtype.
      target_BT: int, in [0, V). Padding needs a valid id too (0 will do); its nll is for the caller to mask.
      map_mask_BT: bool, the positions that enter the map; None for all. A row without any has a zero map.
      reduction: "max", "mean" or "sum" over the positions of the map; None for no map.
      temperature: divides the logits of the map. nll and entropy are at temperature 1.
      entropy: whether to return the entropy.
      chunk_rows: most rows (B x positions) of a chunk, which takes at least one position of each example.
        None chooses for the backend.
      batch_axes: axes of the ambient mesh (`jax.set_mesh`) that divide B. Each device then streams its own
        rows, the head is gathered once and its gradient summed over devices once. Left to itself, the
        compiler sums after every chunk, and for a sharded head may gather the hidden states instead.

    Raises:
      ValueError: `reduction` is none of the above.
    """
    if chunk_rows is None:
        chunk_rows = _CPU_ROWS if jax.default_backend() == "cpu" else _ACCELERATOR_ROWS
    stream = partial(_stream, _Spec(reduction, temperature, entropy, chunk_rows))
    if batch_axes:
        rows = PartitionSpec(batch_axes)
        stream = jax.shard_map(
            stream,
            in_specs=(rows, PartitionSpec(), rows, rows),
            out_specs=rows,
            axis_names=set(batch_axes),
            check_vma=False,
        )
    return stream(hidden_BTD, head_DV, target_BT, _map_weight(hidden_BTD, map_mask_BT, reduction))


def plain_vocabulary_pass(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    target_BT: jax.Array,
    map_mask_BT: jax.Array | None = None,
    *,
    reduction: str | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
) -> VocabularyPass:
    """The definition of `vocabulary_pass`: all logits at once, gradients by automatic differentiation."""
    z_BTV = _logits(hidden_BTD, head_DV)
    logp_BTV = jax.nn.log_softmax(z_BTV)
    target_BT1 = target_BT[..., None]
    map_BV = None
    weight_BT = _map_weight(hidden_BTD, map_mask_BT, reduction)
    if weight_BT is not None:
        q_BTV = weight_BT[..., None] * jax.nn.softmax(z_BTV / temperature)
        if reduction == "max":  # jnp.max would divide the gradient among equal maxima
            first_B1V = jnp.argmax(q_BTV, axis=1, keepdims=True)
            map_BV = jnp.take_along_axis(q_BTV, first_B1V, axis=1)[:, 0]
        else:
            map_BV = jnp.sum(q_BTV, axis=1)
    return VocabularyPass(
        nll_BT=-jnp.take_along_axis(logp_BTV, target_BT1, axis=-1)[..., 0],
        entropy_BT=-jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1) if entropy else None,
        correct_BT=jnp.all(z_BTV <= jnp.take_along_axis(z_BTV, target_BT1, axis=-1), axis=-1),
        map_BV=map_BV,
    )


class _Spec(NamedTuple):
    """What is known when the pass is compiled."""

    reduction: str | None
    temperature: float
    entropy: bool
    chunk_rows: int


class _Saved(NamedTuple):
    """What the backward pass needs beside the inputs; None for what it will not use."""

    logz_BT: jax.Array
    map_logz_BT: jax.Array | None  # of z / temperature, where that is not z
    entropy_BT: jax.Array | None
    first_BV: jax.Array | None  # position of the first maximiser


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream(spec: _Spec, hidden_BTD, head_DV, target_BT, weight_BT) -> VocabularyPass:
    return _forward(spec, hidden_BTD, head_DV, target_BT, weight_BT)[0]


def _forward(spec: _Spec, hidden_BTD, head_DV, target_BT, weight_BT) -> tuple[VocabularyPass, _Saved]:
    chunks = _Chunks.of(hidden_BTD, spec.chunk_rows)
    shape_BV = (hidden_BTD.shape[0], head_DV.shape[1])
    map_BV = None if spec.reduction is None else jnp.zeros(shape_BV, _sum_dtype(hidden_BTD))
    first_BV = jnp.zeros(shape_BV, chunks.positions.dtype) if spec.reduction == "max" else None
    (map_BV, first_BV), stacked = lax.scan(
        partial(_forward_chunk, spec, head_DV.astype(hidden_BTD.dtype)),
        (map_BV, first_BV),
        (chunks.positions, *chunks.split((hidden_BTD, target_BT, weight_BT))),
    )
    found, saved = chunks.join(stacked)
    return found._replace(map_BV=map_BV), saved._replace(first_BV=first_BV)


def _forward_chunk(spec: _Spec, head_DV, carry, xs):
    """Adds one chunk to the map; here and below T counts the positions of the chunk."""
    map_BV, first_BV = carry
    position_T, hidden_BTD, target_BT, weight_BT = xs
    z_BTV = _logits(hidden_BTD, head_DV)
    top_BT = jnp.max(z_BTV, axis=-1)
    exp_BTV = jnp.exp(z_BTV - top_BT[..., None])
    total_BT = jnp.sum(exp_BTV, axis=-1)
    logz_BT = top_BT + jnp.log(total_BT)
    target_z_BT = jnp.take_along_axis(z_BTV, target_BT[..., None], axis=-1)[..., 0]
    entropy_BT = map_logz_BT = None
    if spec.entropy:
        mean_BT = jnp.sum(exp_BTV * (z_BTV - top_BT[..., None]), axis=-1) / total_BT
        entropy_BT = jnp.log(total_BT) - mean_BT
    if spec.reduction is not None:
        if spec.temperature == 1:
            q_BTV = exp_BTV / total_BT[..., None]
        else:
            map_logz_BT = jax.nn.logsumexp(z_BTV / spec.temperature, axis=-1)
            q_BTV = jnp.exp(z_BTV / spec.temperature - map_logz_BT[..., None])
        q_BTV *= weight_BT[..., None]
        if spec.reduction == "max":
            max_BV = jnp.max(q_BTV, axis=1)
            position_BV = position_T[0] + jnp.argmax(q_BTV, axis=1).astype(position_T.dtype)
            first_BV = jnp.where(max_BV > map_BV, position_BV, first_BV)  # of equals the earlier chunk's
            map_BV = jnp.maximum(map_BV, max_BV)
        else:
            map_BV += jnp.sum(q_BTV, axis=1)
    found = VocabularyPass(logz_BT - target_z_BT, entropy_BT, target_z_BT >= top_BT, None)
    return (map_BV, first_BV), (found, _Saved(logz_BT, map_logz_BT, entropy_BT, None))


def _stream_fwd(spec: _Spec, *inputs):
    inputs = jax.tree.map(lambda leaf: leaf.value, inputs)  # symbolic_zeros wraps them
    found, saved = _forward(spec, *inputs)
    return found, (inputs, saved)


def _stream_bwd(spec: _Spec, residuals, cotangent: VocabularyPass):
    (hidden_BTD, head_DV, target_BT, weight_BT), saved = residuals
    dnll_BT, dentropy_BT, _, dmap_BV = (None if isinstance(d, SymbolicZero) else d for d in cotangent)
    per_position = (saved._replace(first_BV=None), dnll_BT, dentropy_BT)
    chunks = _Chunks.of(hidden_BTD, spec.chunk_rows)
    dhead_DV, dhidden = lax.scan(
        partial(_backward_chunk, spec, head_DV.astype(hidden_BTD.dtype), saved.first_BV, dmap_BV),
        jnp.zeros(head_DV.shape, _sum_dtype(hidden_BTD)),
        (chunks.positions, *chunks.split((hidden_BTD, target_BT, weight_BT, *per_position))),
    )
    return chunks.join(dhidden), dhead_DV.astype(head_DV.dtype), None, None


def _backward_chunk(spec: _Spec, head_DV, first_BV, dmap_BV, dhead_DV, xs):
    """Adds one chunk to the head's gradient and returns that of its hidden states."""
    position_T, hidden_BTD, target_BT, weight_BT, saved, dnll_BT, dentropy_BT = xs
    z_BTV = _logits(hidden_BTD, head_DV)
    p_BTV = jnp.exp(z_BTV - saved.logz_BT[..., None])
    dz_BTV = jnp.zeros_like(z_BTV)
    if dnll_BT is not None:
        onehot_BTV = jax.nn.one_hot(target_BT, z_BTV.shape[-1], dtype=z_BTV.dtype)
        dz_BTV += dnll_BT[..., None] * (p_BTV - onehot_BTV)
    if dentropy_BT is not None:
        logp_BTV = z_BTV - saved.logz_BT[..., None]
        dz_BTV -= dentropy_BT[..., None] * p_BTV * (logp_BTV + saved.entropy_BT[..., None])
    if dmap_BV is not None:
        q_BTV = p_BTV
        if spec.temperature != 1:
            q_BTV = jnp.exp(z_BTV / spec.temperature - saved.map_logz_BT[..., None])
        g_BTV = weight_BT[..., None] * dmap_BV[:, None]
        if spec.reduction == "max":
            g_BTV = jnp.where(first_BV[:, None] == position_T[None, :, None], g_BTV, 0)
        mean_BT = jnp.sum(q_BTV * g_BTV, axis=-1)
        dz_BTV += q_BTV * (g_BTV - mean_BT[..., None]) / spec.temperature
    dz_BTV = dz_BTV.astype(hidden_BTD.dtype)
    sum_dtype = dhead_DV.dtype
    dhidden_BTD = jnp.einsum("BTV,DV->BTD", dz_BTV, head_DV, preferred_element_type=sum_dtype)
    dhead_DV += jnp.einsum("BTD,BTV->DV", hidden_BTD, dz_BTV, preferred_element_type=sum_dtype)
    return dhead_DV, dhidden_BTD.astype(hidden_BTD.dtype)


_stream.defvjp(_stream_fwd, _stream_bwd, symbolic_zeros=True)


class _Chunks(NamedTuple):
    """T positions as chunks of `size` positions, the last filled up with zeros."""

    length: int
    size: int

    @classmethod
    def of(cls, hidden_BTD: jax.Array, rows: int) -> "_Chunks":
        """Chunks of at most `rows` rows and at least half of that: the size that leaves least to fill up."""
        b, length, _ = hidden_BTD.shape
        most = min(max(rows // b, 1), length)
        return cls(length, min(range(most, most // 2, -1), key=lambda size: -length % size))

    @property
    def positions(self) -> np.ndarray:
        """(chunks, size), each position's number in the smallest type that holds it."""
        padded = self.length + -self.length % self.size
        return np.arange(padded, dtype=np.min_scalar_type(padded)).reshape(-1, self.size)

    def split(self, tree):
        """Each (B, T, ...) becomes (chunks, B, size, ...)."""

        def one(leaf):
            b, _, *rest = leaf.shape
            widths = [(0, 0), (0, -self.length % self.size)] + [(0, 0)] * len(rest)
            return jnp.moveaxis(jnp.pad(leaf, widths).reshape(b, -1, self.size, *rest), 1, 0)

        return jax.tree.map(one, tree)

    def join(self, tree):
        """The inverse of `split`."""

        def one(leaf):
            chunks, b, size, *rest = leaf.shape
            return jnp.moveaxis(leaf, 0, 1).reshape(b, chunks * size, *rest)[:, : self.length]

        return jax.tree.map(one, tree)


def _sum_dtype(array: jax.Array):
    return jnp.promote_types(array.dtype, jnp.float32)


def _logits(hidden_BTD: jax.Array, head_DV: jax.Array) -> jax.Array:
    head_DV = head_DV.astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=_sum_dtype(hidden_BTD))


def _map_weight(hidden_BTD, map_mask_BT, reduction: str | None) -> jax.Array | None:
    """How much each position counts in the map: 0 or 1, or for the mean 0 or one over the row's count."""
    if reduction is None:
        return None
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is none of {REDUCTIONS}")
    if map_mask_BT is None:
        map_mask_BT = jnp.ones(hidden_BTD.shape[:2], bool)
    weight_BT = map_mask_BT.astype(_sum_dtype(hidden_BTD))
    if reduction == "mean":
        weight_BT /= jnp.maximum(jnp.sum(weight_BT, axis=1, keepdims=True), 1)
    return weight_BT
