"""The vocabulary pass: everything the objectives ask of logits, without ever holding the logits.

Cross-entropy needs a negative log-likelihood per position, dynamic distillation an entropy, mutual
information and vocabulary map matching each a *map*: softmax(z) reduced over positions to one value
per vocabulary row. All of it comes from one pass over z = hidden @ head. `plain_vocabulary_pass` is the
definition; `vocabulary_pass` computes the same in chunks of a few positions, so that of the (B, T, V)
logits only one chunk exists at a time.

Objectives are written on top in plain JAX, over (B, T) and (B, V) arrays. Whatever they are, their
gradient comes back as cotangents of nll, entropy and maps. With p = softmax(z),
q = softmax(z / temperature) and the entropy H of p, the logits of a position receive

    dz = dnll (p - onehot(target)) - dentropy p (log p + H) + sum_maps q (g - sum_v q_v g_v) / temperature

where g_v is a map's cotangent times the weight of the position in the sum or mean; for the maximum
it is zero but at v's first maximiser, as in PyTorch. The backward pass forms z again, chunk by chunk,
and turns dz at once into the gradients of hidden and head: four matrix products instead of three are
the price of the memory. Where the cross-entropy alone is differentiated, `cross_entropy_pass` does not
pay it: dz is known as soon as the logits are.

Chunks divide positions and not examples, because examples may be divided over devices: a slice of T
leaves every row where it is.
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
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
_CPU_ROWS, _ACCELERATOR_ROWS = 512, 2048


class VocabularyMap(NamedTuple):
    """What map to make: softmax(z / temperature) reduced over positions.

    Attributes:
      reduction: one of `REDUCTIONS`.
      mask_BT: bool, the positions that enter; None for all. A row without any has a zero map.
      temperature: divides the logits. nll and entropy are at temperature 1.
    """

    reduction: str
    mask_BT: jax.Array | None = None
    temperature: float = 1.0


class VocabularyPass(NamedTuple):
    """What one pass over the logits found: float32, or float64 where the hidden states are.

    Attributes:
      nll_BT: -log softmax(z) of the target.
      entropy_BT: entropy of softmax(z) in nats; None unless asked for.
      correct_BT: bool, no logit is larger than the target's. Carries no gradient.
      maps: (B, V) for every name asked for.
    """

    nll_BT: jax.Array
    entropy_BT: jax.Array | None
    correct_BT: jax.Array
    maps: dict[str, jax.Array]


def vocabulary_pass(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    target_BT: jax.Array,
    maps: Mapping[str, VocabularyMap] = MappingProxyType({}),
    *,
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
      maps: the maps to make, by name.
      entropy: whether to return the entropy.
      chunk_rows: most rows (B x positions) of a chunk, which takes at least one position of each example.
        None chooses for the backend.
      batch_axes: axes of the ambient mesh (`jax.set_mesh`) that divide B. Each device then streams its own
        rows, the head is gathered once and its gradient summed over devices once. Left to itself, the
        compiler sums after every chunk, and for a sharded head may gather the hidden states instead. Other
        axes may divide V (vocabulary-parallel): then only sums over V cross them.

    Raises:
      ValueError: the reduction of a map is none of `REDUCTIONS`.
    """
    kinds = tuple((name, kind.reduction, kind.temperature) for name, kind in maps.items())
    stream = _by_rows(partial(_stream, _Spec(kinds, entropy, chunk_rows or _default_rows())), batch_axes)
    weights = {name: _map_weight(hidden_BTD, kind) for name, kind in maps.items()}
    return stream(hidden_BTD, head_DV, (target_BT, weights))


def cross_entropy_pass(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    target_BT: jax.Array,
    nll_weight_BT: jax.Array,
    maps: Mapping[str, VocabularyMap] = MappingProxyType({}),
    *,
    entropy: bool = False,
    chunk_rows: int | None = None,
    batch_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, VocabularyPass]:
    """`vocabulary_pass` where only sum(nll_weight * nll) is to be differentiated: cheaper by one product.

    With the weights known beforehand, the gradients of hidden and head are formed in the forward pass,
    while a chunk's logits are at hand, and the backward pass only scales them.

    Args:
      nll_weight_BT: weight of each position's negative log-likelihood; carries no gradient.
      Others: as in `vocabulary_pass`.

    Returns:
      sum(nll_weight * nll), () float32 or float64, and what `vocabulary_pass` returns, without gradients.
    """
    kinds = tuple((name, kind.reduction, kind.temperature) for name, kind in maps.items())
    stream = _by_rows(partial(_sum, _Spec(kinds, entropy, chunk_rows or _default_rows())), batch_axes)
    weights = {name: _map_weight(hidden_BTD, kind) for name, kind in maps.items()}
    nll_weight_BT = nll_weight_BT.astype(_sum_dtype(hidden_BTD))
    sums, found = stream(hidden_BTD, head_DV, (target_BT, weights, nll_weight_BT))
    return jnp.sum(sums), jax.lax.stop_gradient(found)


def plain_vocabulary_pass(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    target_BT: jax.Array,
    maps: Mapping[str, VocabularyMap] = MappingProxyType({}),
    *,
    entropy: bool = False,
) -> VocabularyPass:
    """The definition of `vocabulary_pass`: all logits at once, gradients by automatic differentiation."""
    z_BTV = logits(hidden_BTD, head_DV)
    logp_BTV = jax.nn.log_softmax(z_BTV)
    target_BT1 = target_BT[..., None]
    made = {}
    for name, kind in maps.items():
        q_BTV = _map_weight(hidden_BTD, kind)[..., None] * jax.nn.softmax(z_BTV / kind.temperature)
        if kind.reduction == "max":  # jnp.max would divide the gradient among equal maxima
            first_B1V = jnp.argmax(q_BTV, axis=1, keepdims=True)
            made[name] = jnp.take_along_axis(q_BTV, first_B1V, axis=1)[:, 0]
        else:
            made[name] = jnp.sum(q_BTV, axis=1)
    return VocabularyPass(
        nll_BT=-jnp.take_along_axis(logp_BTV, target_BT1, axis=-1)[..., 0],
        entropy_BT=-jnp.sum(jnp.exp(logp_BTV) * logp_BTV, axis=-1) if entropy else None,
        correct_BT=jnp.all(z_BTV <= jnp.take_along_axis(z_BTV, target_BT1, axis=-1), axis=-1),
        maps=made,
    )


class _Spec(NamedTuple):
    """What is known when the pass is compiled."""

    maps: tuple[tuple[str, str, float], ...]  # name, reduction, temperature
    entropy: bool
    chunk_rows: int


class _Saved(NamedTuple):
    """What the backward pass needs beside the inputs; None for what it will not use."""

    logz_BT: jax.Array
    entropy_BT: jax.Array | None
    map_logz: dict[str, jax.Array]  # (B, T) of z / temperature, for the maps where that is not z
    first: dict[str, jax.Array]  # (B, V) position of the first maximiser, for the maps that are maxima


def _default_rows() -> int:
    return _CPU_ROWS if jax.default_backend() == "cpu" else _ACCELERATOR_ROWS


def _by_rows(stream, batch_axes: tuple[str, ...]):
    """`stream` on every device's own rows; the head is an argument of its own because it is whole there."""
    mesh = jax.sharding.get_abstract_mesh()
    # The compiler fails where an axis of one device is taken by hand and another is its own to divide.
    batch_axes = tuple(axis for axis in batch_axes if mesh.shape[axis] > 1)
    if not batch_axes:
        return stream
    rows = PartitionSpec(batch_axes)
    return jax.shard_map(
        stream,
        in_specs=(rows, PartitionSpec(), rows),
        out_specs=rows,
        axis_names=set(batch_axes),
        check_vma=False,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream(spec: _Spec, hidden_BTD, head_DV, rows) -> VocabularyPass:
    return _forward(spec, hidden_BTD, head_DV, rows)[0]


@jax.named_scope("head")
def _forward(spec: _Spec, hidden_BTD, head_DV, rows) -> tuple[VocabularyPass, _Saved]:
    chunks = _Chunks.of(hidden_BTD, spec.chunk_rows)
    (maps, first), stacked = lax.scan(
        partial(_forward_chunk, spec, head_DV.astype(hidden_BTD.dtype)),
        _empty_maps(spec, chunks, hidden_BTD, head_DV),
        (chunks.positions, *chunks.split((hidden_BTD, *rows))),
    )
    found, saved = chunks.join(stacked)
    return found._replace(maps=maps), saved._replace(first=first)


def _empty_maps(spec: _Spec, chunks: "_Chunks", hidden_BTD, head_DV):
    shape_BV = (hidden_BTD.shape[0], head_DV.shape[1])
    maps = {name: jnp.zeros(shape_BV, _sum_dtype(hidden_BTD)) for name, _, _ in spec.maps}
    first = {
        name: jnp.zeros(shape_BV, chunks.positions.dtype)
        for name, reduction, _ in spec.maps
        if reduction == "max"
    }
    return maps, first


def _forward_chunk(spec: _Spec, head_DV, carry, xs):
    position_T, hidden_BTD, target_BT, weights = xs
    carry, stacked, _ = _read(spec, logits(hidden_BTD, head_DV), carry, position_T, target_BT, weights)
    return carry, stacked


def _read(spec: _Spec, z_BTV, carry, position_T, target_BT, weights):
    """Adds one chunk to the maps; returns also softmax(z). Here and below T counts the chunk's positions."""
    maps, first = carry
    top_BT = jnp.max(z_BTV, axis=-1)
    exp_BTV = jnp.exp(z_BTV - top_BT[..., None])
    total_BT = jnp.sum(exp_BTV, axis=-1)
    logz_BT = top_BT + jnp.log(total_BT)
    p_BTV = exp_BTV / total_BT[..., None]
    target_z_BT = jnp.take_along_axis(z_BTV, target_BT[..., None], axis=-1)[..., 0]
    entropy_BT = None
    if spec.entropy:
        mean_BT = jnp.sum(exp_BTV * (z_BTV - top_BT[..., None]), axis=-1) / total_BT
        entropy_BT = jnp.log(total_BT) - mean_BT
    maps, first, map_logz = dict(maps), dict(first), {}
    for name, reduction, temperature in spec.maps:
        q_BTV = p_BTV
        if temperature != 1:
            map_logz[name] = jax.nn.logsumexp(z_BTV / temperature, axis=-1)
            q_BTV = jnp.exp(z_BTV / temperature - map_logz[name][..., None])
        q_BTV = q_BTV * weights[name][..., None]
        if reduction == "max":
            max_BV = jnp.max(q_BTV, axis=1)
            position_BV = position_T[0] + jnp.argmax(q_BTV, axis=1).astype(position_T.dtype)
            # Of equals the earlier chunk's.
            first[name] = jnp.where(max_BV > maps[name], position_BV, first[name])
            maps[name] = jnp.maximum(maps[name], max_BV)
        else:
            maps[name] += jnp.sum(q_BTV, axis=1)
    found = VocabularyPass(logz_BT - target_z_BT, entropy_BT, target_z_BT >= top_BT, {})
    return (maps, first), (found, _Saved(logz_BT, entropy_BT, map_logz, {})), p_BTV


def _stream_fwd(spec: _Spec, *inputs):
    inputs = jax.tree.map(lambda leaf: leaf.value, inputs)  # symbolic_zeros wraps them
    found, saved = _forward(spec, *inputs)
    return found, (inputs, saved)


@jax.named_scope("head")
def _stream_bwd(spec: _Spec, residuals, cotangent: VocabularyPass):
    (hidden_BTD, head_DV, rows), saved = residuals
    dnll_BT, dentropy_BT = (
        None if d is None or isinstance(d, SymbolicZero) else d
        for d in (cotangent.nll_BT, cotangent.entropy_BT)
    )
    dmaps = {name: d for name, d in cotangent.maps.items() if not isinstance(d, SymbolicZero)}
    per_position = (saved._replace(first={}), dnll_BT, dentropy_BT)
    chunks = _Chunks.of(hidden_BTD, spec.chunk_rows)
    dhead_DV, dhidden = lax.scan(
        partial(_backward_chunk, spec, head_DV.astype(hidden_BTD.dtype), saved.first, dmaps),
        jnp.zeros(head_DV.shape, _sum_dtype(hidden_BTD)),
        (chunks.positions, *chunks.split((hidden_BTD, *rows, *per_position))),
    )
    return chunks.join(dhidden), dhead_DV.astype(head_DV.dtype), None


def _backward_chunk(spec: _Spec, head_DV, first, dmaps, dhead_DV, xs):
    """Adds one chunk to the head's gradient and returns that of its hidden states."""
    position_T, hidden_BTD, target_BT, weights, saved, dnll_BT, dentropy_BT = xs
    z_BTV = logits(hidden_BTD, head_DV)
    p_BTV = jnp.exp(z_BTV - saved.logz_BT[..., None])
    dz_BTV = jnp.zeros_like(z_BTV)
    if dnll_BT is not None:
        onehot_BTV = jax.nn.one_hot(target_BT, z_BTV.shape[-1], dtype=z_BTV.dtype)
        dz_BTV += dnll_BT[..., None] * (p_BTV - onehot_BTV)
    if dentropy_BT is not None:
        logp_BTV = z_BTV - saved.logz_BT[..., None]
        dz_BTV -= dentropy_BT[..., None] * p_BTV * (logp_BTV + saved.entropy_BT[..., None])
    for name, reduction, temperature in spec.maps:
        if name not in dmaps:
            continue
        q_BTV = p_BTV
        if temperature != 1:
            q_BTV = jnp.exp(z_BTV / temperature - saved.map_logz[name][..., None])
        g_BTV = weights[name][..., None] * dmaps[name][:, None]
        if reduction == "max":
            g_BTV = jnp.where(first[name][:, None] == position_T[None, :, None], g_BTV, 0)
        mean_BT = jnp.sum(q_BTV * g_BTV, axis=-1)
        dz_BTV += q_BTV * (g_BTV - mean_BT[..., None]) / temperature
    return _through_product(dz_BTV, hidden_BTD, head_DV, dhead_DV)


_stream.defvjp(_stream_fwd, _stream_bwd, symbolic_zeros=True)


def _through_product(dz_BTV, hidden_BTD, head_DV, dhead_DV):
    """Adds the head's gradient of z = hidden @ head and returns that of the hidden states."""
    dz_BTV, sum_dtype = dz_BTV.astype(hidden_BTD.dtype), dhead_DV.dtype
    dhidden_BTD = jnp.einsum("BTV,DV->BTD", dz_BTV, head_DV, preferred_element_type=sum_dtype)
    dhead_DV += jnp.einsum("BTD,BTV->DV", hidden_BTD, dz_BTV, preferred_element_type=sum_dtype)
    return dhead_DV, dhidden_BTD.astype(hidden_BTD.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(spec: _Spec, hidden_BTD, head_DV, rows) -> tuple[jax.Array, VocabularyPass]:
    *rows, nll_weight_BT = rows
    found, _ = _forward(spec, hidden_BTD, head_DV, rows)
    return _one_sum(nll_weight_BT, found), found


def _one_sum(nll_weight_BT, found: VocabularyPass) -> jax.Array:
    # (1,), so that devices have one each: a sum over devices would be differentiated as one more sum.
    return jnp.sum(nll_weight_BT * found.nll_BT, keepdims=True)[0]


@jax.named_scope("head")
def _sum_fwd(spec: _Spec, hidden_BTD, head_DV, rows):
    chunks = _Chunks.of(hidden_BTD, spec.chunk_rows)
    dhead_DV = jnp.zeros(head_DV.shape, _sum_dtype(hidden_BTD))
    (((maps, _), dhead_DV), (found, dhidden)) = lax.scan(
        partial(_sum_chunk, spec, head_DV.astype(hidden_BTD.dtype)),
        (_empty_maps(spec, chunks, hidden_BTD, head_DV), dhead_DV),
        (chunks.positions, *chunks.split((hidden_BTD, *rows))),
    )
    found, dhidden_BTD = chunks.join((found, dhidden))
    found = found._replace(maps=maps)
    empty = jnp.zeros(0, head_DV.dtype)  # says which dtype the head's gradient is to have
    return (_one_sum(rows[-1], found), found), (dhidden_BTD, dhead_DV, empty)


def _sum_chunk(spec: _Spec, head_DV, carry, xs):
    carry, dhead_DV = carry
    position_T, hidden_BTD, target_BT, weights, nll_weight_BT = xs
    z_BTV = logits(hidden_BTD, head_DV)
    carry, (found, _), p_BTV = _read(spec, z_BTV, carry, position_T, target_BT, weights)
    onehot_BTV = jax.nn.one_hot(target_BT, z_BTV.shape[-1], dtype=z_BTV.dtype)
    dz_BTV = nll_weight_BT[..., None] * (p_BTV - onehot_BTV)
    dhead_DV, dhidden_BTD = _through_product(dz_BTV, hidden_BTD, head_DV, dhead_DV)
    return (carry, dhead_DV), (found, dhidden_BTD)


def _sum_bwd(spec: _Spec, residuals, cotangent):
    (dhidden_BTD, dhead_DV, empty), (scale_1, _) = residuals, cotangent
    scale = scale_1[0]
    return (dhidden_BTD * scale).astype(dhidden_BTD.dtype), (dhead_DV * scale).astype(empty.dtype), None


_sum.defvjp(_sum_fwd, _sum_bwd)


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


def logits(hidden_BTD: jax.Array, head_DV: jax.Array) -> jax.Array:
    """hidden @ head with operands in the dtype of `hidden_BTD` and sums in float32 (float64)."""
    head_DV = head_DV.astype(hidden_BTD.dtype)
    return jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=_sum_dtype(hidden_BTD))


def _map_weight(hidden_BTD: jax.Array, kind: VocabularyMap) -> jax.Array:
    """How much each position counts in the map: 0 or 1, or for the mean 0 or one over the row's count."""
    if kind.reduction not in REDUCTIONS:
        raise ValueError(f"reduction {kind.reduction!r} is none of {REDUCTIONS}")
    mask_BT = jnp.ones(hidden_BTD.shape[:2], bool) if kind.mask_BT is None else kind.mask_BT
    weight_BT = mask_BT.astype(_sum_dtype(hidden_BTD))
    if kind.reduction == "mean":
        weight_BT /= jnp.maximum(jnp.sum(weight_BT, axis=1, keepdims=True), 1)
    return weight_BT
