import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
