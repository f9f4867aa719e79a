"""Attention of flat tokens in one TPU kernel: no rectangles, no gathers, and no scores in memory.

A program computes 128 query slots of as many heads as fill 128 lanes. It visits the tiles of 128 key slots
that contain their sequences; a mask separates sequences. A head's queries are zero in the other heads' lanes,
so the product over all lanes is the head's, and narrow heads need no lanes of their own. Scores are
transposed, keys by queries: sums over keys then need no exchange between lanes. The backward pass computes
scores anew (Dao 2023, "FlashAttention-2"). Keys and values of a program's heads are in VMEM as a whole, which
limits their number.

Shape suffixes as in `fused_attention`, and: X and Y slots of queries and keys, whole tiles of B, L lanes, O
offsets between tiles of queries and keys.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cot_jax.models.numerics import GOLDEN, MASKED, Spec, by_distance, mix

# Slots of a tile, and lanes of a register.
B = 128
# Names results that `layers.stack` keeps.
ATTENDED = "attended"
# A slot of keys takes 5 KiB of VMEM. A v5p and a TPU 7 have 64 MiB, a v5e and a v6e 128, older ones 16.
_SLOTS = 8192
_VMEM = 60 * 2**20
_TOO_SMALL = ("TPU v2", "TPU v3", "TPU v4")
# Above the mask's value, below all scores: where all is masked, no weight is left.
_LOWEST = -1e30


def suits(device: str, heads: int, size: int, slots: int) -> bool:
    """Whether the kernel takes `heads` heads of `size`, and `slots` slots of keys on each `device`."""
    fits = not device.startswith(_TOO_SMALL) and slots <= _SLOTS
    return fits and size in (32, 64, 128) and heads % (B // size) == 0


def attend(spec: Spec, q_XHK, k_YHK, v_YHK, bias_HW, places, bits, seed_X) -> jax.Array:
    """Attention within each sequence (X, H, K); arguments are those of `fused_attention`'s kernels."""
    (X, H, K), (q_start, q_length, _, k_start, k_length, _) = q_XHK.shape, places
    q_tiles, k_tiles = pl.cdiv(X, B), pl.cdiv(len(k_YHK), B)
    ranges = needed(spec.causal, q_tiles, k_tiles, places)
    q_id, _ = _sequences(q_start, q_length, q_tiles * B, -1)
    k_id, position_Y = _sequences(k_start, k_length, k_tiles * B, -2)
    bias = None
    if bias_HW is not None:
        far = pl.cdiv(max(spec.q_width, spec.k_width) - 1, B)
        tiles = by_distance(bias_HW, B, (2 * far + 1) * B, far * B).reshape(H, B, -1, B)
        bias = tiles.transpose(2, 0, 3, 1)  # (O, H, keys, queries)
    head_H1 = jnp.arange(H, dtype=jnp.uint32)[:, None] * GOLDEN
    row_HX = mix((jnp.pad(seed_X, (0, q_tiles * B - X))[None] + head_H1) ^ bits[1])
    column_Y = mix(position_Y.astype(jnp.uint32) + bits[0])
    rows = (q_id[None], row_HX[:, None])
    columns = (jnp.broadcast_to(x[:, None], (len(x), B)) for x in (k_id, column_Y))
    q, k, v = (x.reshape(len(x), -1) for x in (q_XHK, k_YHK, v_YHK))
    return _attend(spec, B // K, q, k, v, bias, (ranges, rows, tuple(columns))).reshape(X, H, K)


def needed(causal: bool, q_tiles: int, k_tiles: int, places) -> tuple[jax.Array, jax.Array]:
    """The first tile of keys that each tile of queries needs, and the one behind the last; int32."""
    q_start, q_length, _, k_start, k_length, _ = (x[None] for x in places)
    tile_I1 = jnp.arange(q_tiles, dtype=jnp.int32)[:, None]
    inside_IN = (q_start < B * (tile_I1 + 1)) & (q_start + q_length > B * tile_I1)
    inside_IN &= (q_length > 0) & (k_length > 0)
    low_I = jnp.min(jnp.where(inside_IN, k_start // B, k_tiles), axis=1)
    high_I = jnp.max(jnp.where(inside_IN, pl.cdiv(k_start + k_length, B), 0), axis=1)
    return low_I, jnp.minimum(high_I, tile_I1[:, 0] + 1) if causal else high_I


def _sequences(start_N, length_N, slots: int, none: int) -> tuple[jax.Array, jax.Array]:
    """The sequence of each slot's token, or `none`, and the token's position in it; int32."""
    after_XN = jnp.arange(slots, dtype=jnp.int32)[:, None] - start_N[None]
    inside_XN = (after_XN >= 0) & (after_XN < length_N[None])
    id_X = jnp.max(jnp.where(inside_XN, jnp.arange(len(start_N), dtype=jnp.int32)[None], none), axis=1)
    return id_X, jnp.sum(jnp.where(inside_XN, after_XN, 0), axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(spec: Spec, heads: int, q, k, v, bias, others):
    return _attend_fwd(spec, heads, q, k, v, bias, others)[0]


def _attend_fwd(spec: Spec, heads: int, q, k, v, bias, others):
    _, (_, row_H1X), _ = others
    results = [("queries", q), ("heads", jax.ShapeDtypeStruct(row_H1X.shape, jnp.float32))]
    found = _call(spec, heads, _forward, (q, k, v), bias, others, [], results)
    out, log = (checkpoint_name(x, ATTENDED) for x in found)
    return out, (q, k, v, bias, others, out, log)


def _attend_bwd(spec: Spec, heads: int, saved, dout):
    q, k, v, bias, others, out, log = saved
    more = [("queries", out), ("queries", dout), ("heads", log)]
    results = [("queries", q), ("keys", k), ("keys", v), *([] if bias is None else [("bias", bias)])]
    dq, dk, dv, *dbias = _call(spec, heads, _backward, (q, k, v), bias, others, more, results)
    return dq, dk, dv, dbias[0] if dbias else None, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _call(spec: Spec, heads: int, kernel, qkv, bias, others, more, results):
    """Runs `kernel` for each tile of queries of each `heads` heads; arrays are paired with their kind."""
    (q, k, v), (ranges, (id_1X, row_H1X), (id_YB, column_YB)) = qkv, others
    (H, _, X), Y = row_H1X.shape, len(id_YB)
    L = q.shape[1] // H * heads
    kinds = {  # tiles may end behind an array: what is read there is undefined, what is written is lost
        "queries": pl.BlockSpec((B, L), lambda h, i, *_: (i, h)),
        "keys": pl.BlockSpec((Y, L), lambda h, i, *_: (0, h)),
        "row": pl.BlockSpec((1, B), lambda h, i, *_: (0, i)),
        "heads": pl.BlockSpec((heads, 1, B), lambda h, i, *_: (h, 0, i)),
        "columns": pl.BlockSpec((Y, B), lambda h, i, *_: (0, 0)),
    }
    inputs = [("queries", q), ("keys", k), ("keys", v), ("row", id_1X), ("heads", row_H1X)]
    inputs += [("columns", id_YB), ("columns", column_YB)]
    if bias is not None:
        kinds["bias"] = pl.BlockSpec((len(bias), heads, B, B), lambda h, i, *_: (0, h, 0, 0))
        inputs.append(("bias", bias))
    inputs += more
    return pl.pallas_call(
        functools.partial(kernel, spec, heads, len(q), len(k)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(H // heads, X // B),
            in_specs=[kinds[kind] for kind, _ in inputs],
            out_specs=[kinds[kind] for kind, _ in results],
            scratch_shapes=[pltpu.VMEM((Y, L), jnp.float32)] * 2 if kernel is _backward else [],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in results],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_VMEM
        ),
        interpret=spec.interpret,
        name=f"attention{kernel.__name__}",
    )(*ranges, *(x for _, x in inputs))


class _Program:
    """What forward and backward pass of a tile of queries share."""

    def __init__(self, spec: Spec, heads: int, X: int, Y: int, refs):
        self.spec, self.heads, self._X, self._Y, self.i = spec, heads, X, Y, pl.program_id(1)
        low, high, self._q, self._k, self._v, self._id, self._row, self._ids, self._columns, *rest = refs
        self._bias: Any = rest.pop(0) if spec.biased else None
        self.rest = rest
        self.queries, self._range = self.of_heads(self._q), (low[self.i], high[self.i])

    def of_heads(self, ref) -> list[jax.Array]:
        """The tile (B, L) once for each head, zero in the other heads' lanes."""
        x, size = _before(self._X, self.i, ref[...]), ref.shape[1] // self.heads
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return [
            jnp.where((lane >= a * size) & (lane < (a + 1) * size), x, jnp.zeros_like(x))
            for a in range(self.heads)
        ]

    def over_range(self, body, carry):
        """Loops over the tiles of keys that this tile of queries needs."""
        return jax.lax.fori_loop(*self._range, body, carry)

    def for_keys(self, body):
        """Calls body(slots) for each tile of keys."""
        jax.lax.fori_loop(0, self._k.shape[0] // B, lambda j, _: body(_slots(j)), None)

    def tile(self, j):
        """Slots of the tile of keys, the keys, values, which queries see them, and which weights to keep."""
        at = _slots(j)
        seen = self._ids[at, :] == self._id[...]
        if self.spec.causal:
            key, query = (jax.lax.broadcasted_iota(jnp.int32, (B, B), axis) for axis in (0, 1))
            seen &= key - query <= (self.i - j) * B
        k, v = (_before(self._Y, j, x[at, :]) for x in (self._k, self._v))
        return at, k, v, seen, self._columns[at, :]

    def scores(self, j, a: int, k, seen):
        scores = _dot(k, self.queries[a], 1, 1) * self.spec.scale
        if self._bias is not None:
            scores += self._bias[j - self.i + self._bias.shape[0] // 2, a]
        return jnp.where(seen, scores, MASKED)

    def dropped(self, a: int, columns, *weights):
        rate = self.spec.rate
        if rate == 0:
            return weights
        kept = mix(columns ^ self._row[a]) < np.uint32((1 - rate) * 2**32)
        return [jnp.where(kept, x * (1 / (1 - rate)), 0.0) for x in weights]

    def joined(self, parts: list[jax.Array]) -> jax.Array:
        """The tile (B, L) of the heads' own lanes, of a (L, B) for each."""
        size = len(parts[0]) // self.heads
        return jnp.concatenate([x[a * size : (a + 1) * size] for a, x in enumerate(parts)]).T


def _slots(j):
    return pl.ds(pl.multiple_of(j * B, B), B)


def _before(end: int, tile, x):
    """Tile number `tile` with zeros from slot `end` on."""
    row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(row < end - tile * B, x, jnp.zeros_like(x)) if end % B else x


def _dot(a, b, axis_a: int, axis_b: int):
    return jax.lax.dot_general(a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=jnp.float32)


def _forward(spec: Spec, heads: int, X: int, Y: int, *refs):
    *inputs, out, log = refs
    program = _Program(spec, heads, X, Y, inputs)

    def block(j, carry):
        _, k, v, seen, columns = program.tile(j)
        found = []
        for a, (most, total, values) in enumerate(carry):
            scores = program.scores(j, a, k, seen)
            new = jnp.maximum(most, jnp.max(scores, axis=0, keepdims=True))
            exp, before = jnp.exp(scores - new), jnp.exp(most - new)
            total = total * before + jnp.sum(exp, axis=0, keepdims=True)
            (weights,) = program.dropped(a, columns, exp)
            found.append((new, total, values * before + _dot(v, weights.astype(v.dtype), 0, 0)))
        return tuple(found)

    L = out.shape[1]
    begin = jnp.full((1, B), _LOWEST), jnp.zeros((1, B), jnp.float32), jnp.zeros((L, B), jnp.float32)
    values = []
    for a, (most, total, weighted) in enumerate(program.over_range(block, (begin,) * heads)):
        total = jnp.maximum(total, np.finfo(np.float32).tiny)
        log[a] = most + jnp.log(total)
        values.append(weighted / total)
    out[...] = program.joined(values).astype(out.dtype)


def _backward(spec: Spec, heads: int, X: int, Y: int, *refs):
    results = 5 + spec.biased
    program = _Program(spec, heads, X, Y, refs[:-results])
    out, dout, log = program.rest
    dq, dk, dv, *dbias, dk_sum, dv_sum = refs[-results:]
    douts = program.of_heads(dout)
    # A query's sum of weights times their gradients is the product of its value and its value's gradient.
    product_BL = math.prod(_before(X, program.i, x[...]).astype(jnp.float32) for x in (out, dout))
    inner = [jnp.sum(x, axis=0, keepdims=True) for x in jnp.split(product_BL.T, heads)]

    @pl.when(program.i == 0)
    def _():
        @program.for_keys
        def _(at):
            for x in (dk_sum, dv_sum):
                x[at, :] = jnp.zeros((B, x.shape[1]), x.dtype)

        for x in dbias:
            x[...] = jnp.zeros_like(x)

    def block(j, carry):
        at, k, v, seen, columns = program.tile(j)
        found, to_k, to_v = [], dk_sum[at, :], dv_sum[at, :]
        for a, dq_LB in enumerate(carry):
            p = jnp.exp(program.scores(j, a, k, seen) - log[a])
            weights, dp = program.dropped(a, columns, p, _dot(v, douts[a], 1, 1))
            ds = p * (dp - inner[a])
            if dbias:
                dbias[0][j - program.i + dbias[0].shape[0] // 2, a] += ds
            ds = (ds * spec.scale).astype(k.dtype)
            to_v += _dot(weights.astype(k.dtype), douts[a], 1, 0)
            to_k += _dot(ds, program.queries[a], 1, 0)
            found.append(dq_LB + _dot(k, ds, 0, 0))
        dk_sum[at, :], dv_sum[at, :] = to_k, to_v
        return tuple(found)

    zero = jnp.zeros(dq.shape[::-1], jnp.float32)
    dq[...] = program.joined(program.over_range(block, (zero,) * heads)).astype(dq.dtype)

    @pl.when(program.i == pl.num_programs(1) - 1)
    def _():
        @program.for_keys
        def _(at):
            dk[at, :], dv[at, :] = dk_sum[at, :].astype(dk.dtype), dv_sum[at, :].astype(dv.dtype)
