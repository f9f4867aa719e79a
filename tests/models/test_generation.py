import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from cot_jax.models.generation import Sampling
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.models import generation


def scripted(script_BT, steps):
    """A step whose most probable token at (row, position) is the script's, counting its calls."""

    def step(id_B, position, cache):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        return jax.nn.one_hot(jnp.asarray(script_BT)[:, position], 10), cache.at[:, :, position].set(
            id_B[None]
        )

    return step


def decode(script_BT, max_new_tokens):
    steps = []
    tokens_BT, log_prob_B = generation.decode(
        scripted(script_BT, steps),
        jnp.zeros((1, len(script_BT), max_new_tokens), jnp.int32),
        jnp.full(len(script_BT), 7, jnp.int32),
        generation.greedy,
        max_new_tokens=max_new_tokens,
        eos_id=1,
        pad_id=0,
    )
    jax.effects_barrier()
    return tokens_BT, log_prob_B, steps


def test_a_row_is_padded_after_its_end_and_the_loop_stops_with_the_last_row():
    tokens_BT, log_prob_B, steps = decode([[3, 1, 4, 4, 4, 4], [1, 5, 5, 5, 5, 5], [6, 6, 6, 1, 9, 9]], 6)
    np.testing.assert_array_equal(tokens_BT, [[3, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [6, 6, 6, 1, 0, 0]])
    assert tokens_BT.dtype == jnp.int32
    assert sorted(steps) == [0, 1, 2, 3]
    # Each of them has logit 1, the nine others 0; what comes after the end does not count.
    one = 1 - np.log(np.e + 9)
    np.testing.assert_allclose(log_prob_B, [2 * one, one, 4 * one], rtol=1e-6)


def test_rows_that_never_end_stop_at_the_limit():
    tokens_BT, _, steps = decode([[3, 4, 5], [6, 7, 8]], 3)
    np.testing.assert_array_equal(tokens_BT, [[3, 4, 5], [6, 7, 8]])
    assert len(steps) == 3


def test_each_step_gets_the_token_before_and_the_cache():
    def step(id_B, position, cache):
        cache = cache.at[0, :, position].set(id_B)
        # Predicts 1 + the sum of what the cache holds, the start token included.
        return jax.nn.one_hot(1 + cache[0].sum(axis=1), 64), cache

    tokens_BT, _ = generation.decode(
        step,
        jnp.zeros((1, 2, 4), jnp.int32),
        jnp.array([2, 3], jnp.int32),
        generation.greedy,
        max_new_tokens=4,
        eos_id=1,
        pad_id=0,
    )
    np.testing.assert_array_equal(tokens_BT, [[3, 6, 12, 24], [4, 8, 16, 32]])


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_what_is_written_ends_with_the_first_end(of):
    tokens_BT = of([[0, 1, 0, 0], [3, 4, 5, 6], [1, 1, 0, 0], [3, 4, 5, 1]])
    np.testing.assert_array_equal(generation.written_length(tokens_BT, 1), [2, 4, 1, 4])


def test_equal_logits_give_the_first_token():
    assert generation.greedy(jnp.array([[0.0, 2.0, 2.0]]), jnp.int32(0))[0] == 1


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_tokens_and_their_log_probability_are_those_of_transformers(
    torch, reference, ours, make_view, torch_inputs, kind
):
    generate = jax.jit(ours(kind)[0].generate, static_argnums=3)
    ends = set()
    for seed in range(3):
        view = make_view(seed, [17, 3, 9, 1, 12, 17, 5, 8], [1] * 8)
        inputs = torch_inputs(view)
        del inputs["labels"]
        model = reference(kind, seed)[0]
        with torch.no_grad():
            output = model.generate(
                **inputs,
                max_new_tokens=20,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                output_scores=True,
            )
            log_prob_BT = model.compute_transition_scores(
                output.sequences, output.scores, normalize_logits=True
            ).numpy()
        want = output.sequences.numpy()[:, 1:]
        got, log_prob_B = generate(ours(kind, seed)[1], view.input_ids, view.input_length, 20)
        np.testing.assert_array_equal(got, np.pad(want, ((0, 0), (0, 20 - want.shape[1]))))
        real_BT = np.arange(want.shape[1]) < generation.written_length(want, 1)[:, None]
        np.testing.assert_allclose(log_prob_B, log_prob_BT.sum(axis=1, where=real_BT), rtol=1e-5)
        ends |= {int(np.argmax(row == 1)) if 1 in row else None for row in want}
    assert None in ends, "no row runs to the limit"
    assert len(ends) > 3, "rows do not end at different places"


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(top_k=1),
        Sampling(top_k=7),
        Sampling(top_k=500),
        Sampling(top_p=0.9),
        Sampling(top_p=0.01),
        Sampling(temperature=1.7, top_k=40, top_p=0.5),
        Sampling(temperature=0.5, top_k=40, top_p=0.999),
    ],
)
def test_filters_are_those_of_transformers(torch, sampling):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits_BV = 6 * np.random.default_rng(0).normal(size=(32, 96)).astype("f")
    want_BV = TemperatureLogitsWarper(sampling.temperature)(None, torch.from_numpy(logits_BV))
    if sampling.top_k:
        want_BV = TopKLogitsWarper(sampling.top_k)(None, want_BV)
    if sampling.top_p < 1:
        want_BV = TopPLogitsWarper(sampling.top_p)(None, want_BV)
    got_BV = generation.filtered(jnp.asarray(logits_BV), sampling)
    np.testing.assert_allclose(got_BV, want_BV, rtol=1e-6)
    kept = set(np.isfinite(want_BV.numpy()).sum(axis=1).tolist())
    assert len(kept) > 1 or sampling.top_p in (1, 0.01)


def test_filters_keep_equals_together():
    logits_BV = jnp.log(jnp.array([[0.3, 0.1, 0.3, 0.1, 0.2]]))
    for sampling in (Sampling(top_k=4), Sampling(top_p=0.85)):
        assert jnp.isfinite(generation.filtered(logits_BV, sampling)).all()
    for sampling in (Sampling(top_k=1), Sampling(top_k=2), Sampling(top_p=0.2), Sampling(top_p=0.55)):
        kept = jnp.isfinite(generation.filtered(logits_BV, sampling))
        np.testing.assert_array_equal(kept, [[True, False, True, False, False]])


def test_no_vocabulary_is_sorted():
    choose = functools.partial(generation.filtered, sampling=Sampling(0.7, 40, 0.9))
    text = jax.jit(choose).lower(jnp.zeros((4, 2000))).compile().as_text()
    assert "TopK" in text
    assert " sort(" not in text


def test_tokens_are_drawn_as_often_as_they_are_probable():
    B, V = 20_000, 12
    logits_V = jnp.asarray(np.random.default_rng(0).normal(size=V).astype("f"))
    sampling = Sampling(temperature=1.3, top_k=10, top_p=0.95)
    tokens_BT, _ = generation.decode(
        lambda id_B, position, cache: (jnp.broadcast_to(logits_V, (B, V)), cache),
        None,
        jnp.zeros(B, jnp.int32),
        generation.sampler(jax.random.split(jax.random.key(0), B), sampling),
        max_new_tokens=2,
        eos_id=-1,
        pad_id=0,
    )
    prob_V = np.asarray(jax.nn.softmax(generation.filtered(logits_V[None], sampling))[0], float)
    drawn = prob_V > 0
    assert 5 < drawn.sum() < 10
    # Pairs: the two positions do not know of each other.
    counts_VV = np.zeros((V, V))
    np.add.at(counts_VV, tuple(np.asarray(tokens_BT).T), 1)
    expected_VV = B * np.outer(prob_V, prob_V)
    assert counts_VV[np.ix_(drawn, drawn)].sum() == B
    statistic = np.sum((counts_VV - expected_VV)[expected_VV > 0] ** 2 / expected_VV[expected_VV > 0])
    # The seed is one of the 99 in 100 that pass.
    assert statistic < scipy.stats.chi2.ppf(0.99, drawn.sum() ** 2 - 1)


def test_draws_of_a_row_depend_on_the_row_and_its_key_only(ending, make_view):
    student, params = ending
    view = make_view(6, [11, 3, 7, 9], [1] * 4, S=14)
    key_B = jax.random.split(jax.random.key(1), 4)
    sample = functools.partial(student.sample, max_new_tokens=8, sampling=Sampling(0.9, 40, 0.95))
    sample = jax.jit(sample, static_argnames="samples")
    tokens_BKT, log_prob_BK = sample(params, view.input_ids, view.input_length, key_B=key_B, samples=3)
    assert (tokens_BKT.shape, tokens_BKT.dtype) == ((4, 3, 8), jnp.int32)
    assert (log_prob_BK.shape, log_prob_BK.dtype) == ((4, 3), jnp.float32)
    assert len({tuple(row) for row in np.asarray(tokens_BKT).reshape(12, 8).tolist()}) == 12
    length_BK = generation.written_length(tokens_BKT, student.eos_id)
    assert len(set(length_BK.ravel().tolist())) > 1

    # As if all rows' samples were the labels of every row: each row's own are on the diagonal.
    log_prob_BL = jax.jit(student.score)(
        params, view.input_ids, view.input_length, tokens_BKT.reshape(12, 8), length_BK.ravel()
    )
    own_BK = np.diagonal(log_prob_BL.reshape(4, 4, 3)).T
    np.testing.assert_allclose(log_prob_BK, own_BK, rtol=1e-5)

    # Others beside it, less padding, fewer samples.
    order = np.array([3, 1, 1])
    again_BKT, again_BK = sample(
        params, view.input_ids[order][:, :11], view.input_length[order], key_B=key_B[order], samples=2
    )
    np.testing.assert_array_equal(again_BKT, tokens_BKT[order, :2])
    np.testing.assert_allclose(again_BK, log_prob_BK[order, :2], rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "beams", "length_penalty", "early_stopping"),
    [
        ("v1.0", 2, 0.6, False),
        ("v1.0", 4, 1.0, True),
        ("v1.1", 5, 1.0, False),
        ("v1.1", 3, 2.0, False),
    ],
)
def test_beams_are_those_of_transformers(
    torch, reference, ours, make_view, torch_inputs, kind, beams, length_penalty, early_stopping
):
    options = {"beams": beams, "length_penalty": length_penalty, "early_stopping": early_stopping}
    search = jax.jit(functools.partial(ours(kind)[0].beam_search, **options), static_argnums=3)
    lengths = set()
    for seed in range(3):
        view = make_view(seed, [17, 3, 9, 1, 12], [1] * 5)
        inputs = torch_inputs(view)
        del inputs["labels"]
        with torch.no_grad():
            want = reference(kind, seed)[0].generate(
                **inputs,
                max_new_tokens=12,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                return_dict_in_generate=True,
                output_scores=True,
            )
        got_BKT, score_BK = search(ours(kind, seed)[1], view.input_ids, view.input_length, 12)
        assert (got_BKT.shape, got_BKT.dtype) == ((5, beams, 12), jnp.int32)
        assert (score_BK.shape, score_BK.dtype) == ((5, beams), jnp.float32)
        np.testing.assert_allclose(score_BK.ravel(), want.sequences_scores, rtol=0, atol=1e-5)
        for row, want_row in zip(got_BKT.reshape(5 * beams, 12), want.sequences.numpy(), strict=True):
            # Transformers fills up with the end where the padding is 0.
            n = int(generation.written_length(want_row[1:], 1))
            np.testing.assert_array_equal(row, np.pad(want_row[1 : n + 1], (0, 12 - n)))
            lengths.add(n)
    assert 12 in lengths, "no hypothesis runs to the limit"
    assert len(lengths) > 3, "hypotheses do not end at different places"


def search(log_odds_BTV, steps, **options):
    """Beams over next tokens that depend on the position only, and the cache: all tokens before."""

    def step(id_X, position, cache):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        beams = len(id_X) // len(log_odds_BTV)
        return jnp.repeat(log_odds_BTV[:, position], beams, axis=0), cache.at[0, :, position].set(id_X)

    B, T, _ = log_odds_BTV.shape
    beams = options["beams"]
    found = generation.beam_search(
        step,
        jnp.zeros((1, B * beams, T), jnp.int32),
        jnp.full(B, 3, jnp.int32),
        max_new_tokens=T,
        **{"length_penalty": 1.0, "early_stopping": False} | options,
        eos_id=1,
        pad_id=0,
    )
    jax.effects_barrier()
    return found


def test_beams_stop_when_every_row_is_decided():
    # Tokens: padding, end, "a", "b". The first row likes to end at once, the second a token later.
    likely, late = [0.0, 0.6, 0.3, 0.1], [0.0, 0.0, 0.9, 0.1]
    p_BTV = jnp.array([[likely] * 6, [late, *[likely] * 5]])
    steps = []
    tokens_BKT, score_BK = search(jnp.log(p_BTV), steps, beams=2, length_penalty=0.0)
    want = [[[1, 0, 0], [2, 1, 0]], [[2, 1, 0], [2, 2, 1]]]
    np.testing.assert_array_equal(tokens_BKT, np.pad(want, ((0, 0), (0, 0), (0, 3))))
    np.testing.assert_allclose(score_BK, np.log([[0.6, 0.18], [0.54, 0.162]]), rtol=1e-6)
    assert sorted(steps) == [0, 1, 2]


def test_a_promising_beam_goes_on_unless_stopped_early():
    # The first row has two hypotheses by position 1, but "a a" is the best prefix and then ends for
    # sure; the second row keeps the search going in any case.
    p_BTV = jnp.array(
        [[[0.0, 0.3, 0.6, 0.1], [0.0, 0.3, 0.7, 0.0], [0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.6, 0.4]] * 3]
    )
    tokens_BKT, _ = search(jnp.log(p_BTV), [], beams=2)
    np.testing.assert_array_equal(tokens_BKT[0], [[2, 2, 1], [2, 1, 0]])
    tokens_BKT, _ = search(jnp.log(p_BTV), [], beams=2, early_stopping=True)
    np.testing.assert_array_equal(tokens_BKT[0], [[2, 1, 0], [1, 0, 0]])
    steps = []
    search(jnp.log(p_BTV[:1]), steps, beams=2, early_stopping=True)
    assert len(steps) == 2


def test_beams_that_never_end_stop_at_the_limit():
    p_BTV = jnp.array([[[0.0, 0.0, 0.6, 0.4]] * 3])
    tokens_BKT, score_BK = search(jnp.log(p_BTV), [], beams=2, length_penalty=2.0)
    np.testing.assert_array_equal(tokens_BKT[0, 0], [2, 2, 2])
    np.testing.assert_allclose(score_BK, np.log([[0.6**3, 0.6**2 * 0.4]]) / 9, rtol=1e-6)


def test_a_beam_brings_its_cache_along():
    # The next token is the sum of all before it, plus 0 with probability 0.4 and plus 1 with 0.6.
    def step(id_X, position, cache):
        cache = cache.at[0, :, position].set(id_X)
        total_X = cache[0].sum(axis=1)
        p_XV = 0.4 * jax.nn.one_hot(total_X, 64) + 0.6 * jax.nn.one_hot(total_X + 1, 64)
        return jnp.log(p_XV), cache

    tokens_BKT, score_BK = generation.beam_search(
        step,
        jnp.zeros((1, 8, 3), jnp.int32),
        jnp.array([2, 5], jnp.int32),
        beams=4,
        max_new_tokens=3,
        length_penalty=0.0,
        early_stopping=False,
        eos_id=1,
        pad_id=0,
    )
    for start, tokens_KT, score_K in zip([2, 5], tokens_BKT, score_BK, strict=True):
        every = {}
        for choices in itertools.product([0, 1], repeat=3):
            tokens = [start]
            for plus in choices:
                tokens.append(sum(tokens) + plus)
            every[tuple(tokens[1:])] = np.log([0.4, 0.6])[list(choices)].sum()
        best = sorted(every.values(), reverse=True)[:4]
        np.testing.assert_allclose(score_K, best, rtol=1e-5)
        np.testing.assert_allclose([every[tuple(row.tolist())] for row in tokens_KT], best, rtol=1e-5)


def test_one_beam_stopped_early_is_greedy(ending, make_view):
    student, params = ending
    view = make_view(5, [11, 3, 7, 9], [1] * 4)
    inputs = (params, view.input_ids, view.input_length)
    options = {"max_new_tokens": 9, "beams": 1, "early_stopping": True}
    tokens_BKT, score_BK = jax.jit(functools.partial(student.beam_search, **options))(*inputs)
    greedy_BT, log_prob_B = jax.jit(functools.partial(student.generate, max_new_tokens=9))(*inputs)
    np.testing.assert_array_equal(tokens_BKT[:, 0], greedy_BT)
    length_B = generation.written_length(greedy_BT, student.eos_id)
    np.testing.assert_allclose(score_BK[:, 0] * length_B, log_prob_B, rtol=1e-5)
    assert len(set(length_B.tolist())) > 1


def test_beams_of_a_row_do_not_depend_on_the_batch(ending, make_view):
    student, params = ending
    view = make_view(6, [11, 3, 7, 9], [1] * 4, S=14)
    search = jax.jit(functools.partial(student.beam_search, max_new_tokens=8, beams=3))
    tokens_BKT, score_BK = search(params, view.input_ids, view.input_length)
    order = np.array([3, 3, 1, 0])
    again_BKT, again_BK = search(params, view.input_ids[order], view.input_length[order])
    assert search._cache_size() == 1
    np.testing.assert_array_equal(again_BKT, tokens_BKT[order])
    np.testing.assert_allclose(again_BK, score_BK[order], rtol=1e-5)


def test_a_batch_sharded_over_its_rows_searches_where_it_is(untied, make_view):
    student, params = untied
    view = make_view(7, [9] * 16, [1] * 16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    search = functools.partial(student.beam_search, max_new_tokens=4, beams=3)
    search = jax.jit(search, in_shardings=(everywhere, rows, rows), out_shardings=rows)
    text = search.lower(params, view.input_ids, view.input_length).compile().as_text()
    assert not re.findall(r"all-to-all|collective-permute| sort\(", text)
    # XLA knows top_k as a whole only, so that it gathers the candidates; the caches (rank 5) stay.
    gathered = re.findall(r"\[([\d,]*)\]\S* all-gather\(", text)
    assert {len(shape.split(",")) for shape in gathered} <= {2}
