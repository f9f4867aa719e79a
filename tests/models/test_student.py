import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.errors import UserError
from cot_jax.models import huggingface
from cot_jax.models.student import from_pretrained, from_scratch
from cot_jax.models.t5 import T5


def tiny(**changes):
    arguments = {"vocab_size": 300, "dropout_rate": 0.1, "dtype": jnp.float32, "pad_id": 0, "eos_id": 1}
    return from_scratch("tiny", **(arguments | changes))


def test_stacked_views_are_separate_passes(untied, make_view):
    student, params = untied
    hidden = jax.jit(student.hidden)
    batch = {
        "predict": make_view(1, [12, 5, 9], [3, 1, 2], S=14),
        "explain": make_view(2, [14, 6, 1], [8, 0, 5], S=14),
    }
    together = hidden(params, batch, None)
    assert {view: h.shape for view, h in together.items()} == {
        "predict": (3, 3, 32),
        "explain": (3, 8, 32),
    }
    for view, arrays in batch.items():
        alone = hidden(params, {view: arrays}, None)[view]
        np.testing.assert_allclose(together[view], alone, atol=2e-6 * np.abs(alone).max())


def test_target_padding_reads_as_pad_whatever_it_holds(untied, view):
    student, params = untied
    hidden = jax.jit(student.hidden)
    real = np.arange(view.target_ids.shape[1]) < view.target_length[:, None]
    ignored = view._replace(target_ids=np.where(real, view.target_ids, 7).astype(np.int32))
    a, b = (hidden(params, {"view": v}, None)["view"] for v in (view, ignored))
    np.testing.assert_array_equal(a, b)


def test_a_batch_sharded_over_its_rows_stays_where_it_is(make_view):
    student = dataclasses.replace(tiny(dropout_rate=0.0), scan_unroll=1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    batch = {"predict": make_view(1, [9] * 16, [3] * 16), "explain": make_view(2, [9] * 16, [7] * 16)}
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    compiled = jax.jit(student.hidden, in_shardings=(everywhere, rows), out_shardings=rows, static_argnums=2)
    text = compiled.lower(shapes, batch, None).compile().as_text()
    assert not re.findall(r"all-gather|all-to-all|all-reduce|collective-permute", text)


def test_dropout_follows_the_key_and_the_rate(untied, make_view):
    # The same view twice, so that only the masks can tell them apart.
    batch = dict.fromkeys(("predict", "explain"), make_view(1, [9, 4], [3, 2]))
    student, params = untied
    student = dataclasses.replace(student, config=dataclasses.replace(student.config, dropout_rate=0.1))
    hidden = jax.jit(student.hidden)
    a, b, again = (hidden(params, batch, jax.random.key(k, impl="rbg")) for k in (0, 1, 0))
    off = hidden(params, batch, None)
    for view in batch:
        np.testing.assert_array_equal(a[view], again[view])
        assert not np.allclose(a[view], b[view], rtol=0.1)
        assert not np.allclose(a[view], off[view], rtol=0.1)
    assert not np.allclose(a["predict"], a["explain"], rtol=0.1)


def test_generation_is_the_argmax_of_hidden_states(untied, make_view):
    student, params = untied
    prompt = make_view(4, [11, 3, 7, 9], [1] * 4)
    generate = jax.jit(student.generate, static_argnums=3)
    tokens_BT = np.asarray(generate(params, prompt.input_ids, prompt.input_length, 9)[0])
    ended_BT = np.cumsum(tokens_BT == student.eos_id, axis=1) > 0
    length_B = np.minimum(9, 1 + (~ended_BT).sum(axis=1)).astype(np.int32)
    view = prompt._replace(target_ids=tokens_BT, target_length=length_B)
    logits_BTV = jax.jit(student.hidden)(params, {"view": view}, None)["view"] @ student.head(params)
    real_BT = np.arange(9) < length_B[:, None]
    np.testing.assert_array_equal(np.where(real_BT, logits_BTV.argmax(axis=-1), student.pad_id), tokens_BT)


def test_what_is_written_scores_what_it_scored(ending, make_view):
    student, params = ending
    view = make_view(4, [11, 3, 7, 9], [1] * 4)
    inputs = (params, view.input_ids, view.input_length)
    search = functools.partial(student.beam_search, max_new_tokens=9, beams=3, length_penalty=0.6)
    tokens_BKT, score_BK = jax.jit(search)(*inputs)
    greedy_BT, greedy_B = jax.jit(functools.partial(student.generate, max_new_tokens=9))(*inputs)
    tokens_BJT = np.concatenate([tokens_BKT, greedy_BT[:, None]], axis=1)
    ended_BJT = np.cumsum(tokens_BJT == student.eos_id, axis=2) > 0
    length_BJ = np.minimum(9, 1 + (~ended_BJT).sum(axis=2)).astype(np.int32)
    assert len(set(length_BJ.ravel().tolist())) > 2
    # As if all rows' answers were the labels of every row: each row's own are on the diagonal.
    log_prob_BL = jax.jit(student.score)(*inputs, tokens_BJT.reshape(-1, 9), length_BJ.ravel())
    own_BJ = np.diagonal(log_prob_BL.reshape(4, 4, 4)).T
    np.testing.assert_allclose(own_BJ[:, :3] / length_BJ[:, :3] ** 0.6, score_BK, rtol=1e-5)
    np.testing.assert_allclose(own_BJ[:, 3], greedy_B, rtol=1e-5)
    states = jax.jit(student.hidden)(
        params, {"v": view._replace(target_ids=tokens_BJT[:, 3], target_length=length_BJ[:, 3])}, None
    )["v"]
    best_BT = jax.nn.log_softmax(states @ student.head(params)).max(axis=-1)
    want_B = np.where(np.arange(9) < length_BJ[:, 3:], best_BT, 0).sum(axis=1)
    np.testing.assert_allclose(own_BJ[:, 3], want_B, rtol=1e-5)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_label_scores_are_those_of_transformers(torch, reference, ours, make_view, torch_inputs, kind):
    student, params = ours(kind)
    questions = make_view(8, [17, 3, 9, 1], [1] * 4)
    labels = make_view(9, [1] * 3, [2, 5, 1])
    got_BL = jax.jit(student.score)(
        params, questions.input_ids, questions.input_length, labels.target_ids, labels.target_length
    )
    assert (got_BL.shape, got_BL.dtype) == ((4, 3), jnp.float32)
    for label, n in enumerate(labels.target_length):
        target = np.tile(labels.target_ids[label, :n], (4, 1))
        inputs = torch_inputs(questions._replace(target_ids=target, target_length=np.full(4, n)))
        with torch.no_grad():
            log_probs = reference(kind)[0](**inputs).logits.log_softmax(dim=-1)
        want_B = log_probs.gather(2, inputs["labels"][:, :, None]).sum(dim=(1, 2))
        np.testing.assert_allclose(got_BL[:, label], want_B, rtol=0, atol=1e-4)


def test_padding_of_labels_and_questions_changes_no_score(untied, make_view):
    student, params = untied
    score = jax.jit(student.score)
    narrow, wide = (make_view(3, [5, 9], [1, 1], S=S) for S in (9, 12))
    labels = make_view(4, [1, 1], [3, 2], T=3)
    want_BL = score(params, narrow.input_ids, narrow.input_length, labels.target_ids, labels.target_length)
    input_ids = np.full_like(wide.input_ids, 7)
    input_ids[:, :9] = narrow.input_ids
    label_ids = np.full((2, 5), 7, np.int32)
    label_ids[0, :3], label_ids[1, :2] = labels.target_ids[0], labels.target_ids[1, :2]
    got_BL = score(params, input_ids, narrow.input_length, label_ids, labels.target_length)
    np.testing.assert_allclose(got_BL, want_BL, rtol=1e-5)


def test_each_question_is_read_once(untied, make_view, monkeypatch):
    student, params = untied
    view, read = make_view(4, [11, 3], [1, 4]), []
    for method in ("encode", "remember"):
        original = getattr(T5, method)

        def spy(module, x, *args, original=original):
            read.append(x.shape)
            return original(module, x, *args)

        monkeypatch.setattr(T5, method, spy)
    inputs = (params, view.input_ids, view.input_length)
    jax.eval_shape(functools.partial(student.beam_search, max_new_tokens=5, beams=4), *inputs)
    jax.eval_shape(student.score, *inputs, view.target_ids, view.target_length)
    assert read == 2 * [(2, 11), (2, 11, 32)]


def test_bfloat16_is_for_arithmetic_only(untied, view):
    exact, params = untied
    student = dataclasses.replace(exact, dtype=jnp.bfloat16)
    assert jax.eval_shape(student.hidden, params, {"v": view}, None)["v"].dtype == jnp.bfloat16
    assert student.head(params).dtype == np.float32
    shapes = jax.eval_shape(student.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
    generate = functools.partial(student.generate, max_new_tokens=5)
    tokens_BT, log_prob_B = jax.eval_shape(generate, params, view.input_ids, view.input_length)
    assert (tokens_BT.shape, tokens_BT.dtype) == ((4, 5), jnp.int32)
    assert (log_prob_B.shape, log_prob_B.dtype) == ((4,), jnp.float32)


@pytest.mark.parametrize(("ids", "rows"), [(32_100, 32_128), (300, 384), (384, 384)])
def test_from_scratch_has_a_row_for_every_id(ids, rows):
    student = tiny(vocab_size=ids, pad_id=3, eos_id=2)
    assert (student.vocab_size, student.pad_id, student.eos_id) == (rows, 3, 2)
    assert student.config.decoder_start_token_id == 3
    params = jax.eval_shape(student.init, jax.random.key(0))
    assert params["shared"].shape == (rows, student.config.d_model)
    assert jax.eval_shape(student.head, params).shape == (student.config.d_model, rows)


def test_unknown_preset():
    with pytest.raises(UserError, match=r'config.model.preset: no "huge"; choose one of tiny, small, base'):
        from_scratch("huge", vocab_size=10, dropout_rate=0.0, dtype=jnp.float32, pad_id=0, eos_id=1)


def test_from_pretrained_takes_dropout_and_dtype_from_the_caller(tmp_path):
    shapes = jax.eval_shape(tiny().init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes)
    huggingface.save(tmp_path, tiny().config, params)
    student, loaded = from_pretrained(str(tmp_path), dropout_rate=0.25, dtype=jnp.bfloat16)
    assert (student.config.dropout_rate, student.dtype, student.vocab_size) == (0.25, jnp.bfloat16, 384)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
