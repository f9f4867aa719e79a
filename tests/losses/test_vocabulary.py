"""The streamed vocabulary pass against its definition, against torch, on eight devices, and in memory."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cot_jax.losses.vocabulary import (
    VocabularyMap,
    _Chunks,
    cross_entropy_pass,
    plain_vocabulary_pass,
    vocabulary_pass,
)

B, T, D, V = 4, 11, 6, 17
# Rows of a chunk: one position; ragged, three positions at a time; everything at once.
CHUNK_ROWS = (1, 15, 1000)
LENGTHS_B = np.array([11, 4, 1, 0])
LENGTH_MASK = np.arange(T) < LENGTHS_B[:, None]


def _inputs(dtype=np.float64, b=B, t=T):
    rng = np.random.default_rng(0)
    hidden_BTD = rng.normal(size=(b, t, D)).astype(dtype)
    head_DV = rng.normal(size=(D, V)).astype(dtype)
    return hidden_BTD, head_DV, rng.integers(0, V, (b, t)).astype(np.int32)


def _maps(mask_BT, kinds):
    """The maps of `kinds`, name -> (reduction, temperature), all over the same positions."""
    return {name: VocabularyMap(reduction, mask_BT, tau) for name, (reduction, tau) in kinds.items()}


def _weighed(run, kinds, cotangent, hidden_BTD, head_DV, target_BT, mask_BT):
    """The pass and its gradients for given cotangents of nll, entropy and maps, where it has them."""

    def total(hidden_BTD, head_DV):
        found = run(hidden_BTD, head_DV, target_BT, _maps(mask_BT, kinds))
        differentiable = found._replace(correct_BT=None)
        weighed = jax.tree.map(lambda weight, leaf: (weight * leaf).sum(), cotangent, differentiable)
        return sum(jax.tree.leaves(weighed)), found

    grads, found = jax.grad(total, argnums=(0, 1), has_aux=True)(hidden_BTD, head_DV)
    return found, grads


def _random_cotangent(found):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), found._replace(correct_BT=None))


def _assert_trees_close(actual, expected, atol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(e, np.float64), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("kinds", "entropy"),
    [
        ({}, False),
        ({}, True),
        ({"one": ("max", 1.0)}, False),
        ({"one": ("max", 2.5)}, True),
        ({"one": ("mean", 1.0)}, True),
        ({"one": ("mean", 2.5)}, False),
        ({"one": ("sum", 1.0)}, False),
        ({"one": ("sum", 2.5)}, True),
        ({"one": ("max", 1.0), "two": ("sum", 1.0), "three": ("mean", 0.5)}, True),
    ],
)
def test_equals_the_definition_in_float64(kinds, entropy):
    with jax.enable_x64(True):
        inputs = _inputs()
        plain = partial(plain_vocabulary_pass, entropy=entropy)
        abstract = jax.eval_shape(lambda *arrays: plain(*arrays, _maps(None, kinds)), *inputs)
        cotangent = _random_cotangent(abstract)
        definition = jax.jit(partial(_weighed, plain, kinds, cotangent))
        streams = [partial(vocabulary_pass, chunk_rows=rows, entropy=entropy) for rows in CHUNK_ROWS]
        streams = [jax.jit(partial(_weighed, stream, kinds, cotangent)) for stream in streams]
        for mask_BT in (LENGTH_MASK, np.arange(T) % 3 == np.arange(B)[:, None]):
            expected = definition(*inputs, mask_BT)
            for stream in streams:
                _assert_trees_close(stream(*inputs, mask_BT), expected, atol=1e-12)
        assert expected[0].maps.keys() == kinds.keys()
        assert (expected[0].entropy_BT is None) == (not entropy)


@pytest.mark.parametrize("rows", CHUNK_ROWS)
def test_cross_entropy_pass_equals_the_definition(rows):
    with jax.enable_x64(True):
        hidden_BTD, head_DV, target_BT = _inputs()
        weight_BT = np.random.default_rng(2).normal(size=(B, T)) * LENGTH_MASK
        maps = {"m": VocabularyMap("max", LENGTH_MASK)}

        def definition(hidden_BTD, head_DV):
            found = plain_vocabulary_pass(hidden_BTD, head_DV, target_BT, maps, entropy=True)
            # What carries no gradient may be used all the same.
            rest = jax.lax.stop_gradient(found.entropy_BT.sum() + (found.maps["m"] ** 2).sum())
            return 3 * jnp.sum(weight_BT * found.nll_BT) + rest, found

        def streamed(hidden_BTD, head_DV):
            total, found = cross_entropy_pass(
                hidden_BTD, head_DV, target_BT, weight_BT, maps, entropy=True, chunk_rows=rows
            )
            return 3 * total + found.entropy_BT.sum() + (found.maps["m"] ** 2).sum(), found

        results = []
        for run in (definition, streamed):
            run = jax.jit(jax.value_and_grad(run, argnums=(0, 1), has_aux=True))
            results.append(run(hidden_BTD, head_DV))
        _assert_trees_close(results[1], results[0], atol=1e-12)
        undifferentiated = jax.jit(streamed)(hidden_BTD, head_DV)
        _assert_trees_close(undifferentiated, results[0][0], atol=1e-12)


def test_products_with_the_head_are_few():
    hidden_BTD, head_DV, target_BT = _inputs(np.float32)
    weight_BT = np.ones((B, T), np.float32)

    def summed(hidden_BTD, head_DV):
        return cross_entropy_pass(hidden_BTD, head_DV, target_BT, weight_BT)[0]

    def general(hidden_BTD, head_DV):
        return vocabulary_pass(hidden_BTD, head_DV, target_BT).nll_BT.sum()

    def products(run):
        return str(jax.make_jaxpr(jax.grad(run, argnums=(0, 1)))(hidden_BTD, head_DV)).count("dot_general")

    assert (products(summed), products(general)) == (3, 4)


def test_cross_entropy_pass_keeps_the_dtypes():
    hidden_BTD, head_DV, target_BT = _inputs(np.float32)
    hidden_BTD = jnp.asarray(hidden_BTD, jnp.bfloat16)
    weight_BT = np.full((B, T), 0.1, np.float32)

    def total(hidden_BTD, head_DV):
        return cross_entropy_pass(hidden_BTD, head_DV, target_BT, weight_BT)[0]

    value, (dhidden_BTD, dhead_DV) = jax.value_and_grad(total, argnums=(0, 1))(hidden_BTD, head_DV)
    assert (value.dtype, dhidden_BTD.dtype, dhead_DV.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)


def test_without_a_mask_every_position_enters_the_map():
    inputs = _inputs(np.float32)
    everything = np.ones((B, T), bool)
    for run in (plain_vocabulary_pass, partial(vocabulary_pass, chunk_rows=15)):
        bare = jax.jit(lambda *arrays, run=run: run(*arrays, {"m": VocabularyMap("mean")}))
        masked = jax.jit(lambda *arrays, run=run: run(*arrays, {"m": VocabularyMap("mean", everything)}))
        _assert_trees_close(bare(*inputs), masked(*inputs), atol=1e-7)


def test_definition_against_formulas():
    with jax.enable_x64(True):
        hidden_BTD, head_DV, target_BT = _inputs()
        z_BTV = hidden_BTD @ head_DV
        p_BTV = np.exp(z_BTV) / np.exp(z_BTV).sum(-1, keepdims=True)
        warm_BTV = np.exp(z_BTV / 3) / np.exp(z_BTV / 3).sum(-1, keepdims=True)
        real_BT1 = LENGTH_MASK[..., None]
        counts_B1 = np.maximum(LENGTHS_B, 1)[:, None]
        expected_maps = {
            "max": np.where(real_BT1, warm_BTV, 0).max(1),
            "sum": np.where(real_BT1, warm_BTV, 0).sum(1),
            "mean": np.where(real_BT1, warm_BTV, 0).sum(1) / counts_B1,
        }
        kinds = {reduction: (reduction, 3.0) for reduction in expected_maps}
        found = jax.jit(lambda *a: plain_vocabulary_pass(*a, _maps(LENGTH_MASK, kinds), entropy=True))(
            hidden_BTD, head_DV, target_BT
        )
        for reduction, map_BV in expected_maps.items():
            np.testing.assert_allclose(found.maps[reduction], map_BV, rtol=1e-13)
            np.testing.assert_allclose(found.entropy_BT, -(p_BTV * np.log(p_BTV)).sum(-1), rtol=1e-12)
            picked_BT = np.take_along_axis(p_BTV, target_BT[..., None], -1)[..., 0]
            np.testing.assert_allclose(found.nll_BT, -np.log(picked_BT), rtol=1e-12)
            np.testing.assert_array_equal(found.correct_BT, z_BTV.argmax(-1) == target_BT)
            assert found.correct_BT.dtype == bool
            assert found.correct_BT.any()  # else the comparison above says little


@pytest.mark.parametrize("reduction", ["max", "mean", "sum"])
def test_row_without_positions_has_zero_map_and_gradient(reduction):
    hidden_BTD, head_DV, target_BT = _inputs(np.float32)

    def map_of(hidden_BTD):
        maps = {"m": VocabularyMap(reduction, LENGTH_MASK)}
        return vocabulary_pass(hidden_BTD, head_DV, target_BT, maps, chunk_rows=15).maps["m"]

    map_BV, pull = jax.vjp(map_of, hidden_BTD)
    (dhidden_BTD,) = pull(np.linspace(1, 2, B * V, dtype=np.float32).reshape(B, V))
    empty = LENGTHS_B == 0
    assert not np.asarray(map_BV)[empty].any()
    assert not np.asarray(dhidden_BTD)[~LENGTH_MASK].any()
    assert np.asarray(dhidden_BTD)[LENGTH_MASK].any()
    assert np.abs(np.asarray(map_BV)[~empty]).min() > 0


@pytest.mark.parametrize("rows", CHUNK_ROWS)
def test_first_of_equal_maxima_takes_the_gradient(rows):
    # All positions alike, hence every v ties over all of T; small integers keep the logits exact.
    hidden_BTD = np.broadcast_to(np.array([1.0, 2, -1, 0, 1, 1], np.float32), (B, T, D))
    head_DV = np.random.default_rng(0).integers(-2, 3, (D, V)).astype(np.float32)
    mask_BT = (np.arange(T) >= 2) & np.ones((B, 1), bool)

    def total(run, hidden_BTD):
        found = run(hidden_BTD, head_DV, np.zeros((B, T), np.int32), {"m": VocabularyMap("max", mask_BT)})
        return (found.maps["m"] ** 2).sum()

    streamed = partial(vocabulary_pass, chunk_rows=rows)
    dhidden_BTD = np.array(jax.jit(jax.grad(partial(total, streamed)))(hidden_BTD))
    expected_BTD = np.array(jax.jit(jax.grad(partial(total, plain_vocabulary_pass)))(hidden_BTD))
    assert np.abs(dhidden_BTD[:, 2]).max() > 1e-2
    dhidden_BTD[:, 2] -= expected_BTD[:, 2]
    np.testing.assert_allclose(dhidden_BTD, 0, atol=1e-6)


def _mutual_information(label_map_BV, rationale_map_BV):
    p_BV, q_BV = jax.lax.stop_gradient(label_map_BV), rationale_map_BV
    return (p_BV.sum(-1) * jax.nn.logsumexp(q_BV, axis=-1) - (p_BV * q_BV).sum(-1)).mean()


def test_gradient_of_mutual_information_equals_torch_with_ties():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    functional = torch.nn.functional
    with jax.enable_x64(True):
        label_BTD, head_DV, label_BT = _inputs(t=5)
        rationale_BTD, _, rationale_BT = _inputs(t=T)
        for hidden_BTD in (label_BTD, rationale_BTD):
            hidden_BTD[:, 2:] = hidden_BTD[:, :-2].copy()  # repeats with period two: every maximum ties
        head = torch.tensor(head_DV, requires_grad=True)
        label = torch.tensor(label_BTD, requires_grad=True)
        rationale = torch.tensor(rationale_BTD, requires_grad=True)
        z_label, z_rationale = label @ head, rationale @ head
        p = functional.softmax(z_label.detach(), dim=-1).max(dim=1)[0]
        q = functional.softmax(z_rationale, dim=-1).max(dim=1)[0]
        token_means = [
            functional.cross_entropy(z.flatten(0, 1), torch.tensor(ids, dtype=torch.int64).flatten())
            for z, ids in ((z_label, label_BT), (z_rationale, rationale_BT))
        ]
        (0.5 * sum(token_means) + 0.1 * functional.cross_entropy(q, p)).backward()

        def total(label_BTD, rationale_BTD, head_DV):
            run = partial(vocabulary_pass, maps={"mi": VocabularyMap("max")}, chunk_rows=3 * B)
            label_pass = run(label_BTD, head_DV, label_BT)
            rationale_pass = run(rationale_BTD, head_DV, rationale_BT)
            mi = _mutual_information(label_pass.maps["mi"], rationale_pass.maps["mi"])
            return 0.5 * (label_pass.nll_BT.mean() + rationale_pass.nll_BT.mean()) + 0.1 * mi

        grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(label_BTD, rationale_BTD, head_DV)
        for ours, theirs in zip(grads, (label, rationale, head), strict=True):
            np.testing.assert_allclose(ours, theirs.grad.numpy(), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("reduction", "expected"), [("max", 1.911866), ("mean", 1.134109)])
def test_mutual_information_worked_example(reduction, expected):
    z_label_BTV = np.array([[[2, 0, -1], [0, 1, 0]]], np.float32)
    z_rationale_BTV = np.array([[[0, 0, 3], [1, 0, 0], [0, 2, 0]]], np.float32)
    maps = []
    for z_BTV in (z_label_BTV, z_rationale_BTV):  # the identity as head: the hidden states are the logits
        ids_BT = np.zeros(z_BTV.shape[:2], np.int32)
        run = partial(vocabulary_pass, maps={"m": VocabularyMap(reduction)}, chunk_rows=1)
        maps.append(run(z_BTV, np.eye(3, dtype=np.float32), ids_BT).maps["m"])
    if reduction == "max":
        np.testing.assert_allclose(maps[0], [[0.843795, 0.576117, 0.211942]], atol=1e-6)
        np.testing.assert_allclose(maps[1], [[0.576117, 0.786986, 0.909443]], atol=1e-6)
    np.testing.assert_allclose(_mutual_information(*maps), expected, atol=1e-6)


@pytest.mark.parametrize("reduction", [None, "max", "mean"])
@pytest.mark.parametrize(("dtype", "hidden_eps", "head_eps"), [(jnp.float32, 8, 8), (jnp.bfloat16, 1, 0.5)])
def test_low_precision_is_exact_to_rounding(dtype, hidden_eps, head_eps, reduction):
    length = 300  # in chunks of one position: 300 summands of the head's gradient, which bfloat16 would lose
    hidden_BTD, head_DV, target_BT = _inputs(np.float32, b=2, t=length)
    hidden_BTD = jnp.asarray(hidden_BTD, dtype)
    mask_BT = np.arange(length) < np.array([[length], [277]])
    kinds = {} if reduction is None else {"m": (reduction, 1.0)}
    plain = partial(plain_vocabulary_pass, entropy=True)
    streamed = partial(vocabulary_pass, chunk_rows=2, entropy=True)
    abstract = jax.eval_shape(lambda *a: plain(*a, _maps(None, kinds)), hidden_BTD, head_DV, target_BT)
    cotangent = _random_cotangent(abstract)
    cotangent = jax.tree.map(lambda leaf: np.abs(leaf).astype(np.float32), cotangent)
    actual = jax.jit(partial(_weighed, streamed, kinds))(cotangent, hidden_BTD, head_DV, target_BT, mask_BT)
    with jax.enable_x64(True):  # the same rounded operands, multiplied and summed exactly
        operands = np.asarray(hidden_BTD, np.float64), np.asarray(jnp.asarray(head_DV, dtype), np.float64)
        expected = jax.jit(partial(_weighed, plain, kinds))(cotangent, *operands, target_BT, mask_BT)
        expected = jax.tree.map(np.asarray, expected)
    found, (dhidden_BTD, dhead_DV) = actual
    assert (dhidden_BTD.dtype, dhead_DV.dtype, found.nll_BT.dtype) == (dtype, jnp.float32, jnp.float32)
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected[0]), strict=True):
        np.testing.assert_allclose(a, e, rtol=0, atol=4e-6)
    for a, e, eps in zip((dhidden_BTD, dhead_DV), expected[1], (hidden_eps, head_eps), strict=True):
        atol = eps * float(jnp.finfo(dtype).eps) * np.abs(e).max()
        np.testing.assert_allclose(np.asarray(a, np.float64), e, rtol=0, atol=atol)


def test_nll_is_finite_for_extreme_logits():
    hidden_BTD = np.full((1, 3, D), 300.0, np.float32)
    head_DV = np.linspace(-300, 300, D * V, dtype=np.float32).reshape(D, V)
    target_BT = np.zeros((1, 3), np.int32)

    def total(hidden_BTD):
        found = vocabulary_pass(hidden_BTD, head_DV, target_BT, {"m": VocabularyMap("max")}, entropy=True)
        return found.nll_BT.sum() + found.entropy_BT.sum() + found.maps["m"].sum()

    value, grad = jax.value_and_grad(total)(hidden_BTD)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_what_is_detached_costs_nothing_in_the_backward_pass():
    inputs = _inputs(np.float32)

    def exponentials(detach):
        def total(hidden_BTD, head_DV, target_BT):
            maps = {"m": VocabularyMap("sum", temperature=2.0)}
            found = vocabulary_pass(hidden_BTD, head_DV, target_BT, maps, entropy=True)
            rest = (found.entropy_BT.sum(), (found.maps["m"] ** 2).sum())
            return found.nll_BT.sum() + sum(jax.lax.stop_gradient(rest) if detach else rest)

        return str(jax.make_jaxpr(jax.grad(total))(*inputs)).count(" exp ")

    # Forward: of z, of z / 2 for its logsumexp and for the map. Backward: of z, and of z / 2 for the map.
    assert (exponentials(detach=True), exponentials(detach=False)) == (4, 5)


def test_unknown_reduction_raises():
    with pytest.raises(ValueError, match="reduction 'maximum' is none of"):
        vocabulary_pass(*_inputs(np.float32), {"m": VocabularyMap("maximum")})


def _chunks(b, length, rows):
    return _Chunks.of(jax.ShapeDtypeStruct((b, length, D), jnp.float32), rows)


@pytest.mark.parametrize("rows", [1, 100, 512, 4096])
def test_chunks_hold_the_rows_asked_for_and_waste_little(rows):
    for b in (1, 8, 64, 600):
        for length in (1, 2, 5, 46, 48, 128, 257):
            chunks = _chunks(b, length, rows)
            most = min(max(rows // b, 1), length)
            assert most / 2 < chunks.size <= most
            assert 0 <= chunks.positions.size - length < chunks.size
            np.testing.assert_array_equal(chunks.positions.ravel(), np.arange(chunks.positions.size))
    assert _chunks(64, 48, 11 * 64).size == 8  # 11 would fill up 7 positions


@pytest.mark.parametrize("size", [1, 3, 5])
def test_chunks_split_and_join(size):
    chunks = _Chunks(length=5, size=size)
    array_BTD = np.arange(2 * 5 * 3).reshape(2, 5, 3)
    split = chunks.split(array_BTD)
    np.testing.assert_array_equal(split[0], array_BTD[:, :size])
    np.testing.assert_array_equal(chunks.join(split), array_BTD)


SHARDINGS = {
    "replicated head": ((8,), ("data",), PartitionSpec()),
    "head divided over V": ((8,), ("data",), PartitionSpec(None, "data")),
    "head divided over D and V": ((2, 2, 2), ("data", "fsdp", "model"), PartitionSpec("fsdp", "model")),
}


def _weighted_nll(run, hidden_BTD, head_DV, target_BT, mask_BT):
    weight_BT = mask_BT / mask_BT.sum()
    if run is plain_vocabulary_pass:
        return jnp.sum(weight_BT * run(hidden_BTD, head_DV, target_BT).nll_BT)
    return run(hidden_BTD, head_DV, target_BT, weight_BT)[0]


@pytest.mark.parametrize("summed", [False, True], ids=["general", "sum"])
@pytest.mark.parametrize("name", SHARDINGS)
def test_eight_devices_equal_one_and_keep_their_rows(name, summed):
    sizes, axes, head_spec = SHARDINGS[name]
    batch_axes = tuple(axis for axis in axes if axis != "model")
    rng = np.random.default_rng(0)
    b, t, d, v = 16, 13, 24, 64
    hidden_BTD = rng.normal(size=(b, t, d)).astype(np.float32)
    head_DV = rng.normal(size=(d, v)).astype(np.float32) / 5
    target_BT = rng.integers(0, v, (b, t)).astype(np.int32)
    mask_BT = np.arange(t) < rng.integers(1, t + 1, b)[:, None]

    def total(run, hidden_BTD, head_DV, target_BT, mask_BT):
        if summed:
            return _weighted_nll(run, hidden_BTD, head_DV, target_BT, mask_BT)
        found = run(hidden_BTD, head_DV, target_BT, {"m": VocabularyMap("max", mask_BT)}, entropy=True)
        return found.nll_BT.mean() + (found.entropy_BT**2).mean() + (found.maps["m"] ** 2).sum(-1).mean()

    arrays = (hidden_BTD, head_DV, target_BT, mask_BT)
    expected = jax.jit(jax.value_and_grad(partial(total, plain_vocabulary_pass), argnums=(0, 1)))(*arrays)
    mesh = jax.make_mesh(sizes, axes, axis_types=(AxisType.Auto,) * len(axes))
    rows, head = (NamedSharding(mesh, spec) for spec in (PartitionSpec(batch_axes), head_spec))
    streamed = cross_entropy_pass if summed else vocabulary_pass
    run = partial(streamed, chunk_rows=16, batch_axes=batch_axes)
    with jax.set_mesh(mesh):
        step = jax.jit(
            jax.value_and_grad(partial(total, run), argnums=(0, 1)),
            in_shardings=(rows, head, rows, rows),
            out_shardings=(NamedSharding(mesh, PartitionSpec()), (rows, head)),
        )
        compiled = step.lower(*arrays).compile()
    placed = [jax.device_put(a, s) for a, s in zip(arrays, (rows, head, rows, rows), strict=True)]
    _assert_trees_close(compiled(*placed), expected, atol=2e-6)

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

    def total(label_BTD, rationale_BTD, head_DV, label_BT, rationale_BT):
        label = run(label_BTD, head_DV, label_BT, {"mi": VocabularyMap("max")})
        rationale = run(rationale_BTD, head_DV, rationale_BT, {"mi": VocabularyMap("max")})
        mi = _mutual_information(label.maps["mi"], rationale.maps["mi"])
        return 0.5 * label.nll_BT.mean() + 0.5 * rationale.nll_BT.mean() + 0.1 * mi

    shapes = [
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((b, 128, d), (b, 256, d), (d, v))),
        *(jax.ShapeDtypeStruct((b, t), jnp.int32) for t in (128, 256)),
    ]
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()


def test_memory_at_the_published_size():
    streamed, plain = _head_program(vocabulary_pass), _head_program(plain_vocabulary_pass)
    temporary = streamed.memory_analysis().temp_size_in_bytes
    assert temporary <= 0.5 * 2**30
    assert 10 * temporary <= plain.memory_analysis().temp_size_in_bytes
    # No array of the program is larger than the head's gradient: not logits, in no shape and no type.
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", streamed.as_text())
    assert max(math.prod(map(int, shape.split(","))) for shape in shapes) == 768 * 32_128
