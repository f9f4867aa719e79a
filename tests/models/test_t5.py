import dataclasses
import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cot_jax.batch import ViewArrays
from cot_jax.errors import UserError
from cot_jax.models import huggingface, t5
from cot_jax.models.student import T5Student, from_scratch
from cot_jax.models.t5 import PRESETS, REMAT, T5, DecoderLayer, EncoderLayer, T5Config, empty_cache
from cot_jax.models.t5 import relative_position_bucket as bucket

KINDS = ["v1.0", "v1.1-tied", "v1.1"]
SMALL = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2)


def largest(x):
    return float(np.max(np.abs(np.asarray(x))))


@functools.cache
def compiled(module):
    return jax.jit(module.apply)


def decoded(student, params, view, **kwargs):
    """Hidden states of one view, `target_ids` read as they are."""
    module = T5(student.config, student.dtype)
    return compiled(module)({"params": params}, view.input_ids, view.input_length, view.target_ids, **kwargs)


# --- Parity with PyTorch Transformers ---


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (32, 64), (16, 40)])
def test_every_relative_position_has_transformers_bucket(torch, bidirectional, num_buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-200, 201)
    got = bucket(distance, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance)
    want = T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional, num_buckets, max_distance
    )
    np.testing.assert_array_equal(got, want.numpy())
    assert got.dtype == np.int32


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_position_bias_at_every_relative_position(reference, ours, stack):
    model, _ = reference("v1.0")
    student, params = ours("v1.0")
    bidirectional = stack == "encoder"
    got = T5(student.config, jnp.float32).apply(
        {"params": params},
        method=lambda m: getattr(m, stack).position_bias(201, bidirectional=bidirectional),
    )
    attention = getattr(model, stack).block[0].layer[0].SelfAttention
    np.testing.assert_array_equal(got, attention.compute_bias(201, 201).detach().numpy())


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("n", [0, 1])
def test_encoder_layer(torch, reference, ours, kind, n):
    block = reference(kind)[0].encoder.block[n]
    student, params = ours(kind)
    rng = np.random.default_rng(n)
    x, bias = rng.normal(size=(3, 9, 32)).astype("f"), rng.normal(size=(1, 4, 9, 9)).astype("f")
    mask = (np.arange(9) < np.array([[9], [4], [1]]))[:, None, None, :]
    layer = jax.tree.map(lambda p: p[n], params["encoder"]["layers"])
    got, _ = EncoderLayer(student.config, jnp.float32).apply({"params": layer}, x, mask, bias)
    with torch.no_grad():
        want = block(torch.from_numpy(x), torch.from_numpy(mask), torch.from_numpy(bias))[0].numpy()
    assert largest(got - want) < 1e-6 * largest(want)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("n", [0, 1])
def test_decoder_layer(torch, reference, ours, kind, n):
    block = reference(kind)[0].decoder.block[n]
    student, params = ours(kind)
    rng = np.random.default_rng(n)
    x, bias = rng.normal(size=(3, 6, 32)).astype("f"), rng.normal(size=(1, 4, 6, 6)).astype("f")
    encoded = rng.normal(size=(3, 9, 32)).astype("f")
    mask = (np.arange(9) < np.array([[9], [4], [1]]))[:, None, None, :]
    causal = np.tri(6, dtype=bool)[None, None]
    layer = {"params": jax.tree.map(lambda p: p[n], params["decoder"]["layers"])}
    module = DecoderLayer(student.config, jnp.float32)
    _, memory = module.apply(layer, None, encoded, method="remember")
    (got, _), _ = module.apply(layer, (x, None), n, memory, mask, causal, bias, None)
    with torch.no_grad():
        want = block(
            torch.from_numpy(x),
            torch.from_numpy(causal),
            torch.from_numpy(bias),
            encoder_hidden_states=torch.from_numpy(encoded),
            encoder_attention_mask=torch.from_numpy(mask),
        )[0].numpy()
    assert largest(got - want) < 1e-6 * largest(want)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_the_gradient_of_every_parameter(reference, ours, view, torch_inputs, kind):
    model, _ = reference(kind)
    student, params = ours(kind)

    def loss(params):
        logits_BTV = student.hidden(params, {"view": view}, None)["view"] @ student.head(params)
        log_p_BTV = jax.nn.log_softmax(logits_BTV)
        nll_BT = -jnp.take_along_axis(log_p_BTV, view.target_ids[..., None], axis=-1)[..., 0]
        real_BT = np.arange(view.target_ids.shape[1])[None, :] < view.target_length[:, None]
        return jnp.sum(jnp.where(real_BT, nll_BT, 0)) / real_BT.sum(), logits_BTV

    (got, logits_BTV), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    model.zero_grad()
    want = model(**torch_inputs(view))
    want.loss.backward()
    # At padded positions too: they read the end token, then padding.
    assert largest(logits_BTV - want.logits.detach().numpy()) < 1e-5 * largest(logits_BTV)
    assert abs(float(got) - want.loss.item()) < 1e-6 * want.loss.item()

    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    gradient = flatten_dict(gradient, sep="/")
    for path, (name, inputs) in huggingface.name_table(student.config).items():
        leaf = np.asarray(gradient[path])
        for n, g in enumerate(leaf if "{n}" in name else [leaf]):
            want_g = theirs.pop(name.format(n=n))
            g = g.reshape(math.prod(g.shape[:inputs]), -1).T if inputs else g
            assert largest(want_g) > 0, path
            # 3 times the largest seen; PyTorch itself is up to 5e-6 away from its own float64.
            assert largest(g - want_g) < 2e-5 * largest(want_g), path
    assert not theirs


# --- Properties ---


def test_hidden_states_see_no_later_target(untied, view):
    student, params = untied
    module, variables = T5(student.config, jnp.float32), {"params": params}

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @jax.grad
    def gradient(x_BTD, t):
        encoded_BSD = module.apply(variables, view.input_ids, view.input_length, method="encode")
        memory = module.apply(variables, encoded_BSD, view.input_length, 6, method="remember")
        hidden_BTD = module.apply(variables, x_BTD, memory, method=lambda m, *args: m.decoder(*args)[0])
        return jnp.sum(hidden_BTD[:, t] ** 3)

    gradient_TBTD = gradient(jax.random.normal(jax.random.key(0), (4, 6, 32)), jnp.arange(6))
    reached_TT = np.asarray(gradient_TBTD != 0).any(axis=(1, 3))
    np.testing.assert_array_equal(reached_TT, np.tri(6, dtype=bool))


def test_padding_changes_nothing(untied, make_view):
    student, params = untied
    short = make_view(1, [9, 4], [6, 3])
    noise = np.random.default_rng(2).integers(2, 96, (2, 32)).astype(np.int32)
    long = short._replace(
        # Whatever stands behind a row's length: in the input it is masked, in the target it is later.
        input_ids=np.where(np.arange(32) < [[9], [4]], np.pad(short.input_ids, ((0, 0), (0, 23))), noise),
        target_ids=np.concatenate([short.target_ids, noise], axis=1),
    )
    a, b = decoded(student, params, short), decoded(student, params, long)
    assert largest(a - b[:, :6]) < 2e-6 * largest(a)


def test_attention_by_chunks_of_queries_is_attention(monkeypatch, untied, view):
    student, params = untied

    def value_and_gradient():
        def total(params):
            return jnp.sum(student.hidden(params, {"x": view}, None)["x"] ** 2)

        return jax.jit(jax.value_and_grad(total))(params)

    whole = value_and_gradient()
    monkeypatch.setattr(t5, "_WHOLE", 0)
    monkeypatch.setattr(t5, "_QUERIES", 7)  # which divides neither length
    assert all(x.shape[1] % 7 for x in (view.input_ids, view.target_ids))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(value_and_gradient()), strict=True):
        assert largest(a - b) <= 2e-5 * largest(a)


def test_long_sequences_never_hold_all_scores(monkeypatch):
    config = dataclasses.replace(SMALL, num_layers=1, num_decoder_layers=1, dropout_rate=0.1)
    student, B, length = T5Student(config), 8, 1024
    ids, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((B, length), (B,)))
    view, key = ViewArrays(ids, lengths, ids, lengths), jax.random.key(0, impl="rbg")
    params = jax.eval_shape(student.init, key)

    def memory():
        def total(params, view, key):
            return jnp.sum(student.hidden(params, {"x": view}, key)["x"])

        return jax.jit(jax.grad(total)).lower(params, view, key).compile().memory_analysis()

    chunked = memory().temp_size_in_bytes
    monkeypatch.setattr(t5, "_WHOLE", length**2)
    whole = memory().temp_size_in_bytes
    # Three attentions, each of which keeps its float32 weights and which of them were dropped.
    assert whole > 3 * 4 * B * config.num_heads * length**2
    assert chunked < whole / 2


def test_remat_gives_the_same_gradients_in_less_memory():
    config = dataclasses.replace(SMALL, num_layers=3, num_decoder_layers=3, dropout_rate=0.1)
    B, length = 8, 48
    rng = np.random.default_rng(0)
    ids = rng.integers(2, config.vocab_size, size=(B, length)).astype(np.int32)
    lengths = np.full(B, length, np.int32)
    view, key = ViewArrays(ids, lengths, ids, lengths), jax.random.key(0)
    params, found = None, {}
    for remat in REMAT:
        student = T5Student(config, remat=remat)
        params = params or jax.jit(student.init)(key)

        def total(params, student=student):
            return jnp.sum(student.hidden(params, {"x": view}, key)["x"] ** 2)

        compiled = jax.jit(jax.grad(total)).lower(params).compile()
        found[remat] = compiled.memory_analysis().temp_size_in_bytes, compiled(params)
    for _, gradient in found.values():
        for a, b in zip(jax.tree.leaves(found["none"][1]), jax.tree.leaves(gradient), strict=True):
            assert largest(a - b) <= 2e-5 * largest(a)
    whole, elementwise, layers = (memory for memory, _ in found.values())
    assert layers < elementwise < 0.8 * whole


def test_an_empty_input_stays_finite(untied, view):
    student, params = untied
    empty = view._replace(input_length=np.array([0, 7, 1, 0], np.int32))
    assert np.isfinite(decoded(student, params, empty)).all()


def test_an_id_beyond_the_vocabulary_is_not_another_token(untied, view):
    student, params = untied
    beyond = view._replace(target_ids=np.full_like(view.target_ids, student.vocab_size))
    assert np.isnan(decoded(student, params, beyond)).all()


@pytest.mark.parametrize("scan_unroll", [1, True])
def test_cached_decoding_is_full_decoding(untied, view, scan_unroll):
    student, params = untied
    module, variables = T5(student.config, jnp.float32, scan_unroll), {"params": params}
    T = view.target_ids.shape[1]

    @jax.jit
    def full(view):
        encoded = module.apply(variables, view.input_ids, view.input_length, method="encode")
        memory = module.apply(variables, encoded, view.input_length, T, method="remember")
        return memory, module.apply(variables, view.target_ids, memory, method="decode")

    memory, full_BTD = full(view)

    step = jax.jit(lambda *args: module.apply(variables, *args, method="decode_step"))
    cache = empty_cache(memory)
    for t in range(T):
        hidden_BD, cache = step(view.target_ids[:, t], memory, cache, t)
        assert largest(hidden_BD - full_BTD[:, t]) < 2e-6 * largest(full_BTD)


def test_looped_layers_are_unrolled_layers(make_view):
    config = dataclasses.replace(SMALL, num_decoder_layers=2)
    unrolled, looped = T5Student(config), T5Student(config, scan_unroll=1)
    params, key = jax.jit(looped.init)(jax.random.key(0)), jax.random.key(1, impl="rbg")
    batch = {"view": make_view(0, [7, 4], [5, 2], vocab_size=64)}

    def loops(student):
        return jax.jit(student.hidden).lower(params, batch, None).as_text().count("stablehlo.while")

    assert (loops(unrolled), loops(looped)) == (0, 3)  # encoder, keys and values, decoder

    a, b = (jax.jit(s.hidden)(params, batch, key)["view"] for s in (unrolled, looped))
    assert largest(a - b) < 2e-6 * largest(a)


def test_bfloat16_is_near(untied, view):
    student, params = untied
    exact = decoded(student, params, view)
    rounded = decoded(dataclasses.replace(student, dtype=jnp.bfloat16), params, view)
    assert rounded.dtype == jnp.bfloat16
    error = np.asarray(rounded, np.float32) - exact
    # 8 bits of mantissa through 5 layers: per cent, neither exact nor wrong.
    assert 1e-3 < np.sqrt(np.mean(error**2) / np.mean(exact**2)) < 0.05


def test_norms_scores_and_softmax_are_float32_under_bfloat16(untied, view):
    student, params = untied
    student = dataclasses.replace(student, dtype=jnp.bfloat16)
    traced = jax.jit(student.hidden).trace(params, {"view": view}, None).jaxpr
    dtypes = {name: set() for name in ("exp", "rsqrt", "reduce_max", "dot_general")}

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in dtypes:
                dtypes[equation.primitive.name] |= {v.aval.dtype.name for v in equation.invars}
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                visit(inner)

    visit(traced.jaxpr)
    assert dtypes["exp"] == dtypes["rsqrt"] == dtypes["reduce_max"] == {"float32"}
    assert dtypes["dot_general"] == {"bfloat16"}


# --- Dropout ---


def test_each_place_of_each_layer_has_its_own_mask(monkeypatch):
    keys = set()

    def spy(key, shape):
        def record(data):
            keys.add(tuple(data.tolist()))
            return np.zeros(shape, np.uint32)

        return jax.pure_callback(record, jax.ShapeDtypeStruct(shape, jnp.uint32), jax.random.key_data(key))

    monkeypatch.setattr(t5, "_bits", spy)
    student = T5Student(SMALL, scan_unroll=1)
    ids, length = np.ones((1, 3), np.int32), np.array([3], np.int32)
    views = dict.fromkeys(("predict", "explain"), ViewArrays(ids, length, ids, length))
    params = jax.jit(student.init)(jax.random.key(0))
    jax.block_until_ready(jax.jit(student.hidden)(params, views, jax.random.key(1, impl="rbg")))
    # Per encoder layer: attention weights, hidden layer, two residual branches; per decoder layer
    # two more; and per stack the embeddings and the final norm. The decoder runs once a view.
    assert len(keys) == (4 * 2 + 2) + 2 * (6 * 3 + 2)


def test_dropout_keeps_the_mean_and_the_rate():
    config = dataclasses.replace(SMALL, dropout_rate=0.3)
    part = EncoderLayer(config, jnp.float32)
    x = jnp.linspace(1, 2, 200_000).reshape(1, 1000, 200)
    dropped = part.apply({}, x, method="dropout", rngs={"dropout": jax.random.key(0)})
    kept = dropped != 0
    assert abs(kept.mean() - 0.7) < 0.005
    np.testing.assert_allclose(dropped[kept], x[kept] / 0.7, rtol=1e-6)
    assert abs(dropped.mean() / x.mean() - 1) < 0.005


def test_masks_are_as_good_as_drawn():
    """Of 22 keys: sums of what must be independent are normal within five deviations."""
    n = 2**18
    keys = jax.random.split(jax.random.key(0), 20)
    bits = jax.jit(jax.vmap(lambda key: t5._bits(key, (n // 256, 256))))(keys)
    assert all(len(np.unique(of_key)) == n for of_key in bits)  # a number each, and a bijection
    # Both words of a key count, however alike two keys are.
    alike = [jax.random.wrap_key_data(np.array([5, word], np.uint32)) for word in (1, 2)]
    bits = np.concatenate([bits, [t5._bits(key, (n // 256, 256)) for key in alike]])
    kept = bits.reshape(22, n) < 0.9 * 2**32
    centered = (kept - 0.9) / 0.3
    sums = [centered.sum(axis=1)]
    sums += [(centered[:, lag:] * centered[:, :-lag]).sum(axis=1) for lag in (1, 2, 16, 255, 256, 257, 4096)]
    sums += [(centered[1:] * centered[:-1]).sum(axis=1)]  # of different keys
    assert max(np.abs(z).max() for z in sums) < 5 * n**0.5
    for bit in range(32):
        assert abs(((bits >> bit) & 1).mean() - 0.5) < 5 * 0.5 * (22 * n) ** -0.5


def test_masks_are_the_same_on_any_devices_and_each_makes_its_own():
    x, key = jnp.ones((16, 24, 5)), jax.random.key(1)
    drop = functools.partial(t5._drop, rate=0.5)
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    divided = jax.jit(lambda x, key: drop(x, key=key), in_shardings=(rows, None), out_shardings=rows)
    np.testing.assert_array_equal(divided(x, key), drop(x, key=key))
    program = divided.lower(x, key).compile().as_text()
    assert "u32[2,24,5]" in program
    assert "[16,24,5]" not in program


# --- Initialisation and configuration ---


@pytest.mark.parametrize("preset", ["small", "t5-small"])
def test_initial_distributions(make_view, preset):
    student = from_scratch(preset, vocab_size=1024, dropout_rate=0.0, dtype=jnp.float32, pad_id=0, eos_id=1)
    config = dataclasses.replace(student.config, num_layers=2, num_decoder_layers=2)
    student = dataclasses.replace(student, config=config, scan_unroll=1)
    params = jax.jit(student.init)(jax.random.key(0))
    D, H, K, F = config.d_model, config.num_heads, config.d_kv, config.d_ff
    std = {"shared": 1, "lm_head": D**-0.5, "relative_bias": D**-0.5, "q": (D * K) ** -0.5, "k": D**-0.5}
    std |= {
        "v": D**-0.5,
        "o": (H * K) ** -0.5,
        "wi": D**-0.5,
        "wi_0": D**-0.5,
        "wi_1": D**-0.5,
        "wo": F**-0.5,
    }
    for path, leaf in flatten_dict(params, sep="/").items():
        name, leaf = path.split("/")[-1], np.asarray(leaf)
        assert leaf.dtype == np.float32
        if name == "scale":
            assert (leaf == 1).all(), path
        else:
            assert abs(leaf.std() / std[name] - 1) < 4 / math.sqrt(2 * leaf.size), path
            assert abs(leaf.mean()) < 5 * std[name] / math.sqrt(leaf.size), path
        if "layers" in path and name != "scale":
            assert (leaf[0] != leaf[1]).any(), path

    # Together they give logits near N(0, 1), and an untied head a loss that starts near log V. (A
    # tied one, as in the original, starts out by repeating the decoder's input.)
    view = make_view(6, [9, 4, 6, 8], [16] * 4, vocab_size=1024)
    logits_BTV = jax.jit(student.hidden)(params, {"view": view}, None)["view"] @ student.head(params)
    assert 0.7 < jnp.std(logits_BTV) < 1.3
    nll_BT1 = -jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), view.target_ids[..., None], axis=-1)
    assert config.tie_word_embeddings or abs(jnp.mean(nll_BT1) - np.log(1024)) < 1


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("small", 76_961_152),
        ("base", 247_577_856),
        ("large", 783_150_080),
        ("xl", 2_849_757_184),
        ("xxl", 11_135_332_352),
    ],
)
def test_presets_have_the_published_number_of_parameters(preset, count):
    shapes = jax.eval_shape(T5(PRESETS[preset], jnp.float32).init_params, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("preset", PRESETS)
def test_config_round_trip(preset):
    assert T5Config.from_json(PRESETS[preset].to_json()) == PRESETS[preset]


@pytest.mark.parametrize(
    ("json", "scaled"),
    [
        ({}, True),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        # transformers 5 saved this one; before, it was the one above.
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ({"tie_word_embeddings": False, "scale_decoder_outputs": True}, True),
    ],
)
def test_decoder_outputs_are_scaled_as_transformers_does(json, scaled):
    import transformers

    assert T5Config.from_json(json).scale_decoder_outputs is scaled
    assert transformers.T5Config(**json).scale_decoder_outputs is scaled


def test_an_old_config_takes_the_encoders_depth():
    assert T5Config.from_json({"num_layers": 5, "num_decoder_layers": None}).num_decoder_layers == 5
    assert T5Config.from_json({"pad_token_id": 3}).decoder_start_token_id == 3


@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({"model_type": "bert"}, 'model_type is "bert"'),
        ({"feed_forward_proj": "gated-silu"}, 'feed_forward_proj is "gated-silu", known: relu, gated-gelu'),
        ({"d_model": "512"}, "d_model is '512', expected int"),
        ({"eos_token_id": [1, 2]}, "eos_token_id is [1, 2], expected int"),
    ],
)
def test_a_config_for_another_model_is_refused(json, message):
    with pytest.raises(UserError) as error:
        T5Config.from_json(json)
    assert message in str(error.value)
