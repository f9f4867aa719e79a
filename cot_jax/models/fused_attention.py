"""Attention of flat tokens in one kernel: no rectangles, and no scores in memory.

The TPU's kernel is in `tpu_attention`. The GPU's is here: a program computes one head of one sequence. It
reads the sequence's rows where they are among the flat tokens. The keys of a sequence fill one tile of scores
at most, so the backward pass computes everything anew from queries, keys and values (Dao 2023,
"FlashAttention-2", recomputes likewise). Both are Pallas kernels, which tests interpret.

Shape suffixes as in `layers`, and: N sequences of all views and groups, S and T rows and columns of a tile.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.sharding import PartitionSpec as P

from cot_jax import backend
from cot_jax.models import tpu_attention
from cot_jax.models.numerics import GOLDEN, MASKED, Spec, by_distance, mix

try:
    from jax.experimental.pallas import triton
except ImportError:  # JAX 0.12 announces its removal; rectangles then compute attention on a GPU, too
    triton = None  # type: ignore[assignment]

# Rows and columns of a tile of scores, at most: registers hold no larger ones.
_QUERIES, _KEYS = 64, 128


class Places(NamedTuple):
    """Where sequences are among the slots of a group, (V, G, E) int32 each.

    Attributes:
      start, length: of each sequence.
      spare: slots without a token between it and the next, or the end.
    """

    start: jax.Array
    length: jax.Array
    spare: jax.Array


def _tile(spec: Spec) -> tuple[int, int]:
    """S and T, which Triton wants to be powers of two."""
    return min(_QUERIES, _power(spec.q_width)), _power(spec.k_width)


def _power(width: int) -> int:
    return max(16, pl.next_power_of_2(width))


def suited(q: jax.Array, k: jax.Array, widths: tuple[int, int], biased: bool) -> str | None:
    """The platform whose kernel is to compute the attention of queries and keys (G, X, H, K); None: none.

    On an H100 (64 sequences of T5-base, forward and backward pass) it takes 0.53 of the rectangles' time
    without and 0.77 with a bias, but 1.36 with the bias of more queries than one tile has.

    Args:
      widths: no sequence has more queries, and keys.
    """
    platform, mesh = backend.platform(), jax.sharding.get_abstract_mesh().shape
    if mesh.get("model", 1) > 1 or q.dtype.itemsize != 2:  # each device has all heads
        return None
    (_, _, H, K), slots = q.shape, k.shape[0] * k.shape[1] // (mesh.get("data", 1) * mesh.get("fsdp", 1))
    fits = {
        "gpu": triton is not None
        and K in (16, 32, 64, 128)
        and widths[1] <= _KEYS
        and (not biased or widths[0] <= _QUERIES),
        "tpu": tpu_attention.suits(backend.kind(), H, K, slots),
    }
    return platform if fits.get(platform) else None


@jax.named_scope("attention")
def attend(
    q_GXHK: jax.Array,
    k_GYHK: jax.Array,
    v_GYHK: jax.Array,
    queries: Places,
    keys: Places,
    widths: tuple[int, int],
    bias_HW: jax.Array | None = None,
    *,
    platform: str,
    causal: bool = False,
    scale: float = 1.0,
    rate: float = 0.0,
    key: jax.Array | None = None,
    seed_GX: jax.Array,
    interpret: bool = False,
) -> jax.Array:
    """Attention within each sequence, equal to `layers.attend` of its rectangle.

    Args:
      widths: no sequence has more queries, and keys.
      bias_HW: float32, added to the scores, as `numerics.by_distance` takes it.
      platform: whose kernel.
      seed_GX: uint32 of the queries, for dropout of the weights.

    Returns:
      (G, X, H, K), zeros in slots without a token.
    """
    bits = jnp.zeros(2, jnp.uint32) if key is None else jax.random.key_data(key)[:2]
    rate = 0.0 if key is None else rate
    spec = Spec(causal, scale, rate, *widths, bias_HW is not None, interpret)
    kernel = {"gpu": _of_sequences, "tpu": tpu_attention.attend}[platform]

    def in_specs(groups):
        of_view = P(None, *groups)
        return groups, groups, groups, groups, of_view, of_view, P(), P()

    run = backend.by_device(functools.partial(_of_groups, kernel, spec), in_specs, "data", "fsdp")
    return run(q_GXHK, k_GYHK, v_GYHK, seed_GX, queries, keys, bias_HW, bits)


def _of_groups(kernel, spec: Spec, q, k, v, seed, queries: Places, keys: Places, bias, bits):
    """The groups of one device as one."""

    def flat(places: Places, slots: int) -> list[jax.Array]:
        first_1G1 = slots * jnp.arange(len(q), dtype=jnp.int32)[None, :, None]
        return [x.reshape(-1) for x in places._replace(start=places.start + first_1G1)]

    places = [*flat(queries, q.shape[1]), *flat(keys, k.shape[1])]
    rows = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    return kernel(spec, *rows, bias, places, bits, seed.reshape(-1)).reshape(q.shape)


def _of_sequences(spec: Spec, q, k, v, bias_HW, places, bits, seed_X) -> jax.Array:
    """The GPU's kernel: queries (X, H, K), keys and values of all groups of a device."""
    bias = None
    if bias_HW is not None:  # whole tiles, as Pallas rejects slices that end outside
        S, T = _tile(spec)
        bias = by_distance(bias_HW, spec.q_width + -spec.q_width % S, T)
    return _attend(spec, q, k, v, bias, (places, bits, seed_X))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: Spec, q, k, v, bias, others):
    return _call(spec, _forward, 4, [q], (q, k, v), bias, others)[0]


def _attend_fwd(spec: Spec, *inputs):
    return _attend(spec, *inputs), inputs


def _attend_bwd(spec: Spec, inputs, dout):
    *qkv, bias, others = inputs
    N, H = len(others[0][0]), dout.shape[1]
    results = list(qkv)
    if spec.biased:
        results.append(jax.ShapeDtypeStruct((N, H, *bias.shape[1:]), dout.dtype))
    dq, dk, dv, *dscores = _call(spec, _backward, 8, results, (*qkv, dout), bias, others)
    dbias = jnp.sum(dscores[0], axis=0, dtype=jnp.float32) if spec.biased else None
    return dq, dk, dv, dbias, None


_attend.defvjp(_attend_fwd, _attend_bwd)


def _call(spec: Spec, kernel, warps: int, results, arrays, bias, others) -> list[jax.Array]:
    """Runs `kernel` for every sequence and head; `results` have the shapes and dtypes of what it writes."""
    places, bits, seed = others
    inputs = (*places, bits, seed, *arrays, *((bias,) if spec.biased else ()))
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        functools.partial(kernel, spec),
        grid=(len(places[0]), arrays[0].shape[1]),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        in_specs=[anywhere] * len(inputs),
        out_specs=[anywhere] * len(results),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=spec.interpret,
        name=f"attention{kernel.__name__}",
    )(*inputs)


class _Rows(NamedTuple):
    """The rows of a sequence among all, and the spare ones after it."""

    start: Any
    length: Any
    spare: Any
    head: Any

    def at(self, first, count: int):
        return pl.ds(self.start + first, count), self.head, slice(None)

    def inside(self, first, count: int):
        return ((first + jnp.arange(count)) < self.length)[:, None]

    def load(self, ref, first, count: int):
        return triton.load(ref.at[self.at(first, count)], mask=self.inside(first, count), other=0.0)

    def store(self, ref, first, x):
        x = x.astype(ref.dtype)
        triton.store(ref.at[self.at(first, len(x))], x, mask=self.inside(first, len(x)))

    def clear_spare(self, *refs):
        def clear(i, _):
            first, zeros = self.length + 16 * i, jnp.zeros((16, refs[0].shape[-1]), refs[0].dtype)
            mask = (16 * i + jnp.arange(16) < self.spare)[:, None]
            for ref in refs:
                triton.store(ref.at[self.at(first, 16)], zeros, mask=mask)

        jax.lax.fori_loop(0, pl.cdiv(self.spare, 16), clear, None)


class _Program:
    """What forward and backward pass of one head of one sequence share."""

    def __init__(self, spec: Spec, refs):
        q_start, q_length, q_spare, k_start, k_length, k_spare, self._bits, self._seed, *rest = refs
        self.n, self.h = pl.program_id(0), pl.program_id(1)
        self.spec = spec
        self.q = _Rows(q_start[self.n], q_length[self.n], q_spare[self.n], self.h)
        self.k = _Rows(k_start[self.n], k_length[self.n], k_spare[self.n], self.h)
        count = len(rest) - spec.biased
        self.arrays, self._biases = rest[:count], rest[count:]

    def scores_at(self, first):
        """The place of a tile in an array (H, ...) of scores."""
        S, T = _tile(self.spec)
        return self.h, pl.ds(first, S), pl.ds(0, T)

    def weights(self, first, q_SK, k_TK):
        """The softmax (S, T) of the scores of the queries from `first` on, and dropout's factors."""
        spec, (S, T) = self.spec, _tile(self.spec)
        row_S, column_T = first + jnp.arange(S), jnp.arange(T)
        scores = triton.dot(q_SK, k_TK.T) * spec.scale
        if spec.biased:
            scores += triton.load(self._biases[0].at[self.scores_at(first)])
        seen = (column_T < self.k.length)[None]
        if spec.causal:
            seen &= row_S[:, None] >= column_T[None]
        scores = jnp.where(seen, scores, MASKED)
        exp = jnp.exp(scores - jnp.max(scores, axis=1)[:, None])
        p = exp / jnp.sum(exp, axis=1)[:, None]
        if spec.rate == 0:
            return p, 1.0
        rows = self._seed.at[pl.ds(self.q.start + first, S)]
        seed_S = triton.load(rows, mask=row_S < self.q.length, other=0) + self.h.astype(jnp.uint32) * GOLDEN
        row, column = mix(seed_S ^ self._bits[1])[:, None], mix(column_T.astype(jnp.uint32) + self._bits[0])
        kept = mix(column[None] ^ row) < np.uint32((1 - spec.rate) * 2**32)
        return p, jnp.where(kept, 1 / (1 - spec.rate), 0.0)


def _forward(spec: Spec, *refs):
    out = refs[-1]
    program = _Program(spec, refs[:-1])
    (q, k, v), (S, T) = program.arrays, _tile(spec)
    k_TK, v_TK = program.k.load(k, 0, T), program.k.load(v, 0, T)

    def block(i, _):
        p, factor = program.weights(S * i, program.q.load(q, S * i, S), k_TK)
        program.q.store(out, S * i, triton.dot((p * factor).astype(v_TK.dtype), v_TK))

    jax.lax.fori_loop(0, pl.cdiv(program.q.length, S), block, None)
    program.q.clear_spare(out)


def _backward(spec: Spec, *refs):
    results = 3 + spec.biased
    program = _Program(spec, refs[:-results])
    dq, dk, dv, *dscores = refs[-results:]
    (q, k, v, dout), (S, T) = program.arrays, _tile(spec)
    k_TK, v_TK = program.k.load(k, 0, T), program.k.load(v, 0, T)

    def block(i, carry):
        dk_TK, dv_TK = carry
        q_SK, dout_SK = program.q.load(q, S * i, S), program.q.load(dout, S * i, S)
        p, factor = program.weights(S * i, q_SK, k_TK)
        dp = triton.dot(dout_SK, v_TK.T) * factor
        ds = p * (dp - jnp.sum(p * dp, axis=1)[:, None])
        if spec.biased:
            place = program.n, *program.scores_at(S * i)
            triton.store(dscores[0].at[place], ds.astype(dscores[0].dtype))
        ds = (ds * spec.scale).astype(q_SK.dtype)
        program.q.store(dq, S * i, triton.dot(ds, k_TK))
        dv_TK += triton.dot((p * factor).astype(dout_SK.dtype).T, dout_SK)
        return dk_TK + triton.dot(ds.T, q_SK), dv_TK

    # The scores of all rows enter the bias's gradient, those of missing queries as zeros.
    blocks = -(-spec.q_width // S) if spec.biased else pl.cdiv(program.q.length, S)
    zero = jnp.zeros(k_TK.shape, jnp.float32)
    dk_TK, dv_TK = jax.lax.fori_loop(0, blocks, block, (zero, zero))
    program.k.store(dk, 0, dk_TK)
    program.k.store(dv, 0, dv_TK)
    program.q.clear_spare(dq)
    program.k.clear_spare(dk, dv)
