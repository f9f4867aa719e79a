"""AdamW as in the published recipes, or Adafactor, whose state is almost free."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from cot_jax.config import OptimizerConfig
from cot_jax.models.numerics import mix
from cot_jax.models.weights import Params, Weights, decays

# Matrices with a smaller side keep a full second moment, as in the code of Raffel et al. 2020.
_LEAST_FACTORED = 128


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up from 0, then linear decay to 0 at `steps`, or constant.

    Without warm-up the first update uses the peak rate and the last one peak / steps, as
    `transformers.get_linear_schedule_with_warmup` does.
    """
    last = config.learning_rate if config.schedule == "constant" else 0.0
    decay = optax.linear_schedule(config.learning_rate, last, max(steps - config.warmup_steps, 1))
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int, weights: Weights) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov and Hutter 2019) or Adafactor (Shazeer and Stern 2018), after norm clipping.

    Adafactor is algorithm 4 with the relative step sizes of Raffel et al. 2020: decay 1 - t**-0.8, updates
    clipped at a root mean square of 1 and scaled by the parameter's, no first moment. Weight decay is
    decoupled in both: learning rate x decay x parameter. `weights` are the trained ones.
    """
    scale = _adam(config) if config.name == "adamw" else _by_matrix(_adafactor(), weights)

    def decayed(params: Params) -> Params:
        flat = {path: decays(path, weights[path]) for path in flatten_dict(params, sep="/")}
        return unflatten_dict(flat, sep="/")

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.chain(
            scale,
            optax.add_decayed_weights(config.weight_decay, decayed),
            optax.scale_by_learning_rate(make_schedule(config, steps)),
        ),
    )


def _adafactor() -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=_LEAST_FACTORED),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(1e-3),
    )


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam with moments stored in `moment_dtype`; updates are computed in float32."""
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if config.moment_dtype == "float32":
        return adam

    def narrow(state):
        return state._replace(
            mu=jax.tree.map(lambda m: _dithered(m, state.count), state.mu),
            nu=jax.tree.map(lambda v: _dithered(v, state.count), state.nu),
        )

    def update(grads, state, params=None):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (state.mu, state.nu))
        updates, state = adam.update(grads, state._replace(mu=wide[0], nu=wide[1]), params)
        return updates, narrow(state)

    return optax.GradientTransformation(lambda params: narrow(adam.init(params)), update)


def _dithered(x: jax.Array, count: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16 stochastically: up or down, with the probability that keeps the mean exact.

    Rounded to nearest, a second moment would never decrease: a step changes it by 1 - b2 = 0.001 of itself,
    and bfloat16's next number is 0.004 away. The noise is a hash of value and step, not a random number: it
    costs no memory, needs no communication, and a resumed run rounds like an uninterrupted one.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = mix(bits ^ mix(count.astype(jnp.uint32))) >> 16
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def _by_matrix(inner: optax.GradientTransformation, weights: Weights) -> optax.GradientTransformation:
    """Applies `inner` to each layer's parameters separately, as matrices (inputs, outputs).

    A leaf that stacks all layers, or splits a matrix's outputs into heads, is thus updated like the separate,
    whole matrices of Raffel et al. 2020.
    """
    one_state = jax.tree.structure(jax.eval_shape(inner.init, jnp.zeros(1)))

    def as_matrices(path: Any, x: jax.Array) -> tuple[jax.Array, Callable]:
        """Returns a parameter as matrices or vectors, and the transform that maps a function over them."""
        weight = weights["/".join(key.key for key in path)]
        if weight.is_stacked:
            return x.reshape(weight.layers, *weight.matrix), jax.vmap
        return x.reshape(weight.matrix), lambda one: one

    def init(params):
        def one(path, param):
            matrices, each = as_matrices(path, param)
            return each(inner.init)(matrices)

        states = jax.tree.map_with_path(one, params)
        # Like other optimizers' states, it holds trees of the parameters' structure.
        return jax.tree.transpose(jax.tree.structure(params), one_state, states)

    def update(grads, state, params):
        def one(path, grad, param, state):
            (matrices, each), (of_param, _) = as_matrices(path, grad), as_matrices(path, param)
            update, state = each(inner.update)(matrices, state, of_param)
            return update.reshape(grad.shape), state

        like = jax.tree.structure(params)
        states = jax.tree.transpose(one_state, like, state)
        pairs = jax.tree.map_with_path(one, grads, params, states)
        updates, states = (jax.tree.map(lambda _, pair, i=i: pair[i], grads, pairs) for i in (0, 1))
        return updates, jax.tree.transpose(like, one_state, states)

    return optax.GradientTransformation(init, update)
