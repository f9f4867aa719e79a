"""LoRA: the matrices it adapts, the same numbers as peft's, and only the adapter learns."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations
from flat_batches import batch, by_example, rectangle, sequences
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from cot_jax.errors import UserError
from cot_jax.models import student as students
from cot_jax.models.layers import LowRank
from cot_jax.models.lora import Lora, fingerprint, merged, read_adapter, write_adapter
from cot_jax.models.weights import layer_norms, shapes

TARGETS = "(attention/[qo]|mlp/wi_0)$"


def _random(tree, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (scale * rng.normal(size=x.shape)).astype(np.float32), tree)


def _lora(student, **changes):
    return Lora(student.weights, **({"rank": 3, "alpha": 6.0, "targets": TARGETS} | changes))


@pytest.fixture(scope="module")
def adapted(untied):
    """A student, its parameters, what adapts it, and a random adapter."""
    student, params = untied
    lora = _lora(student)
    return student, params, lora, _random(shapes(lora.weights), scale=0.1)


def test_the_default_adapts_what_the_paper_does(untied):
    student, _ = untied
    lora = _lora(student, targets="attention/[qv]$")
    adapter = jax.eval_shape(lora.init, jax.random.key(0))
    paths = {path.rsplit("/", 1)[0] for path in flatten_dict(adapter, sep="/")}
    kinds = {
        "encoder/layers/self_attention",
        "decoder/layers/self_attention",
        "decoder/layers/cross_attention",
    }
    assert paths == {f"{kind}/{name}" for kind in kinds for name in "qv"}
    assert len(lora.modules) == 2 * (3 + 2 + 2)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(adapter))
    # Adapters have layer norms, too, also if they adapt one stack only.
    only = _lora(student, targets="decoder/layers/mlp/wo")
    norms = jax.eval_shape(lambda: layer_norms(only.init(jax.random.key(0))))
    assert {stack: norm_N.shape for stack, norm_N in norms.items()} == {"decoder": (2,)}


def test_a_fresh_adapter_is_the_released_codes(untied):
    """A uniform within the inverse root of its inputs, B zero; each layer and matrix by itself."""
    student, _ = untied
    lora = _lora(student, rank=16)
    fresh = flatten_dict(jax.jit(lora.init)(jax.random.key(0)), sep="/")
    drawn = []
    for path, weight in student.weights.items():
        if re.search(TARGETS, path):
            inputs, outputs = weight.matrix
            a, b = fresh.pop(f"{path}/a"), fresh.pop(f"{path}/b")
            assert (a.shape, b.shape) == ((weight.layers, inputs, 16), (weight.layers, 16, outputs))
            assert not b.any()
            assert 0.95 < np.abs(a).max() * inputs**0.5 <= 1
            assert abs(a.std() * (3 * inputs) ** 0.5 - 1) < 0.05
            drawn += [layer.ravel()[:512] for layer in np.asarray(a)]
    assert not fresh
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 5 / 512**0.5


def test_a_fresh_adapter_changes_nothing_and_merging_leaves_the_rest(adapted, hidden, pair):
    student, params, lora, adapter = adapted
    before = fingerprint(params)
    fresh = jax.jit(lora.init)(jax.random.key(0))
    merge = jax.jit(lambda params, adapter: merged(lora.attach(params, adapter)))
    jax.tree.map(np.testing.assert_array_equal, merge(params, fresh), params)
    examples = batch({"view": pair})
    want = hidden(student, params, examples)["view"]
    np.testing.assert_array_equal(hidden(student, lora.attach(params, fresh), examples)["view"], want)
    found = flatten_dict(merge(params, adapter), sep="/")
    assert fingerprint(params) == before
    for path, leaf in flatten_dict(params, sep="/").items():
        assert np.array_equal(found[path], leaf) == (re.search(TARGETS, path) is None), path
    assert fingerprint(_random(params)) != before


def test_the_product_is_that_of_the_formula(adapted):
    """Every layer, input and output by itself, in float64."""
    student, params, lora, _ = adapted
    adapter = _random(shapes(lora.weights))
    found = flatten_dict(merged(lora.attach(params, adapter)), sep="/")
    low, frozen = flatten_dict(adapter, sep="/"), flatten_dict(params, sep="/")
    for path, weight in student.weights.items():
        if not re.search(TARGETS, path):
            continue
        for n, (a, b) in enumerate(zip(low[f"{path}/a"], low[f"{path}/b"], strict=True)):
            base = frozen[path][n].astype(float)
            matrix = base.reshape(weight.matrix) + 6.0 / 3 * a.astype(float) @ b.astype(float)
            np.testing.assert_allclose(found[path][n], matrix.reshape(base.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_adapted_student_is_the_merged_one(adapted, pair):
    """States, and gradients of the adapter, of which the frozen weights get none."""
    student, params, lora, adapter = adapted
    student = dataclasses.replace(student, config=dataclasses.replace(student.config, dropout_rate=0.1))
    examples, key = batch({"view": pair}), jax.random.key(0)

    def loss(adapter, params, merge):
        attached = lora.attach(params, adapter)
        states = student.hidden(merged(attached) if merge else attached, examples, key)["view"]
        return jnp.sum(jnp.sin(states)), states

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)
    (found, states), (want, want_states) = (run(adapter, params, merge) for merge in (False, True))
    np.testing.assert_allclose(states, want_states, atol=1e-5 * np.abs(want_states).max())
    for path, a in flatten_dict(want, sep="/").items():
        b = flatten_dict(found, sep="/")[path]
        np.testing.assert_allclose(b, a, atol=1e-5 * np.abs(a).max(), err_msg=path)
    still = jax.jit(jax.grad(lambda params: loss(adapter, params, False)[0]))(params)
    assert not any(leaf.any() for leaf in jax.tree.leaves(still))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_learning_makes_no_array_as_large_as_the_frozen_weights(adapted, dtype):
    """The adapter's gradient needs no merged copy, no dense gradient and no copy of the weights."""
    student, params, _, _ = adapted
    student = dataclasses.replace(student, dtype=dtype, remat="elementwise")
    lora = _lora(student, targets="(attention/[qkvo]|mlp/w.*)$")
    adapter = shapes(lora.weights)
    frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)
    examples = batch({"view": (sequences(0, [3, 2]), sequences(1, [2, 3]))})

    def loss(adapter, frozen):
        states = student.hidden(lora.attach(frozen, adapter), examples, jax.random.key(0))["view"]
        return jnp.sum(states.astype(jnp.float32) ** 2)

    made = set()
    for equation, _ in equations(jax.make_jaxpr(jax.grad(loss))(adapter, frozen).jaxpr):
        if equation.primitive.name not in ("jit", "stop_gradient", "reshape"):
            made.update(v.aval.shape for v in equation.outvars)
    for path, weight in student.weights.items():
        if re.search("(attention/[qkvo]|mlp/w.*)$", path):
            for shape in (weight.shape, (weight.layers, *weight.matrix), weight.shape[1:], weight.matrix):
                assert shape not in made, path


def test_a_frozen_weight_may_be_bfloat16(adapted, hidden, pair):
    student, params, lora, adapter = adapted
    low = jax.tree.map(jnp.bfloat16, params)
    attached = lora.attach(low, adapter)
    leaves = filter(_is_low_rank, jax.tree.leaves(attached, is_leaf=_is_low_rank))
    assert {leaf.w.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}
    wide = lora.attach(jax.tree.map(np.float32, low), adapter)
    examples = batch({"view": pair})
    found, want = (hidden(student, tree, examples)["view"] for tree in (attached, wide))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, atol=1e-6 * np.abs(want).max())
    assert {leaf.dtype for leaf in jax.tree.leaves(merged(attached))} == {jnp.dtype(jnp.float32)}


def _is_low_rank(leaf):
    return isinstance(leaf, LowRank)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_logits_gradients_and_files_are_those_of_peft(adapted, torch, tmp_path):
    peft = pytest.importorskip("peft", reason="parity needs peft")
    from transformers import T5ForConditionalGeneration

    student, params, lora, adapter = adapted
    students.save(tmp_path, student, params)
    base = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q", "o", "wi_0"])
    theirs = peft.get_peft_model(base, config)

    def pairs(tree):
        """(their name, ours as theirs) of every layer's a or b."""
        flat = flatten_dict(tree, sep="/")
        for module, (path, n) in lora.modules.items():
            for kind in "ab":
                name = f"base_model.model.{module}.lora_{kind.upper()}.default.weight"
                yield name, np.asarray(flat[f"{path}/{kind}"][n]).T

    parameters = dict(theirs.named_parameters())
    for name, x in pairs(adapter):
        parameters.pop(name).data = torch.tensor(x.copy())
    assert not [name for name, p in parameters.items() if p.requires_grad]

    texts, answers = sequences(1, [9, 4, 6, 2]), sequences(2, [5, 5, 5, 5])
    ids, mask = (torch.tensor(array) for array in rectangle(texts))
    labels, weights = np.stack(answers), np.random.default_rng(1).normal(size=(4, 5, 96)).astype(np.float32)
    arguments = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels, dtype=torch.long)}
    logits = theirs(**arguments).logits
    (logits * torch.tensor(weights)).sum().backward()
    examples = batch({"view": (texts, answers)})

    def ours(adapter):
        attached = lora.attach(params, adapter)
        logits = student.hidden(attached, examples, None)["view"] @ student.head(attached)
        return jnp.sum(logits * weights.reshape(1, 20, 96)), logits

    (_, found), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(adapter)
    found = np.stack(by_example(examples.views["view"].targets, found))
    most = float(logits.detach().abs().max())
    np.testing.assert_allclose(found, logits.detach().numpy(), atol=1e-5 * most)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, grad in pairs(grads):
        expected = gradients[name].numpy()
        assert expected.any(), name
        np.testing.assert_allclose(grad, expected, atol=2e-5 * np.abs(expected).max(), err_msg=name)

    # Their file here, and ours there.
    theirs.save_pretrained(tmp_path / "theirs")
    again, read = read_adapter(tmp_path / "theirs", student.weights)
    assert (again.rank, again.alpha, again.weights) == (lora.rank, lora.alpha, lora.weights)
    jax.tree.map(np.testing.assert_array_equal, read, adapter)
    write_adapter(tmp_path / "ours", lora, adapter, str(tmp_path))
    fresh = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        same = peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval()(**arguments).logits
    np.testing.assert_array_equal(same, logits.detach())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("attention/Q$", "matches no parameter's path"),
        ("self_attention", "matches .*/layers/self_attention_norm, which is not a layer's matrix"),
        ("embedding", "matches embedding, which is not a layer's matrix"),
        ("head", "matches head, which is not a layer's matrix"),
        ("attention/[qv", "config.model.lora_targets='attention/.qv': unterminated"),
    ],
)
def test_what_cannot_be_adapted_is_named(untied, targets, message):
    with pytest.raises(UserError, match=message):
        _lora(untied[0], targets=targets)


def _change_config(directory, **changes):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _change_tensors(directory, change):
    file = directory / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


Q0 = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight"
BIAS = Q0.replace("A.weight", "B.bias")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json: no such file"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "adapter_config.json: not valid JSON"),
        (
            lambda d: (d / "adapter_model.safetensors").write_bytes(b"torn"),
            "adapter_model.safetensors: cannot be read (SafetensorError",
        ),
        (lambda d: _change_config(d, use_dora=True), "adapter_config.json: use_dora is True; only False"),
        (lambda d: _change_config(d, bias="all"), "adapter_config.json: bias is 'all'; only 'none'"),
        (
            lambda d: _change_config(d, alora_invocation_tokens=[7]),
            "alora_invocation_tokens is [7]; only None",
        ),
        (
            lambda d: _change_config(d, init_lora_weights="pissa_niter_4"),
            "init_lora_weights is 'pissa_niter_4'",
        ),
        (lambda d: _change_config(d, r=4), f"{Q0} is (3, 32), expected (4, 32)"),
        (lambda d: _change_tensors(d, lambda t: t.pop(Q0)), f"{Q0} is missing, expected (3, 32)"),
        (lambda d: _change_tensors(d, lambda t: t.clear()), "adapter_model.safetensors: there is no tensor"),
        (
            lambda d: _change_tensors(d, lambda t: t.update({"base_model.model.lm_head.weight": np.ones(3)})),
            "adapter_model.safetensors: base_model.model.lm_head.weight adapts no layer's matrix",
        ),
        (
            lambda d: _change_tensors(d, lambda t: t.update({BIAS: np.ones(3)})),
            f"adapter_model.safetensors: {BIAS} is not part of a plain product",
        ),
    ],
)
def test_a_file_that_is_no_plain_adapter_is_refused(adapted, tmp_path, change, message):
    student, _, lora, adapter = adapted
    write_adapter(tmp_path, lora, adapter, "base")
    again, read = read_adapter(tmp_path, student.weights)
    assert again.weights == lora.weights
    jax.tree.map(np.testing.assert_array_equal, read, adapter)
    change(tmp_path)
    with pytest.raises(UserError) as error:
        read_adapter(tmp_path, student.weights)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
