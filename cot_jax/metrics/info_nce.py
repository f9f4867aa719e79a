"""A trained lower bound of the mutual information between two representations of the same examples.

InfoNCE (van den Oord et al. 2018, Eq. 4-5; Poole et al. 2019, Eq. 12): with a critic f and K pairs,

    I(X; Y) >= log K + mean_i log( exp f(x_i, y_i) / sum_j exp f(x_i, y_j) ),

which is at most log K for any critic. The critic here is separable, f = g(x) . h(y), with one hidden layer
per side. It is trained on some pairs and the bound is evaluated on others, so memorised pairs do not count.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

_HIDDEN, _CODE = 256, 64
_BATCH, _STEPS, _LEARNING_RATE = 256, 400, 1e-3
# Maximum candidates per question for the critic. Two views of a question share much information: with 64, the
# bound is at its cap for any student.
_PAIRS = 1024

Critic = dict[str, Any]


def most_nats(held_out_pairs: int) -> float:
    """Returns the maximum of the bound on `held_out_pairs` pairs, in nats."""
    return math.log(min(_PAIRS, held_out_pairs))


def info_nce(
    x_ND: np.ndarray, y_ND: np.ndarray, held_out_x_MD: np.ndarray, held_out_y_MD: np.ndarray
) -> float:
    """Returns the InfoNCE bound of I(X; Y) in nats on held-out pairs, for a critic trained on (x, y).

    Args:
      x_ND, y_ND: float, the training pairs.
      held_out_x_MD, held_out_y_MD: the pairs of the bound; the first 1,024 if there are more.

    Raises:
      ValueError: fewer than two held-out pairs.
    """
    if len(held_out_x_MD) < 2:
        raise ValueError("InfoNCE needs at least two held-out pairs")
    x_ND, held_out_x_MD = _standardised(x_ND, held_out_x_MD)
    y_ND, held_out_y_MD = _standardised(y_ND, held_out_y_MD)
    batches = np.random.default_rng(0).integers(len(x_ND), size=(_STEPS, min(_BATCH, len(x_ND))))
    critic = _train(jax.random.key(0), x_ND, y_ND, batches)
    pairs = min(_PAIRS, len(held_out_x_MD))
    loss = _loss(critic, jnp.asarray(held_out_x_MD[:pairs]), jnp.asarray(held_out_y_MD[:pairs]))
    return most_nats(pairs) - float(loss)


def _standardised(train_ND: np.ndarray, held_out_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train_ND.mean(axis=0), train_ND.std(axis=0) + 1e-6
    train_ND, held_out_MD = (train_ND - mean) / deviation, (held_out_MD - mean) / deviation
    return train_ND.astype(np.float32), held_out_MD.astype(np.float32)


@jax.jit
def _train(key: jax.Array, x_ND: jax.Array, y_ND: jax.Array, batches: jax.Array) -> Critic:
    optimizer = optax.adamw(optax.cosine_decay_schedule(_LEARNING_RATE, _STEPS), weight_decay=1e-2)
    of_x, of_y = jax.random.split(key)
    critic = {"x": _side(of_x, x_ND.shape[1]), "y": _side(of_y, y_ND.shape[1])}

    def step(state, rows):
        critic, moments = state
        gradient = jax.grad(lambda critic: _loss(critic, x_ND[rows], y_ND[rows]))(critic)
        updates, moments = optimizer.update(gradient, moments, critic)
        return (optax.apply_updates(critic, updates), moments), None

    (critic, _), _ = jax.lax.scan(step, (critic, optimizer.init(critic)), batches)
    return critic


def _side(key: jax.Array, width: int) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    normal = jax.nn.initializers.lecun_normal()
    return {
        "hidden": normal(first, (width, _HIDDEN)),
        "bias": jnp.zeros(_HIDDEN),
        "code": normal(second, (_HIDDEN, _CODE)),
    }


@jax.jit
def _loss(critic: Critic, x_BD: jax.Array, y_BD: jax.Array) -> jax.Array:
    """-mean log softmax over candidates, of y for each x and of x for each y."""

    def code(side, x_BD):
        return jax.nn.gelu(x_BD @ side["hidden"] + side["bias"][None, :]) @ side["code"]

    score_BB = code(critic["x"], x_BD) @ code(critic["y"], y_BD).T
    pairs = jnp.arange(len(x_BD))
    of_y, of_x = (jax.nn.log_softmax(score_BB, axis)[pairs, pairs].mean() for axis in (1, 0))
    return -(of_y + of_x) / 2
