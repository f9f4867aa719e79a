"""Autoregressive decoding on the device, for any model that can take one step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# (id_B, position, cache) -> (float32 logits_BV of the next token, cache with id_B at position).
# The batch is axis 1 of every cache leaf, so that a search over beams can reorder it.
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
