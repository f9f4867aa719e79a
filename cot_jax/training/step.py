"""The train state and the one pure step that every method shares."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cot_jax.losses.objective import Objective
from cot_jax.losses.soft_targets import LastBatch
from cot_jax.models.weights import Params, layer_norms

# Prefix of the layers' metrics, before STACK/LAYER.
LAYER_NORM = "grad_norm/"


class Frozen(NamedTuple):
    """Parameters that a step reads but does not train; not part of the state.

    Attributes:
      base: the weights below an adapter; None: all weights are trained.
      teacher: a teacher's parameters; None: no teacher.
    """

    base: Params | None = None
    teacher: Params | None = None


class TrainState(NamedTuple):
    """Arrays only; the step closes over everything static.

    Attributes:
      step: () int32, updates made so far.
      params: float32 parameters; with LoRA the adapter.
      opt_state: the optimizer's state.
      rng: key from which each step's dropout key is derived.
      last_batch: what self-distillation stores of the previous batch; None without self-distillation.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    rng: jax.Array
    last_batch: LastBatch | None


Metrics = dict[str, jax.Array]


# (state, batch, frozen parameters or None)
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    last_batch: LastBatch | None = None,
) -> TrainState:
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng, last_batch)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    attach: Callable[[Params, Params], Params] | None = None,
    *,
    with_layer_norms: bool = False,
) -> TrainStep:
    """Returns the pure step (state, batch, frozen) -> (state, metrics).

    With `attach` the student's parameters are `attach(frozen.base, state.params)`, and only `state.params` is
    trained. Frozen parameters are not in the state, so neither the optimizer nor a checkpoint holds them.

    Metrics are float32 scalars of this step's batch, before its update: `loss`, `loss/TERM` for
    every term of the objective, its diagnostics as `self_distillation/NAME`, and `grad_norm` before
    clipping; with `with_layer_norms` also `grad_norm/STACK/LAYER` of every layer.
    """

    def train_step(state, batch, frozen=None):
        base, teacher = frozen or Frozen()

        def loss_of(params, *rest):
            return objective(attach(base or {}, params) if attach else params, *rest, teacher)

        # A function of the step only, so that a resumed run draws the same masks.
        dropout_rng = jax.random.fold_in(state.rng, state.step)
        (loss, found), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, batch, dropout_rng, state.last_batch
        )
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, **{f"loss/{name}": value for name, value in found.terms.items()}}
        metrics |= {f"self_distillation/{name}": value for name, value in found.diagnostics.items()}
        metrics["grad_norm"] = optax.tree.norm(grads)
        for stack, norm_N in (layer_norms(grads) if with_layer_norms else {}).items():
            metrics |= {f"{LAYER_NORM}{stack}/{n}": norm for n, norm in enumerate(norm_N)}
        return TrainState(state.step + 1, params, opt_state, state.rng, found.last_batch), metrics

    return train_step
