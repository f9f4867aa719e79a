"""LoRA: the matrices it adapts, the same numbers as peft's, and only the adapter learns."""

import re

import flat_batches
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cot_jax.errors import UserError
from cot_jax.models.lora import Lora, fingerprint, merged
from cot_jax.models.student import save
from cot_jax.models.weights import Weight, layer_norms, shapes

TARGETS = "(attention/[qo]|mlp/wi_0)$"


def _random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), tree)


def _lora(weights, **changes):
    return Lora(weights, **({"rank": 3, "alpha": 6.0, "targets": TARGETS} | changes))


def test_the_default_adapts_what_the_paper_does(untied):
    student, _ = untied
    lora = _lora(student.weights, targets="attention/[qv]$")
    adapter = shapes(lora.weights)
    paths = {path.rsplit("/", 1)[0] for path in flatten_dict(adapter, sep="/")}
    kinds = {
        "encoder/layers/self_attention",
        "decoder/layers/self_attention",
        "decoder/layers/cross_attention",
    }
    assert paths == {f"{kind}/{name}" for kind in kinds for name in "qv"}
    assert len(lora.modules) == 2 * (3 + 2 + 2)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(adapter))
    # Norms of layers are had of adapters, too, whichever stacks they adapt.
    only = _lora(student.weights, targets="decoder/layers/mlp/wo")
    norms = jax.eval_shape(lambda: layer_norms(only.init(jax.random.key(0))))
    assert {stack: norm_N.shape for stack, norm_N in norms.items()} == {"decoder": (2,)}


def test_a_fresh_adapter_changes_nothing_and_merging_leaves_the_rest(untied):
    student, params = untied
    lora = _lora(student.weights)
    before = fingerprint(params)
    merge = jax.jit(lambda frozen, trained: merged(lora.attach(frozen, trained)))
    fresh = jax.jit(lora.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, merge(params, fresh), params)
    together = flatten_dict(merge(params, _random(fresh)), sep="/")
    assert fingerprint(params) == before
    for path, leaf in flatten_dict(params, sep="/").items():
        assert np.array_equal(together[path], leaf) == (re.search(TARGETS, path) is None), path
    assert fingerprint(_random(params)) != before


def test_the_product_is_that_of_the_formula(untied):
    """Every layer, input and output by itself, in float64."""
    student, params = untied
    lora = _lora(student.weights)
    adapter = _random(shapes(lora.weights))
    together = flatten_dict(jax.jit(lambda a: merged(lora.attach(params, a)))(adapter), sep="/")
    low = flatten_dict(adapter, sep="/")
    for path, weight in student.weights.items():
        if not re.search(TARGETS, path):
            continue
        base = flatten_dict(params, sep="/")[path].astype(float)
        for n, (a, b) in enumerate(zip(low[f"{path}/a"], low[f"{path}/b"], strict=True)):
            shape = base[n].shape
            flat = base[n].reshape(np.prod(shape[: weight.inputs]), -1) + 6.0 / 3 * a.astype(
                float
            ) @ b.astype(float)
            np.testing.assert_allclose(together[path][n], flat.reshape(shape), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_logits_and_gradients_are_those_of_peft(untied, torch, tmp_path):
    peft = pytest.importorskip("peft", reason="parity needs peft")
    from transformers import T5ForConditionalGeneration

    student, params = untied
    save(tmp_path, student, params)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q", "o", "wi_0"])
    theirs = peft.get_peft_model(theirs, config)
    lora = _lora(student.weights)
    adapter = _random(shapes(lora.weights))
    adapter = jax.tree.map(lambda x: 0.1 * x, adapter)

    def pairs(tree):
        """(their name, ours as theirs) of every layer's a or b."""
        for path, leaf in flatten_dict(tree, sep="/").items():
            path, kind = path.rsplit("/", 1)
            for n, x in enumerate(leaf):
                module = student.weights[path].theirs.format(n=n).removesuffix(".weight")
                yield f"base_model.model.{module}.lora_{kind.upper()}.default.weight", np.asarray(x).T

    parameters = dict(theirs.named_parameters())
    for name, x in pairs(adapter):
        parameters.pop(name).data = torch.tensor(x.copy())
    assert not [name for name, p in parameters.items() if p.requires_grad]

    rng = np.random.default_rng(1)
    ids, labels = rng.integers(2, 96, size=(4, 9)), rng.integers(2, 96, size=(4, 5))
    weights = rng.normal(size=(4, 5, 96)).astype(np.float32)
    logits = theirs(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).logits
    (logits * torch.tensor(weights)).sum().backward()

    batch = flat_batches.batch({"view": (ids.astype(np.int32), labels.astype(np.int32))})

    @jax.jit
    def ours(adapter):
        attached = lora.attach(params, adapter)
        hidden_GYD = student.hidden(attached, batch, None)["view"]
        logits = (hidden_GYD @ student.head(attached)).reshape(4, 5, 96)
        return jnp.sum(logits * weights), logits

    (_, found), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(adapter)
    most = float(logits.detach().abs().max())
    np.testing.assert_allclose(found, logits.detach().numpy(), atol=1e-5 * most)
    theirs = dict(theirs.named_parameters())
    for name, grad in pairs(grads):
        expected = theirs[name].grad.numpy()
        np.testing.assert_allclose(grad, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("attention/Q$", "found in no parameter's path"),
        ("self_attention", "found in encoder/layers/self_attention_norm, no layer's matrix"),
        ("embedding", "found in embedding, no layer's matrix"),
        ("attention/[qv", "config.model.lora_targets='attention/.qv': unterminated"),
    ],
)
def test_what_cannot_be_adapted_is_named(untied, targets, message):
    with pytest.raises(UserError, match=message):
        _lora(untied[0].weights, targets=targets)


def test_gradients_are_those_of_the_weights_projected():
    rng = np.random.default_rng(0)
    params = {"layers": {"q": rng.normal(size=(2, 4, 3, 2)).astype(np.float32)}}
    lora = _lora({"layers/q": Weight("NDHK", (2, 4, 3, 2), 1, 1.0, "{n}.q.weight")}, targets="q$")
    adapter = _random(shapes(lora.weights))

    @jax.jit
    def grads(params, adapter):
        def loss(tree):
            return jnp.sum(jnp.sin(tree["layers"]["q"]))

        def merge(adapter):
            return merged(lora.attach(params, adapter))

        return jax.grad(loss)(merge(adapter)), jax.grad(lambda a: loss(merge(a)))(adapter)

    of_weights, found = (tree["layers"]["q"] for tree in grads(params, adapter))
    low = adapter["layers"]["q"]
    for n, grad in enumerate(np.asarray(of_weights).reshape(2, 4, 6)):
        np.testing.assert_allclose(found["a"][n], 2 * grad @ low["b"][n].T, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["b"][n], 2 * low["a"][n].T @ grad, rtol=1e-4, atol=1e-5)
