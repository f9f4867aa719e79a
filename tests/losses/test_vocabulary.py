"""The streamed vocabulary pass against its definition, against torch, on eight devices, and in memory."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from benchmarks.head import plain_vocabulary_pass
from cot_jax import backend
from cot_jax.batch import Segments, Tokens
from cot_jax.losses.vocabulary import (
    MapLoss,
    VocabularyMap,
    _Chunks,
    cross_entropy_pass,
    matching_pass,
    vocabulary_pass,
)

D, V, Y = 6, 17, 19
LENGTHS_GE = np.array([[11, 4, 0], [1, 7, 2]], np.int32)  # neither group fills its slots
LEARNED_GE = np.array([[9, 4, 0], [1, 0, 2]], np.int32)
# Rows of a chunk: one; some examples whole and some not, over the border of the groups; all at once.
CHUNK_ROWS = (1, 15, 1000)


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def as_on(request, monkeypatch):
    """The platforms whose programs reduce differently."""
    monkeypatch.setattr(backend, "platform", lambda: request.param)


def _inputs(dtype=np.float64, length_GE=LENGTHS_GE, slots=Y):
    rng = np.random.default_rng(0)
    hidden_GYD = rng.normal(size=(len(length_GE), slots, D)).astype(dtype)
    head_DV = rng.normal(size=(D, V)).astype(dtype)
    ids_GY = rng.integers(0, V, (len(length_GE), slots)).astype(np.int32)
    return hidden_GYD, head_DV, Tokens(ids_GY, length_GE, int(length_GE.max()))


def _rectangles(rows, length):
    """Inputs of a batch whose targets are all of one length."""
    return _inputs(length_GE=np.full((1, rows), length, np.int32), slots=rows * length)


def _maps(length_GE, kinds):
    """The maps of `kinds`, name -> reduction, all over the same tokens."""
    return {name: VocabularyMap(reduction, length_GE) for name, reduction in kinds.items()}


def _weighed(run, kinds, cotangent, hidden_GYD, head_DV, targets, length_GE):
    """The pass and its gradients for given cotangents of nll, entropy and maps, where it has them."""

    def total(hidden_GYD, head_DV):
        found = run(hidden_GYD, head_DV, targets, _maps(length_GE, kinds))
        weighed = jax.tree.map(lambda weight, leaf: (weight * leaf).sum(), cotangent, found)
        return sum(jax.tree.leaves(weighed)), found

    grads, found = jax.grad(total, argnums=(0, 1), has_aux=True)(hidden_GYD, head_DV)
    return found, grads


def _random_cotangent(run, kinds, inputs):
    rng = np.random.default_rng(1)
    found = jax.eval_shape(lambda *arrays: run(*arrays, _maps(None, kinds)), *inputs)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), found)


def _assert_trees_close(actual, expected, atol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(e, np.float64), rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize(
    ("kinds", "entropy"),
    [
        ({}, False),
        ({}, True),
        ({"one": "max"}, False),
        ({"one": "mean"}, True),
        ({"one": "sum"}, False),
        ({"one": "max", "two": "sum", "three": "mean"}, True),
    ],
)
def test_equals_the_definition_in_float64(kinds, entropy):
    with jax.enable_x64(True):
        inputs = _inputs()
        plain = partial(plain_vocabulary_pass, entropy=entropy)
        cotangent = _random_cotangent(plain, kinds, inputs)
        definition = jax.jit(partial(_weighed, plain, kinds, cotangent))
        streams = [partial(vocabulary_pass, chunk_rows=rows, entropy=entropy) for rows in CHUNK_ROWS]
        streams = [jax.jit(partial(_weighed, stream, kinds, cotangent)) for stream in streams]
        for length_GE in (LENGTHS_GE, LEARNED_GE):
            expected = definition(*inputs, length_GE)
            for stream in streams:
                _assert_trees_close(stream(*inputs, length_GE), expected, atol=2e-14)
        assert expected[0].maps.keys() == kinds.keys()
        assert (expected[0].entropy_GY is None) == (not entropy)


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize("rows", CHUNK_ROWS)
def test_cross_entropy_pass_equals_the_definition(rows):
    with jax.enable_x64(True):
        hidden_GYD, head_DV, targets = _inputs()
        weight_GY = np.random.default_rng(2).normal(size=(2, Y))
        maps = {"m": VocabularyMap("max", LEARNED_GE)}

        def definition(hidden_GYD, head_DV):
            found = plain_vocabulary_pass(hidden_GYD, head_DV, targets, maps, entropy=True)
            # What carries no gradient may be used all the same.
            rest = jax.lax.stop_gradient(found.entropy_GY.sum() + (found.maps["m"] ** 2).sum())
            return 3 * jnp.sum(weight_GY * found.nll_GY) + rest, found

        def streamed(hidden_GYD, head_DV):
            total, found = cross_entropy_pass(
                hidden_GYD, head_DV, targets, weight_GY, maps, entropy=True, chunk_rows=rows
            )
            return 3 * total + found.entropy_GY.sum() + (found.maps["m"] ** 2).sum(), found

        results = []
        for run in (definition, streamed):
            run = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
            results.append(run(hidden_GYD, head_DV))
        _assert_trees_close(results[1], results[0], atol=1e-12)
        undifferentiated = jax.jit(streamed)(hidden_GYD, head_DV)
        _assert_trees_close(undifferentiated, results[0][0], atol=1e-12)


# Many short examples in one and in two groups, and rectangles: chunks that end before their last row.
MATCHED = {
    "flat": (np.array([[3, 0, 5, 5, 1, 4, 2, 5, 0, 5]], np.int32), 33),
    "groups": (np.array([[5, 5, 0, 2, 5], [0, 1, 5, 3, 0]], np.int32), 19),
    "rectangles": (np.full((1, 7), 5, np.int32), 35),
}


def _matched_loss(target, map_):
    """Neither linear in the map nor the same for all of V."""
    return jnp.sum(target * jnp.sin(3 * map_), axis=-1) + jax.nn.logsumexp(map_, axis=-1)


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize("reduction", ["max", "mean", "sum"])
@pytest.mark.parametrize("layout", MATCHED)
def test_matching_pass_equals_the_definition(layout, reduction):
    length_GE, slots = MATCHED[layout]
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        hidden_GYD, head_DV, targets = _inputs(length_GE=length_GE, slots=slots)
        real_GY = np.asarray(Segments.of(targets).real_GX)
        weight_GY = np.where(real_GY, rng.normal(size=real_GY.shape), 0)
        kind = VocabularyMap(reduction, np.maximum(length_GE - 1, 0))
        matched = MapLoss(
            kind, _matched_loss, rng.normal(size=(*length_GE.shape, V)), rng.normal(size=length_GE.shape)
        )

        def definition(hidden_GYD, head_DV):
            found = plain_vocabulary_pass(hidden_GYD, head_DV, targets, {"m": kind})
            loss_GE = _matched_loss(matched.target_GEV, found.maps["m"])
            total = jnp.sum(weight_GY * found.nll_GY) + jnp.sum(matched.weight_GE * loss_GE)
            return 3 * total, (jnp.where(real_GY, found.nll_GY, 0), loss_GE)

        def streamed(rows, hidden_GYD, head_DV):
            total, *found = matching_pass(hidden_GYD, head_DV, targets, weight_GY, matched, chunk_rows=rows)
            # Both carry no gradient.
            return 3 * total + sum(jnp.sum(x) - jax.lax.stop_gradient(jnp.sum(x)) for x in found), tuple(
                found
            )

        expected = jax.jit(jax.value_and_grad(definition, argnums=(0, 1), has_aux=True))(hidden_GYD, head_DV)
        for rows in (1, 1000):
            run = partial(streamed, rows)
            found = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))(hidden_GYD, head_DV)
            _assert_trees_close(found, expected, atol=1e-12)
            _assert_trees_close(jax.jit(run)(hidden_GYD, head_DV), expected[0], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("run", [plain_vocabulary_pass, partial(vocabulary_pass, chunk_rows=7)])
def test_the_layout_changes_nothing(run):
    """Neither groups nor spare slots nor the width: one number for every token and every example."""
    lengths = np.array([5, 0, 3, 8], np.int32)
    rng = np.random.default_rng(0)
    hidden_ND, head_DV = rng.normal(size=(lengths.sum(), D)), rng.normal(size=(D, V))
    ids_N = rng.integers(0, V, lengths.sum())
    weight_N, weight_BV = rng.normal(size=lengths.sum()), rng.normal(size=(4, V))

    def by_token(groups, slots, width):
        length_GE = lengths.reshape(groups, -1)
        segments = Segments(length_GE, slots, width)
        slot_N = np.flatnonzero(segments.real_GX)

        def flat(x_N):
            x_X = np.full((groups * slots, *x_N.shape[1:]), 3, x_N.dtype)
            x_X[slot_N] = x_N
            return x_X.reshape(groups, slots, *x_N.shape[1:])

        targets = Tokens(flat(ids_N), length_GE, width)
        maps = _maps(length_GE, {"max": "max", "sum": "sum"})

        def total(hidden_GYD, head_DV):
            found = run(hidden_GYD, head_DV, targets, maps, entropy=True)
            nll_N, entropy_N = (x.reshape(-1)[slot_N] for x in (found.nll_GY, found.entropy_GY))
            maps_BV = [m.reshape(-1, V) for m in found.maps.values()]
            value = jnp.sum(weight_N * (nll_N + entropy_N)) + sum(jnp.sum(weight_BV * m) for m in maps_BV)
            return value, (nll_N, entropy_N, maps_BV)

        (dhidden_GYD, dhead_DV), found = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(
            flat(hidden_ND), head_DV
        )
        return found, dhead_DV, dhidden_GYD.reshape(-1, D)[slot_N], jnp.sum(jnp.abs(dhidden_GYD))

    with jax.enable_x64(True):
        expected = by_token(1, 16, 8)
        for layout in ((1, 21, 9), (2, 11, 8), (4, 8, 8), (4, 13, 16)):
            _assert_trees_close(by_token(*layout), expected, atol=1e-13)


@pytest.mark.slow
def test_products_with_the_head_are_few():
    hidden_GYD, head_DV, targets = _inputs(np.float32)
    weight_GY = np.ones((2, Y), np.float32)

    def summed(hidden_GYD, head_DV):
        return cross_entropy_pass(hidden_GYD, head_DV, targets, weight_GY)[0]

    def matching(hidden_GYD, head_DV):
        matched = MapLoss(VocabularyMap("max"), _matched_loss, jnp.ones((2, 3, V)), jnp.ones((2, 3)))
        return matching_pass(hidden_GYD, head_DV, targets, weight_GY, matched)[0]

    def general(hidden_GYD, head_DV):
        return vocabulary_pass(hidden_GYD, head_DV, targets).nll_GY.sum()

    def products(run, argnums):
        return str(jax.make_jaxpr(jax.grad(run, argnums))(hidden_GYD, head_DV)).count("dot_general")

    runs = summed, matching, general
    assert [products(run, (0, 1)) for run in runs] == [3, 3, 4]
    # Of a head that is not learned none is for its gradient.
    assert [products(run, 0) for run in runs] == [2, 2, 3]
    for run in runs:
        both = jax.grad(run, (0, 1))(hidden_GYD, head_DV)
        np.testing.assert_array_equal(jax.grad(run)(hidden_GYD, head_DV), both[0])


def test_no_row_is_scattered():
    """A TPU would take them one by one."""
    hidden_GYD, head_DV, targets = _inputs(np.float32)
    maps = {kind: VocabularyMap(kind) for kind in ("max", "mean")}

    def total(hidden_GYD, head_DV):
        found = vocabulary_pass(hidden_GYD, head_DV, targets, maps, entropy=True)
        return sum(jnp.sum(x**2) for x in (found.nll_GY, *found.maps.values()))

    def matching(hidden_GYD, head_DV):
        matched = MapLoss(VocabularyMap("max"), _matched_loss, jnp.ones((2, 3, V)), jnp.ones((2, 3)))
        return matching_pass(hidden_GYD, head_DV, targets, jnp.ones((2, Y)), matched)[0]

    for run in (total, matching):
        assert "scatter" not in str(jax.make_jaxpr(jax.grad(run, (0, 1)))(hidden_GYD, head_DV))


def test_a_gpu_never_waits_for_the_bounds_of_a_loop(monkeypatch):
    monkeypatch.setattr(backend, "platform", lambda: "gpu")
    program = str(jax.make_jaxpr(partial(vocabulary_pass, maps={"m": VocabularyMap("max")}))(*_inputs()))
    assert "scan[" in program
    assert "while[" not in program


@pytest.mark.parametrize(("platform", "chunks"), [("cpu", 3), ("tpu", 1)])
def test_chunks_are_those_of_the_devices_compiled_for(platform, chunks):
    device = jax.sharding.AbstractDevice("", None, platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    hidden_GYD, head_DV, ids = np.zeros((1, 1030, 2)), np.zeros((2, 3)), np.zeros((1, 1030), np.int32)
    targets = Tokens(ids, np.array([[1030]], np.int32), 1030)
    with jax.sharding.use_abstract_mesh(mesh):
        program = str(jax.make_jaxpr(vocabulary_pass)(hidden_GYD, head_DV, targets))
    assert f"length={chunks}\n" in program


def test_cross_entropy_pass_keeps_the_dtypes():
    hidden_GYD, head_DV, targets = _inputs(np.float32)
    hidden_GYD = jnp.asarray(hidden_GYD, jnp.bfloat16)
    weight_GY = np.full((2, Y), 0.1, np.float32)

    def total(hidden_GYD, head_DV):
        return cross_entropy_pass(hidden_GYD, head_DV, targets, weight_GY)[0]

    value, (dhidden_GYD, dhead_DV) = jax.value_and_grad(total, argnums=(0, 1))(hidden_GYD, head_DV)
    assert (value.dtype, dhidden_GYD.dtype, dhead_DV.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)


def test_without_a_length_every_token_enters_the_map():
    inputs = _inputs(np.float32)
    for run in (plain_vocabulary_pass, partial(vocabulary_pass, chunk_rows=15)):
        bare = jax.jit(lambda *arrays, run=run: run(*arrays, {"m": VocabularyMap("mean")}))
        all_of_it = jax.jit(lambda *arrays, run=run: run(*arrays, {"m": VocabularyMap("mean", LENGTHS_GE)}))
        _assert_trees_close(bare(*inputs), all_of_it(*inputs), atol=1e-7)


def test_definition_against_formulas():
    with jax.enable_x64(True):
        hidden_GYD, head_DV, targets = _inputs()
        kinds = {reduction: reduction for reduction in ("max", "sum", "mean")}
        found = jax.jit(lambda *a: plain_vocabulary_pass(*a, _maps(LEARNED_GE, kinds), entropy=True))(
            hidden_GYD, head_DV, targets
        )
    z_GYV = hidden_GYD @ head_DV
    p_GYV = np.exp(z_GYV) / np.exp(z_GYV).sum(-1, keepdims=True)
    for g in range(2):
        start = 0
        for e in range(3):
            p_TV = p_GYV[g, start : start + LEARNED_GE[g, e]]
            start += LENGTHS_GE[g, e]
            expected = {"max": p_TV.max(0, initial=0), "sum": p_TV.sum(0)}
            expected["mean"] = expected["sum"] / max(len(p_TV), 1)
            for reduction, map_V in expected.items():
                np.testing.assert_allclose(found.maps[reduction][g, e], map_V, rtol=1e-13)
    np.testing.assert_allclose(found.entropy_GY, -(p_GYV * np.log(p_GYV)).sum(-1), rtol=1e-12)
    picked_GY = np.take_along_axis(p_GYV, targets.ids[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.nll_GY, -np.log(picked_GY), rtol=1e-12)


@pytest.mark.parametrize("reduction", ["max", "mean", "sum"])
def test_example_without_tokens_has_zero_map_and_gradient(reduction):
    hidden_GYD, head_DV, targets = _inputs(np.float32)

    def map_of(hidden_GYD):
        maps = {"m": VocabularyMap(reduction, LEARNED_GE)}
        return vocabulary_pass(hidden_GYD, head_DV, targets, maps, chunk_rows=15).maps["m"]

    map_GEV, pull = jax.vjp(map_of, hidden_GYD)
    (dhidden_GYD,) = pull(jnp.linspace(1, 2, 6 * V).reshape(2, 3, V))
    learned_GY = np.zeros((2, Y), bool)
    learned_GY[0, :9] = learned_GY[0, 11:15] = learned_GY[1, 0] = learned_GY[1, 8:10] = True
    assert not np.asarray(map_GEV)[LEARNED_GE == 0].any()
    assert not np.asarray(dhidden_GYD)[~learned_GY].any()
    assert np.asarray(dhidden_GYD)[learned_GY].any()
    assert np.abs(np.asarray(map_GEV)[LEARNED_GE > 0]).min() > 0


@pytest.mark.usefixtures("as_on")
@pytest.mark.parametrize("rows", CHUNK_ROWS)
def test_first_of_equal_maxima_takes_the_gradient(rows):
    # All positions alike, hence every v ties over all of T; small integers keep the logits exact.
    hidden_GYD = np.broadcast_to(np.array([1.0, 2, -1, 0, 1, 1], np.float32), (2, Y, D))
    head_DV = np.random.default_rng(0).integers(-2, 3, (D, V)).astype(np.float32)
    targets = Tokens(np.zeros((2, Y), np.int32), LENGTHS_GE, 11)

    def total(run, hidden_GYD):
        found = run(hidden_GYD, head_DV, targets, {"m": VocabularyMap("max")})
        return (found.maps["m"] ** 2).sum()

    streamed = partial(vocabulary_pass, chunk_rows=rows)
    dhidden_GYD = np.array(jax.jit(jax.grad(partial(total, streamed)))(hidden_GYD))
    expected_GYD = np.array(jax.jit(jax.grad(partial(total, plain_vocabulary_pass)))(hidden_GYD))
    first_GY = np.zeros((2, Y), bool)
    first_GY[0, [0, 11]] = first_GY[1, [0, 1, 8]] = True
    assert np.abs(dhidden_GYD[first_GY]).max(axis=-1).min() > 1e-2
    dhidden_GYD[first_GY] -= expected_GYD[first_GY]
    np.testing.assert_allclose(dhidden_GYD, 0, atol=1e-6)


@pytest.mark.usefixtures("as_on")
def test_first_of_equal_maxima_takes_the_gradient_of_a_match():
    hidden_GYD = np.broadcast_to(np.array([1.0, 2, -1, 0, 1, 1], np.float32), (2, Y, D))
    head_DV = np.random.default_rng(0).integers(-2, 3, (D, V)).astype(np.float32)
    targets = Tokens(np.zeros((2, Y), np.int32), LENGTHS_GE, 11)
    matched = MapLoss(VocabularyMap("max"), _matched_loss, jnp.ones((2, 3, V)), jnp.ones((2, 3)))

    def total(hidden_GYD):
        return matching_pass(hidden_GYD, head_DV, targets, jnp.zeros((2, Y)), matched)[0]

    def definition(hidden_GYD):
        found = plain_vocabulary_pass(hidden_GYD, head_DV, targets, {"m": VocabularyMap("max")})
        return jnp.sum(_matched_loss(matched.target_GEV, found.maps["m"]))

    found_GYD, expected_GYD = (jax.jit(jax.grad(run))(hidden_GYD) for run in (total, definition))
    assert np.abs(expected_GYD).max() > 1e-2
    np.testing.assert_allclose(found_GYD, expected_GYD, atol=1e-6)


def _mutual_information(label_map_GEV, rationale_map_GEV):
    p_GEV, q_GEV = jax.lax.stop_gradient(label_map_GEV), rationale_map_GEV
    return (p_GEV.sum(-1) * jax.nn.logsumexp(q_GEV, axis=-1) - (p_GEV * q_GEV).sum(-1)).mean()


def test_gradient_of_mutual_information_equals_torch_with_ties():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    functional = torch.nn.functional
    B = 4
    with jax.enable_x64(True):
        sides, leaves = [], []
        for length in (5, 11):
            hidden_GYD, head_DV, targets = _rectangles(B, length)
            hidden_BTD = hidden_GYD.reshape(B, length, D)
            hidden_BTD[:, 2:] = hidden_BTD[:, :-2].copy()  # repeats with period two: every maximum ties
            sides.append((hidden_GYD, targets))
            leaves.append(torch.tensor(hidden_BTD, requires_grad=True))
        head = torch.tensor(head_DV, requires_grad=True)
        z_label, z_rationale = (leaf @ head for leaf in leaves)
        p = functional.softmax(z_label.detach(), dim=-1).max(dim=1)[0]
        q = functional.softmax(z_rationale, dim=-1).max(dim=1)[0]
        token_means = [
            functional.cross_entropy(z.flatten(0, 1), torch.tensor(side[1].ids[0], dtype=torch.int64))
            for z, side in zip((z_label, z_rationale), sides, strict=True)
        ]
        (0.5 * sum(token_means) + 0.1 * functional.cross_entropy(q, p)).backward()

        def total(label_GYD, rationale_GYD, head_DV):
            run = partial(vocabulary_pass, maps={"mi": VocabularyMap("max")}, chunk_rows=12)
            label_pass = run(label_GYD, head_DV, sides[0][1])
            rationale_pass = run(rationale_GYD, head_DV, sides[1][1])
            mi = _mutual_information(label_pass.maps["mi"], rationale_pass.maps["mi"])
            return 0.5 * (label_pass.nll_GY.mean() + rationale_pass.nll_GY.mean()) + 0.1 * mi

        grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(sides[0][0], sides[1][0], head_DV)
        for ours, theirs in zip(grads, (*leaves, head), strict=True):
            expected = theirs.grad.numpy().reshape(ours.shape)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "expected"), [("max", 1.911866), ("mean", 1.134109)])
def test_mutual_information_worked_example(reduction, expected):
    z_label_GYV = np.array([[[2, 0, -1], [0, 1, 0]]], np.float32)
    z_rationale_GYV = np.array([[[0, 0, 3], [1, 0, 0], [0, 2, 0]]], np.float32)
    maps = []
    for z_GYV in (z_label_GYV, z_rationale_GYV):  # the identity as head: the hidden states are the logits
        length = z_GYV.shape[1]
        targets = Tokens(np.zeros((1, length), np.int32), np.array([[length]], np.int32), length)
        run = partial(vocabulary_pass, maps={"m": VocabularyMap(reduction)}, chunk_rows=1)
        maps.append(run(z_GYV, np.eye(3, dtype=np.float32), targets).maps["m"])
    if reduction == "max":
        np.testing.assert_allclose(maps[0], [[[0.843795, 0.576117, 0.211942]]], atol=1e-6)
        np.testing.assert_allclose(maps[1], [[[0.576117, 0.786986, 0.909443]]], atol=1e-6)
    np.testing.assert_allclose(_mutual_information(*maps), expected, atol=1e-6)


@pytest.mark.parametrize("reduction", [None, "max", "mean"])
@pytest.mark.parametrize(("dtype", "hidden_eps", "head_eps"), [(jnp.float32, 8, 8), (jnp.bfloat16, 1, 0.5)])
def test_low_precision_is_exact_to_rounding(dtype, hidden_eps, head_eps, reduction):
    # In chunks of two rows: 300 summands of the head's gradient, which bfloat16 would lose.
    length_GE = np.array([[300, 277]], np.int32)
    hidden_GYD, head_DV, targets = _inputs(np.float32, length_GE, 600)
    hidden_GYD = jnp.asarray(hidden_GYD, dtype)
    kinds = {} if reduction is None else {"m": reduction}
    plain = partial(plain_vocabulary_pass, entropy=True)
    streamed = partial(vocabulary_pass, chunk_rows=2, entropy=True)
    cotangent = _random_cotangent(plain, kinds, (hidden_GYD, head_DV, targets))
    cotangent = jax.tree.map(lambda leaf: np.abs(leaf).astype(np.float32), cotangent)
    actual = jax.jit(partial(_weighed, streamed, kinds))(cotangent, hidden_GYD, head_DV, targets, length_GE)
    with jax.enable_x64(True):  # the same rounded operands, multiplied and summed exactly
        operands = np.asarray(hidden_GYD, np.float64), np.asarray(jnp.asarray(head_DV, dtype), np.float64)
        expected = jax.jit(partial(_weighed, plain, kinds))(cotangent, *operands, targets, length_GE)
        expected = jax.tree.map(np.asarray, expected)
    found, (dhidden_GYD, dhead_DV) = actual
    assert (dhidden_GYD.dtype, dhead_DV.dtype, found.nll_GY.dtype) == (dtype, jnp.float32, jnp.float32)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=4e-6)
    for a, e, eps in zip((dhidden_GYD, dhead_DV), expected[1], (hidden_eps, head_eps), strict=True):
        atol = eps * float(jnp.finfo(dtype).eps) * np.abs(e).max()
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "eps"), [(jnp.float32, 16), (jnp.bfloat16, 1)])
def test_a_match_in_low_precision_is_exact_to_rounding(dtype, eps):
    length_GE = np.array([[60, 41, 30, 1, 60]], np.int32)
    hidden_GYD, head_DV, targets = _inputs(np.float32, length_GE, 200)
    hidden_GYD = jnp.asarray(hidden_GYD, dtype)
    weight_GY, target_GEV = np.full((1, 200), 0.1), np.full((1, 5, V), 0.5)

    def total(run, hidden_GYD, head_DV):
        kind = VocabularyMap("max")
        if run is matching_pass:
            matched = MapLoss(kind, _matched_loss, target_GEV, np.ones((1, 5)))
            return run(hidden_GYD, head_DV, targets, jnp.asarray(weight_GY), matched, chunk_rows=1)[0]
        found = run(hidden_GYD, head_DV, targets, {"m": kind})
        real_GY = Segments.of(targets).real_GX
        nll = jnp.sum(jnp.where(real_GY, weight_GY * found.nll_GY, 0))
        return nll + jnp.sum(_matched_loss(target_GEV, found.maps["m"]))

    actual = jax.jit(jax.grad(partial(total, matching_pass), (0, 1)))(hidden_GYD, head_DV)
    assert [x.dtype for x in actual] == [dtype, jnp.float32]
    with jax.enable_x64(True):  # the same rounded operands, multiplied and summed exactly
        operands = np.asarray(hidden_GYD, np.float64), np.asarray(jnp.asarray(head_DV, dtype), np.float64)
        expected = jax.jit(jax.grad(partial(total, plain_vocabulary_pass), (0, 1)))(*operands)
        for a, e in zip(actual, expected, strict=True):
            atol = eps * float(jnp.finfo(dtype).eps) * np.abs(e).max()
            np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=atol)


def test_nll_is_finite_for_extreme_logits():
    hidden_GYD = np.full((1, 3, D), 300.0, np.float32)
    head_DV = np.linspace(-300, 300, D * V, dtype=np.float32).reshape(D, V)
    targets = Tokens(np.zeros((1, 3), np.int32), np.array([[3]], np.int32), 3)

    def total(hidden_GYD):
        found = vocabulary_pass(hidden_GYD, head_DV, targets, {"m": VocabularyMap("max")}, entropy=True)
        return found.nll_GY.sum() + found.entropy_GY.sum() + found.maps["m"].sum()

    value, grad = jax.value_and_grad(total)(hidden_GYD)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_what_is_detached_costs_nothing_in_the_backward_pass():
    inputs = _inputs(np.float32)

    def products_and_lookups(use):
        def total(hidden_GYD, head_DV, targets):
            maps = {"m": VocabularyMap("sum")}
            found = vocabulary_pass(hidden_GYD, head_DV, targets, maps, entropy=True)
            return found.nll_GY.sum() + sum(map(use, (found.entropy_GY, found.maps["m"])))

        program = str(jax.make_jaxpr(jax.grad(total))(*inputs))
        return program.count("= mul "), program.count("= gather[")

    detached = products_and_lookups(lambda x: jax.lax.stop_gradient(x).sum())
    learned = products_and_lookups(lambda x: x.sum())
    assert detached == products_and_lookups(lambda x: 0.0)
    assert learned[0] > detached[0]
    assert learned[1] == detached[1] + 1  # of the map's cotangent


def test_unknown_reduction_raises():
    with pytest.raises(ValueError, match="reduction 'maximum' is not in"):
        vocabulary_pass(*_inputs(np.float32), {"m": VocabularyMap("maximum")})


@pytest.mark.parametrize("most", [1, 100, 512, 4096])
def test_chunks_hold_the_rows_asked_for_and_waste_little(most):
    for groups in (1, 8, 60):
        for slots in (1, 5, 46, 48, 257, 2048):
            chunks = _Chunks.of(jax.ShapeDtypeStruct((groups, slots, D), jnp.float32), most)
            rows = groups * slots
            assert min(most, rows) / 2 <= chunks.size <= most
            assert chunks.fill < -(-rows // chunks.size)


@pytest.mark.parametrize("size", [1, 4, 10])
def test_chunks_split_and_join(size):
    chunks = _Chunks(groups=2, slots=5, size=size)
    array_GYD = np.arange(1, 31).reshape(2, 5, 3)
    split = chunks.split(array_GYD)
    np.testing.assert_array_equal(split[-1], array_GYD.reshape(10, 3)[-size:])
    assert np.count_nonzero(split) == 30
    np.testing.assert_array_equal(chunks.join(split), array_GYD)


SHARDINGS = {
    "replicated head": ((8,), ("data",), PartitionSpec()),
    "head divided over V": ((8,), ("data",), PartitionSpec(None, "data")),
    "head divided over D and V": ((2, 2, 2), ("data", "fsdp", "model"), PartitionSpec("fsdp", "model")),
}


def _weighted_nll(run, hidden_GYD, head_DV, targets):
    weight_GY = Segments.of(targets).real_GX / targets.length.sum()
    if run is plain_vocabulary_pass:
        return jnp.sum(weight_GY * run(hidden_GYD, head_DV, targets).nll_GY)
    return run(hidden_GYD, head_DV, targets, weight_GY)[0]


def _matched(run, hidden_GYD, head_DV, targets):
    kind, (G, E), V = VocabularyMap("max"), targets.length.shape, head_DV.shape[1]
    target_GEV = jnp.cos(jnp.arange(G * E * V, dtype=jnp.float32)).reshape(G, E, V)
    if run is plain_vocabulary_pass:
        map_GEV = run(hidden_GYD, head_DV, targets, {"m": kind}).maps["m"]
        return _weighted_nll(run, hidden_GYD, head_DV, targets) + jnp.mean(_matched_loss(target_GEV, map_GEV))
    weight_GY = Segments.of(targets).real_GX / targets.length.sum()
    matched = MapLoss(kind, _matched_loss, target_GEV, jnp.full((G, E), 1 / (G * E)))
    return run(hidden_GYD, head_DV, targets, weight_GY, matched)[0]


@pytest.mark.parametrize("streamed", [vocabulary_pass, cross_entropy_pass, matching_pass])
@pytest.mark.parametrize("name", SHARDINGS)
def test_eight_devices_equal_one_and_keep_their_groups(name, streamed):
    sizes, axes, head_spec = SHARDINGS[name]
    batch_axes = tuple(axis for axis in axes if axis != "model")
    rng = np.random.default_rng(0)
    g, e, t, d, v = 8, 2, 13, 24, 64
    hidden_GYD = rng.normal(size=(g, e * t, d)).astype(np.float32)
    head_DV = rng.normal(size=(d, v)).astype(np.float32) / 5
    ids_GY = rng.integers(0, v, (g, e * t)).astype(np.int32)
    targets = Tokens(ids_GY, rng.integers(1, t + 1, (g, e)).astype(np.int32), t)

    def total(run, hidden_GYD, head_DV, targets):
        if streamed is not vocabulary_pass:
            one = _matched if streamed is matching_pass else _weighted_nll
            return one(run, hidden_GYD, head_DV, targets)
        maps = {"max": VocabularyMap("max"), "sum": VocabularyMap("sum")}
        found = run(hidden_GYD, head_DV, targets, maps, entropy=True)
        map_terms = [(m**2).sum(-1).mean() for m in found.maps.values()]
        return found.nll_GY.mean() + (found.entropy_GY**2).mean() + sum(map_terms)

    arrays = (hidden_GYD, head_DV, targets)
    expected = jax.jit(jax.value_and_grad(partial(total, plain_vocabulary_pass), argnums=(0, 1)))(*arrays)
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(axes))
    groups, head = (NamedSharding(mesh, spec) for spec in (PartitionSpec(batch_axes), head_spec))
    run = partial(streamed, chunk_rows=16, batch_axes=batch_axes)
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(partial(total, run), argnums=(0, 1)),
            in_shardings=(groups, head, groups),
            out_shardings=(NamedSharding(mesh, PartitionSpec()), (groups, head)),
        )
        compiled = step.lower(*arrays).compile()
    _assert_trees_close(compiled(*jax.device_put(arrays, (groups, head, groups))), expected, atol=2e-6)

    gathered = re.findall(r"(\w+\[[\d,]*\])\S* all-gather\(", compiled.as_text())
    v_local = v // 2 if "model" in axes else v
    assert set(gathered) == (set() if head_spec == PartitionSpec() else {f"f32[{d},{v_local}]"})
    if "model" not in axes:  # over a model axis the logsumexp of each chunk crosses devices, and must
        loops = [body for body in _computations(compiled.as_text()) if "dynamic-update-slice" in body]
        assert loops
        assert not any(re.search(r" (all-|reduce-scatter|collective-)\S*\(", body) for body in loops)


def _computations(hlo):
    return [part for part in re.split(r"\n(?=%|ENTRY)", hlo) if not part.startswith("ENTRY")]


def _head_program(run):
    """Compiles loss and gradients of DSS with MI at the size of T5-base and a batch of 64."""
    b, d, v = 64, 768, 32_128

    def total(label_GYD, rationale_GYD, head_DV, label_targets, rationale_targets):
        label = run(label_GYD, head_DV, label_targets, {"mi": VocabularyMap("max")})
        rationale = run(rationale_GYD, head_DV, rationale_targets, {"mi": VocabularyMap("max")})
        mi = _mutual_information(label.maps["mi"], rationale.maps["mi"])
        return 0.5 * label.nll_GY.mean() + 0.5 * rationale.nll_GY.mean() + 0.1 * mi

    lengths, integers = (128, 256), partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    shapes = [
        *(jax.ShapeDtypeStruct((1, b * t, d), jnp.float32) for t in lengths),
        jax.ShapeDtypeStruct((d, v), jnp.float32),
        *(Tokens(integers((1, b * t)), integers((1, b)), t) for t in lengths),
    ]
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()


@pytest.mark.slow
def test_memory_at_the_published_size():
    streamed, plain = _head_program(vocabulary_pass), _head_program(plain_vocabulary_pass)
    temporary = streamed.memory_analysis().temp_size_in_bytes
    assert temporary <= 0.5 * 2**30
    assert 10 * temporary <= plain.memory_analysis().temp_size_in_bytes
    # No array of the program is larger than the head's gradient: not logits, in no shape and no type.
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", streamed.as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 768 * 32_128
