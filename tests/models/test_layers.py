"""The parts that families share, each against its formula; dropout masks against chance."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations
from flat_batches import by_example, flat, sequences
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax import backend
from cot_jax.models import layers
from cot_jax.models.choices import REMAT
from cot_jax.models.layers import (
    Keys,
    Layout,
    LowRank,
    attend,
    drop,
    embed,
    layer_norm,
    linear,
    rms_norm,
    stack,
)
from cot_jax.models.numerics import mix


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def largest(x):
    return float(np.max(np.abs(np.asarray(x, np.float32))))


# --- Linear maps ---


@pytest.mark.parametrize(("shape", "inputs"), [((6, 8), 1), ((6, 2, 4), 1), ((2, 3, 8), 2)])
@pytest.mark.parametrize("tokens", [(5,), (2, 5)])
def test_linear_is_a_product_with_the_matrix_of_the_weight(tokens, shape, inputs):
    x, w = normal(0, *tokens, *shape[:inputs]), normal(1, *shape)
    want = x.reshape(-1, 6).astype(float) @ w.reshape(6, 8)
    found = linear(x, w, inputs)
    assert found.shape == (*tokens, *shape[inputs:])
    np.testing.assert_allclose(found.reshape(-1, 8), want, rtol=1e-5, atol=1e-5)
    assert linear(jnp.bfloat16(x), w, inputs).dtype == jnp.bfloat16


def low_rank(shape, inputs, *, layers=(), rank=3, dtype=np.float32):
    P, Q = np.prod(shape[:inputs]), np.prod(shape[inputs:])
    w = jnp.asarray(normal(2, *layers, *shape), dtype)
    return LowRank(w, normal(3, *layers, P, rank), normal(4, *layers, rank, Q), 0.5)


@pytest.mark.parametrize(("shape", "inputs"), [((6, 2, 4), 1), ((2, 3, 8), 2)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_low_rank_weight_is_the_merged_one(shape, inputs, dtype):
    """Values, and gradients of the input and of what is trained; the frozen weight may be bfloat16."""
    x, leaf = normal(0, 5, *shape[:inputs]), low_rank(shape, inputs, dtype=dtype)
    seen = normal(5, 5, *shape[inputs:])

    def adapted(x, leaf):
        return jnp.sum(linear(x, leaf, inputs) * seen)

    def merged(x, leaf):
        product = jnp.matmul(leaf.a, leaf.b, precision="highest").reshape(shape)
        return jnp.sum(linear(x, leaf.w.astype(jnp.float32) + leaf.scale * product, inputs) * seen)

    found, (dx, dleaf) = jax.jit(jax.value_and_grad(adapted, (0, 1)))(x, leaf)
    want, (want_dx, want_dleaf) = jax.jit(jax.value_and_grad(merged, (0, 1)))(x, leaf)
    assert abs(found - want) < 1e-5 * np.sum(np.abs(seen))
    for a, b in ((dx, want_dx), (dleaf.a, want_dleaf.a), (dleaf.b, want_dleaf.b)):
        assert largest(b) > 1
        assert largest(a - b) < 1e-5 * largest(b)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_training_a_low_rank_weight_makes_no_array_of_its_size(dtype):
    """In a stack of layers with its backward pass: neither the sum, nor a gradient of it, nor a copy."""
    N, D, F = 3, 40, 56
    there, back = (low_rank(shape, 1, layers=(N,), dtype=dtype) for shape in ((D, F), (F, D)))
    trained, frozen = [(leaf.a, leaf.b) for leaf in (there, back)], [there.w, back.w]

    def loss(trained, frozen, x):
        w = [LowRank(w, a, b, 0.5) for w, (a, b) in zip(frozen, trained, strict=True)]
        y, _ = stack(lambda y, w, _: (y + jnp.tanh(linear(linear(y, w[0]), w[1])), None), x, w)
        return jnp.sum(y**2)

    traced = jax.jit(jax.grad(loss)).trace(trained, frozen, normal(0, 4, D).astype(dtype))
    made = [v.aval.size for equation, _ in equations(traced.jaxpr) for v in equation.outvars]
    assert max(made) < D * F
    if dtype == np.float32:  # on CPU, XLA computes products of bfloat16 in float32
        text = traced.lower().compile().as_text()
        makers = re.findall(rf"\[{N},(?:{D},{F}|{F},{D})\]\S* (\w[\w-]*)\(", text)
        assert set(makers) == {"parameter", "get-tuple-element"}  # they enter, and travel through the loops


# --- Norms and embeddings ---


def test_rms_norm_is_its_formula_in_float32():
    x, scale = 3 * normal(0, 2, 5, 64), normal(1, 64)
    wide = x.astype(float)
    want = scale * wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-3)
    found = rms_norm(x, scale, 1e-3)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    low = jnp.bfloat16(x)
    rounded = rms_norm(low, scale, 1e-3)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        rounded, rms_norm(low.astype(jnp.float32), scale, 1e-3).astype(jnp.bfloat16)
    )


@pytest.mark.parametrize(("norm", "parameters"), [(rms_norm, 1), (layer_norm, 2)])
def test_a_norm_keeps_nothing_but_what_it_was_given(norm, parameters):
    """Of the wide arithmetic inside nothing stays in memory until the backward pass."""
    x, given = jnp.ones((5, 8), jnp.bfloat16), [jnp.ones(8)] * parameters
    kept = jax.tree.leaves(jax.vjp(lambda *arrays: norm(*arrays, 1e-6), x, *given)[1])
    assert {(k.shape, k.dtype) for k in kept} <= {(a.shape, a.dtype) for a in (x, *given)}


def test_an_id_beyond_the_vocabulary_is_not_another_tokens_row():
    table = normal(0, 10, 4)
    rows = embed(table, np.array([[3, 10], [-11, 9]]), jnp.float32)
    assert np.isnan(rows).all(axis=-1).tolist() == [[False, True], [True, False]]
    np.testing.assert_array_equal(rows[[0, 1], [0, 1]], table[[3, 9]])


def test_gradients_of_an_embedding_add_up_in_float32():
    # 1 + 2**-9 rounds to 1 in bfloat16: of 512 such sums nothing would be left.
    def total(table):
        weights = jnp.where(jnp.arange(513) == 0, 1, 2**-9).astype(jnp.bfloat16)
        return jnp.sum(embed(table, jnp.zeros(513, jnp.int32), jnp.bfloat16)[:, 0] * weights)

    gradient = jax.jit(jax.grad(total))(jnp.ones((2, 1)))
    np.testing.assert_array_equal(gradient, [[2], [0]])


# --- Dropout ---


def test_mix_is_a_bijection_whose_every_bit_turns_every_other_half_of_the_time():
    n = 2**18
    x = np.random.default_rng(0).integers(0, 2**32, n, dtype=np.uint32)
    mixed = mix(x)
    assert len(np.unique(mixed)) == len(np.unique(x))
    assert len(np.unique(mix(np.arange(n, dtype=np.uint32)))) == n
    for bit in range(32):
        turned = mixed ^ mix(x ^ np.uint32(1 << bit))
        share = np.array([np.mean((turned >> out) & 1) for out in range(32)], float)
        assert np.abs(share - 0.5).max() < 0.02, bit


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_dropout_keeps_the_mean_and_the_rate(rate, dtype):
    x = jnp.linspace(1, 2, 200_000, dtype=dtype).reshape(1, 1000, 200)
    dropped = drop(x, rate, jax.random.key(0), jnp.arange(1000, dtype=jnp.uint32)[None])
    assert dropped.dtype == dtype
    kept = dropped != 0
    assert abs(kept.mean() - (1 - rate)) < 0.005
    np.testing.assert_array_equal(dropped[kept], (x / (1 - rate))[kept])
    mean, want = (np.mean(np.asarray(a, float)) for a in (dropped, x))
    assert abs(mean / want - 1) < 0.005


def test_no_dropout_without_a_key_or_a_rate():
    x, seed = normal(0, 3, 4), np.arange(3, dtype=np.uint32)
    assert drop(x, 0.5, None, seed) is x
    assert drop(x, 0.0, jax.random.key(0), seed) is x


def kept(keys, seed, width, rate):
    """+-1 or the like: a mask (keys, tokens, width), as numbers of mean 0 and variance 1 if it is drawn."""
    ones = jnp.ones((*seed.shape, width))
    mask = jax.jit(jax.vmap(lambda key: drop(ones, rate, key, seed) != 0))(keys)
    return (np.asarray(mask).reshape(len(keys), -1, width) - np.float32(1 - rate)) / np.float32(
        (rate - rate**2) ** 0.5
    )


@pytest.fixture(scope="module")
def layout():
    """Two views of 16 examples, next to each other and not: 512 tokens and 512."""
    example = np.array([[*range(8), *range(5000, 5008)]])
    return Layout([flat(sequences(view, [32] * 16)) for view in (0, 1)], example)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_are_as_good_as_drawn(layout, rate):
    """Sums of what must be independent are normal within five deviations; two of 18 keys are near others."""
    data = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 16)))
    alike = np.stack([data[0] ^ np.array(words, np.uint32) for words in ((0, 1), (1, 0))])
    keys = jax.random.wrap_key_data(np.concatenate([data, alike]))
    x_KRD = kept(keys, layout.seed_GX, 256, rate)

    def along(lag_K=0, lag_R=0, lag_D=0):
        K, R, D = x_KRD.shape
        return x_KRD[: K - lag_K, : R - lag_R, : D - lag_D] * x_KRD[lag_K:, lag_R:, lag_D:]

    products = {"each": x_KRD}
    products |= {f"places {lag} apart": along(lag_D=lag) for lag in (1, 2, 16, 128, 255)}
    # Next tokens, the same position of other examples, the same token of the other view.
    products |= {f"tokens {lag} apart": along(lag_R=lag) for lag in (1, 2, 31, 32, 256, 512)}
    products |= {f"diagonal {lag}": along(lag_R=lag, lag_D=1) for lag in (1, 32, 512)}
    products |= {f"keys {lag} apart": along(lag_K=lag) for lag in (1, 2, 16, 17)}
    products |= {"triples": x_KRD[:, :, 2:] * along(lag_D=1)[:, :, :-1]}
    squares = along(lag_D=1)
    products |= {f"squares {lag}": squares[:, lag:] * squares[:, :-lag] for lag in (1, 32, 512)}
    for name, product in products.items():
        # By key, by token and by place, and all together.
        for axes in ((1, 2), (0, 2), (0, 1), (0, 1, 2)):
            count = np.prod([product.shape[axis] for axis in axes])
            worst = np.abs(product.sum(axis=axes, dtype=float)).max() / count**0.5
            assert worst < 5.5, (name, axes)


@pytest.mark.slow
def test_all_pairs_of_tokens_and_of_places_are_independent():
    """The sum of all squared correlations, too: four entries of a mask at the corners of a rectangle."""
    tokens = Layout([flat(sequences(0, [32] * 32))], np.arange(32)[None])
    keys = jax.random.split(jax.random.key(1), 4)
    for x_RD in kept(keys, tokens.seed_GX, 1024, 0.5):
        for x in (x_RD, np.ascontiguousarray(x_RD.T)):
            z = ((x.T @ x) / 32)[np.triu_indices(1024, 1)].astype(float)
            assert np.abs(z).max() < 6.5  # of half a million; beyond it is one in 10**10
            assert abs(np.sum(z**2) - z.size) < 5 * (2 * z.size) ** 0.5
            assert abs(np.sum(z)) < 5 * z.size**0.5
    # And between two keys, for all pairs of a place of one and a place of the other.
    one, other = kept(keys[:2], tokens.seed_GX, 1024, 0.5)
    for z in ((one.T @ other / 32).astype(float), (one @ other.T / 32).astype(float)):
        assert np.abs(z).max() < 6.5
        assert abs(np.sum(z**2) - z.size) < 5 * (2 * z.size) ** 0.5


def attention_mask(key, seed_S, heads, T, rate):
    """Which weights (S, H, T) attention drops, seen in its result: equal weights of one-hot values."""
    S = len(seed_S)
    q, k = jnp.zeros((S, heads, T)), jnp.zeros((T, heads, T))
    v = jnp.broadcast_to(jnp.eye(T)[:, None], (T, heads, T))
    mask = jnp.ones((S, T), bool)
    y = attend(q, [Keys(k, v, mask)], rate=rate, key=key, seed=seed_S)
    np.testing.assert_allclose(y[y != 0], 1 / T / (1 - rate), rtol=1e-6)
    return np.asarray(y) != 0


@pytest.mark.slow
def test_heads_have_masks_of_their_own(layout):
    seed_S = layout.seed_GX[0, :256]
    mask_SHT = attention_mask(jax.random.key(2), seed_S, 8, 64, 0.5)
    x_SHT = 2.0 * mask_SHT - 1
    for name, product in {
        "each": x_SHT,
        "next head": x_SHT[:, 1:] * x_SHT[:, :-1],
        "next query": x_SHT[1:] * x_SHT[:-1],
        "next head of the next query": x_SHT[1:, 1:] * x_SHT[:-1, :-1],
        "head before of the next query": x_SHT[1:, :-1] * x_SHT[:-1, 1:],
        "next key": x_SHT[:, :, 1:] * x_SHT[:, :, :-1],
    }.items():
        assert abs(product.sum()) < 5 * product.size**0.5, name
    x_HR = np.moveaxis(x_SHT, 1, 0).reshape(8, -1)
    correlations = (x_HR @ x_HR.T / x_HR.shape[1] ** 0.5)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 5


def test_masks_are_the_same_on_any_devices_and_each_makes_its_own():
    x, seed, key = (
        jnp.ones((16, 24, 5)),
        jnp.arange(16 * 24, dtype=jnp.uint32).reshape(16, 24),
        jax.random.key(1),
    )
    masked = functools.partial(drop, rate=0.5)
    groups = NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))
    divided = jax.jit(
        lambda x, seed, key: masked(x, key=key, seed=seed),
        in_shardings=(groups, groups, None),
        out_shardings=groups,
    )
    np.testing.assert_array_equal(divided(x, seed, key), masked(x, key=key, seed=seed))
    program = divided.lower(x, seed, key).compile().as_text()
    assert "u32[2,24,5]" in program
    assert "[16,24,5]" not in program


# --- Flat tokens ---


@pytest.mark.slow
def test_a_seed_is_of_an_example_a_view_and_a_position(layout):
    assert layout.seed_GX.dtype == jnp.uint32
    assert len(np.unique(layout.seed_GX)) == 1024
    # Elsewhere in the batch, in another group, among other examples, with more room: the same.
    texts = [sequences(view, [5, 3, 4, 2]) for view in (0, 1)]
    example = np.array([7, 3, 11, 2])
    views = [flat(part) for part in texts]
    seeds = Layout(views, example[None]).seed_GX
    want = [by_example(view, part) for view, part in zip(views, np.split(seeds, [14], axis=1), strict=True)]
    order = np.array([2, 0, 3, 1])
    views = [flat([part[i] for i in order], groups=2, extra=3, wider=2) for part in texts]
    moved = Layout(views, example[order].reshape(2, 2))
    for view, of_view, part in zip(views, want, moved.split(moved.seed_GX), strict=True):
        for i, seed in zip(order, by_example(view, part), strict=True):
            np.testing.assert_array_equal(seed, of_view[i])


@pytest.mark.slow
def test_a_layout_takes_views_apart_and_together():
    views = [
        flat(sequences(v, lengths), groups=2, extra=v)
        for v, lengths in enumerate(([3, 1, 2, 2], [0, 4, 1, 5]))
    ]
    layout = Layout(views, np.arange(4).reshape(2, 2))
    np.testing.assert_array_equal(layout.ids_GX, np.concatenate([v.ids for v in views], axis=1))
    x = normal(0, *layout.ids_GX.shape, 3)
    for view, part in zip(views, layout.split(x), strict=True):
        assert part.shape == (*view.ids.shape, 3)
    np.testing.assert_array_equal(np.concatenate(layout.split(x), axis=1), x)
    rectangles = layout.unpack(x)
    assert [r.shape for r in rectangles] == [(2, 2, 3, 3), (2, 2, 5, 3)]
    packed = layout.split(layout.pack(rectangles))
    for view, part, mine in zip(views, layout.split(x), packed, strict=True):
        for a, b in zip(by_example(view, part), by_example(view, mine), strict=True):
            np.testing.assert_array_equal(a, b)


# --- Attention ---


def plain_attention(q, k, v, mask, bias, scale):
    """(S, H, K) of one example, in float64."""
    scores = np.einsum("shk,thk->hst", q.astype(float), k) * scale
    scores = np.where(mask, scores + (0 if bias is None else bias), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hst,thk->shk", weights / weights.sum(axis=-1, keepdims=True), v)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_attention_is_its_formula(biased, scale):
    B, S, T, H, K = 3, 6, 9, 2, 4
    q, k, v = normal(0, B, S, H, K), normal(1, B, T, H, K), normal(2, B, T, H, K)
    bias = normal(3, H, S, T) if biased else None
    mask = np.random.default_rng(4).random((B, S, T)) < 0.5
    mask[..., 0] = True
    found = attend(q, [Keys(k, v, mask, bias)], scale=scale)
    for b in range(B):
        want = plain_attention(q[b], k[b], v[b], mask[b], bias, scale)
        np.testing.assert_allclose(found[b], want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [False, True])
def test_keys_in_sets_shared_by_rows_and_heads_are_keys_of_each(monkeypatch, chunks):
    """Two groups of three rows, six heads on two: what all see, what a group sees, what each row sees."""
    if chunks:
        monkeypatch.setattr(layers, "_WHOLE", 0)
        monkeypatch.setattr(layers, "_QUERIES", 2)
    G, R, S, H, J, K = 2, 3, 5, 6, 2, 4
    q, rng = normal(0, G, R, S, H, K), np.random.default_rng(1)
    leads = {(): 7, (G,): 4, (G, R): 3}
    parts = [
        Keys(normal(n, *lead, T, J, K), normal(9 + n, *lead, T, J, K))
        for n, (lead, T) in enumerate(leads.items())
    ]
    of_rows, of_queries = rng.random((G, R, 1, 4)) < 0.7, rng.random((1, 1, S, 3)) < 0.5
    masks = [None, of_rows, of_queries]
    found = attend(q, [part._replace(mask=mask) for part, mask in zip(parts, masks, strict=True)])
    wide = [np.ones((G, R, S, 7), bool), *(np.broadcast_to(m, (G, R, S, m.shape[-1])) for m in masks[1:])]
    mask = np.concatenate(wide, axis=-1)
    for g in range(G):
        for r in range(R):
            at = {(): (), (G,): (g,), (G, R): (g, r)}
            k, v = (
                np.concatenate([np.asarray(x[at[lead]]) for x, lead in zip(kv, leads, strict=True)])
                for kv in zip(*((p.k, p.v) for p in parts), strict=True)
            )
            want = plain_attention(
                q[g, r], *(np.repeat(x, H // J, axis=1) for x in (k, v)), mask[g, r], None, 1
            )
            np.testing.assert_allclose(found[g, r], want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_query_that_sees_nothing_is_finite():
    q, k, v = normal(0, 2, 3, 2, 4), normal(1, 2, 5, 2, 4), normal(2, 2, 5, 2, 4)
    mask = jnp.zeros((2, 1, 5), bool)
    y, gradient = jax.value_and_grad(lambda q: jnp.sum(attend(q, [Keys(k, v, mask)]) ** 2))(q)
    assert np.isfinite(y)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(20, 9), (9, 20), (7, 7), (3, 20)])
def test_chunks_of_queries_change_nothing(monkeypatch, lengths):
    """Masks and biases of all queries or of each, the dropped weights, and all gradients."""
    S, T = lengths
    q, k, v = normal(0, 2, S, 2, 4), normal(1, 2, T, 2, 4), normal(2, 2, T, 2, 4)
    bias, seed = normal(3, 2, S, T), np.random.default_rng(5).integers(0, 2**32, (2, S), dtype=np.uint32)
    of_keys = np.arange(T) < np.array([T, 2])[:, None, None]

    def outputs(q, k, v, bias):
        common = {"rate": 0.3, "key": jax.random.key(0), "seed": seed}
        return [
            attend(q, [Keys(k, v, of_keys)], **common),
            attend(q, [Keys(k, v, of_keys & np.tri(S, T, dtype=bool)[None], bias)], **common),
            attend(q, [Keys(k, v, of_keys, bias)]),
        ]

    def run():
        def total(*args):
            found = outputs(*args)
            return sum(jnp.sum(jnp.sin(y)) for y in found), found

        return jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)

    whole = run()
    monkeypatch.setattr(layers, "_WHOLE", 0)
    monkeypatch.setattr(layers, "_QUERIES", 7)  # divides one of the lengths only
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(run()), strict=True):
        assert largest(a - b) <= 2e-6 * largest(a)


# --- Stacks ---


@pytest.mark.parametrize("remat", REMAT)
@pytest.mark.parametrize("unroll", [False, True])
def test_a_stack_is_its_layers_one_after_the_other(unroll, remat):
    x, weights = normal(0, 4), {"w": normal(1, 3, 4, 4), "b": normal(2, 3, 4)}
    key = jax.random.key(0)

    def layer(x, w, key):
        y = jnp.tanh(x @ w["w"] + w["b"]) + jax.random.normal(key, x.shape)
        return y, y[:2]

    def total(run, x, weights):
        last, each = run(x, weights)
        return jnp.sum(jnp.sin(last)) + jnp.sum(jnp.cos(each)), (last, each)

    def stacked(x, weights):
        return stack(layer, x, weights, key, unroll=unroll, remat=remat)

    def looped(x, weights):
        each = []
        for n, of_layer in enumerate(jax.random.split(key, 3)):
            x, y = layer(x, jax.tree.map(lambda leaf, n=n: leaf[n], weights), of_layer)
            each.append(y)
        return x, jnp.stack(each)

    found, want = (
        jax.jit(jax.value_and_grad(functools.partial(total, run), (0, 1), has_aux=True))(x, weights)
        for run in (stacked, looped)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    last, each = stack(lambda x, w, key: (x + w["b"], key), x, weights, unroll=unroll, remat=remat)
    np.testing.assert_allclose(last, x + weights["b"].sum(axis=0), rtol=1e-6)
    assert each is None


def _kept(platform, monkeypatch, rank=0):
    """Floats that two layers of 6 tokens keep: projections of 2 x 3, a product of 8 and, of the input, 4."""
    monkeypatch.setattr(backend, "platform", lambda: platform)
    x = normal(0, 6, 4)
    weights = {"q": normal(1, 2, 4, 2, 3), "o": normal(2, 2, 2, 3, 4), "wi": normal(3, 2, 4, 8)}
    if rank:
        low = normal(4, 2, 4, rank), normal(5, 2, rank, 8)
        weights["wi"] = LowRank(weights["wi"], *low, scale=1.0)

    def layer(x, w, _):
        x += linear(jnp.tanh(linear(x, w["q"])), w["o"], 2)
        return x + jnp.sum(jnp.tanh(linear(x, w["wi"])), axis=-1, keepdims=True), None

    def run(x, weights):
        return stack(layer, x, weights, remat="elementwise")[0]

    _, pull = jax.vjp(run, x, weights)
    given = {id(leaf) for leaf in jax.tree.leaves((x, weights))}
    stacked = [leaf for leaf in jax.tree.leaves(pull) if leaf.shape[0] == 2 and leaf.shape[1:2] == (6,)]
    return sum(leaf.size for leaf in stacked if id(leaf) not in given) // (2 * 6)


def test_what_a_loop_keeps(monkeypatch):
    # The input, q, o and wi; a TPU's layers compute q and o again.
    assert _kept("cpu", monkeypatch) == 4 + 6 + 4 + 8
    assert _kept("tpu", monkeypatch) == 4 + 8
    # With LoRA the sum of both products only.
    assert _kept("cpu", monkeypatch, rank=5) == 4 + 6 + 4 + 8
