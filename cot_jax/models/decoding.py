"""Autoregressive decoding on the device, for any student that provides a `Prompt`."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Array = TypeVar("Array", jax.Array, np.ndarray)

# (ids_BT, position of the first, cache) -> (float32 logits_BTV of the next token, cache with the T tokens).
Step = Callable[[jax.Array, jax.Array | int, Any], tuple[jax.Array, Any]]


class Prompt(NamedTuple):
    """A student that has read its inputs and is about to write.

    Attributes:
      step: computes the next logits.
      cache: the cache of `step` at position 0. Axis 1 of every leaf is the rows.
      first_B: (B,) int32, the token each row starts from; not part of the output.
      ends: each of these ids ends a row and is part of the output.
      pad_id: fills a row after its end.
    """

    step: Step
    cache: Any
    first_B: jax.Array
    ends: tuple[int, ...]
    pad_id: int


# (logits_BV, position) -> id_B
Choose = Callable[[jax.Array, jax.Array], jax.Array]


class _State(NamedTuple):
    position: jax.Array
    last_id: jax.Array  # (B,)
    ended: jax.Array  # (B,)
    tokens: jax.Array  # (B, T)
    log_prob: jax.Array  # (B,), of the tokens so far
    cache: Any


class Sampling(NamedTuple):
    """Filters of the student's distribution, applied in this order, as in Transformers.

    Attributes:
      temperature: logits are divided by it; above 0.
      top_k: keep the `top_k` most probable tokens (Fan et al. 2018, "Hierarchical Neural Story Generation",
        section 5); 0: all.
      top_p: keep the fewest most probable tokens that together reach this probability (Holtzman et al. 2020,
        "The Curious Case of Neural Text Degeneration", section 3.1); above 0, 1: all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def filtered(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """The filtered logits: -inf for what is never drawn. Equal logits are kept or dropped together."""
    logits_BV /= sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[1]:
        least_B1 = _top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
    if sampling.top_p < 1:
        prob_BV = jax.nn.softmax(logits_BV)
        logits_BV = jnp.where(prob_BV >= _least_of_nucleus(prob_BV, sampling.top_p), logits_BV, -jnp.inf)
    return logits_BV


def _least_of_nucleus(prob_BV: jax.Array, top_p: float) -> jax.Array:
    """(B, 1), the least of the fewest probabilities that together reach `top_p`.

    It is the smallest number above which the total is less than `top_p`, found by bisection on the bits of
    non-negative floats, which are in the order of the floats. On CPU a sort takes ten times as long.
    """

    def halve(_, bounds):
        low_B1, high_B1 = bounds
        middle_B1 = low_B1 + (high_B1 - low_B1) // 2
        above_BV = prob_BV > jax.lax.bitcast_convert_type(middle_B1, jnp.float32)
        less_B1 = jnp.sum(prob_BV, axis=1, keepdims=True, where=above_BV) < top_p
        return jnp.where(less_B1, low_B1, middle_B1 + 1), jnp.where(less_B1, middle_B1, high_B1)

    high_B1 = jax.lax.bitcast_convert_type(prob_BV.max(axis=1, keepdims=True), jnp.int32)
    # The bits of 1.0 are less than 2**30.
    _, least_B1 = jax.lax.fori_loop(0, 30, halve, (jnp.zeros_like(high_B1), high_B1))
    return jax.lax.bitcast_convert_type(least_B1, jnp.float32)


def greedy(prompt: Prompt, most: int) -> tuple[jax.Array, jax.Array]:
    """Takes the most probable token at each position, the first of equals; see `_write`."""
    return _write(prompt, most, lambda logits_BV, _: jnp.argmax(logits_BV, axis=-1))


def sample(
    prompt: Prompt, most: int, key_B: jax.Array, samples: int, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """Drawn continuations (B, samples, most) int32 and their log-probabilities (B, samples).

    Log-probabilities are those of the unfiltered distribution, as in `greedy`. Draws depend on the row and
    its key only; more samples extend fewer samples.

    Args:
      prompt: with rows b * samples + k.
    """
    split = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    key_BK = split(key_B, jnp.arange(samples))
    key_R = key_BK.reshape(-1)

    def choose(logits_RV: jax.Array, position: jax.Array) -> jax.Array:
        key_of_position_R = jax.vmap(jax.random.fold_in, (0, None))(key_R, position)
        return jax.vmap(jax.random.categorical)(key_of_position_R, filtered(logits_RV, sampling))

    tokens_RT, log_prob_R = _write(prompt, most, choose)
    return tokens_RT.reshape(*key_BK.shape, most), log_prob_R.reshape(key_BK.shape)


def score(prompt: Prompt, ids_LT: jax.Array, length_L: jax.Array) -> jax.Array:
    """log p(label | input), (B, L) float32, summed over the label's tokens, including the end.

    Args:
      prompt: with room for T tokens.
      ids_LT: int32, the labels.
      length_L: their lengths in tokens.
    """
    B, T = len(prompt.first_B), ids_LT.shape[1]

    def one(label: tuple[jax.Array, jax.Array]) -> jax.Array:
        ids_BT, length = jnp.broadcast_to(label[0], (B, T)), label[1]
        before_BT = jnp.concatenate([prompt.first_B[:, None], ids_BT[:, :-1]], axis=1)
        logits_BTV, _ = prompt.step(before_BT, 0, prompt.cache)
        return jnp.sum(log_prob(logits_BTV, ids_BT), axis=1, where=jnp.arange(T)[None, :] < length)

    # One label at a time: the logits of many labels would not fit in memory.
    return jax.lax.map(one, (ids_LT, length_L)).T


def _write(prompt: Prompt, most: int, choose: Choose) -> tuple[jax.Array, jax.Array]:
    """Writes up to `most` tokens in each row and stops when every row has ended.

    Returns:
      tokens_BT: (B, most) int32.
      log_prob_B: (B,) float32, the sum of their log-probabilities, including the end, under the student's
        unfiltered distribution: what `score` returns for the same tokens.
    """

    def unfinished(state: _State) -> jax.Array:
        return (state.position < most) & ~jnp.all(state.ended)

    def extend(state: _State) -> _State:
        logits_B1V, cache = prompt.step(state.last_id[:, None], state.position, state.cache)
        logits_BV = logits_B1V[:, 0]
        id_B = jnp.where(state.ended, prompt.pad_id, choose(logits_BV, state.position)).astype(jnp.int32)
        log_prob_B = jnp.where(state.ended, 0.0, log_prob(logits_BV, id_B))
        return _State(
            position=state.position + 1,
            last_id=id_B,
            ended=state.ended | is_end(id_B, prompt.ends),
            tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, id_B, state.position, axis=1),
            log_prob=state.log_prob + log_prob_B,
            cache=cache,
        )

    state = _State(
        position=jnp.int32(0),
        last_id=prompt.first_B,
        ended=jnp.zeros(prompt.first_B.shape, bool),
        tokens=jnp.full((*prompt.first_B.shape, most), prompt.pad_id, jnp.int32),
        log_prob=jnp.zeros(prompt.first_B.shape, jnp.float32),
        cache=prompt.cache,
    )
    state = jax.lax.while_loop(unfinished, extend, state)
    return state.tokens, state.log_prob


def log_prob(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """(..., V) float32 and (...) int32 -> (...) float32, the log-probabilities of `ids`."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1)[..., 0]


def is_end(ids: Array, ends: tuple[int, ...]) -> Array:
    """Whether each id is one of `ends`."""
    return functools.reduce(operator.or_, [ids == end for end in ends], ids < 0)


def written_length(tokens: Array, ends: tuple[int, ...]) -> Array:
    """(..., T) -> (...): the number of tokens up to and including the first of `ends`; T without one."""
    ended = is_end(tokens, ends)
    return (ended.cumsum(axis=-1) - ended == 0).sum(axis=-1)


class _Beams(NamedTuple):
    position: jax.Array
    last_id: jax.Array  # (B * K,)
    tokens: jax.Array  # (B, K, T), the unfinished beams, best first
    log_prob: jax.Array  # (B, K), theirs
    ended_tokens: jax.Array  # (B, K, T), the best finished hypotheses
    ended_score: jax.Array  # (B, K), theirs in descending order; -inf: none yet
    decided: jax.Array  # (B,), whether the row takes no more hypotheses
    cache: Any


def beam_search(prompt: Prompt, most: int, beams: int) -> tuple[jax.Array, jax.Array]:
    """Beam search for the K best continuations of each input, by log_prob / length.

    Wu et al. 2016, "Google's Neural Machine Translation System", section 7, with the penalty, the order of
    steps and the stopping rule of Transformers: sequences and scores equal those of
    `generate(num_beams=K, do_sample=False)`. With one end token, at least K of the 2K best continuations of
    a row are unfinished; each further end token adds K candidates. Those among the first K that end become
    hypotheses. A row is decided when it has K hypotheses and its best beam, if it ended now, would not beat
    the worst of them. Rows are independent of the rest of the batch.

    Args:
      prompt: with rows b * K + k.
      most: T; a beam of this length ends.
      beams: K.

    Returns:
      tokens_BKT: (B, K, T) int32, best first.
      score_BK: (B, K) float32; -inf where a row has fewer continuations.
    """
    K, T = beams, most
    B = len(prompt.first_B) // K

    def unfinished(state: _Beams) -> jax.Array:
        return (state.position < T) & ~jnp.all(state.decided)

    def extend(state: _Beams) -> _Beams:
        logits_R1V, cache = prompt.step(state.last_id[:, None], state.position, state.cache)
        V = logits_R1V.shape[-1]
        log_prob_BKV = state.log_prob[:, :, None] + jax.nn.log_softmax(logits_R1V).reshape(B, K, V)
        candidates = min((1 + max(1, len(prompt.ends))) * K, K * V)
        log_prob_BC, index_BC = _top_k(log_prob_BKV.reshape(B, K * V), candidates)
        beam_BC, id_BC = jnp.divmod(index_BC, V)
        tokens_BCT = _take(state.tokens, beam_BC).at[:, :, state.position].set(id_BC)
        length = state.position + 1
        ends_BC = is_end(id_BC, prompt.ends) | (length == T)

        new_BK = ends_BC[:, :K] & ~state.decided[:, None]
        score_BK = jnp.where(new_BK, log_prob_BC[:, :K] / length, -jnp.inf)
        score_BC = jnp.concatenate([state.ended_score, score_BK], axis=1)
        ended_score_BK, best_BK = jax.lax.top_k(score_BC, K)
        ended_BCT = jnp.concatenate([state.ended_tokens, tokens_BCT[:, :K]], axis=1)

        log_prob_BK, next_BK = jax.lax.top_k(jnp.where(ends_BC, -jnp.inf, log_prob_BC), K)
        beam_BK = _take(beam_BC, next_BK)
        promise_B, worst_B = log_prob_BK[:, 0] / length, ended_score_BK[:, -1]
        return _Beams(
            position=length,
            last_id=_take(id_BC, next_BK).reshape(B * K),
            tokens=_take(tokens_BCT, next_BK),
            log_prob=log_prob_BK,
            ended_tokens=_take(ended_BCT, best_BK),
            ended_score=ended_score_BK,
            decided=state.decided | ((worst_B > -jnp.inf) & (promise_B <= worst_B)),
            cache=jax.tree.map(lambda leaf: _take_rows(leaf, beam_BK), cache),
        )

    empty_BKT = jnp.full((B, K, T), prompt.pad_id, jnp.int32)
    state = _Beams(
        position=jnp.int32(0),
        last_id=prompt.first_B,
        tokens=empty_BKT,
        # All beams are equal at first: only one counts.
        log_prob=jnp.full((B, K), -jnp.inf).at[:, 0].set(0.0),
        ended_tokens=empty_BKT,
        ended_score=jnp.full((B, K), -jnp.inf),
        decided=jnp.zeros(B, bool),
        cache=prompt.cache,
    )
    state = jax.lax.while_loop(unfinished, extend, state)
    return state.ended_tokens, state.ended_score


def _top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` whose result may be sliced.

    XLA would merge the slices, no longer recognise a top-k and sort everything: on CPU, 64 rows of T5's
    vocabulary take 630 ms instead of 4.
    """
    return jax.lax.optimization_barrier(jax.lax.top_k(x, k))


def _take(x: jax.Array, beam_BJ: jax.Array, axis: int = 1) -> jax.Array:
    """The entries `beam_BJ` of `x` along `axis`; the axis before it is B.

    Indexing an axis, not B * K rows, keeps a batch that is sharded over B on its devices.
    """
    index = beam_BJ.reshape((1,) * (axis - 1) + beam_BJ.shape + (1,) * (x.ndim - axis - 1))
    return jnp.take_along_axis(x, index, axis, mode="clip")


def _take_rows(leaf: jax.Array, beam_BK: jax.Array) -> jax.Array:
    N, X, *others = leaf.shape
    return _take(leaf.reshape(N, *beam_BK.shape, *others), beam_BK, axis=2).reshape(N, X, *others)
