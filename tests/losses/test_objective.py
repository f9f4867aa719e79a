"""The objective equals the published losses on the same logits, whatever the layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from benchmarks.head import plain_vocabulary_pass
from cot_jax import backend
from cot_jax.batch import Batch, Segments, Tokens, ViewArrays
from cot_jax.losses.choices import DETACHABLE
from cot_jax.losses.mutual_information import map_length, mutual_information_loss
from cot_jax.losses.objective import MutualInformation, make_objective, token_weight
from cot_jax.losses.soft_targets import LastBatch, SelfDistillation
from cot_jax.losses.vocabulary import VocabularyMap

TERMS = {"predict": "label", "explain": "rationale"}
WEIGHTS = {"label": 0.3, "rationale": 0.7}
D, V = 5, 13
LENGTHS = {"predict": [2, 1, 4], "explain": [5, 6, 2]}
# Groups, spare slots, positions no target has.
LAYOUTS = [(1, 0, 0), (1, 4, 3), (3, 2, 1)]


class FixedHidden:
    """A student whose parameters are its hidden states, (B, T, D): what is tested is the losses alone."""

    def hidden(self, params, batch, dropout_rng):
        def flat(hidden_BTD, targets):
            hidden_BTD = hidden_BTD[:, : targets.width]
            return Segments.of(targets).pack(hidden_BTD.reshape(*targets.length.shape, *hidden_BTD.shape[1:]))

        return {name: flat(params[name], view.targets) for name, view in batch.views.items()}

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


def _rectangle(lengths):
    """(B, T) ids up to the longest, and 0 behind the others, as the published code pads."""
    rng = np.random.default_rng(1)
    ids = np.zeros((len(lengths), max(lengths)), np.int32)
    for i, length in enumerate(lengths):
        ids[i, :length] = rng.integers(1, V, size=length)
    return ids


def _batch(groups=1, spare=0, wider=0, lengths=LENGTHS, padded=True):
    """`padded`: whether every target is decoded up to the longest."""
    views = {}
    for name, learned in lengths.items():
        learned_GE = np.array(learned, np.int32).reshape(groups, -1)
        length_GE = np.full_like(learned_GE, max(learned)) if padded else learned_GE
        width = max(learned) + wider
        ids_BT = np.pad(_rectangle(learned), ((0, 0), (0, wider)))
        segments = Segments(length_GE, int(length_GE.sum(axis=1).max()) + spare, width)
        ids_GY = np.asarray(segments.pack(ids_BT.reshape(groups, -1, width)))
        inputs = Tokens(np.ones((groups, length_GE.shape[1]), np.int32), np.ones_like(length_GE), 1)
        views[name] = ViewArrays(inputs, Tokens(ids_GY, length_GE, width), learned_GE)
    return Batch(views, np.arange(3, dtype=np.int32).reshape(groups, -1))


def _mi(variant="reference", weight=0.5, reduction="max", detach="label"):
    return MutualInformation("predict", "explain", weight, variant, reduction, detach)


def _differentiated(objective):
    """The compiled (params, batch, key, last batch) -> ((total, found), gradients)."""
    return jax.jit(jax.value_and_grad(objective, has_aux=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reduction", [None, "max", "mean"], ids=["dss", "max", "mean"])
def test_equals_the_published_lines_in_value_and_gradient(params, layout, reduction):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    mi = _mi(reduction=reduction) if reduction else None
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, mi)
    batch = _batch(*layout, padded=mi is not None)
    (total, found), grads = _differentiated(objective)(params, batch, None, None)

    # The published code pads to the longest target of the batch, and no further.
    leaves = {name: torch.tensor(np.asarray(value), requires_grad=True) for name, value in params.items()}
    logits, losses = {}, {}
    for name, rows in LENGTHS.items():
        labels = torch.tensor(_rectangle(rows), dtype=torch.long)
        for i, length in enumerate(rows):
            labels[i, length:] = -100
        logits[name] = leaves[name][:, : max(rows)] @ leaves["head"]
        losses[name] = torch.nn.functional.cross_entropy(logits[name].reshape(-1, V), labels.reshape(-1))
    expected = 0.3 * losses["predict"] + 0.7 * losses["explain"]
    if mi:
        p, q = logits["predict"].detach().softmax(dim=-1), logits["explain"].softmax(dim=-1)
        p, q = (torch.max(x, dim=-2)[0] if reduction == "max" else torch.mean(x, dim=-2) for x in (p, q))
        published = torch.nn.CrossEntropyLoss()(q, p)
        expected = expected + 0.5 * published
        assert float(found.terms["mi"]) == pytest.approx(published.item(), rel=1e-6)
    expected.backward()
    assert float(total) == pytest.approx(expected.item(), rel=1e-6)
    for name in params:
        np.testing.assert_allclose(grads[name], leaves[name].grad, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("variant", ["reference", "normalized"])
@pytest.mark.parametrize("detach", DETACHABLE)
def test_mutual_information_is_that_of_whole_maps(params, detach, variant, platform, monkeypatch):
    monkeypatch.setattr(backend, "platform", lambda: platform)
    mi, batch = _mi(variant, detach=detach), _batch(*LAYOUTS[2])
    (total, found), grads = _differentiated(make_objective(FixedHidden(), TERMS, WEIGHTS, mi))(
        params, batch, None, None
    )

    def definition(params):
        hidden, head_DV = FixedHidden().hidden(params, batch, None), params["head"]
        terms, maps = {}, {}
        for name, view in batch.views.items():
            wanted = {"mi": VocabularyMap("max", map_length(variant, view))}
            passed = plain_vocabulary_pass(hidden[name], head_DV, view.targets, wanted)
            terms[TERMS[name]] = jnp.sum(token_weight(view) * passed.nll_GY)
            maps[name] = passed.maps["mi"]
        counts_GE = jnp.ones(batch.example.shape, bool)
        sides = maps["predict"], maps["explain"], counts_GE
        terms["mi"] = mutual_information_loss(*sides, variant=variant, detach=detach)
        return 0.3 * terms["label"] + 0.7 * terms["rationale"] + 0.5 * terms["mi"], terms

    (expected, terms), expected_grads = jax.jit(jax.value_and_grad(definition, has_aux=True))(params)
    assert found.terms.keys() == terms.keys()
    for name, term in terms.items():
        np.testing.assert_allclose(found.terms[name], term, rtol=1e-6)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads, expected_grads)


def test_mutual_information_needs_no_product_of_its_own(params):
    def products(mi):
        objective = make_objective(FixedHidden(), TERMS, WEIGHTS, mi)
        program = jax.make_jaxpr(jax.grad(objective, has_aux=True))(params, _batch(), None, None)
        return str(program).count("dot_general")

    assert products(None) == products(_mi()) == 6
    assert products(_mi(detach="none")) == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "reduction"), [("masked", "max"), ("masked", "mean"), ("normalized", "max"), ("kl", "max")]
)
def test_neither_layout_nor_padding_changes_anything(params, variant, reduction):
    mi = _mi(variant, reduction=reduction)
    objective = _differentiated(make_objective(FixedHidden(), TERMS, WEIGHTS, mi))
    (expected, _), expected_grads = objective(params, _batch(padded=False), None, None)
    for layout, padded in zip(LAYOUTS, (True, False, True), strict=True):
        (total, _), grads = objective(params, _batch(*layout, padded=padded), None, None)
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), grads, expected_grads)


def test_an_empty_target_counts_nowhere(params):
    lengths = {"predict": [2, 1, 4], "explain": [5, 0, 2]}
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, _mi("masked"))
    batch = _batch(lengths=lengths, padded=False)
    (_, found), grads = _differentiated(objective)(params, batch, None, None)
    assert not np.any(grads["explain"][1])
    logits, ids = params["explain"] @ params["head"], _rectangle(lengths["explain"])
    nll = [-jax.nn.log_softmax(logits[i, t])[ids[i, t]] for i in (0, 2) for t in range(lengths["explain"][i])]
    assert float(found.terms["rationale"]) == pytest.approx(np.mean(nll), rel=1e-6)


def test_no_rationale_at_all_is_a_loss_of_zero(params):
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, _mi())
    batch = _batch(spare=1, wider=1, lengths={"predict": [2, 1, 4], "explain": [0, 0, 0]})
    (total, found), grads = _differentiated(objective)(params, batch, None, None)
    assert float(found.terms["rationale"]) == float(found.terms["mi"]) == 0
    assert float(total) == pytest.approx(0.3 * float(found.terms["label"]))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


class Wide:
    """A student of one wide layer, whose dropout depends on key and example."""

    D, F, V = 16, 2048, 64

    def params(self):
        rng = np.random.default_rng(4)
        shapes = {"embedding": (self.V, self.D), "up": (self.D, self.F), "down": (self.F, self.D)}
        return {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}

    def hidden(self, params, batch, dropout_rng):
        def one(view):
            x_GYD = params["embedding"][view.targets.ids]
            if dropout_rng is not None:
                keys_GE = jax.vmap(jax.vmap(lambda n: jax.random.fold_in(dropout_rng, n)))(batch.example)
                kept_GED = jax.vmap(jax.vmap(lambda key: jax.random.bernoulli(key, shape=(self.D,))))(keys_GE)
                example_GY1 = Segments.of(view.targets).example_GX[..., None]
                x_GYD *= jnp.take_along_axis(kept_GED, example_GY1, axis=1)
            return jnp.tanh(x_GYD @ params["up"]) @ params["down"]

        return {name: one(view) for name, view in batch.views.items()}

    def head(self, params):
        return params["embedding"].T


def _random_batch(groups, examples):
    rng = np.random.default_rng(2)
    views = {}
    for name, width in (("predict", 8), ("explain", 24)):
        length_GE = rng.integers(1, width + 1, size=(groups, examples)).astype(np.int32)
        ids_GY = rng.integers(3, Wide.V, size=(groups, examples * width)).astype(np.int32)
        views[name] = ViewArrays(None, Tokens(ids_GY, length_GE, width), length_GE)
    return Batch(views, np.arange(groups * examples, dtype=np.int32).reshape(groups, examples))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [False, True])
def test_parts_of_a_batch_have_the_gradient_of_the_whole_whatever_the_method(dropout):
    student = Wide()
    distillation = SelfDistillation("dynsdpb", ("predict", "explain"), 1.0, 3.0, "vmm", 8, jnp.float32)
    batch = _random_batch(8, 2)
    stored = distillation.empty(8, Wide.V, {"predict": 8, "explain": 24})
    maps = {name: jax.random.uniform(jax.random.key(3), x.shape) for name, x in stored.outputs.items()}
    last_batch = LastBatch(jnp.asarray(batch.example[:, 0]), maps)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    found = {}
    for parts in (1, 4):
        objective = make_objective(
            student, TERMS, WEIGHTS, _mi("reference"), distillation, ("data",), micro_batches=parts
        )
        step = jax.jit(
            jax.value_and_grad(objective, has_aux=True), in_shardings=(None, P("data"), None, P("data"))
        )
        key = jax.random.key(5) if dropout else None
        with jax.set_mesh(mesh):
            found[parts] = step(student.params(), batch, key, last_batch)
    for whole, part in zip(*map(jax.tree.leaves, (found[1], found[4])), strict=True):
        scale = np.abs(whole).max() if whole.size else 0
        np.testing.assert_allclose(part, whole, rtol=2e-5, atol=2e-6 * max(scale, 1e-3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_class_weights_are_those_of_pytorch(params, layout):
    """In value and gradient, and of the label term alone; the mean is divided by the sum of the weights."""
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    lengths = {"predict": [1, 0, 1], "explain": LENGTHS["explain"]}
    batch = _batch(*layout, lengths=lengths, padded=False)
    weights_V = np.random.default_rng(2).uniform(0.2, 3.0, V)
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, class_weights=weights_V)
    (_, found), grads = _differentiated(objective)(params, batch, None, None)
    (_, plain), _ = _differentiated(make_objective(FixedHidden(), TERMS, WEIGHTS))(params, batch, None, None)
    assert float(found.terms["rationale"]) == float(plain.terms["rationale"])

    rows, ids = [0, 2], _rectangle(lengths["predict"])[[0, 2], 0]
    assert ids[0] != ids[1]
    logits = np.asarray(params["predict"][:, 0] @ params["head"], np.float64)[rows]
    nll = np.log(np.exp(logits).sum(axis=1)) - logits[[0, 1], ids]
    expected = (weights_V[ids] * nll).sum() / weights_V[ids].sum()
    assert float(found.terms["label"]) == pytest.approx(expected, rel=1e-6)
    assert abs(expected - nll.mean()) > 1e-2

    hidden, head = (
        torch.tensor(np.asarray(params[name]), requires_grad=True) for name in ("predict", "head")
    )
    weight = torch.tensor(weights_V, dtype=torch.float32)
    loss = torch.nn.CrossEntropyLoss(weight=weight)(hidden[rows, 0] @ head, torch.tensor(ids).long())
    assert float(found.terms["label"]) == pytest.approx(loss.item(), rel=1e-6)
    (0.3 * loss).backward()
    np.testing.assert_allclose(grads["predict"], hidden.grad, atol=1e-6)


def test_class_weights_of_a_batch_without_labels_are_no_nan(params):
    batch = _batch(1, 1, 1, {"predict": [0, 0, 0], "explain": LENGTHS["explain"]}, padded=False)
    objective = make_objective(FixedHidden(), TERMS, WEIGHTS, class_weights=np.ones(V))
    (_, found), grads = _differentiated(objective)(params, batch, None, None)
    assert float(found.terms["label"]) == 0
    assert not np.any(grads["predict"])


def test_parts_take_less_memory():
    student, batch = Wide(), _random_batch(8, 8)

    def peak(parts):
        objective = make_objective(student, TERMS, WEIGHTS, micro_batches=parts)
        step = jax.jit(jax.grad(objective, has_aux=True))
        compiled = step.lower(student.params(), batch, None, None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert peak(8) < peak(1) / 3


def test_a_batch_that_does_not_divide_is_named():
    student = Wide()
    objective = make_objective(student, TERMS, WEIGHTS, micro_batches=5)
    with pytest.raises(ValueError, match="8 groups do not divide into 5 parts"):
        objective(student.params(), _random_batch(8, 2), None, None)


@pytest.mark.slow
def test_three_views_are_the_sum_of_their_single_terms():
    """In value and in gradient, with the mutual-information term beside them."""
    rng = np.random.default_rng(0)
    lengths = {**LENGTHS, "program": [3, 0, 5]}
    params = {name: jnp.array(rng.normal(size=(3, 16, D)), jnp.float32) for name in lengths}
    params["head"] = jnp.array(rng.normal(size=(D, V)), jnp.float32)
    terms, weights = {**TERMS, "program": "program"}, {**WEIGHTS, "program": 0.4}
    batch = _batch(spare=2, lengths=lengths)

    def value_and_grad(terms, weights, mi=None):
        objective = make_objective(FixedHidden(), terms, weights, mi)
        some = batch._replace(views={name: batch.views[name] for name in terms})
        return _differentiated(objective)(params, some, None, None)

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
