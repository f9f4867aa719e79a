"""Self-distillation against formulas in PyTorch, in float64; what links, what breaks, what stays put."""

import dataclasses
import math
import re

import axes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cot_jax.batch import Batch, Segments, Tokens, ViewArrays
from cot_jax.losses.choices import OUTPUTS
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.losses.soft_targets import LastBatch, SelfDistillation

B, T, D, V = 6, 5, 4, 9
LENGTHS = np.array([3, 5, 1, 2, 0, 4], np.int32)  # the left examples are 0, 2, 4; one is empty
TERMS, WEIGHTS = {"predict": "label"}, {"label": 0.7}

DLB = SelfDistillation("dlb", ("predict",), 0.8, 3.0, "full", 4, jnp.float64)


class FixedHidden:
    """A student whose parameters are its hidden states, (B, T, D)."""

    def hidden(self, params, batch, dropout_rng):
        def flat(hidden_BTD, targets):
            hidden_BTD = hidden_BTD[:, : targets.width]
            return Segments.of(targets).pack(hidden_BTD.reshape(*targets.length.shape, *hidden_BTD.shape[1:]))

        return {name: flat(params[name], view.targets) for name, view in batch.views.items()}

    def head(self, params):
        return params["head"]


def _params(seed, rows=B, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return {
        "predict": rng.normal(size=(rows, T + 3, D)).astype(dtype),
        "explain": rng.normal(size=(rows, T + 3, D)).astype(dtype),
        "head": np.random.default_rng(9).normal(size=(D, V)).astype(dtype),
    }


def _rectangle(rows=B):
    return np.random.default_rng(3).integers(1, V, size=(rows, T)).astype(np.int32)


def _batch(example, lengths=LENGTHS, groups=1, spare=0, wider=0):
    length_GE = lengths.reshape(groups, -1)
    segments = Segments(length_GE, int(length_GE.sum(axis=1).max()) + spare, T)
    ids_GY = np.asarray(segments.pack(_rectangle(len(lengths)).reshape(groups, -1, T)))
    view = ViewArrays(None, Tokens(ids_GY, length_GE, T + wider), length_GE)
    return Batch({"predict": view, "explain": view}, np.asarray(example, np.int32).reshape(groups, -1))


def _empty(spec, rows=B // 2, dtype=jnp.float64):
    last = spec.empty(rows, V, {"predict": T + 3, "explain": T + 3})
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, last)


def _two_steps(spec, layout=(1, 0, 0), mi=None, terms=TERMS, weights=WEIGHTS):
    """Total, what was found and gradients of the second of two steps, whose left half was right before."""
    objective = make_objective(FixedHidden(), terms, weights, mi, spec)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    # Examples 0, 2, 4 of the second batch are examples 1, 3, 5 of the first.
    lengths = np.zeros(B, np.int32)
    lengths[1::2], lengths[0::2] = LENGTHS[0::2], [2, 2, 2]
    (_, first), _ = step(_params(0), _batch([10, 1, 11, 2, 12, 3], lengths), None, _empty(spec))
    second = _batch([1, 20, 2, 21, 3, 22], LENGTHS, *layout)
    return step(_params(1), second, None, first.last_batch), first


def _torch_term(spec, torch):
    """The formulas of the module's docstring, written again: (cross-entropy, term), leaves."""
    before = torch.tensor(_params(0)["predict"][1::2]) @ torch.tensor(_params(0)["head"])
    hidden = torch.tensor(_params(1)["predict"], requires_grad=True)
    head = torch.tensor(_params(1)["head"], requires_grad=True)
    z = hidden @ head
    ids = torch.tensor(_rectangle(), dtype=torch.long)
    tokens = [z[i, :n].log_softmax(-1)[range(n), ids[i, :n]].neg() for i, n in enumerate(LENGTHS)]
    nll = torch.cat(tokens)
    means = [t.mean().item() for t in tokens if len(t)]
    term, n_linked = 0.0, 0
    for h, i in enumerate((0, 2, 4)):
        n = LENGTHS[i]
        if n == 0:
            continue
        n_linked += 1
        weight, tau = spec.weight, spec.temperature
        if spec.method == "dynsdpb":
            p = z[i, :n].detach().softmax(-1)
            weight *= 1 + (p * p.log()).sum(-1).mean().item() / math.log(V)
            relative = tokens[i].mean().item() / np.mean(means)
            tau *= min(max(relative, 0.5), 2.0)
        old, new = before[h, :n], z[i, :n]
        if spec.output == "vmm":
            old, new = (x.softmax(-1).sum(0, keepdim=True).log() for x in (old, new))
        elif spec.output == "top_k":
            top = old.topk(spec.top_k).indices
            old, new = old.gather(-1, top), new.gather(-1, top)
        p, log_q = (old / tau).softmax(-1), (new / tau).log_softmax(-1)
        term = term + weight * tau**2 * (p * (p.log() - log_q)).sum(-1).mean()
    return nll.mean(), term / n_linked, (hidden, head)


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "layout"), [(1.0, (1, 0, 0)), (3.0, (3, 2, 3))])
@pytest.mark.parametrize("output", ["full", "top_k", "vmm"])
@pytest.mark.parametrize("method", ["dlb", "dynsdpb"])
def test_equals_the_formulas_in_value_and_gradient(method, output, temperature, layout):
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    spec = dataclasses.replace(DLB, method=method, output=output, temperature=temperature)
    with jax.enable_x64(True), axes.checked():
        ((total, found), grads), first = _two_steps(spec, layout)
    cross_entropy, term, leaves = _torch_term(spec, torch)
    (0.7 * (cross_entropy + term)).backward()
    assert term.item() > 1e-4
    np.testing.assert_allclose(found.terms["label"], cross_entropy.item(), rtol=1e-10)
    np.testing.assert_allclose(found.terms["self_distillation"], 0.7 * term.item(), rtol=1e-10)
    np.testing.assert_allclose(total, 0.7 * (cross_entropy + term).item(), rtol=1e-10)
    np.testing.assert_allclose(grads["predict"], leaves[0].grad, rtol=0, atol=1e-10)
    np.testing.assert_allclose(grads["head"], leaves[1].grad, rtol=0, atol=1e-10)
    assert float(first.terms["self_distillation"]) == 0, "the first step has nothing stored"
    np.testing.assert_array_equal(found.last_batch.example_h, [20, 21, 22])


def test_two_steps_by_hand():
    """One token, two words: p = (3/4, 1/4) then (1/2, 1/2); DLB with tau 1 and alpha 2."""
    spec = dataclasses.replace(DLB, temperature=1.0, weight=2.0, dtype=jnp.float32)
    objective = jax.jit(make_objective(FixedHidden(), TERMS, {"label": 1.0}, None, spec))
    one_GE = np.ones((1, 2), np.int32)
    targets = Tokens(one_GE, one_GE, 1)
    batch = Batch({"predict": ViewArrays(targets, targets, one_GE)}, np.array([[5, 6]], np.int32))
    last = spec.empty(1, 2, {"predict": 1})
    for logits_21, expected in (([[0.0], [math.log(3)]], 0.0), ([[0.0], [0.0]], 0.261624)):
        hidden = np.pad(np.array(logits_21, np.float32)[:, None], ((0, 0), (0, 0), (0, 1)))
        params = {"predict": hidden, "head": np.eye(2, dtype=np.float32)}
        _, found = objective(params, batch, None, last)
        # 2 (3/4 log(3/2) + 1/4 log(1/2)) = 0.261624
        np.testing.assert_allclose(found.terms["self_distillation"], expected, atol=1e-6)
        last = found.last_batch
        batch = batch._replace(example=np.array([[6, 7]], np.int32))


def test_a_broken_chain_has_no_term():
    with jax.enable_x64(True):
        objective = jax.jit(make_objective(FixedHidden(), TERMS, WEIGHTS, None, DLB))
        _, first = objective(_params(0), _batch([0, 1, 0, 2, 0, 3]), None, _empty(DLB))
        linked = objective(_params(1), _batch([1, 0, 2, 0, 3, 0]), None, first.last_batch)[1]
        broken = objective(_params(1), _batch([1, 0, 7, 0, 3, 0]), None, first.last_batch)[1]
        other = objective(_params(1), _batch([7, 0, 8, 0, 9, 0]), None, first.last_batch)[1]
    assert float(other.terms["self_distillation"]) == 0
    # Example 4 has no target: of 0 and 2 one is left, and the mean is over what is left.
    stored = [float(found.diagnostics["stored"]) for found in (linked, broken, other)]
    np.testing.assert_allclose(stored, [2 / 3, 1 / 3, 0])
    assert float(broken.terms["self_distillation"]) != float(linked.terms["self_distillation"]) != 0


def test_a_single_token_makes_maps_the_distribution():
    """For classification, one token a target, vocabulary map matching is DLB."""
    lengths = np.ones(B, np.int32)
    found = {}
    with jax.enable_x64(True):
        for output in ("full", "vmm"):
            spec = dataclasses.replace(DLB, output=output)
            objective = jax.jit(make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec))
            _, first = objective(_params(0), _batch([0, 1, 0, 2, 0, 3], lengths), None, _empty(spec))
            _, second = objective(_params(1), _batch([1, 0, 2, 0, 3, 0], lengths), None, first.last_batch)
            found[output] = float(second.terms["self_distillation"])
    np.testing.assert_allclose(found["vmm"], found["full"], rtol=1e-12)


def test_dynamic_weights_weigh_the_cross_entropy():
    spec = dataclasses.replace(DLB, method="dynamic")
    with jax.enable_x64(True):
        objective = jax.jit(make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec))
        total, found = objective(_params(1), _batch(np.arange(B)), None, None)
    z = _params(1)["predict"][:, :T] @ _params(1)["head"]
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    ids = _rectangle()
    counts = LENGTHS > 0
    sure, nll = np.zeros(B), np.zeros(B)
    for i, n in enumerate(LENGTHS):
        sure[i] = 1 + (np.exp(log_p) * log_p).sum(-1)[i, :n].mean() / math.log(V) if n else 0
        nll[i] = -log_p[i, range(n), ids[i, :n]].sum()
    relative = sure / sure[counts].mean()
    np.testing.assert_allclose(found.terms["label"], (relative * nll).sum() / LENGTHS.sum(), rtol=1e-12)
    np.testing.assert_allclose(total, 0.7 * float(found.terms["label"]), rtol=1e-12)
    assert found.last_batch is None


@pytest.mark.slow
def test_both_views_and_mutual_information_together():
    spec = dataclasses.replace(DLB, method="dynsdpb", views=("predict", "explain"), output="vmm")
    terms, weights = {"predict": "label", "explain": "rationale"}, {"label": 0.3, "rationale": 0.7}
    mi = MutualInformation("predict", "explain", 0.5, "masked", "max", "label")
    with jax.enable_x64(True), axes.checked():
        ((total, found), _), _ = _two_steps(spec, mi=mi, terms=terms, weights=weights)
    t = {name: float(value) for name, value in found.terms.items()}
    expected = 0.3 * t["label"] + 0.7 * t["rationale"] + 0.5 * t["mi"] + t["self_distillation"]
    np.testing.assert_allclose(total, expected, rtol=1e-12)
    assert float(found.terms["self_distillation"]) > 0
    assert found.diagnostics.keys() == {"uncertainty", "weight", "temperature", "agreement", "stored"}


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_axis_of_the_mesh_need_not_divide_the_classes(output):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    assert V % mesh.shape["model"]
    spec = dataclasses.replace(DLB, output=output, dtype=jnp.float32)
    batch = _batch(np.arange(8) // 2 * 2, np.ones(8, np.int32), groups=4)
    batch = batch._replace(views={"predict": batch.views["predict"]})
    params = {name: leaf for name, leaf in _params(0, 8, np.float32).items() if name != "explain"}
    last = _empty(spec, 4, jnp.float32)._replace(example_h=jnp.arange(0, 8, 2, dtype=jnp.int32))
    expected = jax.jit(make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec))(params, batch, None, last)
    with jax.set_mesh(mesh):
        objective = make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec, batch_axes=("data",))
        found = jax.jit(objective)(params, batch, None, last)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_no_gradient_where_maps_underflow():
    spec = dataclasses.replace(DLB, output="vmm", dtype=jnp.float32)
    objective = jax.jit(
        jax.value_and_grad(make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec), has_aux=True)
    )
    params = jax.tree.map(lambda x: 100 * x.astype(np.float32), _params(0))
    last = LastBatch(jnp.array([0, 2, 4]), {"predict": jnp.full((3, V), 1e-38, jnp.float32)})
    (total, found), grads = objective(params, _batch(np.arange(B)), None, last)
    assert found.terms["self_distillation"] > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((total, grads)))


@pytest.mark.parametrize("output", ["vmm", "full"])
def test_stored_outputs_never_change_device(output):
    mesh = jax.make_mesh((8, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    divided, whole = (NamedSharding(mesh, PartitionSpec(axes)) for axes in (("data",), ()))
    spec = dataclasses.replace(DLB, method="dynsdpb", output=output, dtype=jnp.float32)
    here = make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec)
    there = make_objective(FixedHidden(), TERMS, WEIGHTS, None, spec, batch_axes=("data",))
    lengths = np.random.default_rng(0).integers(1, T + 1, size=32).astype(np.int32)
    batch = _batch(np.arange(32) // 2 * 2, lengths, groups=8)
    params = {name: leaf for name, leaf in _params(0, 32, np.float32).items() if name != "explain"}
    batch = batch._replace(views={"predict": batch.views["predict"]})
    last = _empty(spec, 16, jnp.float32)._replace(example_h=jnp.arange(0, 32, 2, dtype=jnp.int32))
    expected = jax.jit(here)(params, batch, None, last)
    shardings = ({"predict": divided, "head": whole}, divided, None, divided)
    with jax.set_mesh(mesh):
        compiled = jax.jit(there, in_shardings=shardings).lower(params, batch, None, last).compile()
        total, found = compiled(*jax.device_put((params, batch, None, last), shardings))
    np.testing.assert_allclose(total, expected[0], rtol=1e-6)
    for leaf in jax.tree.leaves(found.last_batch):
        assert leaf.sharding.is_equivalent_to(divided, leaf.ndim)
    # Sums over the batch cross devices, as scalars; nothing else does.
    crossing = re.findall(r"= (.*) (?:all-[\w-]+|collective-[\w-]+|reduce-scatter)\(", compiled.as_text())
    sizes = [
        math.prod(map(int, re.findall(r"\d+", dims) or [1]))
        for c in crossing
        for dims in re.findall(r"\[([\d,]*)\]", c)
    ]
    assert crossing
    assert max(sizes) == 1, crossing
