import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import equations, product_flops
from flat_batches import batch, by_example, flat, in_slots, rectangle, sequences
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.batch import Batch, Texts, Tokens, ViewArrays, Work
from cot_jax.errors import UserError
from cot_jax.models import layers, pretrained, t5
from cot_jax.models.choices import REMAT
from cot_jax.models.decoding import greedy
from cot_jax.models.layers import Layout
from cot_jax.models.student import Options, build, from_scratch
from cot_jax.models.t5 import PRESETS, T5, T5Config
from cot_jax.models.t5 import relative_position_bucket as bucket
from cot_jax.models.weights import init, shapes

KINDS = ["v1.0", "v1.1-tied", "v1.1"]
SMALL = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=3, num_heads=2)


def largest(x):
    return float(np.max(np.abs(np.asarray(x, np.float32))))


@functools.cache
def small_params(config):
    return jax.jit(lambda: init(T5(config).weights, jax.random.key(0)))()


def with_rate(student, rate):
    return dataclasses.replace(student, config=dataclasses.replace(student.config, dropout_rate=rate))


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
    student, params = ours("v1.0")
    position = np.arange(201)
    got = student._position_bias(params[stack], position - position[:, None], stack == "encoder")
    attention = getattr(reference("v1.0")[0], stack).block[0].layer[0].SelfAttention
    np.testing.assert_array_equal(got, attention.compute_bias(201, 201).detach().numpy()[0])


LENGTHS = [9, 4, 1]


def one_layer(params, stack, n, embedding):
    """Parameters whose stack is its layer n only, between an embedding of any size and the final norm."""
    part = params[stack] | {"layers": jax.tree.map(lambda leaf: leaf[n : n + 1], params[stack]["layers"])}
    return params | {stack: part, "embedding": embedding}


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("n", [0, 1])
def test_encoder_layer(torch, reference, ours, kind, n):
    theirs = reference(kind)[0].encoder
    student, params = ours(kind)
    embedding = np.random.default_rng(n).normal(size=(96, 32)).astype("f")
    texts = sequences(n, LENGTHS)
    tokens = flat(texts, extra=2)
    got = student._encode(
        one_layer(params, "encoder", n, embedding), Layout([tokens], np.arange(3)[None]), None
    )
    ids, mask = rectangle(texts)
    with torch.no_grad():
        bias = theirs.block[0].layer[0].SelfAttention.compute_bias(9, 9)
        mask = torch.from_numpy(mask[:, None, None, :])
        want = theirs.final_layer_norm(
            theirs.block[n](torch.from_numpy(embedding[ids]), mask, bias)[0]
        ).numpy()
    for row, mine in zip(want, by_example(tokens, got), strict=True):
        assert largest(mine - row[: len(mine)]) < 1e-6 * largest(want)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("n", [0, 1])
def test_decoder_layer(torch, reference, ours, monkeypatch, kind, n):
    theirs = reference(kind)[0].decoder
    student, params = ours(kind)
    rng = np.random.default_rng(n)
    embedding = rng.normal(size=(96, 32)).astype("f")
    examples = batch({"view": (sequences(2, LENGTHS), sequences(n, [6, 6, 6]))}, extra=2)
    inputs, targets, _ = examples.views["view"]
    encoded_GXD = rng.normal(size=(*inputs.ids.shape, 32)).astype("f")
    monkeypatch.setattr(T5, "_encode", lambda *_: encoded_GXD)
    got = student.hidden(one_layer(params, "decoder", n, embedding), examples, None)["view"]

    encoded, (_, mask) = np.zeros((3, 9, 32), "f"), rectangle(by_example(inputs, inputs.ids))
    encoded[mask] = np.concatenate(by_example(inputs, encoded_GXD))
    read = np.pad(np.stack(by_example(targets, targets.ids)), ((0, 0), (1, 0)))[:, :6]
    with torch.no_grad():
        bias = theirs.block[0].layer[0].SelfAttention.compute_bias(6, 6)
        x = theirs.block[n](
            torch.from_numpy(embedding[read]),
            torch.from_numpy(np.tri(6, dtype=bool)[None, None]),
            bias,
            encoder_hidden_states=torch.from_numpy(encoded),
            encoder_attention_mask=torch.from_numpy(mask[:, None, None, :]),
        )[0]
        want = student._scaled(theirs.final_layer_norm(x).numpy())
    assert largest(np.stack(by_example(targets, got)) - want) < 1e-6 * largest(want)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_the_gradient_of_every_parameter(reference, ours, pair, torch_inputs, kind):
    """Ragged targets, and the same ones padded: decoded padding reads the end, then padding."""
    model, _ = reference(kind)
    student, params = ours(kind)
    texts, answers = pair
    filled, real = rectangle(answers)
    examples = batch({"ragged": pair, "filled": (texts, [row.astype(np.int32) for row in filled])})

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_logits(params, examples, counted):
        states, total, logits = student.hidden(params, examples, None), 0, {}
        for view, arrays in examples.views.items():
            logits[view] = states[view] @ student.head(params)
            log_p = jnp.take_along_axis(
                jax.nn.log_softmax(logits[view]), arrays.targets.ids[..., None], axis=-1
            )
            total -= jnp.mean(log_p[..., 0], where=counted[view]) / 2
        return total, logits

    counted = {"filled": real.reshape(1, -1), "ragged": np.ones((1, real.sum()), bool)}
    (got, logits), gradient = loss_and_logits(params, examples, counted)
    model.zero_grad()
    want = model(**torch_inputs(*pair))
    want.loss.backward()
    want_BTV = want.logits.detach().numpy()
    for view, arrays in examples.views.items():
        for row, mine in zip(want_BTV, by_example(arrays.targets, logits[view]), strict=True):
            assert largest(mine - row[: len(mine)]) < 1e-5 * largest(want_BTV)
    assert abs(float(got) - want.loss.item()) < 1e-6 * want.loss.item()

    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    gradient = flatten_dict(gradient, sep="/")
    for path, weight in student.weights.items():
        leaf = np.asarray(gradient[path])
        for n, g in enumerate(leaf if weight.is_stacked else [leaf]):
            want_g = theirs.pop(weight.theirs.format(n=n))
            assert largest(want_g) > 0, path
            # 3 times the largest seen; PyTorch itself is up to 5e-6 away from its own float64.
            assert largest(pretrained.to_torch(weight, g) - want_g) < 2e-5 * largest(want_g), path
    assert not theirs


# --- Who sees whom ---


@pytest.mark.slow
def test_a_state_depends_on_its_own_input_and_earlier_targets_only(untied):
    """Two views, two groups: the tokens whose embedding has a gradient."""
    student, params = untied
    # Every token has an id of its own, so that the embedding's gradient tells them apart.
    ids = iter(np.random.default_rng(0).permutation(np.arange(2, 96)).astype(np.int32))
    views = {
        view: [[np.array([next(ids) for _ in range(n)], np.int32) for n in side] for side in sides]
        for view, sides in {"a": ([3, 1, 2, 4], [2, 3, 1, 4]), "b": ([2, 2, 5, 0], [4, 1, 0, 3])}.items()
    }
    examples = batch(views, groups=2, extra=1)

    @jax.jit
    def reached(params, examples):
        def states(embedding):
            found = student.hidden(params | {"embedding": embedding}, examples, None)
            return {view: jnp.sum(h_GYD**3, axis=-1) for view, h_GYD in found.items()}

        found, transposed = jax.vjp(states, params["embedding"])
        slots = sum(h.size for h in found.values())
        each = jnp.split(jnp.eye(slots), np.cumsum([h.size for h in found.values()])[:-1], axis=1)
        cotangents = {
            view: one.reshape(slots, *found[view].shape) for view, one in zip(found, each, strict=True)
        }
        gradient_RVD = jax.vmap(lambda cotangent: transposed(cotangent)[0])(cotangents)
        return jnp.split(
            jnp.any(gradient_RVD != 0, axis=-1), np.cumsum([h.size for h in found.values()])[:-1]
        )

    for view, seen in zip(sorted(views), reached(params, examples), strict=True):
        targets = examples.views[view].targets
        for inputs, answer, rows in zip(
            *views[view], by_example(targets, np.reshape(seen, (*targets.ids.shape, 96))), strict=True
        ):
            for position, row in enumerate(rows):
                want = {student.config.decoder_start_token_id, *inputs.tolist(), *answer[:position].tolist()}
                assert set(np.flatnonzero(row).tolist()) == want


LAYOUTS = {
    "views the other way round": {},
    "two groups of examples in another order": {"groups": 2, "order": (2, 0, 3, 1)},
    "four groups, wider, more slots with other ids in them": {
        "groups": 4,
        "wider": 6,
        "extra": 5,
        "filler": 7,
    },
}


@pytest.mark.slow
def test_states_and_gradients_do_not_depend_on_the_layout(untied, pair):
    """Nor the dropout masks: they are of an example, wherever it is, and of a view, whichever comes first.

    In float64, where nothing but a difference of what is computed shows.
    """
    student, params = untied
    student = dataclasses.replace(with_rate(student, 0.3), dtype=np.float64)
    params, key = jax.tree.map(np.float64, params), jax.random.key(3)
    views = {"explain": (sequences(2, [3, 11, 30, 2]), sequences(3, [4, 0, 9, 20])), "predict": pair}
    rng = np.random.default_rng(0)
    seen = {view: [rng.normal(size=(len(ids), 32)) for ids in side[1]] for view, side in views.items()}

    @jax.jit
    def states_and_gradients(params, examples, cotangents):
        states, transposed = jax.vjp(lambda params: student.hidden(params, examples, key), params)
        return states, transposed(cotangents)[0]

    def result(views, order=(0, 1, 2, 3), **layout):
        def ordered(rows):
            return [rows[i] for i in order]

        sides = {view: [ordered(side) for side in sides] for view, sides in views.items()}
        examples = batch(sides, example=ordered([17, 3, 5, 90001]), **layout)
        targets = {view: arrays.targets for view, arrays in examples.views.items()}
        cotangents = {view: in_slots(targets[view], ordered(seen[view])) for view in views}
        states, gradient = states_and_gradients(params, examples, cotangents)
        rows = {view: by_example(targets[view], states[view]) for view in views}
        return {view: [rows[view][order.index(i)] for i in range(4)] for view in views}, gradient

    with jax.enable_x64(True):
        want, want_gradient = result(views)
        found = {}
        for name, layout in LAYOUTS.items():
            found[name] = result(dict(reversed(views.items())) if "views" in name else views, **layout)
    for name, (states, gradient) in found.items():
        for view, rows in states.items():
            for mine, row in zip(rows, want[view], strict=True):
                np.testing.assert_allclose(mine, row, rtol=1e-11, atol=1e-11, err_msg=name)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(want_gradient), strict=True):
            assert largest(a - b) <= 2e-6 * largest(b), name  # gradients of scores are float32


def test_a_batch_divided_over_devices_stays_where_it_is(untied):
    student, params = untied
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    groups, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    examples = batch(
        {
            "predict": (sequences(1, [9] * 16), sequences(2, [3] * 16)),
            "explain": (sequences(3, [9] * 16), sequences(4, [7] * 16)),
        },
        groups=8,
    )
    program = jax.jit(
        student.hidden, in_shardings=(everywhere, groups), out_shardings=groups, static_argnums=2
    )
    text = program.lower(params, examples, None).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", text)


@pytest.mark.parametrize("lengths", [[0, 7, 1, 0], [0, 0, 0, 0]])
def test_an_empty_input_stays_finite(untied, pair, hidden, lengths):
    student, params = untied
    examples = batch({"view": (sequences(0, lengths), pair[1])}, extra=1, wider=1)
    assert np.isfinite(hidden(student, params, examples)["view"]).all()


def test_an_id_beyond_the_vocabulary_is_not_another_token(untied, pair, hidden):
    student, params = untied
    examples = batch({"view": (pair[0], [np.full_like(ids, student.outputs) for ids in pair[1]])})
    for rows in by_example(examples.views["view"].targets, hidden(student, params, examples)["view"]):
        assert np.isnan(rows[1:]).all()


# --- Dropout ---


def test_dropout_follows_the_key_and_the_rate(untied, hidden):
    # The same view twice and the same text three times, so that only the masks can tell them apart.
    texts, answers = sequences(1, [9] * 3), sequences(2, [3] * 3)
    same = [texts[0]] * 3, [answers[0]] * 3
    examples = batch(dict.fromkeys(("predict", "explain"), same))
    student, params = untied
    dropping = with_rate(student, 0.1)
    a, b, again = (hidden(dropping, params, examples, jax.random.key(k, impl="rbg")) for k in (0, 1, 0))
    off = hidden(dropping, params, examples)
    for view in examples.views:
        np.testing.assert_array_equal(a[view], again[view])
        np.testing.assert_array_equal(off[view], hidden(student, params, examples, jax.random.key(0))[view])
        assert not np.allclose(a[view], b[view], rtol=0.1)
        assert not np.allclose(a[view], off[view], rtol=0.1)
        one, two, three = np.split(np.asarray(a[view])[0], 3)
        assert not np.allclose(one, two, rtol=0.1)
        assert not np.allclose(two, three, rtol=0.1)
    assert not np.allclose(a["predict"], a["explain"], rtol=0.1)


def test_each_place_of_each_layer_has_its_own_mask(monkeypatch):
    keys = []

    def spy(x, rate, key, seed):
        assert rate == 0.1
        assert x.shape[:-1] == seed.shape
        jax.debug.callback(lambda data: keys.append(tuple(data.tolist())), jax.random.key_data(key))
        return x

    for module in (layers, t5):
        monkeypatch.setattr(module, "drop", spy)
    examples = batch({"view": (sequences(0, [3]), sequences(1, [3]))})
    states = jax.jit(T5(SMALL).hidden)(small_params(SMALL), examples, jax.random.key(1, impl="rbg"))
    jax.block_until_ready(states)
    jax.effects_barrier()
    # Per encoder layer: attention weights, hidden layer, two residual branches; per decoder layer
    # two more; and per stack the embeddings and the final norm.
    assert len(keys) == len(set(keys)) == (4 * 2 + 2) + (6 * 3 + 2)


# --- Memory and arithmetic ---


def value_and_gradient(student, params, examples, key=None):
    def total(params):
        return jnp.sum(student.hidden(params, examples, key)["view"] ** 2)

    return jax.jit(jax.value_and_grad(total))(params)


@pytest.mark.slow
def test_attention_by_chunks_of_queries_is_attention(monkeypatch, untied):
    student, params = untied
    student, key = with_rate(student, 0.1), jax.random.key(0)
    examples = batch({"view": (sequences(0, [20, 7, 1]), sequences(1, [5, 13, 2]))})
    whole = value_and_gradient(student, params, examples, key)
    monkeypatch.setattr(layers, "_WHOLE", 0)
    monkeypatch.setattr(layers, "_QUERIES", 7)  # which divides neither length
    by_chunks = value_and_gradient(student, params, examples, key)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(by_chunks), strict=True):
        assert largest(a - b) <= 2e-5 * largest(a)


def shaped(lengths, width):
    """The shapes of a batch of one view whose inputs and targets all have this width."""
    G, E = lengths
    ids = jax.ShapeDtypeStruct((G, E * width), jnp.int32)
    length = jax.ShapeDtypeStruct((G, E), jnp.int32)
    tokens = Tokens(ids, length, width)
    return Batch({"view": ViewArrays(tokens, tokens, length)}, length)


@pytest.mark.slow
def test_long_sequences_never_hold_all_scores(monkeypatch):
    config = dataclasses.replace(SMALL, num_layers=1, num_decoder_layers=1)
    student, B, length = T5(config), 8, 1024

    def memory():
        def total(params, examples, key):
            return jnp.sum(student.hidden(params, examples, key)["view"])

        program = jax.jit(jax.grad(total)).lower(
            shapes(student.weights), shaped((1, B), length), jax.random.key(0, impl="rbg")
        )
        return program.compile().memory_analysis()

    chunked = memory().temp_size_in_bytes
    monkeypatch.setattr(layers, "_WHOLE", length**2)
    whole = memory().temp_size_in_bytes
    # Three attentions, each of which keeps its float32 weights and which of them were dropped.
    assert whole > 3 * 4 * B * config.num_heads * length**2
    assert chunked < whole / 2


@pytest.mark.slow
def test_remat_gives_the_same_gradients_in_less_memory():
    config = dataclasses.replace(SMALL, num_layers=3, num_decoder_layers=3)
    examples = batch({"view": (sequences(0, [48] * 8, 64), sequences(1, [48] * 8, 64))})
    params, key, found = small_params(config), jax.random.key(0), {}
    for remat in REMAT:
        student = T5(config, remat=remat)

        def total(params, student=student):
            return jnp.sum(student.hidden(params, examples, key)["view"] ** 2)

        program = jax.jit(jax.grad(total)).lower(params).compile()
        found[remat] = program.memory_analysis().temp_size_in_bytes, program(params)
    for _, gradient in found.values():
        for a, b in zip(jax.tree.leaves(found["none"][1]), jax.tree.leaves(gradient), strict=True):
            assert largest(a - b) <= 2e-5 * largest(a)
    whole, elementwise, each = (memory for memory, _ in found.values())
    assert each < elementwise < 0.8 * whole


@pytest.mark.slow
def test_looped_layers_are_unrolled_layers(untied, hidden):
    student, params = untied
    examples = batch({"view": (sequences(0, [7, 4]), sequences(1, [5, 2]))})
    looped, unrolled = (
        dataclasses.replace(with_rate(student, 0.1), unroll=unroll) for unroll in (False, True)
    )

    def loops(student):
        return jax.jit(student.hidden).lower(params, examples, None).as_text().count("stablehlo.while")

    assert (loops(unrolled), loops(looped)) == (0, 2)  # encoder, decoder
    a, b = (hidden(s, params, examples, jax.random.key(1, impl="rbg"))["view"] for s in (unrolled, looped))
    assert largest(a - b) < 2e-6 * largest(a)


def test_bfloat16_is_near(untied, pair, hidden):
    student, params = untied
    examples = batch({"view": pair})
    exact = hidden(student, params, examples)["view"]
    rounded = hidden(dataclasses.replace(student, dtype=jnp.bfloat16), params, examples)["view"]
    assert rounded.dtype == jnp.bfloat16
    error = np.asarray(rounded, np.float32) - exact
    # 8 bits of mantissa through 5 layers: per cent, neither exact nor wrong.
    assert 1e-3 < np.sqrt(np.mean(error**2) / np.mean(exact**2)) < 0.05


def test_norms_scores_and_softmax_are_float32_under_bfloat16(untied, pair):
    student, params = untied
    student = dataclasses.replace(student, dtype=jnp.bfloat16)
    traced = jax.jit(student.hidden).trace(params, batch({"view": pair}), None).jaxpr
    dtypes = {name: set() for name in ("exp", "rsqrt", "reduce_max", "dot_general")}
    for equation, _ in equations(traced.jaxpr):
        if equation.primitive.name in dtypes:
            dtypes[equation.primitive.name] |= {v.aval.dtype.name for v in equation.invars}
    assert dtypes["exp"] == dtypes["rsqrt"] == dtypes["reduce_max"] == {"float32"}
    assert dtypes["dot_general"] == {"bfloat16"}


def test_bfloat16_is_for_arithmetic_only(untied, pair):
    exact, params = untied
    student = dataclasses.replace(exact, dtype=jnp.bfloat16)
    examples = batch({"view": pair})
    assert jax.eval_shape(student.hidden, params, examples, None)["view"].dtype == jnp.bfloat16
    assert student.head(params).dtype == np.float32
    like = jax.eval_shape(lambda: init(student.weights, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(like)} == {np.dtype(np.float32)}
    inputs = examples.views["view"].inputs
    tokens_BT, log_prob_B = jax.eval_shape(
        lambda params: greedy(student.prompt(params, inputs, 5), 5), params
    )
    assert (tokens_BT.shape, tokens_BT.dtype) == ((4, 5), jnp.int32)
    assert (log_prob_B.shape, log_prob_B.dtype) == ((4,), jnp.float32)


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_flops_are_those_of_the_matrix_products(feed_forward):
    """Counted in the program: of all slots, and of all pairs of positions of the rectangles."""
    config = dataclasses.replace(SMALL, feed_forward_proj=feed_forward)
    student, S, T = T5(config), 7, 5
    examples = batch({"view": (sequences(0, [7, 3, 4], 64), sequences(1, [5, 5, 2], 64))}, extra=3)
    inputs, targets, _ = examples.views["view"]

    def logits(params):
        return student.hidden(params, examples, None)["view"] @ student.head(params)

    counted = product_flops(logits, shapes(student.weights))
    one = Work(inputs.ids.size, targets.ids.size, 3 * S * S, 3 * T * T, 3 * S * T)
    assert student.flops([one]) == counted
    # Linear, a view at a time, and of arrays.
    two = Work(*(np.array([n, 2 * n]) for n in one))
    np.testing.assert_array_equal(student.flops([two, two]), [2 * counted, 4 * counted])


# --- Decoding reads what training reads ---


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 4])
def test_cached_decoding_is_full_decoding(untied, pair, hidden, at_once):
    student, params = untied
    texts, _ = pair
    answers = sequences(5, [12] * 4)
    examples = batch({"view": (texts, answers)}, groups=2)
    inputs, targets, _ = examples.views["view"]
    full = np.stack(by_example(targets, hidden(student, params, examples)["view"] @ student.head(params)))

    prompt = student.prompt(params, inputs, 12)
    step = jax.jit(prompt.step)
    read, cache = (
        np.concatenate([np.asarray(prompt.first_B)[:, None], np.stack(answers)[:, :-1]], axis=1),
        prompt.cache,
    )
    for t in range(0, 12, at_once):
        logits_BTV, cache = step(read[:, t : t + at_once], t, cache)
        assert logits_BTV.dtype == jnp.float32
        assert largest(logits_BTV - full[:, t : t + at_once]) < 2e-6 * largest(full)


# --- Initialisation and configuration ---


@pytest.mark.parametrize("preset", ["small", "t5-small"])
def test_initial_distributions(preset):
    student = from_scratch(preset, texts=Texts(1024, pad_id=0, end_id=1), options=Options())
    config = dataclasses.replace(student.config, num_layers=2, num_decoder_layers=2)
    student = dataclasses.replace(student, config=config)
    params = small_params(config)
    D, H, K, F = config.d_model, config.num_heads, config.d_kv, config.d_ff
    std = {"embedding": 1, "head": D**-0.5, "relative_bias": D**-0.5, "q": (D * K) ** -0.5, "k": D**-0.5}
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
        if name.endswith("norm"):
            assert (leaf == 1).all(), path
        else:
            assert abs(leaf.std() / std[name] - 1) < 4 / math.sqrt(2 * leaf.size), path
            assert abs(leaf.mean()) < 5 * std[name] / math.sqrt(leaf.size), path
        if "layers" in path and not name.endswith("norm"):
            assert (leaf[0] != leaf[1]).any(), path

    # Together they give logits near N(0, 1), and an untied head a loss that starts near log V. (A
    # tied one, as in the original, starts out by repeating the decoder's input.)
    examples = batch({"view": (sequences(6, [9, 4, 6, 8], 1024), sequences(7, [16] * 4, 1024))})
    logits_GYV = jax.jit(student.hidden)(params, examples, None)["view"] @ student.head(params)
    assert 0.7 < jnp.std(logits_GYV) < 1.3
    ids_GY1 = examples.views["view"].targets.ids[..., None]
    nll_GY1 = -jnp.take_along_axis(jax.nn.log_softmax(logits_GYV), ids_GY1, axis=-1)
    assert config.tie_word_embeddings or abs(jnp.mean(nll_GY1) - np.log(1024)) < 1


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
    assert sum(math.prod(weight.shape) for weight in T5(PRESETS[preset]).weights.values()) == count


@pytest.mark.parametrize("preset", PRESETS)
def test_config_round_trip(preset):
    student = T5(PRESETS[preset])
    assert build(student.architecture(), Options(dropout_rate=PRESETS[preset].dropout_rate)) == student


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
    transformers = pytest.importorskip("transformers")
    assert T5Config.from_json(json).scale_decoder_outputs is scaled
    assert transformers.T5Config(**json).scale_decoder_outputs is scaled


def test_an_old_config_takes_the_encoders_depth():
    assert T5Config.from_json({"num_layers": 5, "num_decoder_layers": None}).num_decoder_layers == 5
    assert T5Config.from_json({"pad_token_id": 3}).decoder_start_token_id == 3


@pytest.mark.parametrize(
    ("json", "message"),
    [
        ({"model_type": "rwkv"}, "model_type is 'rwkv', known: t5"),
        ({}, "model_type is None, known: t5"),
        (
            {"model_type": "t5", "feed_forward_proj": "gated-silu"},
            'feed_forward_proj is "gated-silu", known: relu, gated-gelu',
        ),
        ({"model_type": "t5", "d_model": "512"}, "d_model is '512', expected an integer from 1"),
        ({"model_type": "t5", "eos_token_id": [1, 2]}, "eos_token_id is [1, 2], expected int"),
    ],
)
def test_a_config_for_another_model_is_refused(json, message):
    with pytest.raises(UserError) as error:
        build(json, Options())
    assert message in str(error.value)
