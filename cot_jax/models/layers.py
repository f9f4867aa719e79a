"""Layers that all families share: linear maps with LoRA, norms, dropout, attention, stacks of layers.

Everything but attention acts on one token at a time, on flat tokens (G, X, ...) or on rectangles alike.
Arithmetic is in the dtype of its input; parameters, norms, softmax and attention scores are float32.

Shape suffixes: G groups, E examples of a group, X slots of a group, S query positions, T key positions, D
model, H heads, K head size, N layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from cot_jax import backend
from cot_jax.batch import Segments, Tokens
from cot_jax.models import fused_attention, tpu_attention
from cot_jax.models.numerics import GOLDEN, MASKED, by_distance, mix

# Attention with more scores than this, for one example and head, is computed by chunks of queries.
_WHOLE, _QUERIES = 512 * 512, 128

# Names of what `stack` may keep for the backward pass: outputs of linear maps, and those of attention's own
# if it reads flat tokens.
_PRODUCT, _PROJECTION = "product", "projection"


@functools.partial(jax.tree_util.register_dataclass, data_fields=("w", "a", "b"), meta_fields=("scale",))
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A weight that LoRA adapts: w + scale * a b. The sum is never formed.

    Attributes:
      w: the frozen weight, in its own shape and dtype.
      a: (P, R) and b: (R, Q), with a leading N if `w` holds the weights of N layers.
      scale: alpha / R.
    """

    w: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float


def linear(x: jax.Array, w: jax.Array | LowRank, inputs: int = 1, *, unpacked: bool = False) -> jax.Array:
    """x @ w over the last `inputs` axes of `x` and the first of `w`.

    Args:
      unpacked: whether heads are axes of the product, which suits a decoder's rectangles on a TPU. Otherwise
        all heads are side by side, as the TPU's kernel of attention wants them, and `stack` does not keep the
        product on a TPU. No difference elsewhere.
    """
    of_attention = (w.w if isinstance(w, LowRank) else w).ndim > 2
    y = _product(x, w, inputs, unpacked)
    return checkpoint_name(y, _PROJECTION if of_attention and not unpacked else _PRODUCT)


def _product(x: jax.Array, w: jax.Array | LowRank, inputs: int, unpacked: bool) -> jax.Array:
    if isinstance(w, LowRank):
        flat = x.reshape(*x.shape[: x.ndim - inputs], -1)
        low = (flat @ w.a.astype(x.dtype)) @ w.b.astype(x.dtype)
        dense = _product(x, w.w, inputs, unpacked)
        return dense + (w.scale * low).reshape(dense.shape).astype(x.dtype)
    w = w.astype(x.dtype)
    if unpacked:
        return jnp.tensordot(x, w, inputs)
    lead, width = x.shape[: x.ndim - inputs], math.prod(w.shape[:inputs])
    y = x.reshape(*lead, width) @ w.reshape(width, -1)
    return y.reshape(*lead, *w.shape[inputs:])


def affine(
    x: jax.Array, w: Mapping[str, Any], name: str, inputs: int = 1, *, unpacked: bool = False
) -> jax.Array:
    """The linear map `name` of `w` and its bias, if any: `name`_bias, or bias beside a map called w."""
    y = linear(x, w[name], inputs, unpacked=unpacked)
    bias = w.get("bias" if name == "w" else f"{name}_bias")
    return y if bias is None else add_bias(y, bias)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y + bias over the last axes of `y`, in its dtype."""
    return y + lift(bias, y.ndim).astype(y.dtype)


def lift(x: Any, ndim: int) -> Any:
    """`x` with leading axes of size 1, `ndim` axes in all."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def split_key(key: jax.Array | None, count: int) -> list[Any]:
    """`count` keys from one; None for each without a key."""
    return [None] * count if key is None else [*jax.random.split(key, count)]


# The backward pass recomputes a norm: otherwise it would keep three float32 copies of its input.
@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x: jax.Array, scale_D: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square norm over the last axis (Zhang and Sennrich 2019), in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    factor = jax.lax.rsqrt(jnp.mean(wide**2, axis=-1, keepdims=True) + epsilon)
    return (wide * (factor * lift(scale_D, x.ndim))).astype(x.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def layer_norm(x: jax.Array, scale_D: jax.Array, bias_D: jax.Array, epsilon: float) -> jax.Array:
    """Layer norm over the last axis (Ba et al. 2016), in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    factor = jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)
    return (centred * (factor * lift(scale_D, x.ndim)) + lift(bias_D, x.ndim)).astype(x.dtype)


def by_example(x: jax.Array) -> jax.Array:
    """Shards the first axis of `x`, of groups or rows, over the data-parallel devices.

    Otherwise the compiler may shard D as the weights are, and send activations instead of weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    if math.prod(mesh.shape[axis] for axis in axes) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(axes))


def embed(table_VD: jax.Array, ids: jax.Array, dtype: Any) -> jax.Array:
    """Rows of the embedding; an id beyond the vocabulary gives NaN, not another token's row."""
    if "model" in jax.sharding.get_abstract_mesh().axis_names:
        # Gather the table over `fsdp`: otherwise the looked-up rows of all devices' examples are gathered.
        table_VD = jax.lax.with_sharding_constraint(table_VD, P("model"))
    # Cast after the lookup, so that gradients add up in float32.
    return by_example(jnp.take(table_VD, ids, axis=0, mode="fill").astype(dtype))


# --- Dropout ---


def drop(x: jax.Array, rate: float, key: jax.Array | None, seed: jax.Array) -> jax.Array:
    """Dropout; none without a key.

    The mask is a hash of the key, the token's seed and the position on the last axis. A step needs as many
    random bits as it has activations; a hash is computed where it is used and depends on the example, not on
    its slot or device.

    Args:
      seed: uint32 of the shape of `x` without its last axis.
    """
    if key is None or rate == 0:
        return x
    first, second, *_ = jax.random.key_data(key)
    column = mix(jnp.arange(x.shape[-1], dtype=jnp.uint32) + first)
    row = mix(seed ^ second)[..., None]
    kept = mix(lift(column, row.ndim) ^ row) < np.uint32((1 - rate) * 2**32)
    return jnp.where(kept, x / (1 - rate), 0)


# --- Flat tokens ---


class Layout:
    """Several views' tokens side by side: (G, X1 + X2 + ...) slots.

    Attributes:
      ids_GX: int32.
      segments: the segments of each view's tokens, in the order of the views.
      position_GX: int32, position of each token in its sequence.
      seed_GX: uint32 for `drop`: a hash of the token's example, view and position.
    """

    def __init__(self, views: Sequence[Tokens], example_GE: ArrayLike):
        self.ids_GX = jnp.concatenate([jnp.asarray(tokens.ids) for tokens in views], axis=1)
        self.segments = [Segments.of(tokens) for tokens in views]
        self.position_GX = jnp.concatenate([s.position_GX for s in self.segments], axis=1)
        seeds = []
        for n, s in enumerate(self.segments):
            of_view = np.uint32(n * int(GOLDEN) % 2**32)
            of_example_GE = mix(jnp.asarray(example_GE).astype(jnp.uint32) + of_view)
            of_example_GX = jnp.take_along_axis(of_example_GE, s.example_GX, axis=1)
            seeds.append(mix(of_example_GX + s.position_GX.astype(jnp.uint32)))
        self.seed_GX = jnp.concatenate(seeds, axis=1)

    @property
    def width(self) -> int:
        """No sequence is longer."""
        return max(s.real_GES.shape[2] for s in self.segments)

    def places(self) -> fused_attention.Places:
        """Where the views' sequences are."""
        found, first = [], 0
        for s in self.segments:
            slots = s.real_GX.shape[1]
            spare_GE = jnp.zeros_like(s.start_GE).at[:, -1].set(slots - s.end_GE[:, -1])
            found.append((first + s.start_GE, s.end_GE - s.start_GE, spare_GE))
            first += slots
        return fused_attention.Places(*(jnp.stack(x).astype(jnp.int32) for x in zip(*found, strict=True)))

    def split(self, x: jax.Array) -> list[jax.Array]:
        """The views' own slots of `x` (G, X, ...)."""
        ends = np.cumsum([s.real_GX.shape[1] for s in self.segments])
        return jnp.split(x, ends[:-1], axis=1)

    def unpack(self, x: jax.Array) -> list[jax.Array]:
        """The views' rectangles (G, E, S, ...) of `x` (G, X, ...)."""
        return [s.unpack(part) for s, part in zip(self.segments, self.split(x), strict=True)]

    def pack(self, parts: Sequence[jax.Array]) -> jax.Array:
        """The inverse of `unpack`."""
        packed = [s.pack(part) for s, part in zip(self.segments, parts, strict=True)]
        return jnp.concatenate(packed, axis=1)


class Keys(NamedTuple):
    """Keys and values that queries attend to.

    Attributes:
      k, v: (*lead, T, G, K). They may have fewer heads than the queries; each head then serves consecutive
        heads of the queries. `lead` is that of the queries, or its first axes if rows share keys.
      mask: bool, true where a query may see a key; broadcasts to (*lead of the queries, S, T). None: all.
      bias: (H, S, T) float32, or (*lead, H, S, T), added to the scores; None: nothing.
    """

    k: jax.Array
    v: jax.Array
    mask: jax.Array | None = None
    bias: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention between the tokens of several views, each within its own examples.

    Attributes:
      queries, keys: layouts of the queries and the keys; the same one for self-attention.
      bias_HW: float32 added to the scores, as `numerics.by_distance` takes it; None: nothing.
      causal: whether a query sees only keys up to its own position.
      rate: of dropout on the attention weights.
      scale: factor of the scores.
    """

    queries: Layout
    keys: Layout
    bias_HW: jax.Array | None = None
    causal: bool = False
    rate: float = 0.0
    scale: float = 1.0

    def __call__(
        self, key: jax.Array | None, q_GXHK: jax.Array, k_GSHK: jax.Array, v_GSHK: jax.Array
    ) -> jax.Array:
        """The attended values (G, X, H, K) of the queries; with dropout if there is a key."""
        widths = self.queries.width, self.keys.width
        if platform := fused_attention.suited(q_GXHK, k_GSHK, widths, self.bias_HW is not None):
            return fused_attention.attend(
                q_GXHK,
                k_GSHK,
                v_GSHK,
                self.queries.places(),
                self.keys.places(),
                widths,
                self.bias_HW,
                platform=platform,
                causal=self.causal,
                scale=self.scale,
                rate=self.rate,
                key=key,
                seed_GX=self.queries.seed_GX,
            )
        parts = []
        rectangles = zip(
            self.queries.unpack(q_GXHK),
            self.keys.unpack(k_GSHK),
            self.keys.unpack(v_GSHK),
            self.queries.unpack(self.queries.seed_GX),
            self.keys.segments,
            strict=True,
        )
        for q, k, v, seed, segments in rectangles:
            bias = None if self.bias_HW is None else by_distance(self.bias_HW, q.shape[2], k.shape[2])
            mask = segments.real_GES[:, :, None, :]
            if self.causal:
                mask &= jnp.tri(q.shape[2], dtype=bool)[None, None]
            keys = [Keys(k, v, mask, bias)]
            parts.append(attend(q, keys, scale=self.scale, rate=self.rate, key=key, seed=seed))
        return self.queries.pack(parts)


@jax.named_scope("attention")
def attend(
    q: jax.Array,
    keys: Sequence[Keys],
    *,
    scale: float = 1.0,
    rate: float = 0.0,
    key: jax.Array | None = None,
    seed: jax.Array | None = None,
) -> jax.Array:
    """Attention of rectangles to several sets of keys, as if they were concatenated.

    The scores of long sequences are never all in memory: queries are taken `_QUERIES` at a time and their
    scores are recomputed in the backward pass.

    Args:
      q: (*lead, S, H, K).
      keys: the sets; empty ones are ignored.
      seed: (*lead, S) uint32 of the queries, for dropout of the attention weights.

    Returns:
      (*lead, S, H, K).
    """
    if q.shape[-3] == 0:
        return q
    keys = [part for part in keys if part.k.shape[-3]]
    key = key if rate > 0 else None

    def whole(q, masks, biases, seed):
        found = []
        for n, (part, mask, bias) in enumerate(zip(keys, masks, biases, strict=True)):
            its = None if key is None else seed + np.uint32(n * int(GOLDEN) % 2**32)
            found.append(_attend(q, part._replace(mask=mask, bias=bias), scale, rate, key, its))
        if len(found) == 1:
            return found[0][0]
        values, logs = zip(*found, strict=True)
        total = jax.nn.logsumexp(jnp.stack(logs), axis=0)
        shares = [jnp.exp(log - total).astype(q.dtype) for log in logs]
        return sum(share * value for share, value in zip(shares, values, strict=True))

    S = q.shape[-3]
    masks, biases = [part.mask for part in keys], [part.bias for part in keys]
    if S * sum(part.k.shape[-3] for part in keys) <= _WHOLE:
        return whole(q, masks, biases, seed)

    chunks = -(-S // _QUERIES)

    def split(x, axis):
        """Chunks of the queries of `x`, on a negative axis; None if `x` is the same for all queries."""
        if x is None or x.shape[axis] != S:
            return None
        x = jnp.pad(x, [(0, chunks * _QUERIES - S) if a == x.ndim + axis else (0, 0) for a in range(x.ndim)])
        shape = (*x.shape[:axis], chunks, _QUERIES, *x.shape[x.ndim + axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), x.ndim + axis, 0)

    whole_arguments = (q, masks, biases, seed)
    axes = (-3, [-2] * len(keys), [-2] * len(keys), -1)

    @jax.checkpoint
    def one(parts):
        def fill(part, same):
            return same if part is None else part

        return whole(*jax.tree.map(fill, parts, whole_arguments, is_leaf=lambda x: x is None))

    parts = jax.tree.map(split, whole_arguments, axes, is_leaf=lambda x: x is None)
    y = jnp.moveaxis(jax.lax.map(one, parts), 0, -4)
    return y.reshape(*y.shape[:-4], chunks * _QUERIES, *y.shape[-2:])[..., :S, :, :]


def _attend(
    q: jax.Array, keys: Keys, scale: float, rate: float, key: jax.Array | None, seed: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Attention to one set of keys: values (*lead, S, H, K), and logsumexp (*lead, S, H, 1) of the scores."""
    *lead, S, H, K = q.shape
    *shared, _, heads, _ = keys.k.shape
    more = lead[len(shared) :]  # rows that share keys count as more queries

    def fold(x, ndim):
        """(*shared, queries, ...) of `x`, which broadcasts to (*lead, S, ...) with `ndim` axes from S on."""
        wide = [*x.shape[: len(shared)], *more, S, *x.shape[x.ndim - ndim + 1 :]]
        if more and math.prod(x.shape[len(shared) : x.ndim - ndim + 1]) > 1:
            x = jnp.broadcast_to(x, wide)
        return x.reshape(*x.shape[: len(shared)], -1, *x.shape[x.ndim - ndim + 1 :])

    q = q.reshape(*shared, math.prod(more) * S, heads, H // heads, K)
    scores = jnp.einsum("...SGRK,...TGK->...GSRT", q, keys.k, preferred_element_type=jnp.float32)
    scores = scores * scale if scale != 1 else scores
    if keys.bias is not None:
        *of_lead, _, queries, count = keys.bias.shape
        bias = jnp.moveaxis(keys.bias.reshape(*of_lead, heads, H // heads, queries, count), -3, -2)
        scores += lift(bias, scores.ndim)
    if keys.mask is not None:
        scores = jnp.where(fold(keys.mask, 2)[..., None, :, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores).astype(keys.v.dtype)
    if key is not None and seed is not None:
        head = (jnp.arange(H, dtype=jnp.uint32) * GOLDEN).reshape(heads, 1, -1)
        of_query = fold(seed, 1)[..., None, :, None]
        weights = drop(weights, rate, key, of_query + lift(head, len(shared) + head.ndim))
    values = jnp.einsum("...GSRT,...TGK->...SGRK", weights, keys.v).reshape(*lead, S, H, K)
    log = jnp.moveaxis(jax.nn.logsumexp(scores, axis=-1), len(shared), -2)
    return values, log.reshape(*lead, S, H, 1)


class Cache(NamedTuple):
    """Keys and values (N, R, T, J, K) of the decoded tokens, in R rows of up to T tokens."""

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any) -> "Cache":
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def put(self, layer: jax.Array, position: jax.Array | int, *new: jax.Array) -> "Cache":
        """The cache with keys and values (R, T', J, K) of a layer's tokens from `position` on.

        XLA updates the whole stack's cache in place if a loop over layers carries it.
        """
        at = (layer, 0, position, 0, 0)
        return Cache(
            *(jax.lax.dynamic_update_slice(old, x[None], at) for old, x in zip(self, new, strict=True))
        )


# --- Stacks of layers ---

Layer = Callable[[Any, Any, jax.Array | None], tuple[Any, Any]]


def stack(
    layer: Layer,
    carry: Any,
    weights: Any,
    key: jax.Array | None = None,
    *,
    unroll: bool = False,
    remat: str = "none",
) -> tuple[Any, Any]:
    """Applies N layers in order.

    Args:
      layer: (carry, the layer's part of `weights`, its key or None) -> (carry, output).
      weights: leaves with a leading axis N.
      unroll: whether the loop over layers is unrolled; ignored with remat.

    Returns:
      The last carry, and the outputs with a leading axis N.
    """
    N = jax.tree.leaves(weights)[0].shape[0]
    keys_N = None if key is None else jax.random.split(key, N)

    def body(carry, xs):
        return layer(carry, *xs)

    if remat != "none":
        body = jax.checkpoint(body, policy=_kept(remat), prevent_cse=False)
        # Only a loop guarantees that a layer is recomputed just before its backward pass.
        unroll = False
    return jax.lax.scan(body, carry, (weights, keys_N), unroll=N if unroll else 1)


def _kept(remat: str) -> Callable[..., bool]:
    """What a layer keeps beside its input (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
    Cost")."""
    if remat == "layers":
        return jax.checkpoint_policies.nothing_saveable
    # A TPU computes a projection again in less time than it takes to write and read it.
    projections = [] if backend.platform() == "tpu" else [_PROJECTION]
    return jax.checkpoint_policies.save_only_these_names(_PRODUCT, tpu_attention.ATTENDED, *projections)
