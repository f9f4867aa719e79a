"""The objective equals the published losses on the same logits, whatever the bucket."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cot_jax.batch import Batch, ViewArrays
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.losses.soft_targets import LastBatch, SelfDistillation
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import shapes

TERMS = {"predict": "label", "explain": "rationale"}
WEIGHTS = {"label": 0.3, "rationale": 0.7}
D, V = 5, 13
LENGTHS = {"predict": [2, 1, 4], "explain": [5, 6, 2]}


class FixedHidden:
    """A student whose parameters are its hidden states: what is tested is the losses alone."""

    def hidden(self, params, views, dropout_rng):
        return {name: params[name][:, : view.target_ids.shape[1]] for name, view in views.items()}

    def head(self, params):
        return params["head"]


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "predict": jnp.array(rng.normal(size=(3, 16, D)), jnp.float32),
        "explain": jnp.array(rng.normal(size=(3, 16, D)), jnp.float32),
        "head": jnp.array(rng.normal(size=(D, V)), jnp.float32),
    }


def _batch(padding, lengths=LENGTHS):
    rng = np.random.default_rng(1)
    views = {}
    for name, rows in lengths.items():
        ids = np.zeros((3, max(rows) + padding), np.int32)
        for i, length in enumerate(rows):
            ids[i, :length] = rng.integers(1, V, size=length)
        inputs = np.ones((3, 2), np.int32), np.full(3, 2, np.int32)
        views[name] = ViewArrays(*inputs, ids, np.array(rows, np.int32))
    return Batch(views, np.arange(3, dtype=np.int32))


def _mi(variant="reference", weight=0.5):
    return MutualInformation("predict", "explain", weight, variant, "max", "label")


@pytest.mark.parametrize("padding", [0, 3, 9])
@pytest.mark.parametrize("weight", [None, 0.5], ids=["dss", "mi"])
def test_equals_the_published_lines_in_value_and_gradient(params, padding, weight):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, _mi(weight=weight) if weight else None)
    (total, found), grads = jax.value_and_grad(objective, has_aux=True)(params, _batch(padding), None, None)

    # The published code pads to the longest target of the batch, and no further.
    leaves = {name: torch.tensor(np.asarray(value), requires_grad=True) for name, value in params.items()}
    logits, losses = {}, {}
    for name, rows in LENGTHS.items():
        labels = torch.tensor(_batch(0).views[name].target_ids, dtype=torch.long)
        for i, length in enumerate(rows):
            labels[i, length:] = -100
        logits[name] = leaves[name][:, : max(rows)] @ leaves["head"]
        losses[name] = torch.nn.functional.cross_entropy(logits[name].reshape(-1, V), labels.reshape(-1))
    expected = 0.3 * losses["predict"] + 0.7 * losses["explain"]
    if weight:
        p = torch.max(logits["predict"].detach().softmax(dim=-1), dim=-2)[0]
        q = torch.max(logits["explain"].softmax(dim=-1), dim=-2)[0]
        published = torch.nn.CrossEntropyLoss()(q, p)
        expected = expected + weight * published
        assert float(found.terms["mi"]) == pytest.approx(published.item(), rel=1e-6)
    expected.backward()
    assert float(total) == pytest.approx(expected.item(), rel=1e-6)
    for name in params:
        np.testing.assert_allclose(grads[name], leaves[name].grad, atol=1e-6)


@pytest.mark.parametrize("variant", ["masked", "normalized", "kl"])
def test_padding_changes_nothing(params, variant):
    objective = jax.value_and_grad(make_objective(FixedHidden(), TERMS, WEIGHTS, _mi(variant)), has_aux=True)
    (near, _), near_grads = objective(params, _batch(0), None, None)
    (far, _), far_grads = objective(params, _batch(8), None, None)
    np.testing.assert_allclose(near, far, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), near_grads, far_grads)


def test_an_empty_target_counts_nowhere(params):
    lengths = {"predict": [2, 1, 4], "explain": [5, 0, 2]}
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, _mi("masked"))
    (_, found), grads = jax.value_and_grad(objective, has_aux=True)(params, _batch(1, lengths), None, None)
    assert not np.any(grads["explain"][1])
    logits = params["explain"] @ params["head"]
    ids = _batch(1, lengths).views["explain"].target_ids
    nll = [-jax.nn.log_softmax(logits[i, t])[ids[i, t]] for i in (0, 2) for t in range(lengths["explain"][i])]
    assert float(found.terms["rationale"]) == pytest.approx(np.mean(nll), rel=1e-6)


def test_no_rationale_at_all_is_a_loss_of_zero(params):
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, _mi())
    batch = _batch(1, {"predict": [2, 1, 4], "explain": [0, 0, 0]})
    (total, found), grads = jax.value_and_grad(objective, has_aux=True)(params, batch, None, None)
    assert float(found.terms["rationale"]) == float(found.terms["mi"]) == 0
    assert float(total) == pytest.approx(0.3 * float(found.terms["label"]))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.fixture(scope="module")
def small_student():
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=4
    )
    student = T5(config)
    rng = np.random.default_rng(4)
    like = shapes(student.weights)
    return student, jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 4, shapes)


def _random_batch(rows):
    rng = np.random.default_rng(2)
    views = {}
    for name, width in (("predict", 8), ("explain", 24)):
        lengths = rng.integers(1, width + 1, size=(2, rows)).astype(np.int32)
        ids = [rng.integers(3, 64, size=(rows, w)).astype(np.int32) for w in (32, width)]
        views[name] = ViewArrays(ids[0], np.minimum(4 * lengths[0], 32), ids[1], lengths[1])
    return Batch(views, np.arange(rows, dtype=np.int32))


def test_parts_of_a_batch_have_the_gradient_of_the_whole_whatever_the_method(small_student):
    student, params = small_student
    distillation = SelfDistillation(
        "dynsdpb", ("predict", "explain"), 1.0, 3.0, "vmm", "log", "clip", "batch_maximum", 8, jnp.float32
    )
    batch = _random_batch(16)
    stored = distillation.empty(8, 64, {"predict": 8, "explain": 24})
    maps = {name: jax.random.uniform(jax.random.key(3), x.shape) for name, x in stored.outputs.items()}
    last_batch = LastBatch(jnp.asarray(batch.example[::2]), maps)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    found = {}
    for parts in (1, 4):
        objective = make_objective(
            student, TERMS, WEIGHTS, _mi("reference"), distillation, ("data",), micro_batches=parts
        )
        step = jax.jit(
            jax.value_and_grad(objective, has_aux=True), in_shardings=(None, P("data"), None, P("data"))
        )
        with jax.set_mesh(mesh):
            found[parts] = step(params, batch, None, last_batch)
    for whole, part in zip(*map(jax.tree.leaves, (found[1], found[4])), strict=True):
        scale = np.abs(whole).max() if whole.size else 0
        np.testing.assert_allclose(part, whole, rtol=2e-5, atol=2e-6 * max(scale, 1e-3))


def test_parts_take_less_memory(small_student):
    student, params = small_student
    batch = _random_batch(64)

    def peak(parts):
        objective = make_objective(student, TERMS, WEIGHTS, micro_batches=parts)
        step = jax.jit(jax.grad(objective, has_aux=True))
        return step.lower(params, batch, None, None).compile().memory_analysis().temp_size_in_bytes

    assert peak(8) < peak(1) / 3


def test_a_batch_that_does_not_divide_is_named(small_student):
    student, params = small_student
    objective = make_objective(student, TERMS, WEIGHTS, micro_batches=5)
    with pytest.raises(ValueError, match="a batch of 16 does not divide in 5 parts"):
        objective(params, _random_batch(16), None, None)


def test_three_views_are_the_sum_of_their_single_terms():
    """In value and in gradient, with the mutual-information term beside them."""
    rng = np.random.default_rng(0)
    lengths = {**LENGTHS, "program": [3, 0, 5]}
    params = {name: jnp.array(rng.normal(size=(3, 16, D)), jnp.float32) for name in lengths}
    params["head"] = jnp.array(rng.normal(size=(D, V)), jnp.float32)
    terms, weights = {**TERMS, "program": "program"}, {**WEIGHTS, "program": 0.4}

    def value_and_grad(terms, weights, mi=None):
        objective = make_objective(FixedHidden(), terms, weights, mi)
        views = {name: _batch(2, lengths).views[name] for name in terms}
        batch = Batch(views, np.arange(3, dtype=np.int32))
        return jax.value_and_grad(objective, has_aux=True)(params, batch, None, None)

    (total, found), grads = value_and_grad(terms, weights, _mi())
    assert set(found.terms) == {"label", "rationale", "program", "mi"}
    singles = [value_and_grad({name: term}, {term: 1.0}) for name, term in terms.items()]
    with_mi, plain = (value_and_grad(TERMS, WEIGHTS, mi) for mi in (_mi(), None))
    parts = [*zip(weights.values(), singles, strict=True), (1.0, with_mi), (-1.0, plain)]
    assert float(total) == pytest.approx(sum(w * float(part[0][0]) for w, part in parts), rel=1e-6)
    expected = jax.tree.map(
        lambda *leaves: sum(w * x for (w, _), x in zip(parts, leaves, strict=True)),
        *[g for _, (_, g) in parts],
    )
    for got, wanted in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
