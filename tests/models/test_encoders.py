"""BERT, RoBERTa, ALBERT and DeBERTa: parity with PyTorch Transformers, layouts, dropout, files."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations, product_flops
from flat_batches import batch, by_example, flat, rectangle
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from cot_jax.batch import Texts, Work
from cot_jax.errors import UserError
from cot_jax.models import deberta, pretrained
from cot_jax.models.deberta import DebertaConfig
from cot_jax.models.decoding import beam_search, greedy
from cot_jax.models.student import Options, build, from_pretrained, save

LABELS = ("no", "yes", "perhaps")
_SHAPE = {
    "vocab_size": 110,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 48,
    "layer_norm_eps": 1e-7,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {label: n for n, label in enumerate(LABELS)},
}
_RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": "c2p|p2c"}
_V3 = _RELATIVE | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
KINDS = {
    "bert": ("bert", {"classifier_dropout": 0.2}),
    "roberta": ("roberta", {"type_vocab_size": 1, "max_position_embeddings": 50}),
    "albert": ("albert", {"embedding_size": 16, "hidden_act": "gelu_new"}),
    "albert-groups": (
        "albert",
        {"embedding_size": 16, "num_hidden_groups": 2, "num_hidden_layers": 4, "hidden_act": "gelu"},
    ),
    "deberta": ("deberta", _RELATIVE | {"max_relative_positions": 9, "pooler_hidden_act": "tanh"}),
    "deberta-c2p": ("deberta", _RELATIVE | {"pos_att_type": ["c2p"], "hidden_act": "relu"}),
    "deberta-v2": (
        "deberta-v2",
        _V3 | {"share_att_key": False, "conv_kernel_size": 3, "conv_act": "gelu", "cls_dropout": 0.2},
    ),
    "deberta-v2-p2c": (
        "deberta-v2",
        _RELATIVE | {"pos_att_type": "p2c", "max_relative_positions": 9, "conv_kernel_size": 3},
    ),
    "deberta-v2-content": ("deberta-v2", _RELATIVE | {"pos_att_type": None}),
    "deberta-v3": ("deberta-v2", _V3),
}
CASES = [(kind, False) for kind in KINDS]
CASES += [(kind, True) for kind in ("bert", "roberta", "deberta-v3")]
# (model_type -> [CLS], [SEP], what stands between two texts)
MARKS = {"bert": (101, 102, 1), "roberta": (0, 2, 2), "albert": (2, 3, 1)}


def largest(x):
    return float(np.max(np.abs(np.asarray(x, np.float32)), initial=0))


def auto(kind, multiple_choice):
    """(model_type, values of config.json, Transformers' Auto class)"""
    import transformers

    model_type, changes = KINDS[kind]
    name = "MultipleChoice" if multiple_choice else "SequenceClassification"
    return model_type, _SHAPE | changes, getattr(transformers, f"AutoModelFor{name}")


def randomize(torch, model):
    """Weights with which every term matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            normal = torch.randn(parameter.shape, generator=generator)
            if "norm.weight" in name.lower():
                parameter.copy_(1 + 0.2 * normal)
            else:
                parameter.copy_((1.0 if "embedding" in name else 0.2) * normal)


@pytest.fixture(scope="module")
def theirs(torch, transformers, tmp_path_factory):
    """(kind, multiple choice) -> (model of Transformers with random weights, its directory)."""

    @functools.cache
    def make(kind, multiple_choice=False):
        model_type, values, loader = auto(kind, multiple_choice)
        config = transformers.AutoConfig.for_model(model_type, **values)
        model = loader.from_config(config, attn_implementation="eager").eval()
        randomize(torch, model)
        directory = tmp_path_factory.mktemp(kind)
        model.save_pretrained(directory)
        return model, directory

    return make


@pytest.fixture(scope="module")
def ours(theirs):
    """(kind, multiple choice) -> our student and its parameters from the same directory."""

    @functools.cache
    def make(kind, multiple_choice=False):
        student, params, report = from_pretrained(str(theirs(kind, multiple_choice)[1]), Options())
        assert report == []
        return student, params

    return make


def pair(kind, rng, length):
    """[CLS] A [SEP] B [SEP] of so many tokens, which are at least those of the empty pair."""
    cls, sep, between = MARKS.get(KINDS[kind][0], (1, 2, 1))
    words = rng.integers(5, 100, length - 2 - between)
    cut = rng.integers(0, len(words) + 1)
    parts = [[cls], words[:cut], [sep] * between, words[cut:], [sep]]
    return np.concatenate(parts).astype(np.int32)


def texts_of(kind, multiple_choice=False, seed=0):
    """Sequences by example. Those of DeBERTa are longer than its positions and the range of its buckets."""
    rng = np.random.default_rng(seed)
    longest = 48 if KINDS[kind][0] in MARKS else 90
    if multiple_choice:
        lengths = [[9, 30, 5], [4, 6, 12], [21, 4, 7], [8, 8, 8]]
    else:
        lengths = [[longest], [7], [4], [23], [12], [31]]
    return [[pair(kind, rng, n) for n in choices] for choices in lengths]


def view(texts, targets=None):
    """Inputs and targets of a view: the targets are classes, or -1 for an example without one."""
    targets = np.arange(len(texts)) % 3 if targets is None else targets
    inputs = [np.concatenate(choices) if choices else np.zeros(0, np.int32) for choices in texts]
    return inputs, [np.array([t] if t >= 0 else [], np.int32) for t in targets]


def torch_inputs(torch, kind, texts):
    """The arguments with which Transformers sees the sequences."""
    sequences = [sequence for choices in texts for sequence in choices]
    model_type, sep = KINDS[kind][0], MARKS.get(KINDS[kind][0], (1, 2, 1))[1]
    # RoBERTa counts positions by the padding's id.
    ids, mask = rectangle(sequences, filler=1 if model_type == "roberta" else 0)
    tensors = {"input_ids": ids, "attention_mask": mask}
    if model_type in ("bert", "albert"):
        ends = ids == sep
        tensors["token_type_ids"] = np.minimum(np.cumsum(ends, axis=1) - ends, 1)
    shape = (len(texts), len(texts[0]), -1) if len(texts[0]) > 1 else (len(texts), -1)
    return {k: torch.from_numpy(x.astype(np.int64).reshape(shape)) for k, x in tensors.items()}


@functools.cache
def compiled(student):
    return jax.jit(student.hidden)


def logits_of(student, params, examples, key=None):
    """By example, (0 or 1, K)."""
    states = compiled(student)(params, examples, key)["view"]
    return by_example(examples.views["view"].targets, states @ student.head(params))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "multiple_choice"), CASES)
def test_logits_states_and_the_gradient_of_every_parameter(torch, theirs, ours, kind, multiple_choice):
    model, _ = theirs(kind, multiple_choice)
    student, params = ours(kind, multiple_choice)
    assert student.labels == LABELS
    real = texts_of(kind, multiple_choice)
    # The second example has no target, the last one is none.
    examples = batch(
        {"view": view([*real, *([[]] * 2)], [0, -1, 2, 1, 0, 1][: len(real)] + [-1] * 2)},
        groups=2,
        extra=5,
        wider=3,
        filler=7,
    )
    targets = examples.views["view"].targets
    weight_EK = np.random.default_rng(1).normal(size=(len(real), 3)).astype("f")
    weight_EK[1] = 0
    slots = [weight_EK[[n]] if n < len(real) and n != 1 else weight_EK[:0] for n in range(len(real) + 2)]

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def weighted(params, added):
        states, layers = student.hidden_and_layers(params, examples, None, added)
        logits = states["view"] @ student.head(params)
        weight = np.zeros(logits.shape, "f")
        rows = iter(slots)
        for w_YK, length_E in zip(weight, targets.length, strict=True):
            mine = np.concatenate([next(rows) for _ in length_E])
            w_YK[: len(mine)] = mine
        return jnp.sum(jnp.where(weight != 0, weight * logits, 0)), (logits, layers["view"].swapaxes(0, 1))

    (_, (logits, layers_NGCD)), (gradient, by_states) = weighted(params, student.nothing_added(examples))
    model.zero_grad()
    arguments = torch_inputs(torch, kind, real)
    want = model(**arguments, output_hidden_states=True)
    for state in want.hidden_states[:-1]:
        state.retain_grad()
    want.logits.backward(torch.from_numpy(weight_EK))
    want_EK = want.logits.detach().numpy()
    for n, mine in enumerate(by_example(targets, logits)):
        assert mine.shape[0] == (n < len(real) and n != 1)
        assert largest(mine - want_EK[n : n + 1][: len(mine)]) < 1e-5 * largest(want_EK)
    C = len(real) * len(real[0])
    for mine, state in zip(layers_NGCD, want.hidden_states[1:-1], strict=True):
        state_CD = state[:, 0].detach().numpy()
        mine_CD = np.asarray(mine).reshape(-1, mine.shape[-1])[:C]
        assert largest(mine_CD - state_CD) < 1e-5 * largest(state_CD)
    assert len(layers_NGCD) == student.config.num_hidden_layers - 1
    embedded_GXD, firsts_NGCD = by_states["view"]
    mine_XD = np.concatenate(by_example(examples.views["view"].inputs, embedded_GXD))
    mask = arguments["attention_mask"].flatten(0, -2).bool()
    want_XD = want.hidden_states[0].grad[mask].numpy()
    assert largest(mine_XD - want_XD) < 5e-5 * largest(want_XD)
    for mine, state in zip(firsts_NGCD, want.hidden_states[1:-1], strict=True):
        want_CD = state.grad[:, 0].numpy()
        mine_CD = np.asarray(mine).reshape(-1, mine.shape[-1])
        assert largest(mine_CD[:C] - want_CD) < 5e-5 * largest(want_CD)
        assert largest(mine_CD[C:]) == 0

    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    gradient = flatten_dict(gradient, sep="/")
    constant = {"layers/attention/pos_k_bias"}
    if "p2c" not in getattr(student.config, "pos_att_type", ()):
        constant.add("layers/attention/k_bias")
    for path, weight in student.weights.items():
        leaf = np.asarray(gradient[path])
        for n, g in enumerate(leaf if weight.is_stacked else [leaf]):
            name, g = weight.theirs.format(n=n), pretrained.to_torch(weight, g)
            if path.startswith("relative/") and not student.config.pos_att_type:
                assert largest(g) == 0
                continue
            want_g = found.pop(name)
            if path in constant:
                # It moves all scores of a query alike: what there is of a gradient is rounding.
                assert max(largest(g), largest(want_g)) < 1e-6, name
            else:
                assert largest(want_g) > 1e-3, name
                assert largest(g - want_g) < 5e-5 * largest(want_g), name
    assert not found


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "deberta-v3"])
def test_a_text_alone(torch, theirs, ours, kind):
    student, params = ours(kind)
    texts = texts_of(kind)[1:2]
    with torch.no_grad():
        want = theirs(kind)[0](**torch_inputs(torch, kind, texts)).logits.numpy()
    (alone,) = logits_of(student, params, batch({"view": view(texts)}))
    assert largest(alone - want) < 1e-5 * largest(want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "multiple_choice"),
    [
        *((kind, False) for kind in ("roberta", "deberta-v2")),
        ("deberta-v3", True),
    ],
)
def test_dropout_masks_are_the_examples_own(ours, kind, multiple_choice):
    student, params = ours(kind, multiple_choice)
    student = dataclasses.replace(student, config=dataclasses.replace(student.config, dropout_rate=0.3))
    texts, key, numbers = texts_of(kind, multiple_choice)[:4], jax.random.key(1), [17, 3, 5, 90001]
    want = logits_of(student, params, batch({"view": view(texts)}, example=numbers), key)
    plain = logits_of(student, params, batch({"view": view(texts)}, example=numbers))
    other = logits_of(student, params, batch({"view": view(texts)}, example=[1, 2, 4, 8]), key)
    for different in (plain, other):
        assert min(map(largest, np.stack(different) - np.stack(want))) > 0.01
    order = [2, 0, 3, 1]
    examples = batch(
        {"view": view([texts[n] for n in order])},
        example=[numbers[n] for n in order],
        groups=2,
        extra=3,
        wider=3,
        filler=6,
    )
    got = logits_of(student, params, examples, key)
    for n, mine in zip(order, got, strict=True):
        assert largest(mine - want[n]) < 2e-5 * largest(np.stack(want))


@pytest.mark.slow
def test_each_dropout_rate_acts(ours):
    """The rates of config.json, one at a time."""
    student, params = ours("roberta")
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    none = dict.fromkeys(names, 0.0) | {"dropout_rate": -1.0}
    examples = batch({"view": view(texts_of("roberta")[1:3])})
    found = [np.stack(logits_of(student, params, examples))]
    for name in names:
        config = dataclasses.replace(student.config, **(none | {name: 0.4}))
        other = dataclasses.replace(student, config=config)
        found.append(np.stack(logits_of(other, params, examples, jax.random.key(0))))
        assert min(largest(found[-1] - before) for before in found[:-1]) > 0.01


def test_dropout_acts_where_transformers_has_it(ours, monkeypatch):
    """DeBERTa's own places: embedding, relative table, convolution, before and behind the pooler."""
    student, params = ours("deberta-v2")
    rates = {"hidden_dropout_prob": 0.1, "pooler_dropout": 0.2, "classifier_dropout": 0.3, "dropout_rate": -1}
    student = dataclasses.replace(student, config=dataclasses.replace(student.config, **rates))
    found = []
    monkeypatch.setattr(deberta, "drop", lambda x, rate, *_: found.append((x.shape, rate)) or x)
    examples = batch({"view": view(texts_of("deberta-v2")[1:3])})
    jax.eval_shape(student.hidden, params, examples, jax.random.key(0))
    tokens, S, D = (1, 11, 32), 7, 32
    heads = [((1, 2, D), 0.2), ((1, 2, D), 0.3)]
    assert set(found) == {(tokens, 0.1), ((2 * S - 1, D), 0.1), *heads}
    assert found.count((tokens, 0.1)) == 2
    assert found[-2:] == heads


@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_bfloat16_is_near_and_scores_are_float32(ours, kind):
    exact, params = ours(kind)
    student = dataclasses.replace(exact, dtype=jnp.bfloat16)
    examples = batch({"view": view(texts_of(kind))})
    states = jax.jit(student.hidden)(params, examples, None)["view"]
    assert states.dtype == jnp.bfloat16
    want = jax.jit(exact.hidden)(params, examples, None)["view"]
    error = np.asarray(states, np.float32) - want
    assert 1e-3 < np.sqrt(np.mean(error**2) / np.mean(want**2)) < 0.1
    traced = jax.jit(student.hidden).trace(params, examples, None).jaxpr
    dtypes = {name: set() for name in ("exp", "rsqrt", "reduce_max", "dot_general")}
    for equation, _ in equations(traced.jaxpr):
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name] |= {v.aval.dtype.name for v in equation.invars}
    assert dtypes["exp"] == dtypes["rsqrt"] == dtypes["reduce_max"] == {"float32"}
    assert dtypes["dot_general"] == {"bfloat16"}


@pytest.mark.slow
def test_remat_changes_nothing(ours):
    student, params = ours("deberta-v2")
    examples = batch({"view": view(texts_of("deberta-v2")[1:4])})

    def gradient(student):
        def loss(params):
            return jnp.sum(student.hidden(params, examples, jax.random.key(0))["view"] ** 2)

        return flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")

    student = dataclasses.replace(student, config=dataclasses.replace(student.config, dropout_rate=0.1))
    again = gradient(dataclasses.replace(student, remat="layers"))
    for path, g in gradient(student).items():
        if not path.endswith("pos_k_bias"):  # rounding
            assert largest(again[path] - g) <= 5e-5 * largest(g), path


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "deberta", "deberta-v2", "deberta-v3"])
def test_flops_are_those_of_the_matrix_products(ours, kind):
    student, params = ours(kind)
    rng = np.random.default_rng(0)
    S, E = 16, 3
    examples = batch({"view": view([[pair(kind, rng, S)] for _ in range(E)])})

    def logits(params):
        return student.hidden(params, examples, None)["view"] @ student.head(params)

    c = student.config
    want = student.flops([Work(E * S, E, E * S * S, E, E * S)])
    # The relative table's rows are projected once, whatever the number of examples.
    rows = (c.num_hidden_layers - 1) * (2 * S - 1) + S
    want += len(getattr(c, "pos_att_type", ())) * rows * 2 * c.hidden_size**2
    if "qkv" in params["layers"]["attention"]:  # of the last layer too, for all tokens
        want += E * (S - 1) * 2 * c.hidden_size**2
    assert product_flops(logits, params) == want


def test_what_is_written_is_the_likeliest_class(ours):
    student, params = ours("deberta-v3", True)
    texts = texts_of("deberta-v3", True)
    inputs = flat(view(texts)[0], groups=2)
    tokens_BT, log_p_B = jax.jit(lambda params: greedy(student.prompt(params, inputs, 3), 3))(params)
    logits_BK = np.concatenate(logits_of(student, params, batch({"view": view(texts)})))
    np.testing.assert_array_equal(tokens_BT[:, 0], logits_BK.argmax(axis=1))
    log_p_BK = jax.nn.log_softmax(logits_BK)
    np.testing.assert_allclose(log_p_B, log_p_BK.max(axis=1), atol=1e-5)
    for beams in (2, 5):  # fewer than the classes, and more
        prompt = student.prompt(params, inputs, 3, beams)
        best_BKT, score_BK = beam_search(prompt, 3, beams)
        order_BK = np.argsort(-log_p_BK, axis=1)[:, :beams]
        np.testing.assert_array_equal(best_BKT[:, :3, 0], order_BK)
        want_BK = np.take_along_axis(log_p_BK, order_BK, axis=1)
        np.testing.assert_allclose(score_BK[:, :3], want_BK, atol=1e-5)
        assert (score_BK[:, 3:] == -np.inf).all()


# --- Distances ---


@pytest.mark.parametrize(("buckets", "most"), [(256, 512), (8, 48), (32, 128), (6, 600)])
def test_rows_of_distances_are_those_of_transformers(torch, buckets, most):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distance = np.arange(-1100, 1101)
    config = DebertaConfig(position_buckets=buckets, max_position_embeddings=most)
    want = make_log_bucket_position(torch.from_numpy(distance), buckets, most).long().numpy()
    np.testing.assert_array_equal(config.row(distance), np.clip(want + buckets, 0, 2 * buckets - 1))


# --- Files ---


@pytest.mark.parametrize(("kind", "multiple_choice"), CASES)
def test_an_export_gives_transformers_the_same_logits(torch, theirs, ours, tmp_path, kind, multiple_choice):
    model, _ = theirs(kind, multiple_choice)
    student, params = ours(kind, multiple_choice)
    save(tmp_path, student, params)
    loader = auto(kind, multiple_choice)[2]
    assert student.hf_class == loader.__name__
    again = loader.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(again) is type(model)
    assert again.config.id2label == dict(enumerate(LABELS))
    assert again.config.problem_type == "single_label_classification"
    tensors = torch_inputs(torch, kind, texts_of(kind, multiple_choice))
    with torch.no_grad():
        assert torch.equal(again(**tensors).logits, model(**tensors).logits)
    head = student.config.head_dropout
    assert head == {"bert": 0.2, "deberta-v2": 0.2}.get(kind, head)
    read = build(pretrained.read_config(str(tmp_path)), Options())
    assert read.config == dataclasses.replace(student.config, classifier_dropout=head)


def texts_with(student, labels=LABELS, multiple_choice=False):
    c = student.config
    return Texts(c.vocab_size, 0, c.sep_token_id, c.cls_token_id, labels, multiple_choice)


def rewritten(directory, to, rename=lambda name: name, more=None):
    """A copy of a model whose tensors have other names; those named None are left out."""
    tensors = {rename(k): x for k, x in load_file(directory / "model.safetensors").items()} | (more or {})
    tensors.pop(None, None)
    save_file(tensors, to / "model.safetensors")
    (to / "config.json").write_text((directory / "config.json").read_text())
    return str(to)


def old_name(name):
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "deberta", "deberta-v2"])
def test_old_names_and_names_without_a_prefix_are_read(theirs, ours, tmp_path, kind):
    student, params = ours(kind)

    def old(name):
        return old_name(name).removeprefix(student.prefix)

    positions = {"embeddings.position_ids": np.arange(48)[None]}
    got, found, report = from_pretrained(
        rewritten(theirs(kind)[1], tmp_path, old, positions), Options(), texts_with(student)
    )
    assert got == student
    assert_same(found, params)
    assert report == [f"{tmp_path}: unused tensors: 1, such as embeddings.position_ids"]


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_flax_files(theirs, ours, tmp_path, kind):
    """The layout of transformers' former Flax classes."""
    _, directory = theirs(kind)
    tree = {}
    for name, tensor in load_file(directory / "model.safetensors").items():
        *module, leaf = name.split(".")
        if leaf == "weight":
            is_table, is_norm = module[-1].endswith("_embeddings"), module[-1] == "LayerNorm"
            leaf = "embedding" if is_table else "scale" if is_norm else "kernel"
        tree[*module, leaf] = np.ascontiguousarray(tensor.T) if leaf == "kernel" else tensor
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten_dict(tree)))
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    assert_same(from_pretrained(str(tmp_path), Options())[1], ours(kind)[1])


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "deberta", "deberta-v3"])
def test_the_encoder_of_a_language_model_is_read(torch, theirs, ours, tmp_path, kind):
    import transformers

    model_type, values, _ = auto(kind, False)
    labels = {"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    if kind == "deberta-v3":
        labels["legacy"] = False
    config = transformers.AutoConfig.for_model(model_type, **(values | labels))
    model = transformers.AutoModelForMaskedLM.from_config(config)
    source = load_file(theirs(kind)[1] / "model.safetensors")
    missing = model.load_state_dict({k: torch.from_numpy(x) for k, x in source.items()}, strict=False)
    assert not [name for name in missing.missing_keys if name.startswith(f"{model.base_model_prefix}.")]
    model.save_pretrained(tmp_path)
    student, params = ours(kind)
    got, found, report = from_pretrained(str(tmp_path), Options(), texts_with(student))
    assert got.labels == LABELS
    unused, fresh = report
    head = {"roberta": "lm_head.", "albert": "predictions.", "deberta-v3": "lm_predictions."}.get(
        kind, "cls."
    )
    assert f"such as {head}" in unused
    assert fresh == f"{tmp_path}: fresh weights for pooler/w, pooler/bias, classifier/w, classifier/bias"
    assert_same(found, {k: v for k, v in params.items() if k not in ("pooler", "classifier")})


@pytest.mark.parametrize(
    ("kind", "rename"),
    [("bert", str), ("bert", old_name), ("deberta-v2", str)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_the_first_layers_alone(torch, theirs, ours, tmp_path, kind, rename):
    model, directory = theirs(kind)
    directory = rewritten(directory, tmp_path, rename)
    student, params, report = from_pretrained(directory, Options(), layers=2)
    (line,) = report
    assert "unused tensors: " in line
    assert ".layer.2." in line
    full = ours(kind)[1]
    assert_same(params, full | {"layers": jax.tree.map(lambda leaf: leaf[:2], full["layers"])})
    layers, model.base_model.encoder.layer = (
        model.base_model.encoder.layer,
        model.base_model.encoder.layer[:2],
    )
    texts = texts_of(kind)
    with torch.no_grad():
        want = model(**torch_inputs(torch, kind, texts)).logits.numpy()
    model.base_model.encoder.layer = layers
    got = np.concatenate(logits_of(student, params, batch({"view": view(texts)})))
    assert largest(got - want) < 1e-5 * largest(want)
    with pytest.raises(UserError, match=r"^config\.model\.layers=4: the model has 3$"):
        from_pretrained(directory, Options(), layers=4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v3"])
def test_labels_in_another_order_are_permuted_and_others_are_fresh(theirs, ours, kind):
    directory = str(theirs(kind)[1])
    student, params = ours(kind)
    order = [2, 0, 1]
    other, permuted, report = from_pretrained(
        directory, Options(), texts_with(student, tuple(LABELS[n] for n in order))
    )
    assert report == []
    np.testing.assert_array_equal(other.head(permuted), student.head(params)[:, np.array(order)])
    assert_same(permuted | {"classifier": None}, params | {"classifier": None})

    other, found, report = from_pretrained(directory, Options(), texts_with(student, ("a", "b")))
    assert other.outputs == 2
    assert "classifier" not in found
    assert report[0] == f"{directory}: its classifier is not used, its classes are no, yes, perhaps"
    assert report[-1] == f"{directory}: fresh weights for classifier/w, classifier/bias"


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("multiple_choice", [False, True])
def test_the_head_of_another_kind_is_not_read(theirs, ours, kind, multiple_choice):
    """Classes for multiple choice and the reverse, whatever the labels: RoBERTa's tensors differ, too."""
    directory = str(theirs(kind, not multiple_choice)[1])
    texts = texts_with(ours(kind, not multiple_choice)[0], LABELS, multiple_choice)
    student, params, report = from_pretrained(directory, Options(), texts)
    assert "classifier" not in params
    assert report[0] == f"{directory}: its classifier is not used, its classes are no, yes, perhaps"
    assert report[-1].endswith("classifier/w, classifier/bias")
    head = {path for path in student.weights if path.split("/")[0] in ("pooler", "classifier")}
    assert {*flatten_dict(params, sep="/")} >= student.weights.keys() - head


def test_the_head_of_multiple_choice_scores_any_choice(theirs, ours):
    student, params = ours("roberta", True)
    texts = texts_with(student, ("yes", "no"), multiple_choice=True)
    other, found, report = from_pretrained(str(theirs("roberta", True)[1]), Options(), texts)
    assert (other.labels, report) == (("yes", "no"), [])
    assert_same(found, params)


def test_a_head_of_unnamed_classes_is_not_read(theirs, tmp_path):
    rewritten(theirs("bert")[1], tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id2label": {n: f"LABEL_{n}" for n in "012"}}))
    student, params, _ = from_pretrained(str(tmp_path), Options())
    assert student.labels == ()
    assert "classifier" not in params


# --- Bad input ---


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"hidden_act": "mish"}, 'hidden_act is "mish", known: gelu,'),
        ("bert", {"hidden_size": "32"}, "hidden_size is '32', expected an integer from 1"),
        ("bert", {"hidden_size": None}, "hidden_size is missing"),
        ("bert", {"num_attention_heads": 5}, "5 heads do not divide hidden_size 32"),
        ("bert", {"position_embedding_type": "relative_key"}, 'is "relative_key", known: absolute'),
        ("albert", {"inner_group_num": 2}, "inner_group_num is 2, known: 1"),
        ("deberta", {"position_biased_input": True}, "position_biased_input is True, known: False"),
        ("deberta", {"position_biased_input": None}, "position_biased_input is True, known: False"),
        ("deberta", {"relative_attention": False}, "relative_attention is False, known: True"),
        ("deberta", {"type_vocab_size": 2}, "type_vocab_size is 2, known: 0"),
        ("deberta", {"talking_head": True}, "talking_head is True, known: False"),
        ("deberta", {"pooler_hidden_act": "mish"}, 'pooler_hidden_act is "mish"'),
        ("deberta-v3", {"embedding_size": 16}, "embedding_size is 16, known: 32"),
        ("deberta-v3", {"pooler_hidden_size": 16}, "pooler_hidden_size is 16, known: 32"),
        ("deberta-v3", {"attention_head_size": 4}, "attention_head_size is 4, known: 8"),
        ("deberta-v3", {"pos_att_type": "c2p|p2p"}, "pos_att_type is 'c2p|p2p', known: c2p, p2c"),
        (
            "deberta-v3",
            {"norm_rel_ebd": "batch_norm"},
            "norm_rel_ebd is 'batch_norm', known: none, layer_norm",
        ),
        ("deberta-v3", {"conv_kernel_size": 5}, "conv_kernel_size is 5, known: 0, 3"),
        ("deberta-v3", {"conv_groups": 2}, "conv_groups is 2, known: 1"),
        ("deberta-v3", {"conv_act": "mish"}, 'conv_act is "mish"'),
        ("deberta-v3", {"position_buckets": 94}, "position_buckets is 94, expected 2 to 93"),
    ],
)
def test_a_config_that_makes_no_model_is_one_line(kind, changes, message):
    model_type, own = KINDS[kind]
    with pytest.raises(UserError, match=r"^config\.json: ") as error:
        build({"model_type": model_type} | _SHAPE | own | changes, Options())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_there_is_no_multiple_choice_in_v1(ours):
    student, _ = ours("deberta")
    with pytest.raises(UserError, match=r"^DeBERTa v1 has no head for multiple choice in Transformers; take"):
        student.config.for_texts(texts_with(student, multiple_choice=True))


@pytest.mark.parametrize(
    ("kind", "ignored"),
    [
        ("deberta", _V3 | KINDS["deberta"][1] | {"conv_kernel_size": 3}),  # v2's
        ("bert", {"embedding_size": 16, "num_hidden_groups": 2}),  # ALBERT's
    ],
)
def test_what_only_a_relative_has_is_ignored(kind, ignored):
    model_type, own = KINDS[kind]
    json_ = {"model_type": model_type} | _SHAPE | own
    assert build(json_ | ignored, Options()) == build(json_, Options())


def test_layers_that_share_several_sets_of_weights_are_not_cut(theirs):
    with pytest.raises(
        UserError, match=r"^config\.model\.layers=2: the layers share 2 sets of weights; use 0"
    ):
        from_pretrained(str(theirs("albert-groups")[1]), Options(), layers=2)


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert"])
def test_a_text_that_is_longer_than_the_positions_is_one_line(ours, kind):
    student, params = ours(kind)
    examples = batch({"view": view([[pair(kind, np.random.default_rng(0), 57)]])})
    with pytest.raises(UserError, match=r"^texts have up to 50 tokens, the student has 48 positions: cut "):
        student.hidden(params, examples, None)


# --- Genuine weights ---


def test_minilm_gives_transformers_states(torch, data_root):
    root = os.environ.get("COT_JAX_MODELS")
    if not root:
        pytest.skip("COT_JAX_MODELS is not set: no pretrained weights are at hand")
    import transformers

    directory = Path(root) / "minilm-l6"
    lines = (data_root / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    texts = [np.array(tokenizer(json.loads(line)["question"])["input_ids"], np.int32) for line in lines]
    student, params, report = from_pretrained(
        str(directory), Options(), Texts(30_522, 0, 102, 101, ("no", "yes"))
    )
    assert report[-1] == f"{directory}: fresh weights for classifier/w, classifier/bias"
    examples = batch({"view": view([[text] for text in texts], [0] * 20)})
    with jax.default_matmul_precision("highest"):
        states, layers = jax.jit(student.hidden_and_layers)(params, examples, None)
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    for n, text in enumerate(texts):
        with torch.no_grad():
            want = model(torch.from_numpy(text.astype(np.int64))[None], output_hidden_states=True)
        for mine, state in zip(layers["view"].swapaxes(0, 1), want.hidden_states[1:-1], strict=True):
            assert largest(mine[0, n] - state[0, 0].numpy()) < 1e-5 * largest(state)
        pooled = want.pooler_output[0].numpy()
        assert largest(states["view"][0, n, :-1] - pooled) < 1e-5 * largest(pooled)
