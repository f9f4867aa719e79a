"""Llama and its relatives: parity with PyTorch Transformers, sections and prefixes, cached decoding."""

import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from equations import product_flops
from flat_batches import batch, by_example, flat, rectangle, sequences
from flax.traverse_util import flatten_dict

from cot_jax.batch import Batch, Work
from cot_jax.errors import UserError
from cot_jax.models import layers, llama, pretrained
from cot_jax.models.decoding import Sampling, beam_search, greedy, sample, score, written_length
from cot_jax.models.llama import Llama, LlamaConfig, Rope
from cot_jax.models.student import Options, build, from_pretrained, save

_SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_QWEN = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
KINDS = {
    "llama": ("llama", {"num_key_value_heads": 4}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama-tied": ("llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral-window": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": ("qwen2", _QWEN),
    "qwen3": ("qwen3", {"head_dim": 16}),
}
# Texts of the tests have up to 63 tokens: past the original lengths.
ROPES = {
    "theta": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1e4,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1e4,
    },
    "yarn-settings": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.3,
        "beta_fast": 8.0,
        "beta_slow": 2.0,
        "truncate": False,
        "rope_theta": 1e4,
    },
}
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def largest(x):
    return float(np.max(np.abs(np.asarray(x, np.float32))))


@pytest.fixture(scope="module")
def theirs(torch, transformers, tmp_path_factory):
    """(model_type, changes as JSON) -> (model of Transformers with random weights, its directory)."""

    @functools.cache
    def make(kind, changes):
        values = _SHAPE | json.loads(changes)
        config = getattr(transformers, f"{CLASSES[kind]}Config")(**values, attn_implementation="eager")
        model = getattr(transformers, f"{CLASSES[kind]}ForCausalLM")(config).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                normal = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(1 + 0.2 * normal if "norm" in name else 0.15 * normal)
            if not values["tie_word_embeddings"]:
                model.lm_head.weight[1] *= 2.5  # Rows of generated tokens shall end, some of them.
        directory = tmp_path_factory.mktemp(kind)
        model.save_pretrained(directory)
        return model, directory

    return lambda kind, changes: make(kind, json.dumps(changes))


CASES = KINDS | {name: ("llama", {"rope_parameters": rope}) for name, rope in ROPES.items()}
LENGTHS = ([40, 7, 1, 23], [5, 23, 2, 11])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_the_gradient_of_every_parameter(torch, theirs, case):
    model, directory = theirs(*CASES[case])
    student, params, report = from_pretrained(str(directory), Options())
    assert report == []
    pair = sequences(0, LENGTHS[0]), sequences(1, LENGTHS[1])
    examples = batch({"view": pair}, groups=2, extra=3, wider=2)
    targets = examples.views["view"].targets

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_logits(params):
        logits = student.hidden(params, examples, None)["view"] @ student.head(params)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), targets.ids[..., None], axis=-1)[..., 0]
        real = np.arange(targets.slots)[None] < targets.length.sum(axis=1)[:, None]
        return -jnp.mean(log_p, where=real), logits

    (got, logits), gradient = loss_and_logits(params)
    joined = [np.concatenate(both) for both in zip(*pair, strict=True)]
    ids, mask = rectangle(joined)
    labels = rectangle(
        [np.concatenate([np.full(len(a), -100), b]) for a, b in zip(*pair, strict=True)], -100
    )[0]
    model.zero_grad()
    tensors = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    want = model(**{name: torch.from_numpy(x.astype(np.int64)) for name, x in tensors.items()})
    want.loss.backward()
    want_BTV = want.logits.detach().numpy()
    most = largest(want_BTV)
    for row, prompt, mine in zip(want_BTV, pair[0], by_example(targets, logits), strict=True):
        before = len(prompt) - 1
        assert largest(mine - row[before : before + len(mine)]) < 1e-5 * most
    assert abs(float(got) - want.loss.item()) < 2e-6 * want.loss.item()

    found = {name: p.grad.numpy() for name, p in model.named_parameters()}
    gradient = flatten_dict(gradient, sep="/")
    for path, weight in student.weights.items():
        leaf = np.asarray(gradient[path])
        for n, g in enumerate(leaf if weight.is_stacked else [leaf]):
            want_g = found.pop(weight.theirs.format(n=n))
            # The bias of keys moves all scores of a query alike: its gradient is rounding, but for rope.
            assert largest(want_g) > 0, path
            assert largest(pretrained.to_torch(weight, g) - want_g) < 5e-5 * largest(want_g), path
    assert not found


@pytest.mark.parametrize("case", ["llama-tied", "mistral-window", "qwen2-window", "qwen3", "llama3", "yarn"])
def test_greedy_tokens_are_those_of_transformers(torch, theirs, case):
    model, directory = theirs(*CASES[case])
    student, params, _ = from_pretrained(str(directory), Options())
    texts, most = sequences(3, [30, 4, 1, 17]), 24
    tokens_BT, _ = jax.jit(lambda p: greedy(student.prompt(p, flat(texts, groups=2), most), most))(params)
    ended = 0
    for text, mine in zip(texts, np.asarray(tokens_BT), strict=True):
        ids = torch.from_numpy(text.astype(np.int64))[None]
        options = {"max_new_tokens": most, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1}
        want = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(text) :].numpy()
        np.testing.assert_array_equal(mine[: len(want)], want)
        ended += len(want) < most
        assert (mine[len(want) :] == 0).all()
    assert ended or case == "llama-tied"  # whose head is the embedding, in which the end is not likelier


@pytest.mark.parametrize(
    "case", ["llama-biases", "mistral-window", "qwen2-window", "qwen3", "llama3", "yarn"]
)
def test_an_export_gives_transformers_the_same_logits(torch, theirs, tmp_path, case):
    import transformers

    model, directory = theirs(*CASES[case])
    student, params, _ = from_pretrained(str(directory), Options())
    save(tmp_path, student, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(again) is type(model)
    ids = torch.from_numpy(np.stack(sequences(2, [60, 60])).astype(np.int64))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    read = build(pretrained.read_config(str(tmp_path)), Options())
    assert read.config == student.config


# --- Sections ---


@pytest.fixture(scope="module")
def small(random_params):
    """A windowed student, its random parameters and two views' texts."""
    config = LlamaConfig.from_json({"model_type": "qwen2"} | _SHAPE | _QWEN)
    student = Llama(config)
    views = {
        "a": (sequences(0, [9, 4, 1, 6]), sequences(1, [3, 5, 2, 0])),
        "b": (sequences(2, [2, 8, 3, 0]), sequences(3, [7, 1, 4, 0])),
    }
    return student, random_params(student.weights), views


def hidden(student, params, examples, key=None):
    found = jax.jit(student.hidden)(params, examples, key)
    return {view: by_example(examples.views[view].targets, h) for view, h in found.items()}


def shared(views, prefixes, **layout):
    """A batch whose inputs begin with a prefix of their view, which is stored once."""
    examples = batch(views, **layout)
    arrays = {}
    for view, its in examples.views.items():
        G = len(its.inputs.ids)
        prefix = np.broadcast_to(prefixes[view], (G, len(prefixes[view])))
        arrays[view] = its._replace(inputs=dataclasses.replace(its.inputs, prefix=prefix))
    return Batch(arrays, examples.example)


@pytest.mark.slow
def test_a_shared_prefix_changes_nothing_but_the_cost(small):
    student, params, views = small
    a, b = sequences(7, [11, 3])
    prefixes = {"a": a, "b": b}
    whole = {v: ([np.concatenate([prefixes[v], x]) for x in i], t) for v, (i, t) in views.items()}
    want = hidden(student, params, batch(whole))
    got = hidden(student, params, shared(views, prefixes, groups=2, extra=2, wider=3))
    for view, rows in want.items():
        for mine, row in zip(got[view], rows, strict=True):
            np.testing.assert_allclose(mine, row, rtol=2e-5, atol=2e-5)

    def gradient(examples):
        def total(params):
            found = student.hidden(params, examples, None)
            real = {
                view: np.arange(h.shape[1])[None] < examples.views[view].targets.length.sum(1)[:, None]
                for view, h in found.items()
            }
            return sum(jnp.sum(h**2, where=real[view][..., None]) for view, h in found.items())

        return jax.jit(jax.grad(total))(params)

    for x, y in zip(
        jax.tree.leaves(gradient(batch(whole))),
        jax.tree.leaves(gradient(shared(views, prefixes, groups=2))),
        strict=True,
    ):
        assert largest(x - y) <= 2e-5 * largest(x)


@pytest.mark.slow
def test_a_state_sees_the_tokens_before_it_within_the_windows(small):
    """Each token has an id of its own; the embedding's gradient tells which a state depends on."""
    student, params, _ = small
    config = dataclasses.replace(student.config, windows=(5, 5, 5), num_hidden_layers=3)
    ids = iter(np.random.default_rng(0).permutation(np.arange(2, 96)).astype(np.int32))

    def take(n):
        return np.array([next(ids) for _ in range(n)], np.int32)

    views = {"a": ([take(8), take(1)], [take(12), take(3)]), "b": ([take(2), take(4)], [take(2), take(5)])}
    prefixes = {"a": take(4), "b": take(3)}
    for windows in ((), (5, 5, 5)):
        other = Llama(dataclasses.replace(config, windows=windows))
        examples = shared(views, prefixes, groups=2)

        def states(embedding, other=other, examples=examples):
            found = other.hidden(params | {"embedding": embedding}, examples, None)
            return {view: jnp.sum(h**3, axis=-1) for view, h in found.items()}

        jacobian = jax.jit(jax.jacrev(states))(params["embedding"])
        for view, (inputs, answers) in views.items():
            seen = by_example(examples.views[view].targets, np.any(np.asarray(jacobian[view]) != 0, axis=-1))
            for text, answer, rows in zip(inputs, answers, seen, strict=True):
                everything = np.concatenate([prefixes[view], text, answer])
                for t, row in enumerate(rows):
                    end = len(prefixes[view]) + len(text) + t
                    # Three layers of windows of 5 see 4 * 3 tokens behind one's own.
                    first = max(0, end - 13) if windows else 0
                    assert set(np.flatnonzero(row)) == set(everything[first:end].tolist()), (view, t)


@pytest.mark.slow
def test_states_do_not_depend_on_the_layout_nor_do_dropout_masks(small):
    student, params, views = small
    student = dataclasses.replace(student, config=dataclasses.replace(student.config, dropout_rate=0.3))
    key, example = jax.random.key(1), [17, 3, 5, 90001]
    want = hidden(student, params, batch(views, example=example), key)
    plain = hidden(student, params, batch(views, example=example))
    assert largest(np.concatenate(want["a"]) - np.concatenate(plain["a"])) > 0.1
    for layout in ({"groups": 4, "extra": 3, "wider": 5, "filler": 9}, {"groups": 2}):
        got = hidden(student, params, batch(dict(reversed(views.items())), example=example, **layout), key)
        for view, rows in want.items():
            for mine, row in zip(got[view], rows, strict=True):
                np.testing.assert_allclose(mine, row, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_attention_by_chunks_of_queries_is_attention(small, monkeypatch):
    student, params, views = small
    examples = shared(views, {"a": sequences(7, [11])[0], "b": sequences(8, [3])[0]}, groups=2)

    def gradient():
        return jax.jit(
            jax.grad(lambda p: sum(jnp.sum(h**2) for h in student.hidden(p, examples, None).values()))
        )(params)

    whole = gradient()
    monkeypatch.setattr(layers, "_WHOLE", 0)
    monkeypatch.setattr(layers, "_QUERIES", 4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(gradient()), strict=True):
        assert largest(a - b) <= 2e-5 * largest(a)


@pytest.mark.slow
def test_looped_layers_are_unrolled_layers_and_remat_changes_nothing(small):
    student, params, views = small
    want = hidden(student, params, batch(views))
    for change in ({"unroll": True}, {"remat": "layers"}, {"remat": "elementwise"}):
        got = hidden(dataclasses.replace(student, **change), params, batch(views))
        for view, rows in want.items():
            assert largest(np.concatenate(got[view]) - np.concatenate(rows)) < 2e-5


def test_flops_are_those_of_the_matrix_products(small):
    student, params, _ = small
    examples = batch({"view": (sequences(0, [7, 3, 4]), sequences(1, [5, 5, 2]))}, extra=3)
    inputs, targets, _ = examples.views["view"]

    def logits(params):
        return student.hidden(params, examples, None)["view"] @ student.head(params)

    S, T = inputs.width, targets.width
    work = Work(inputs.slots, targets.slots, *(3 * np.array([S * S, T * T, S * T])))
    assert student.flops([work]) == product_flops(logits, params)


# --- Decoding ---


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("prefix", [0, 6])
def test_cached_decoding_is_full_decoding(small, monkeypatch, at_once, prefix):
    monkeypatch.setattr(llama, "_READ", 4)  # reads 4, 8, 12 positions of the cache
    student, params, _ = small
    texts, answers = sequences(4, [9, 3, 1, 6]), sequences(5, [12] * 4)
    begin = sequences(6, [prefix])[0]
    examples = shared({"view": (texts, answers)}, {"view": begin}, groups=2)
    inputs, targets, _ = examples.views["view"]
    states = jax.jit(student.hidden)(params, examples, None)["view"]
    full = np.stack(by_example(targets, states @ student.head(params)))
    prompt = student.prompt(params, inputs, 12)
    np.testing.assert_array_equal(prompt.first_B, [text[-1] for text in texts])
    step, cache = jax.jit(prompt.step), prompt.cache
    read = np.concatenate([np.asarray(prompt.first_B)[:, None], np.stack(answers)[:, :-1]], axis=1)
    for t in range(0, 12, at_once):
        logits_BTV, cache = step(read[:, t : t + at_once], t, cache)
        assert largest(logits_BTV - full[:, t : t + at_once]) < 5e-6 * largest(full)


@pytest.mark.slow
def test_beams_samples_and_scores_share_one_copy_of_the_question(small):
    student, params, _ = small
    texts, most, K = sequences(4, [9, 3, 1, 6]), 8, 3
    inputs = flat(texts, groups=2)
    tokens_BKT, log_prob_BK = sample(
        student.prompt(params, inputs, most, K),
        most,
        jax.random.split(jax.random.key(0), 4),
        K,
        Sampling(),
    )
    beams_BKT, found_BK = beam_search(student.prompt(params, inputs, most, K), most, K)
    greedy_BT, greedy_B = greedy(student.prompt(params, inputs, most), most)
    ids_LT = np.concatenate([np.reshape(tokens_BKT, (-1, most)), greedy_BT])
    scored_BL = score(student.prompt(params, inputs, most), ids_LT, written_length(ids_LT, student.ends))
    for b in range(4):
        for k in range(K):
            assert abs(scored_BL[b, b * K + k] - log_prob_BK[b, k]) < 1e-4
        assert abs(scored_BL[b, 4 * K + b] - greedy_B[b]) < 1e-4
    best = score(
        student.prompt(params, inputs, most),
        np.reshape(beams_BKT[:, 0], (4, most)),
        written_length(beams_BKT[:, 0], student.ends),
    )
    length_B = np.asarray(written_length(beams_BKT[:, 0], student.ends))
    np.testing.assert_allclose(np.diag(best) / length_B, found_BK[:, 0], rtol=1e-5)


@pytest.mark.slow
def test_any_of_several_ends_ends_a_row(small):
    student, params, _ = small
    inputs = flat(sequences(4, [9, 3, 1, 6]))
    tokens_BT, _ = greedy(student.prompt(params, inputs, 12), 12)
    other = int(tokens_BT[0, 2])
    several = Llama(dataclasses.replace(student.config, eos_token_ids=(1, other)))
    got_BT, _ = greedy(several.prompt(params, inputs, 12), 12)
    for mine, row in zip(np.asarray(got_BT), np.asarray(tokens_BT), strict=True):
        ends = np.flatnonzero((row == other) | (row == 1))
        n = ends[0] + 1 if len(ends) else 12
        np.testing.assert_array_equal(mine[:n], row[:n])
        assert (mine[n:] == student.pad_id).all()


# --- Files and bad input ---


def test_a_file_of_the_body_alone_is_read(theirs, tmp_path):
    model, directory = theirs(*CASES["llama-tied"])
    want = from_pretrained(str(directory), Options())[1]
    model.model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    got = from_pretrained(str(tmp_path), Options())[1]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({"hidden_size": "32"}, "hidden_size is '32', expected an integer from 1"),
        ({"hidden_size": 0}, "hidden_size is 0, expected an integer from 1"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 3}, "do not fit"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected bool"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized (gptq)"),
        ({"rope_scaling": {"rope_type": "longrope"}}, 'rope_type is "longrope", known: default, linear'),
        ({"rope_scaling": {"type": "linear"}}, "rope_type=linear needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor of rope is '2'"),
        ({"rope_theta": -1}, "rope_theta of rope is -1"),
        ({"rope_theta": 0}, "rope_theta of rope is 0"),
        (
            {"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2}},
            "yarn needs a rope_theta other",
        ),
        (
            {"rope_scaling": {"rope_type": ["linear"]}},
            "rope_scaling.rope_type is ['linear'], expected a text",
        ),
        ({"use_sliding_window": "false"}, "use_sliding_window is 'false', expected true or false"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "has no setting mscale"),
    ],
)
def test_a_config_that_makes_no_model_is_one_line(changes, message):
    with pytest.raises(UserError, match=r"^config\.json: ") as error:
        build({"model_type": "llama"} | _SHAPE | changes, Options())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_old_and_new_rope_settings_are_the_same():
    new = Rope.from_json({"rope_parameters": ROPES["llama3"]}, 256)
    scaling = {k: v for k, v in ROPES["llama3"].items() if k != "rope_theta"}
    old = Rope.from_json({"rope_theta": 1e4, "rope_scaling": scaling}, 256)
    assert new == old
    assert Rope.from_json({}, 256) == Rope(1e4)


@pytest.mark.slow
def test_dynamic_rope_is_refused_beyond_its_length(small):
    student, params, views = small
    rope = Rope(1e4, "dynamic", (("factor", 2.0),))
    config = dataclasses.replace(student.config, rope=rope, max_position_embeddings=10)
    with pytest.raises(UserError, match="rope_type=dynamic is supported up to 10 positions"):
        Llama(config).hidden(params, batch(views), None)


@pytest.mark.parametrize(
    ("kind", "json_", "windows"),
    [
        ("mistral", {}, (4096,) * 3),  # a silent default
        ("mistral", {"sliding_window": None}, ()),
        ("qwen2", {"sliding_window": 5}, ()),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}, (0, 0, 5)),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True}, ()),
        ("llama", {"sliding_window": 5}, ()),
    ],
)
def test_windows_of_layers(kind, json_, windows):
    assert LlamaConfig.from_json({"model_type": kind} | _SHAPE | json_).windows == windows


def test_silent_defaults():
    shape = {k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"}
    assert LlamaConfig.from_json({"model_type": "qwen3"} | shape).head_dim == 128
    llama = LlamaConfig.from_json(
        {"model_type": "llama"} | shape | {"pad_token_id": -1, "eos_token_id": [7, 1]}
    )
    assert (llama.head_dim, llama.num_key_value_heads, llama.rope.theta) == (8, 4, 1e4)
    assert (llama.eos_token_ids, llama.pad_token_id) == ((7, 1), 7)


# --- Genuine weights ---


@pytest.fixture(scope="module")
def smollm():
    root = os.environ.get("COT_JAX_MODELS")
    if not root:
        pytest.skip("COT_JAX_MODELS is not set: no pretrained weights are at hand")
    return Path(root) / "smollm2-135m-instruct"


@pytest.mark.slow
def test_smollm2_gives_transformers_logits_and_tokens(torch, smollm, data_root):
    import transformers

    questions = [
        json.loads(line)["question"]
        for line in (data_root / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm, dtype=torch.float32).eval()
    student, params, report = from_pretrained(str(smollm), Options())
    assert report == []
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )["input_ids"]
        for question in questions
    ]
    texts = [np.array(ids, np.int32) for ids in texts]
    shared_ = next(n for n in range(100) if len({text[n] for text in texts}) > 1)
    tails = [text[shared_:] for text in texts]
    most = 64
    tokens = dataclasses.replace(flat(tails), prefix=texts[0][None, :shared_])
    got_BT, _ = jax.jit(lambda p: greedy(student.prompt(p, tokens, most), most))(params)
    examples = batch({"view": ([ids[:1] for ids in texts], [ids[1:] for ids in texts])})
    with jax.default_matmul_precision("highest"):
        states = jax.jit(student.hidden)(params, examples, None)["view"]
        logits = by_example(examples.views["view"].targets, states @ student.head(params))
    for text, mine, row in zip(texts, logits, np.asarray(got_BT), strict=True):
        ids = torch.from_numpy(text.astype(np.int64))[None]
        with torch.no_grad():
            want = theirs(ids).logits[0, :-1].numpy()
        assert largest(mine - want) < 1e-5 * largest(want)
        options = {"max_new_tokens": most, "do_sample": False}
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(text) :]
        np.testing.assert_array_equal(row[: len(written)], written.numpy())
