"""Autoregressive decoding on the device, for any model that can take one step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# (id_B, position, cache) -> (float32 logits_BV of the next token, cache with id_B at position).
# The batch is axis 1 of every cache leaf, so that `beam_search` can reorder it.
Step = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

# (logits_BV, position) -> id_B. Greedy here; sampling folds the position into its key.
Choose = Callable[[jax.Array, jax.Array], jax.Array]


class _State(NamedTuple):
    position: jax.Array
    last_id: jax.Array  # (B,)
    ended: jax.Array  # (B,)
    tokens: jax.Array  # (B, T)
    cache: Any


def greedy(logits_BV: jax.Array, position: jax.Array) -> jax.Array:
    """The most probable token, the first of equals."""
    del position
    return jnp.argmax(logits_BV, axis=-1)


def decode(
    step: Step,
    cache: Any,
    start_B: jax.Array,
    choose: Choose,
    *,
    max_new_tokens: int,
    eos_id: int,
    pad_id: int,
) -> jax.Array:
    """Up to `max_new_tokens` tokens for each row, stopping when every row has written `eos_id`.

    Args:
      step: the model, one token at a time.
      cache: what `step` takes at position 0, with room for `max_new_tokens`.
      start_B: (B,) int32, the token each row starts from; it is not part of the result.
      choose: picks the next token from the logits.
      max_new_tokens: T, static.
      eos_id: ends a row and is part of the result.
      pad_id: what follows the end.

    Returns:
      tokens_BT: (B, max_new_tokens) int32.
    """

    def unfinished(state: _State) -> jax.Array:
        return (state.position < max_new_tokens) & ~jnp.all(state.ended)

    def extend(state: _State) -> _State:
        logits_BV, cache = step(state.last_id, state.position, state.cache)
        id_B = jnp.where(state.ended, pad_id, choose(logits_BV, state.position)).astype(jnp.int32)
        return _State(
            position=state.position + 1,
            last_id=id_B,
            ended=state.ended | (id_B == eos_id),
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, id_B, state.position, axis=1),
            cache=cache,
        )

    state = _State(
        position=jnp.int32(0),
        last_id=start_B,
        ended=jnp.zeros(start_B.shape, bool),
        tokens=jnp.full((*start_B.shape, max_new_tokens), pad_id, jnp.int32),
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, extend, state).tokens


class _Beams(NamedTuple):
    position: jax.Array
    last_id: jax.Array  # (B * K,)
    tokens: jax.Array  # (B, K, T), the beams that go on, the best first
    log_prob: jax.Array  # (B, K), theirs
    ended_tokens: jax.Array  # (B, K, T), the best hypotheses that have ended
    ended_score: jax.Array  # (B, K), theirs in descending order; -inf: none yet
    decided: jax.Array  # (B,), the row takes no more hypotheses
    cache: Any


def beam_search(
    step: Step,
    cache: Any,
    start_B: jax.Array,
    *,
    beams: int,
    max_new_tokens: int,
    length_penalty: float,
    early_stopping: bool,
    eos_id: int,
    pad_id: int,
) -> tuple[jax.Array, jax.Array]:
    """The K best continuations of each row that a beam search finds, by log_prob / length**length_penalty.

    The search of Wu et al. 2016, "Google's Neural Machine Translation System", section 7, with the
    penalty, the order of steps and the end that Transformers gave it: sequences and scores are those of
    `generate(num_beams=K, do_sample=False)`. A beam has one way to end, so that of the 2K best
    continuations of a row at least K go on; those among the first K that end become hypotheses.
    A row is decided when it has K hypotheses and its best beam, were it to end here, would not beat the
    worst of them. No row depends on what else is in the batch.

    Args:
      step: the model, one token at a time, on rows b * K + k.
      cache: what `step` takes at position 0, for B * K rows, with room for `max_new_tokens`.
      start_B: (B,) int32, the token each row starts from; it is not part of the result.
      beams: K, static, less than the vocabulary.
      max_new_tokens: T, static; a beam of this length has ended.
      length_penalty: exponent of the length; above 0 it favours long hypotheses.
      early_stopping: a row is decided with its K-th hypothesis, whatever its beams promise.
      eos_id: ends a beam and is part of the result.
      pad_id: what follows the end.

    Returns:
      tokens_BKT: (B, K, T) int32, the best first.
      score_BK: (B, K) float32.
    """
    B, K, T = len(start_B), beams, max_new_tokens

    def unfinished(state: _Beams) -> jax.Array:
        return (state.position < T) & ~jnp.all(state.decided)

    def extend(state: _Beams) -> _Beams:
        logits_XV, cache = step(state.last_id, state.position, state.cache)
        V = logits_XV.shape[-1]
        log_prob_BKV = state.log_prob[:, :, None] + jax.nn.log_softmax(logits_XV).reshape(B, K, V)
        log_prob_BC, index_BC = jax.lax.top_k(log_prob_BKV.reshape(B, K * V), 2 * K)
        beam_BC, id_BC = jnp.divmod(index_BC, V)
        tokens_BCT = _take(state.tokens, beam_BC).at[:, :, state.position].set(id_BC)
        length = state.position + 1
        penalty = length.astype(jnp.float32) ** length_penalty
        ends_BC = (id_BC == eos_id) | (length == T)

        new_BK = ends_BC[:, :K] & ~state.decided[:, None]
        score_BK = jnp.where(new_BK, log_prob_BC[:, :K] / penalty, -jnp.inf)
        score_BC = jnp.concatenate([state.ended_score, score_BK], axis=1)
        ended_score_BK, best_BK = jax.lax.top_k(score_BC, K)
        ended_BCT = jnp.concatenate([state.ended_tokens, tokens_BCT[:, :K]], axis=1)

        log_prob_BK, next_BK = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, log_prob_BC), K)
        beam_BK = _take(beam_BC, next_BK)
        promise_B, worst_B = log_prob_BK[:, 0] / penalty, ended_score_BK[:, -1]
        return _Beams(
            position=length,
            last_id=_take(id_BC, next_BK).reshape(B * K),
            tokens=_take(tokens_BCT, next_BK),
            log_prob=log_prob_BK,
            ended_tokens=_take(ended_BCT, best_BK),
            ended_score=ended_score_BK,
            decided=state.decided | ((worst_B > -jnp.inf) & (early_stopping | (promise_B <= worst_B))),
            cache=jax.tree.map(lambda leaf: _take_rows(leaf, beam_BK), cache),
        )

    empty_BKT = jnp.full((B, K, T), pad_id, jnp.int32)
    state = _Beams(
        position=jnp.int32(0),
        last_id=jnp.repeat(start_B, K),
        tokens=empty_BKT,
        # All beams are the same yet: only the first counts.
        log_prob=jnp.full((B, K), -jnp.inf).at[:, 0].set(0.0),
        ended_tokens=empty_BKT,
        ended_score=jnp.full((B, K), -jnp.inf),
        decided=jnp.zeros(B, bool),
        cache=cache,
    )
    state = jax.lax.while_loop(unfinished, extend, state)
    return state.ended_tokens, state.ended_score


def _take(x: jax.Array, beam_BJ: jax.Array, axis: int = 1) -> jax.Array:
    """`x` with the entries `beam_BJ` of its `axis`, of which B is the axis before.

    Along an axis, and not rows of B * K, so that a batch sharded over B stays on its devices.
    """
    index = beam_BJ.reshape((1,) * (axis - 1) + beam_BJ.shape + (1,) * (x.ndim - axis - 1))
    return jnp.take_along_axis(x, index, axis, mode="clip")


def _take_rows(leaf: jax.Array, beam_BK: jax.Array) -> jax.Array:
    N, X, *others = leaf.shape
    return _take(leaf.reshape(N, *beam_BK.shape, *others), beam_BK, axis=2).reshape(N, X, *others)
