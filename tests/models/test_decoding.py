import functools
import itertools
import re

import axes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flat_batches import batch, by_example, flat, rectangle, sequences
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.batch import Tokens
from cot_jax.models import decoding
from cot_jax.models.decoding import Prompt, Sampling
from cot_jax.models.t5 import T5


def scripted(step, cache, first):
    return Prompt(step, cache, jnp.asarray(first, jnp.int32), ends=(1,), pad_id=0)


# --- Greedy ---


def write(script_BT, most):
    """Greedy decoding where the script's token is the most probable at (row, position); and the steps."""
    steps = []

    def step(ids_B1, position, cache):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        logits_B1V = jax.nn.one_hot(jnp.asarray(script_BT)[:, position, None], 10)
        return logits_B1V, cache.at[0, :, position].set(ids_B1[:, 0])

    B = len(script_BT)
    tokens_BT, log_prob_B = decoding.greedy(
        scripted(step, jnp.zeros((1, B, most), jnp.int32), jnp.full(B, 7)), most
    )
    jax.effects_barrier()
    return tokens_BT, log_prob_B, steps


def test_a_row_is_padded_after_its_end_and_the_loop_stops_with_the_last_row():
    tokens_BT, log_prob_B, steps = write([[3, 1, 4, 4, 4, 4], [1, 5, 5, 5, 5, 5], [6, 6, 6, 1, 9, 9]], 6)
    np.testing.assert_array_equal(tokens_BT, [[3, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [6, 6, 6, 1, 0, 0]])
    assert tokens_BT.dtype == jnp.int32
    assert sorted(steps) == [0, 1, 2, 3]
    # Each of them has logit 1, the nine others 0; what comes after the end does not count.
    one = 1 - np.log(np.e + 9)
    np.testing.assert_allclose(log_prob_B, [2 * one, one, 4 * one], rtol=1e-6)


def test_rows_that_never_end_stop_at_the_limit():
    tokens_BT, _, steps = write([[3, 4, 5], [6, 7, 8]], 3)
    np.testing.assert_array_equal(tokens_BT, [[3, 4, 5], [6, 7, 8]])
    assert len(steps) == 3


def test_each_step_gets_the_token_before_and_the_cache():
    def step(ids_B1, position, cache):
        cache = cache.at[0, :, position].set(ids_B1[:, 0])
        # Predicts 1 + the sum of what the cache holds, the start token included.
        return jax.nn.one_hot(1 + cache[0].sum(axis=1), 64)[:, None], cache

    tokens_BT, _ = decoding.greedy(scripted(step, jnp.zeros((1, 2, 4), jnp.int32), [2, 3]), 4)
    np.testing.assert_array_equal(tokens_BT, [[3, 6, 12, 24], [4, 8, 16, 32]])


@pytest.mark.parametrize("of", [np.asarray, jnp.asarray])
def test_what_is_written_ends_with_the_first_end(of):
    tokens_BT = of([[0, 1, 0, 0], [3, 4, 5, 6], [1, 1, 0, 0], [3, 4, 5, 1]])
    np.testing.assert_array_equal(decoding.written_length(tokens_BT, (1,)), [2, 4, 1, 4])


def test_equal_logits_give_the_first_token():
    def step(ids_B1, position, cache):
        return jnp.array([[[0.0, 2.0, 2.0]]]), cache

    tokens_BT, _ = decoding.greedy(scripted(step, jnp.zeros((1, 1)), [2]), 1)
    assert tokens_BT[0, 0] == 1


@functools.cache
def writer(student, most):
    return jax.jit(lambda params, inputs: decoding.greedy(student.prompt(params, inputs, most), most))


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_tokens_and_their_log_probability_are_those_of_transformers(
    torch, reference, ours, torch_inputs, kind
):
    ends = set()
    for seed in range(3):
        questions = sequences(seed + 10, [17, 3, 9, 1, 12, 17, 5, 8])
        model = reference(kind, seed)[0]
        with torch.no_grad():
            output = model.generate(
                **torch_inputs(questions),
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
        student, params = ours(kind, seed)
        # Three of 72 slots hold nothing, and the longest question is shorter than the width.
        got, log_prob_B = writer(student, 20)(params, flat(questions, extra=3, wider=1))
        np.testing.assert_array_equal(got, np.pad(want, ((0, 0), (0, 20 - want.shape[1]))))
        real_BT = np.arange(want.shape[1]) < decoding.written_length(want, (1,))[:, None]
        np.testing.assert_allclose(log_prob_B, log_prob_BT.sum(axis=1, where=real_BT), rtol=1e-5)
        ends |= {int(np.argmax(row == 1)) if 1 in row else None for row in want}
    assert None in ends, "no row runs to the limit"
    assert len(ends) > 3, "rows do not end at different places"


def test_the_memory_of_writing_grows_with_what_is_written_and_not_with_its_square(ours):
    student, params = ours("v1.0")
    sizes = []
    for most in (1024, 4096):
        with axes.checked():
            program = writer(student, most).lower(params, flat(sequences(0, [5]))).compile()
        sizes.append(program.memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 5 * sizes[0]


def test_what_is_written_is_the_argmax_of_hidden_states(untied, hidden):
    student, params = untied
    questions = sequences(4, [11, 3, 7, 9])
    tokens_BT = np.asarray(writer(student, 9)(params, flat(questions))[0])
    answers = [row[:n] for row, n in zip(tokens_BT, decoding.written_length(tokens_BT, (1,)), strict=True)]
    examples = batch({"view": (questions, answers)})
    logits_GYV = hidden(student, params, examples)["view"] @ student.head(params)
    best = by_example(examples.views["view"].targets, logits_GYV.argmax(axis=-1))
    np.testing.assert_array_equal(np.concatenate(best), np.concatenate(answers))


# --- Sampling ---


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
    got_BV = decoding.filtered(jnp.asarray(logits_BV), sampling)
    np.testing.assert_allclose(got_BV, want_BV, rtol=1e-6)
    kept = set(np.isfinite(want_BV.numpy()).sum(axis=1).tolist())
    assert len(kept) > 1 or sampling.top_p in (1, 0.01)


def test_filters_keep_equals_together():
    logits_BV = jnp.log(jnp.array([[0.3, 0.1, 0.3, 0.1, 0.2]]))
    for sampling in (Sampling(top_k=4), Sampling(top_p=0.85)):
        assert jnp.isfinite(decoding.filtered(logits_BV, sampling)).all()
    for sampling in (Sampling(top_k=1), Sampling(top_k=2), Sampling(top_p=0.2), Sampling(top_p=0.55)):
        kept = jnp.isfinite(decoding.filtered(logits_BV, sampling))
        np.testing.assert_array_equal(kept, [[True, False, True, False, False]])


def test_no_vocabulary_is_sorted():
    choose = functools.partial(decoding.filtered, sampling=Sampling(0.7, 40, 0.9))
    text = jax.jit(choose).lower(jnp.zeros((4, 2000))).compile().as_text()
    assert "TopK" in text
    assert " sort(" not in text


def test_tokens_are_drawn_as_often_as_they_are_probable():
    B, V = 20_000, 12
    logits_V = jnp.asarray(np.random.default_rng(0).normal(size=V).astype("f"))
    sampling = Sampling(temperature=1.3, top_k=10, top_p=0.95)

    def step(ids_B1, position, cache):
        return jnp.broadcast_to(logits_V, (B, 1, V)), cache

    prompt = Prompt(step, None, jnp.zeros(B, jnp.int32), ends=(-1,), pad_id=0)
    tokens_B1T, _ = decoding.sample(prompt, 2, jax.random.split(jax.random.key(0), B), 1, sampling)
    prob_V = np.asarray(jax.nn.softmax(decoding.filtered(logits_V[None], sampling))[0], float)
    drawn = prob_V > 0
    assert 5 < drawn.sum() < 10
    # Pairs: the two positions do not know of each other.
    counts_VV = np.zeros((V, V))
    np.add.at(counts_VV, tuple(np.asarray(tokens_B1T)[:, 0].T), 1)
    expected_VV = B * np.outer(prob_V, prob_V)
    assert counts_VV[np.ix_(drawn, drawn)].sum() == B
    statistic = np.sum((counts_VV - expected_VV)[expected_VV > 0] ** 2 / expected_VV[expected_VV > 0])
    # The seed is one of the 99 in 100 that pass.
    assert statistic < scipy.stats.chi2.ppf(0.99, drawn.sum() ** 2 - 1)


@functools.cache
def scorer(student):
    @jax.jit
    def score(params, inputs, ids_LT, length_L):
        return decoding.score(student.prompt(params, inputs, ids_LT.shape[1]), ids_LT, length_L)

    return score


@pytest.mark.slow
def test_draws_of_a_row_depend_on_the_row_and_its_key_only(ending):
    student, params = ending
    questions = sequences(6, [11, 3, 7, 9])
    key_B = jax.random.split(jax.random.key(1), 4)

    @functools.partial(jax.jit, static_argnames="samples")
    def sample(params, inputs, key_B, samples):
        prompt = student.prompt(params, inputs, 8, rows=samples)
        return decoding.sample(prompt, 8, key_B, samples, Sampling(0.9, 40, 0.95))

    inputs = flat(questions, wider=3)
    tokens_BKT, log_prob_BK = sample(params, inputs, key_B, samples=3)
    assert (tokens_BKT.shape, tokens_BKT.dtype) == ((4, 3, 8), jnp.int32)
    assert (log_prob_BK.shape, log_prob_BK.dtype) == ((4, 3), jnp.float32)
    assert len({tuple(row) for row in np.asarray(tokens_BKT).reshape(12, 8).tolist()}) == 12
    length_BK = decoding.written_length(tokens_BKT, student.ends)
    assert len(set(length_BK.ravel().tolist())) > 1

    # As if all rows' samples were the labels of every row: each row's own are on the diagonal.
    log_prob_BL = scorer(student)(params, inputs, tokens_BKT.reshape(12, 8), length_BK.ravel())
    own_BK = np.diagonal(log_prob_BL.reshape(4, 4, 3)).T
    np.testing.assert_allclose(log_prob_BK, own_BK, rtol=1e-5)

    # Others beside it, another width, other groups, fewer samples.
    order = np.array([3, 1, 1, 2])
    again_BKT, again_BK = sample(
        params, flat([questions[i] for i in order], groups=2), key_B[order], samples=2
    )
    np.testing.assert_array_equal(again_BKT, tokens_BKT[order, :2])
    np.testing.assert_allclose(again_BK, log_prob_BK[order, :2], rtol=1e-5)


# --- Beams ---


@functools.cache
def searcher(student, most, beams):
    @jax.jit
    def search(params, inputs):
        return decoding.beam_search(student.prompt(params, inputs, most, rows=beams), most, beams)

    return search


@pytest.mark.parametrize(("kind", "beams"), [("v1.0", 4), ("v1.1", 2), ("v1.1", 5)])
def test_beams_are_those_of_transformers(torch, reference, ours, torch_inputs, kind, beams):
    lengths = set()
    for seed in range(3):
        questions = sequences(seed, [17, 3, 9, 1, 12])
        with torch.no_grad():
            want = reference(kind, seed)[0].generate(
                **torch_inputs(questions),
                max_new_tokens=12,
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                return_dict_in_generate=True,
                output_scores=True,
            )
        student, params = ours(kind, seed)
        search = searcher(student, 12, beams)
        got_BKT, score_BK = search(params, flat(questions))
        assert (got_BKT.shape, got_BKT.dtype) == ((5, beams, 12), jnp.int32)
        assert (score_BK.shape, score_BK.dtype) == ((5, beams), jnp.float32)
        np.testing.assert_allclose(score_BK.ravel(), want.sequences_scores, rtol=0, atol=1e-5)
        for row, want_row in zip(got_BKT.reshape(5 * beams, 12), want.sequences.numpy(), strict=True):
            # Transformers fills up with the end where the padding is 0.
            n = int(decoding.written_length(want_row[1:], (1,)))
            np.testing.assert_array_equal(row, np.pad(want_row[1 : n + 1], (0, 12 - n)))
            lengths.add(n)
    assert 12 in lengths, "no hypothesis runs to the limit"
    assert len(lengths) > 3, "hypotheses do not end at different places"


def search(log_odds_BTV, steps, beams):
    """Beams over next tokens that depend on the position only, and the cache: all tokens before."""

    def step(ids_R1, position, cache):
        jax.debug.callback(lambda p: steps.append(int(p)), position)
        logits_RV = jnp.repeat(log_odds_BTV[:, position], beams, axis=0)
        return logits_RV[:, None], cache.at[0, :, position].set(ids_R1[:, 0])

    B, T, _ = log_odds_BTV.shape
    prompt = scripted(step, jnp.zeros((1, B * beams, T), jnp.int32), jnp.full(B * beams, 3))
    found = decoding.beam_search(prompt, T, beams)
    jax.effects_barrier()
    return found


def test_beams_stop_when_every_row_is_decided():
    # Tokens: padding, end, "a", "b". The first row likes to end at once, the second a token later.
    likely, late = [0.0, 0.6, 0.3, 0.1], [0.0, 0.0, 0.9, 0.1]
    p_BTV = jnp.array([[likely] * 6, [late, *[likely] * 5]])
    steps = []
    tokens_BKT, score_BK = search(jnp.log(p_BTV), steps, beams=2)
    want = [[[1, 0, 0], [2, 1, 0]], [[2, 1, 0], [2, 2, 1]]]
    np.testing.assert_array_equal(tokens_BKT, np.pad(want, ((0, 0), (0, 0), (0, 3))))
    np.testing.assert_allclose(score_BK, np.log([[0.6, 0.18], [0.54, 0.162]]) / [[1, 2], [2, 3]], rtol=1e-6)
    assert sorted(steps) == [0, 1, 2]


def test_a_promising_beam_continues():
    # The first row has two hypotheses by position 1, but "a a" is the best prefix and then ends for
    # sure; the second row keeps the search going in any case.
    p_BTV = jnp.array(
        [[[0.0, 0.3, 0.6, 0.1], [0.0, 0.3, 0.7, 0.0], [0.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.6, 0.4]] * 3]
    )
    tokens_BKT, _ = search(jnp.log(p_BTV), [], beams=2)
    np.testing.assert_array_equal(tokens_BKT[0], [[2, 2, 1], [2, 1, 0]])


def test_beams_that_never_end_stop_at_the_limit():
    p_BTV = jnp.array([[[0.0, 0.0, 0.6, 0.4]] * 3])
    tokens_BKT, score_BK = search(jnp.log(p_BTV), [], beams=2)
    np.testing.assert_array_equal(tokens_BKT[0, 0], [2, 2, 2])
    np.testing.assert_allclose(score_BK, np.log([[0.6**3, 0.6**2 * 0.4]]) / 3, rtol=1e-6)


def test_a_beam_brings_its_cache_along():
    # The next token is the sum of all before it, plus 0 with probability 0.4 and plus 1 with 0.6.
    def step(ids_R1, position, cache):
        cache = cache.at[0, :, position].set(ids_R1[:, 0])
        total_R = cache[0].sum(axis=1)
        p_RV = 0.4 * jax.nn.one_hot(total_R, 64) + 0.6 * jax.nn.one_hot(total_R + 1, 64)
        return jnp.log(p_RV)[:, None], cache

    prompt = scripted(step, jnp.zeros((1, 8, 3), jnp.int32), [2] * 4 + [5] * 4)
    tokens_BKT, score_BK = decoding.beam_search(prompt, 3, 4)
    for start, tokens_KT, score_K in zip([2, 5], tokens_BKT, score_BK, strict=True):
        every = {}
        for choices in itertools.product([0, 1], repeat=3):
            tokens = [start]
            for plus in choices:
                tokens.append(sum(tokens) + plus)
            every[tuple(tokens[1:])] = np.log([0.4, 0.6])[list(choices)].sum()
        best = sorted(every.values(), reverse=True)[:4]
        np.testing.assert_allclose(3 * score_K, best, rtol=1e-5)
        np.testing.assert_allclose([every[tuple(row.tolist())] for row in tokens_KT], best, rtol=1e-5)


def test_beams_of_a_row_do_not_depend_on_the_batch(ending):
    student, params = ending
    questions, order = sequences(6, [11, 3, 7, 9]), [3, 3, 1, 0]
    search = searcher(student, 8, 3)
    tokens_BKT, score_BK = search(params, flat(questions, extra=2))
    again_BKT, again_BK = search(params, flat([questions[i] for i in order]))
    np.testing.assert_array_equal(again_BKT, tokens_BKT[np.array(order)])
    np.testing.assert_allclose(again_BK, score_BK[np.array(order)], rtol=1e-5)


def test_a_batch_divided_over_devices_searches_where_it_is(untied):
    student, params = untied
    inputs = flat(sequences(7, [9] * 16), groups=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    groups, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def search(params, inputs):
        return decoding.beam_search(student.prompt(params, inputs, 4, rows=3), 4, 3)

    search = jax.jit(search, in_shardings=(everywhere, groups), out_shardings=groups)
    text = search.lower(params, inputs).compile().as_text()
    assert not re.findall(r"all-to-all|collective-permute| sort\(", text)
    # XLA knows top_k as a whole only, so that it gathers the candidates; the caches (rank 5) stay.
    gathered = re.findall(r"\[([\d,]*)\]\S* all-gather\(", text)
    assert {len(shape.split(",")) for shape in gathered} <= {2}


# --- Scores of labels ---


def test_what_is_written_scores_what_it_scored(ending, hidden):
    student, params = ending
    questions = sequences(4, [11, 3, 7, 9])
    inputs = flat(questions)
    tokens_BKT, score_BK = searcher(student, 9, 3)(params, inputs)
    greedy_BT, greedy_B = writer(student, 9)(params, inputs)
    tokens_BJT = np.concatenate([tokens_BKT, greedy_BT[:, None]], axis=1)
    length_BJ = decoding.written_length(tokens_BJT, student.ends)
    assert len(set(length_BJ.ravel().tolist())) > 2
    # As if all rows' answers were the labels of every row: each row's own are on the diagonal.
    log_prob_BL = scorer(student)(params, inputs, tokens_BJT.reshape(-1, 9), length_BJ.ravel())
    own_BJ = np.diagonal(log_prob_BL.reshape(4, 4, 4)).T
    np.testing.assert_allclose(own_BJ[:, :3] / length_BJ[:, :3], score_BK, rtol=1e-5)
    np.testing.assert_allclose(own_BJ[:, 3], greedy_B, rtol=1e-5)
    answers = [row[:n] for row, n in zip(tokens_BJT[:, 3], length_BJ[:, 3], strict=True)]
    examples = batch({"view": (questions, answers)})
    best = jax.nn.log_softmax(hidden(student, params, examples)["view"] @ student.head(params)).max(axis=-1)
    want_B = [row.sum() for row in by_example(examples.views["view"].targets, best)]
    np.testing.assert_allclose(own_BJ[:, 3], want_B, rtol=1e-5)


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_label_scores_are_those_of_transformers(torch, reference, ours, torch_inputs, kind):
    student, params = ours(kind)
    questions, labels = sequences(8, [17, 3, 9, 1]), sequences(9, [2, 5, 1])
    got_BL = scorer(student)(
        params, flat(questions), rectangle(labels)[0].astype(np.int32), np.array([2, 5, 1])
    )
    assert (got_BL.shape, got_BL.dtype) == ((4, 3), jnp.float32)
    for label, ids in enumerate(labels):
        inputs = torch_inputs(questions, [ids] * 4)
        with torch.no_grad():
            log_probs = reference(kind)[0](**inputs).logits.log_softmax(dim=-1)
        want_B = log_probs.gather(2, inputs["labels"][:, :, None]).sum(dim=(1, 2))
        np.testing.assert_allclose(got_BL[:, label], want_B, rtol=0, atol=1e-4)


def test_padding_of_labels_and_questions_changes_no_score(untied):
    student, params = untied
    questions, (one, two) = sequences(3, [5, 9]), sequences(4, [3, 2])
    lengths = np.array([3, 2], np.int32)
    want_BL = scorer(student)(params, flat(questions), rectangle([one, two])[0].astype(np.int32), lengths)
    label_ids = np.full((2, 5), 7, np.int32)
    label_ids[0, :3], label_ids[1, :2] = one, two
    got_BL = scorer(student)(params, flat(questions, extra=4, wider=3, filler=7), label_ids, lengths)
    np.testing.assert_allclose(got_BL, want_BL, rtol=1e-5)


def test_each_question_is_read_once(untied, monkeypatch):
    """However many rows read it, its keys and values are computed and kept once."""
    student, params = untied
    inputs, read = flat(sequences(4, [11, 3])), []
    encode = T5._encode

    def spy(self, params, layout, key):
        read.append(layout.ids_GX.shape)
        return encode(self, params, layout, key)

    monkeypatch.setattr(T5, "_encode", spy)
    jax.eval_shape(
        lambda params: decoding.beam_search(student.prompt(params, inputs, 5, rows=4), 5, 4), params
    )
    labels = np.ones((3, 4), np.int32), np.full(3, 4)
    jax.eval_shape(lambda params: decoding.score(student.prompt(params, inputs, 4), *labels), params)
    assert read == 2 * [(1, 14)]
    sizes = set()
    program = jax.make_jaxpr(lambda params: student.prompt(params, inputs, 5, rows=4).cache)(params)
    for equation in program.jaxpr.eqns:
        sizes |= {v.aval.shape for v in equation.outvars}
    assert (2, 2, 11, 4, 8) in sizes  # layers, questions, positions, heads, head size
    assert (2, 8, 11, 4, 8) not in sizes


def test_rows_are_next_to_each_other_for_each_input_of_each_group(untied):
    student, params = untied
    tokens = flat(sequences(1, [4, 2, 3, 5]), groups=2)
    prompt = jax.jit(lambda params: student.prompt(params, tokens, 3, rows=2).first_B)(params)
    assert prompt.shape == (8,)

    @functools.partial(jax.jit, static_argnums=2)
    def first(params, tokens, rows):
        prompt = student.prompt(params, tokens, 3, rows)
        return prompt.step(prompt.first_B[:, None], 0, prompt.cache)[0][:, 0]

    single = first(params, tokens, 1)
    np.testing.assert_allclose(first(params, tokens, 2), np.repeat(single, 2, axis=0), rtol=1e-5, atol=1e-5)
    alone = first(params, Tokens(tokens.ids[1:], tokens.length[1:], 5), 1)
    np.testing.assert_allclose(alone, single[2:], rtol=1e-5, atol=1e-5)
