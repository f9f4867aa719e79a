"""AdamW with linear decay, as the published recipes use it."""

import jax
import optax

from cot_jax.config import OptimizerConfig


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up from 0, then linear decay to 0 at `steps`.

    The first update of a run without warm-up is made at the peak and the last one at peak / steps,
    as by `transformers.get_linear_schedule_with_warmup`.
    """
    decay = optax.linear_schedule(config.learning_rate, 0.0, max(steps - config.warmup_steps, 1))
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) behind a clip of the gradient's global norm."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=_decayed,
        ),
    )


def _decayed(params):
    """True for the parameters that weight decay acts on: all but norms and biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not any(word in jax.tree_util.keystr(path) for word in ("norm", "bias")), params
    )
