"""The vocabulary pass: what the objectives need from the logits, without ever holding all logits.

Cross-entropy needs a negative log-likelihood per position, dynamic distillation an entropy, mutual
information and vocabulary map matching a *map* each: softmax(z) reduced over the positions of an example to
one value per vocabulary row. All come from one pass over z = hidden @ head. It goes in chunks of a few rows
(positions of any examples), so only one chunk of the (G, Y, V) logits exists at a time.

Objectives are plain JAX functions of the resulting (G, Y) and (G, E, V) arrays. Their gradients arrive as
cotangents of nll, entropy and maps. With p = softmax(z) and its entropy H, the logits of a position receive

    dz = dnll (p - onehot(target)) - dentropy p (log p + H) + sum_maps p (g - sum_v p_v g_v)

where g is the cotangent of the example's map; for the maximum it is zero except at v's first maximiser, as in
PyTorch. The backward pass recomputes z chunk by chunk and turns dz at once into the gradients of hidden and
head: it saves memory for four matrix products instead of three. Three are enough where dz is known as soon as
the logits are: if only the cross-entropy is differentiated (`cross_entropy_pass`), and with it a loss of each
example's map against a known target (`matching_pass`, whose chunks have whole examples).

Shape suffixes beside those of `cot_jax.batch`: Y slots of a group's targets, R rows of a chunk, M = G * E.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike

from cot_jax import backend
from cot_jax.batch import Segments, Tokens

REDUCTIONS = ("max", "mean", "sum")

# Rows of a chunk. Each chunk reads and writes the whole gradient of the head; with this many rows, the matrix
# products cost much more.
_CPU_ROWS, _ACCELERATOR_ROWS = 512, 2048


class VocabularyMap(NamedTuple):
    """A requested map: softmax(z) reduced over the positions of an example.

    Attributes:
      reduction: one of `REDUCTIONS`.
      length_GE: number of leading tokens of each example that enter; None: all. Without any the map is zero.
    """

    reduction: str
    length_GE: ArrayLike | None = None


class VocabularyPass(NamedTuple):
    """The results of one pass over the logits: float32, or float64 if the hidden states are.

    Attributes:
      nll_GY: -log softmax(z) of the target.
      entropy_GY: entropy of softmax(z) in nats; None unless requested.
      maps: (G, E, V) for every requested name.
    """

    nll_GY: jax.Array
    entropy_GY: jax.Array | None
    maps: dict[str, jax.Array]


def vocabulary_pass(
    hidden_GYD: jax.Array,
    head_DV: jax.Array,
    targets: Tokens,
    maps: Mapping[str, VocabularyMap] = MappingProxyType({}),
    *,
    entropy: bool = False,
    chunk_rows: int | None = None,
    batch_axes: tuple[str, ...] = (),
) -> VocabularyPass:
    """Streams z = hidden @ head. Differentiable in hidden and head.

    Matrix products take operands in the dtype of `hidden_GYD` and sum in float32, as does the sum of the
    head's gradient over chunks. Only requested results are computed, and no gradient of what is detached or,
    as the head under LoRA, not learned.

    Args:
      hidden_GYD: the states that predict the targets, bfloat16, float32 or float64.
      head_DV: output embedding, any float dtype.
      targets: ids in [0, V). The caller masks the nll of slots without a token.
      chunk_rows: maximum rows of a chunk; None: by the backend.
      batch_axes: axes of the ambient mesh (`jax.set_mesh`) that shard G; each device streams its own groups.
        The head is gathered once and its gradient summed over devices once. Other axes may shard V
        (vocabulary-parallel): only sums over V cross them.

    Raises:
      ValueError: the reduction of a map is not in `REDUCTIONS`.
    """
    spec, rows = _prepare(targets, maps, entropy, chunk_rows)
    stream = backend.by_device(partial(_stream, spec), _in_specs, *batch_axes)
    found = stream(hidden_GYD, head_DV, rows)
    return _with_means(found, targets, maps)


def cross_entropy_pass(
    hidden_GYD: jax.Array,
    head_DV: jax.Array,
    targets: Tokens,
    nll_weight_GY: jax.Array,
    maps: Mapping[str, VocabularyMap] = MappingProxyType({}),
    *,
    entropy: bool = False,
    chunk_rows: int | None = None,
    batch_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, VocabularyPass]:
    """`vocabulary_pass` if only sum(nll_weight * nll) is differentiated: one matrix product less.

    The weights are known beforehand, so the forward pass computes the gradients of hidden and head from a
    chunk's logits, and the backward pass only scales them.

    Args:
      nll_weight_GY: weight of each position's negative log-likelihood; carries no gradient.
      Others: as in `vocabulary_pass`.

    Returns:
      sum(nll_weight * nll), () float32 or float64, and what `vocabulary_pass` returns, without gradients.
    """
    spec, rows = _prepare(targets, maps, entropy, chunk_rows)
    nll_weight_GY = nll_weight_GY.astype(_sum_dtype(hidden_GYD))
    stream = backend.by_device(partial(_sum, spec), _in_specs, *batch_axes)
    sums, found = stream(hidden_GYD, head_DV, (rows, nll_weight_GY))
    return jnp.sum(sums), lax.stop_gradient(_with_means(found, targets, maps))


class MapLoss(NamedTuple):
    """A loss of each example's map against a target that is known before the pass.

    Attributes:
      map: the map.
      loss: (targets, maps), (..., V) each, -> (...); finite for a map of zeros.
      target_GEV: the targets; they carry no gradient.
      weight_GE: weight of each example's loss.
    """

    map: VocabularyMap
    loss: Callable[[jax.Array, jax.Array], jax.Array]
    target_GEV: jax.Array
    weight_GE: jax.Array


def matching_pass(
    hidden_GYD: jax.Array,
    head_DV: jax.Array,
    targets: Tokens,
    nll_weight_GY: jax.Array,
    matched: MapLoss,
    *,
    chunk_rows: int | None = None,
    batch_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`vocabulary_pass` if sum(nll_weight * nll) + sum(weight * loss) is differentiated: one product less.

    A chunk has whole examples, so their maps are complete, and their losses are differentiated, while its
    logits exist. Its last rows may stay unused.

    Args:
      nll_weight_GY: as in `cross_entropy_pass`.
      matched: the loss and its weights.
      Others: as in `vocabulary_pass`.

    Returns:
      The sum, () float32 or float64. Without gradients: nll_GY, 0 in slots without a token, and loss_GE.
    """
    kind, segments = matched.map, Segments.of(targets)
    spec, rows = _prepare(targets, {"map": kind}, False, chunk_rows)
    matches = _Matches(
        rows,
        segments.real_GX,
        (segments.start_GE, segments.end_GE),
        jnp.asarray(_length(kind, targets)),
        *(x.astype(_sum_dtype(hidden_GYD)) for x in (nll_weight_GY, matched.target_GEV, matched.weight_GE)),
    )
    match = backend.by_device(partial(_match, spec, matched.loss), _in_specs, *batch_axes)
    sums, (nll_GY, loss_GE) = match(hidden_GYD, head_DV, matches)
    return jnp.sum(sums), *lax.stop_gradient((nll_GY, loss_GE))


class _Spec(NamedTuple):
    """Static arguments of the pass."""

    maps: tuple[tuple[str, str], ...]  # name, reduction
    entropy: bool
    chunk_rows: int
    examples: int  # E
    width: int  # no target is longer
    together: int  # examples reduced at a time; 0: a loop over those of a chunk
    one_pass: bool  # finds maxima and their positions at once


class _Rows(NamedTuple):
    """What belongs to each row beside its hidden state, (G, Y) each."""

    target: jax.Array
    example: jax.Array
    position: jax.Array
    counted: dict[str, jax.Array]  # bool, whether it enters each map


class _Matches(NamedTuple):
    """What `matching_pass` knows of a device's rows and examples."""

    rows: _Rows
    real_GY: jax.Array
    ends: tuple[jax.Array, jax.Array]  # first slots of the examples and those behind their last ones, (G, E)
    length_GE: jax.Array  # of the maps
    nll_weight_GY: jax.Array
    target_GEV: jax.Array
    weight_GE: jax.Array


class _Saved(NamedTuple):
    """What the backward pass needs of each row, (G, Y) each."""

    logz: jax.Array
    entropy: jax.Array | None


def _prepare(targets: Tokens, maps, entropy: bool, chunk_rows: int | None) -> tuple[_Spec, _Rows]:
    for kind in maps.values():
        if kind.reduction not in REDUCTIONS:
            raise ValueError(f"reduction {kind.reduction!r} is not in {REDUCTIONS}")
    platform = backend.platform()
    if chunk_rows is None:
        chunk_rows = _CPU_ROWS if platform == "cpu" else _ACCELERATOR_ROWS
    segments = Segments.of(targets)
    counted = {name: segments.within(_length(kind, targets)) for name, kind in maps.items()}
    kinds = tuple((name, kind.reduction) for name, kind in maps.items())
    # As many as fill a chunk. Of a loop with computed bounds a GPU's host would wait for every iteration.
    together = max(1, chunk_rows // targets.width) if platform == "gpu" else 0
    # One pass reads less memory, but XLA for CPU does not vectorize it.
    sizes = (chunk_rows, targets.length.shape[1], targets.width)
    spec = _Spec(kinds, entropy, *sizes, together, one_pass=platform == "tpu")
    return spec, _Rows(jnp.asarray(targets.ids), segments.example_GX, segments.position_GX, counted)


def _in_specs(groups: PartitionSpec):
    """The head is a separate argument, as it is replicated."""
    return groups, PartitionSpec(), groups


def _length(kind: VocabularyMap, targets: Tokens):
    return targets.length if kind.length_GE is None else kind.length_GE


def _with_means(found: VocabularyPass, targets: Tokens, maps) -> VocabularyPass:
    """Divides the sums of maps that are means."""
    made = dict(found.maps)
    for name, kind in maps.items():
        if kind.reduction == "mean":
            made[name] /= jnp.maximum(_length(kind, targets), 1)[..., None]
    return found._replace(maps=made)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stream(spec: _Spec, hidden_GYD, head_DV, rows: _Rows) -> VocabularyPass:
    return _forward(spec, hidden_GYD, head_DV, rows)[0]


@jax.named_scope("head")
def _forward(spec: _Spec, hidden_GYD, head_DV, rows: _Rows, nll_weight_GY=None, learns_head=False):
    """Returns the results, what the backward pass needs, and the gradients of sum(nll_weight * nll)."""
    chunks, sum_dtype = _Chunks.of(hidden_GYD, spec.chunk_rows), _sum_dtype(hidden_GYD)
    shape_MV = (len(hidden_GYD) * spec.examples, head_DV.shape[1])
    start = {name: -jnp.inf if kind == "max" else 0.0 for name, kind in spec.maps}
    maps = {name: jnp.full(shape_MV, value, sum_dtype) for name, value in start.items()}
    first = {name: jnp.zeros(shape_MV, rows.position.dtype) for name, kind in spec.maps if kind == "max"}
    dhead_DV = jnp.zeros(head_DV.shape, sum_dtype) if learns_head else None
    (maps, first, dhead_DV), by_row = lax.scan(
        partial(_forward_chunk, spec, head_DV.astype(hidden_GYD.dtype)),
        (maps, first, dhead_DV),
        chunks.split((hidden_GYD, _of_device(spec, rows), nll_weight_GY)),
    )
    found, saved, dhidden_GYD = chunks.join(by_row)
    maps = {name: jnp.exp(map_MV) if name in first else map_MV for name, map_MV in maps.items()}
    maps = {name: map_MV.reshape(-1, spec.examples, map_MV.shape[1]) for name, map_MV in maps.items()}
    return found._replace(maps=maps), (saved, first), (dhidden_GYD, dhead_DV)


def _of_device(spec: _Spec, rows: _Rows) -> _Rows:
    """Numbers the examples across all groups of the device, as its maps do."""
    first_G1 = spec.examples * jnp.arange(len(rows.example))[:, None]
    return rows._replace(example=rows.example + first_G1)


def _forward_chunk(spec: _Spec, head_DV, carry, xs):
    """Adds one chunk to the maps and the head's gradient; returns the results of each row."""
    maps, first, dhead_DV = carry
    hidden_RD, rows, nll_weight_R = xs
    z_RV = logits(hidden_RD, head_DV)
    top_R = jnp.max(z_RV, axis=-1)
    exp_RV = jnp.exp(z_RV - top_R[:, None])
    total_R = jnp.sum(exp_RV, axis=-1)
    logz_R = top_R + jnp.log(total_R)
    target_z_R = jnp.take_along_axis(z_RV, rows.target[:, None], axis=-1)[:, 0]
    entropy_R = dhidden_RD = None
    if spec.entropy:
        mean_R = jnp.sum(exp_RV * (z_RV - top_R[:, None]), axis=-1) / total_R
        entropy_R = jnp.log(total_R) - mean_R
    maps, first = dict(maps), dict(first)
    if maps:  # recomputed, z might not equal itself: no row would then have the maximum
        z_RV, logz_R = lax.optimization_barrier((z_RV, logz_R))
    for name, _ in spec.maps:
        inputs = (rows, rows.counted[name], z_RV, logz_R)
        maps[name], first_MV = _reduce(spec, *inputs, maps[name], first.get(name))
        if first_MV is not None:
            first[name] = first_MV
    if nll_weight_R is not None:
        dz_RV = _through_nll(nll_weight_R, exp_RV / total_R[:, None], rows.target)
        dhead_DV, dhidden_RD = _through_product(dz_RV, hidden_RD, head_DV, dhead_DV)
    found = VocabularyPass(logz_R - target_z_R, entropy_R, {})
    return (maps, first, dhead_DV), (found, _Saved(logz_R, entropy_R), dhidden_RD)


def _reduce(spec: _Spec, rows: _Rows, counted_R, z_RV, logz_R, made_MV, first_MV=None):
    """Adds a chunk to a map: by example, the sum of its rows' p or, with `first_MV`, the maximum of log p.

    `first_MV` are the positions of the maxima, the first one of equals. It gathers each example's rows, which
    are consecutive, because a TPU scatters slowly, row by row.
    """
    size = min(spec.width, len(z_RV))

    def one(example):
        """The example's sum, or its maximum and the position of that."""
        own_R = counted_R & (rows.example == example)
        begin = jnp.argmax(own_R)
        own_S1, position_S1, logz_S1, z_SV = (
            lax.dynamic_slice_in_dim(x, begin, size)
            for x in (own_R[:, None], rows.position[:, None], logz_R[:, None], z_RV)
        )
        logp_SV = jnp.where(own_S1, z_SV - logz_S1, -jnp.inf)
        if first_MV is None:
            return jnp.sum(jnp.exp(logp_SV), axis=0), None
        return _first_maximum(spec, own_S1, position_S1, logp_SV)

    def add(found, made, first):
        top, at = found
        if first is None:
            return made + top, None
        return jnp.maximum(made, top), jnp.where(top > made, at, first)  # the earlier chunk wins a tie

    def step(example, carry):
        # As (1, V): a TPU takes time to make rows of a matrix vectors and back.
        earlier = jax.tree.map(lambda x_MV: lax.dynamic_slice_in_dim(x_MV, example, 1), carry)
        its = add(jax.tree.map(lambda x_V: x_V[None], one(example)), *earlier)
        return jax.tree.map(
            lambda x_MV, x_1V: lax.dynamic_update_slice_in_dim(x_MV, x_1V, example, 0), carry, its
        )

    if spec.together:
        found = lax.map(one, jnp.arange(len(made_MV)), batch_size=spec.together)
        return add(found, made_MV, first_MV)
    return lax.fori_loop(rows.example[0], rows.example[-1] + 1, step, (made_MV, first_MV))


def _first_maximum(spec: _Spec, own_S1, position_S1, logp_SV):
    """The maximum over an example's rows, (V,), and the position of the first one."""
    most = jnp.iinfo(position_S1.dtype).max
    position_SV = jnp.broadcast_to(position_S1, logp_SV.shape)
    if spec.one_pass:
        nothing = (jnp.array(-jnp.inf, logp_SV.dtype), jnp.array(most, position_SV.dtype))
        return lax.reduce((logp_SV, position_SV), nothing, _greater, (0,))
    top_V = jnp.max(logp_SV, axis=0)
    return top_V, jnp.min(jnp.where(own_S1 & (logp_SV == top_V[None]), position_SV, most), axis=0)


def _greater(a, b):
    """The greater of two (value, position); of equals, the earlier one."""
    takes_a = (a[0] > b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))
    return tuple(jnp.where(takes_a, *pair) for pair in zip(a, b, strict=True))


def _plain(head, *others):
    """A forward rule's inputs without the wrappers of symbolic_zeros, and an empty head if it is learned."""
    # Only its shape and dtype matter.
    like = jnp.zeros((0, *head.value.shape), head.value.dtype) if head.perturbed else None
    return jax.tree.map(lambda leaf: leaf.value, others), like


def _stream_fwd(spec: _Spec, *inputs):
    inputs, like_head = _plain(inputs[1], *inputs)
    found, saved, _ = _forward(spec, *inputs)
    return found, (inputs, like_head, saved)


@jax.named_scope("head")
def _stream_bwd(spec: _Spec, residuals, cotangent: VocabularyPass):
    (hidden_GYD, head_DV, rows), like_head, (saved, first) = residuals
    dnll_GY, dentropy_GY, dmaps = jax.tree.map(
        lambda d: None if isinstance(d, SymbolicZero) else d,
        cotangent,
        is_leaf=lambda d: isinstance(d, SymbolicZero),
    )
    dmaps = {name: d.reshape(-1, d.shape[-1]) for name, d in dmaps.items() if d is not None}
    chunks = _Chunks.of(hidden_GYD, spec.chunk_rows)
    dhead_DV, dhidden = lax.scan(
        partial(_backward_chunk, spec, head_DV.astype(hidden_GYD.dtype), first, dmaps),
        None if like_head is None else jnp.zeros(head_DV.shape, _sum_dtype(hidden_GYD)),
        chunks.split((hidden_GYD, _of_device(spec, rows), saved, dnll_GY, dentropy_GY)),
    )
    dhead_DV = None if dhead_DV is None else dhead_DV.astype(head_DV.dtype)
    return chunks.join(dhidden), dhead_DV, None


def _backward_chunk(spec: _Spec, head_DV, first, dmaps, dhead_DV, xs):
    """Adds one chunk to the head's gradient; returns the gradient of its hidden states."""
    hidden_RD, rows, saved, dnll_R, dentropy_R = xs
    z_RV = logits(hidden_RD, head_DV)
    p_RV = jnp.exp(z_RV - saved.logz[:, None])
    dz_RV = jnp.zeros_like(z_RV)
    if dnll_R is not None:
        dz_RV += _through_nll(dnll_R, p_RV, rows.target)
    if dentropy_R is not None:
        logp_RV = z_RV - saved.logz[:, None]
        dz_RV -= dentropy_R[:, None] * p_RV * (logp_RV + saved.entropy[:, None])
    for name, reduction in spec.maps:
        if name not in dmaps:
            continue
        q_RV, g_RV = jnp.where(rows.counted[name][:, None], p_RV, 0), dmaps[name][rows.example]
        if reduction == "max":
            g_RV = jnp.where(first[name][rows.example] == rows.position[:, None], g_RV, 0)
        mean_R = jnp.sum(q_RV * g_RV, axis=-1)
        dz_RV += q_RV * (g_RV - mean_R[:, None])
    return _through_product(dz_RV, hidden_RD, head_DV, dhead_DV)


_stream.defvjp(_stream_fwd, _stream_bwd, symbolic_zeros=True)


def _through_nll(dnll_R, p_RV, target_R):
    """The gradient of the logits through nll."""
    return dnll_R[:, None] * (p_RV - jax.nn.one_hot(target_R, p_RV.shape[-1], dtype=p_RV.dtype))


def _through_product(dz_RV, hidden_RD, head_DV, dhead_DV):
    """Back through z = hidden @ head: adds the head's gradient, if learned; returns both gradients."""
    dz_RV, sum_dtype = dz_RV.astype(hidden_RD.dtype), _sum_dtype(hidden_RD)
    dhidden_RD = jnp.einsum("RV,DV->RD", dz_RV, head_DV, preferred_element_type=sum_dtype)
    if dhead_DV is not None:
        dhead_DV += jnp.einsum("RD,RV->DV", hidden_RD, dz_RV, preferred_element_type=sum_dtype)
    return dhead_DV, dhidden_RD.astype(hidden_RD.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum(spec: _Spec, hidden_GYD, head_DV, weighted_rows) -> tuple[jax.Array, VocabularyPass]:
    rows, nll_weight_GY = weighted_rows
    found, *_ = _forward(spec, hidden_GYD, head_DV, rows)
    return _one_sum(nll_weight_GY, found), found


def _one_sum(nll_weight_GY, found: VocabularyPass) -> jax.Array:
    # (1,), one per device: the gradient of a sum over devices would sum once more.
    return jnp.sum(nll_weight_GY * found.nll_GY, keepdims=True)[0]


def _sum_fwd(spec: _Spec, *inputs):
    (hidden_GYD, head_DV, (rows, nll_weight_GY)), like_head = _plain(inputs[1], *inputs)
    learns_head = like_head is not None
    found, _, gradients = _forward(spec, hidden_GYD, head_DV, rows, nll_weight_GY, learns_head)
    return (_one_sum(nll_weight_GY, found), found), (*gradients, like_head)


def _sum_bwd(spec: _Spec, residuals, cotangent):
    (dhidden_GYD, dhead_DV, like_head), (scale_1, _) = residuals, cotangent
    scale = scale_1[0]
    if like_head is not None:
        dhead_DV = (dhead_DV * scale).astype(like_head.dtype)
    return (dhidden_GYD * scale).astype(dhidden_GYD.dtype), dhead_DV, None


_sum.defvjp(_sum_fwd, _sum_bwd, symbolic_zeros=True)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _match(spec: _Spec, loss, hidden_GYD, head_DV, matches: _Matches):
    return _match_chunks(spec, loss, hidden_GYD, head_DV, matches)[0]


@jax.named_scope("head")
def _match_chunks(spec: _Spec, loss, hidden_GYD, head_DV, matches: _Matches, learns_head=False):
    """Returns the sum, (1,), with nll and losses, and the gradients of hidden and head."""
    (G, Y, D), M, sum_dtype = hidden_GYD.shape, len(hidden_GYD) * spec.examples, _sum_dtype(hidden_GYD)
    chunks, size = _whole_examples(G, Y, spec)
    first_G1 = Y * jnp.arange(G, dtype=jnp.int32)[:, None]
    ends = tuple((x_GE + first_G1).reshape(M) for x_GE in matches.ends)
    by_row = (hidden_GYD, _of_device(spec, matches.rows), matches.real_GY, matches.nll_weight_GY)
    by_row = jax.tree.map(lambda x: _lengthen(x.reshape(G * Y, *x.shape[2:]), size), by_row)
    by_example = (matches.length_GE, matches.target_GEV, matches.weight_GE)
    by_example = jax.tree.map(lambda x: x.reshape(M, *x.shape[2:]), by_example)
    found = (jnp.zeros((G * Y + size, D), hidden_GYD.dtype), jnp.zeros(G * Y + size, sum_dtype))
    # Filled with zeros once: what earlier chunks leave in rows without an example is never used.
    dz_RV = jnp.zeros((size, head_DV.shape[1]), hidden_GYD.dtype)
    dhead_DV = jnp.zeros(head_DV.shape, sum_dtype) if learns_head else None
    (_, (dhidden, nll), loss_M, _, dhead_DV), _ = lax.scan(
        partial(_match_chunk, spec, loss, size, head_DV.astype(hidden_GYD.dtype), ends, by_row, by_example),
        (jnp.int32(0), found, jnp.zeros(M, sum_dtype), dz_RV, dhead_DV),
        length=chunks,
    )
    dhidden_GYD, nll_GY = (x[: G * Y].reshape(G, Y, *x.shape[1:]) for x in (dhidden, nll))
    loss_GE = loss_M.reshape(G, -1)
    total = jnp.sum(matches.nll_weight_GY * nll_GY) + jnp.sum(matches.weight_GE * loss_GE)
    return (total[None], (nll_GY, loss_GE)), (dhidden_GYD, dhead_DV)


def _whole_examples(groups: int, slots: int, spec: _Spec) -> tuple[int, int]:
    """How many chunks of how many rows suffice if an example that does not fit begins the next chunk."""
    # At most a quarter of a chunk stays unused.
    most = max(spec.chunk_rows, 4 * spec.width)
    count = -(-groups * slots // (most - spec.width + 1))
    size = -(-groups * slots // count) + spec.width - 1
    # A chunk with its share of the examples is large enough as well, unless a group's spare slots are in it.
    return count, min(size, -(-spec.examples // count) * spec.width) if groups == 1 else size


def _lengthen(x: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(x, [(0, rows)] + [(0, 0)] * (x.ndim - 1))


def _match_chunk(spec: _Spec, loss, size, head_DV, ends, by_row, by_example, carry, _):
    """Adds the gradients of the next examples that fit into a chunk of `size` rows, their nll and losses."""
    example, found, loss_M, dz_RV, dhead_DV = carry
    start_M, end_M = ends
    begin = start_M[jnp.minimum(example, len(start_M) - 1)]
    behind = jnp.sum(end_M <= begin + size, dtype=jnp.int32)  # the example after the last one that fits
    hidden_RD, rows, real_R, nll_weight_R = jax.tree.map(
        lambda x: lax.dynamic_slice_in_dim(x, begin, size), by_row
    )
    own_R = real_R & (rows.example >= example) & (rows.example < behind)
    z_RV = logits(hidden_RD, head_DV)
    logz_R = jax.nn.logsumexp(z_RV, axis=-1)
    nll_R = logz_R - jnp.take_along_axis(z_RV, rows.target[:, None], axis=-1)[:, 0]
    z_RV, logz_R = lax.optimization_barrier((z_RV, logz_R))  # as in `_forward_chunk`
    counted_R = own_R & rows.counted["map"]
    columns = (own_R, counted_R, rows.example, rows.position, rows.target, nll_weight_R, logz_R)
    columns = tuple(x_R[:, None] for x_R in columns)

    def step(example, carry):
        dz_RV, loss_M = carry
        slices = partial(lax.dynamic_slice_in_dim, start_index=start_M[example] - begin)
        S = min(spec.width, size)
        own_S1, counted_S1, example_S1, position_S1, target_S1, nll_weight_S1, logz_S1 = (
            slices(x_R1, slice_size=S) for x_R1 in columns
        )
        z_SV, dz_SV = (slices(x_RV, slice_size=S) for x_RV in (z_RV, dz_RV))
        its_example = jax.tree.map(lambda x_M: lax.dynamic_slice_in_dim(x_M, example, 1), by_example)
        its_S1, logp_SV = example_S1 == example, z_SV - logz_S1
        loss_1, through_SV = _through_map(spec, loss, logp_SV, counted_S1 & its_S1, position_S1, its_example)
        # p (g - sum_v p_v g_v) with the factor of p in nll's gradient.
        factor_S1 = nll_weight_S1 - jnp.sum(through_SV, axis=1, keepdims=True)
        target_SV = jnp.arange(z_SV.shape[1])[None] == target_S1
        new_SV = jnp.exp(logp_SV) * factor_S1 + through_SV - jnp.where(target_SV, nll_weight_S1, 0)
        dz_SV = jnp.where(own_S1 & its_S1, new_SV.astype(dz_SV.dtype), dz_SV)
        dz_RV = lax.dynamic_update_slice_in_dim(dz_RV, dz_SV, start_M[example] - begin, 0)
        return dz_RV, lax.dynamic_update_slice_in_dim(loss_M, loss_1, example, 0)

    dz_RV, loss_M = lax.fori_loop(example, behind, step, (dz_RV, loss_M))
    own_RD = jnp.where(own_R[:, None], hidden_RD, 0)
    dhead_DV, dhidden_RD = _through_product(dz_RV, own_RD, head_DV, dhead_DV)

    def put(all_X, new_R):
        old_R = lax.dynamic_slice_in_dim(all_X, begin, size)
        new_R = jnp.where(own_R.reshape(-1, *[1] * (new_R.ndim - 1)), new_R, old_R)
        return lax.dynamic_update_slice_in_dim(all_X, new_R, begin, 0)

    found = jax.tree.map(put, found, (dhidden_RD, nll_R))
    return (behind, found, loss_M, dz_RV, dhead_DV), None


def _through_map(spec: _Spec, loss, logp_SV, counted_S1, position_S1, example):
    """The loss of an example's map, and p g, where g is the map's gradient at the rows that it is of."""
    length_1, target_1V, weight_1 = example
    ((_, reduction),) = spec.maps
    masked_SV = jnp.where(counted_S1, logp_SV, -jnp.inf)
    if reduction == "max":
        top_V, first_V = _first_maximum(spec, counted_S1, position_S1, masked_SV)
        map_1V = jnp.exp(top_V)[None]
    else:
        summed = jnp.maximum(length_1, 1)[:, None].astype(logp_SV.dtype) if reduction == "mean" else 1
        map_1V = jnp.sum(jnp.exp(masked_SV), axis=0, keepdims=True) / summed
    loss_1, pull = jax.vjp(partial(loss, target_1V), map_1V)
    (slope_1V,) = pull(weight_1)
    if reduction == "max":  # p is the map where the maximum is
        through_SV = jnp.where(counted_S1 & (first_V[None] == position_S1), map_1V * slope_1V, 0)
    else:
        through_SV = jnp.exp(masked_SV) * (slope_1V / summed)
    return loss_1, through_SV


def _match_fwd(spec: _Spec, loss, *inputs):
    (hidden_GYD, head_DV, matches), like_head = _plain(inputs[1], *inputs)
    result, gradients = _match_chunks(spec, loss, hidden_GYD, head_DV, matches, like_head is not None)
    return result, (*gradients, like_head)


def _match_bwd(spec: _Spec, loss, residuals, cotangent):
    return _sum_bwd(spec, residuals, cotangent)


_match.defvjp(_match_fwd, _match_bwd, symbolic_zeros=True)


class _Chunks(NamedTuple):
    """The slots of all groups as chunks of `size` rows. Zeros pad the first chunk.

    The padding is in front so that example numbers remain sorted.
    """

    groups: int
    slots: int
    size: int

    @classmethod
    def of(cls, hidden_GYD: jax.Array, most: int) -> "_Chunks":
        """The fewest chunks of at most `most` rows, almost equally full."""
        G, Y, _ = hidden_GYD.shape
        return cls(G, Y, -(-G * Y // -(-G * Y // most)))

    @property
    def fill(self) -> int:
        return -self.groups * self.slots % self.size

    def split(self, tree):
        """Each (G, Y, ...) becomes (chunks, size, ...)."""

        def one(leaf):
            rows = leaf.reshape(self.groups * self.slots, *leaf.shape[2:])
            filled = jnp.pad(rows, [(self.fill, 0)] + [(0, 0)] * (rows.ndim - 1))
            return filled.reshape(-1, self.size, *rows.shape[1:])

        return jax.tree.map(one, tree)

    def join(self, tree):
        """The inverse of `split`."""

        def one(leaf):
            rows = leaf.reshape(-1, *leaf.shape[2:])[self.fill :]
            return rows.reshape(self.groups, self.slots, *rows.shape[1:])

        return jax.tree.map(one, tree)


def _sum_dtype(array: jax.Array):
    return jnp.promote_types(array.dtype, jnp.float32)


def logits(hidden: jax.Array, head_DV: jax.Array) -> jax.Array:
    """(..., D) @ head with operands in the dtype of `hidden` and sums in float32 (float64)."""
    head_DV = head_DV.astype(hidden.dtype)
    return jnp.einsum("...D,DV->...V", hidden, head_DV, preferred_element_type=_sum_dtype(hidden))
