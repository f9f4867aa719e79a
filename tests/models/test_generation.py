import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    tokens_BT = generation.decode(
        scripted(script_BT, steps),
        jnp.zeros((1, len(script_BT), max_new_tokens), jnp.int32),
        jnp.full(len(script_BT), 7, jnp.int32),
        generation.greedy,
        max_new_tokens=max_new_tokens,
        eos_id=1,
        pad_id=0,
    )
    jax.effects_barrier()
    return tokens_BT, steps


def test_a_row_is_padded_after_its_end_and_the_loop_stops_with_the_last_row():
    tokens_BT, steps = decode([[3, 1, 4, 4, 4, 4], [1, 5, 5, 5, 5, 5], [6, 6, 6, 1, 9, 9]], 6)
    np.testing.assert_array_equal(tokens_BT, [[3, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [6, 6, 6, 1, 0, 0]])
    assert tokens_BT.dtype == jnp.int32
    assert sorted(steps) == [0, 1, 2, 3]


def test_rows_that_never_end_stop_at_the_limit():
    tokens_BT, steps = decode([[3, 4, 5], [6, 7, 8]], 3)
    np.testing.assert_array_equal(tokens_BT, [[3, 4, 5], [6, 7, 8]])
    assert len(steps) == 3


def test_each_step_gets_the_token_before_and_the_cache():
    def step(id_B, position, cache):
        cache = cache.at[0, :, position].set(id_B)
        # Predicts 1 + the sum of what the cache holds, the start token included.
        return jax.nn.one_hot(1 + cache[0].sum(axis=1), 64), cache

    tokens_BT = generation.decode(
        step,
        jnp.zeros((1, 2, 4), jnp.int32),
        jnp.array([2, 3], jnp.int32),
        generation.greedy,
        max_new_tokens=4,
        eos_id=1,
        pad_id=0,
    )
    np.testing.assert_array_equal(tokens_BT, [[3, 6, 12, 24], [4, 8, 16, 32]])


def test_equal_logits_give_the_first_token():
    assert generation.greedy(jnp.array([[0.0, 2.0, 2.0]]), jnp.int32(0))[0] == 1


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
def test_tokens_are_those_of_transformers(torch, reference, ours, make_view, torch_inputs, kind):
    generate = jax.jit(ours(kind)[0].generate, static_argnums=3)
    ends = set()
    for seed in range(3):
        view = make_view(seed, [17, 3, 9, 1, 12, 17, 5, 8], [1] * 8)
        inputs = torch_inputs(view)
        del inputs["labels"]
        with torch.no_grad():
            want = reference(kind, seed)[0].generate(
                **inputs, max_new_tokens=20, do_sample=False, num_beams=1
            )
        want = want.numpy()[:, 1:]
        got = generate(ours(kind, seed)[1], view.input_ids, view.input_length, 20)
        np.testing.assert_array_equal(got, np.pad(want, ((0, 0), (0, 20 - want.shape[1]))))
        ends |= {int(np.argmax(row == 1)) if 1 in row else None for row in want}
    assert None in ends, "no row runs to the limit"
    assert len(ends) > 3, "rows do not end at different places"


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
            n = until_end(want_row[1:])
            np.testing.assert_array_equal(row, np.pad(want_row[1 : n + 1], (0, 12 - n)))
            lengths.add(n)
    assert 12 in lengths, "no hypothesis runs to the limit"
    assert len(lengths) > 3, "hypotheses do not end at different places"


def until_end(tokens):
    """The number of tokens up to the end, which counts."""
    return int(np.argmax(tokens == 1)) + 1 if 1 in tokens else len(tokens)


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
    tokens_BKT, _ = jax.jit(functools.partial(student.beam_search, **options))(*inputs)
    greedy_BT = jax.jit(functools.partial(student.generate, max_new_tokens=9))(*inputs)
    np.testing.assert_array_equal(tokens_BKT[:, 0], greedy_BT)
    assert len({until_end(row) for row in np.asarray(greedy_BT)}) > 1


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
    assert not re.findall(r"all-to-all|collective-permute", text)
    # XLA knows top_k as a whole only, so that it gathers the candidates; the caches (rank 5) stay.
    gathered = re.findall(r"\[([\d,]*)\]\S* all-gather\(", text)
    assert {len(shape.split(",")) for shape in gathered} <= {2}
