"""Self-distillation in the train step: nothing at weight 0, resume equals no interruption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cot_jax.config import OptimizerConfig
from cot_jax.data.batches import Batches, Ragged, TokenizedView
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.losses.soft_targets import SelfDistillation
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import init
from cot_jax.training.checkpoints import Checkpoints
from cot_jax.training.optimizer import make_optimizer
from cot_jax.training.step import init_state, make_train_step

EXAMPLES, BATCH, VOCABULARY = 60, 8, 64
SIZES = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
STUDENT = T5(T5Config(vocab_size=VOCABULARY, dropout_rate=0.1, **SIZES))
VMM = SelfDistillation("dynsdpb", ("predict", "explain"), 1.0, 3.0, "vmm", 4, jnp.float32)


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)

    def ragged(low, high):
        return Ragged(
            [rng.integers(3, VOCABULARY, size=rng.integers(low, high)).tolist() for _ in range(EXAMPLES)]
        )

    views = {
        "predict": TokenizedView(ragged(3, 8), ragged(1, 6)),
        "explain": TokenizedView(ragged(3, 8), ragged(2, 8)),
    }
    return Batches(
        views,
        batch_size=BATCH,
        steps=50,
        seed=0,
        order="random",
        overlap=True,
        groups=1,
        padded=(),
        flops=STUDENT.flops,
        pad_id=0,
    )


def _start(distillation):
    """Returns (initial state, jitted step) of MI with self-distillation or without.

    Both maps have gradients: otherwise the step without self-distillation would take `matching_pass`, which
    equals the general one up to rounding only.
    """
    mi = MutualInformation("predict", "explain", 0.1, "masked", "max", "none")
    terms = {"predict": "label", "explain": "rationale"}
    objective = make_objective(STUDENT, terms, {"label": 0.5, "rationale": 0.5}, mi, distillation)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 50, STUDENT.weights)

    @jax.jit
    def create():
        last = distillation and distillation.empty(BATCH // 2, VOCABULARY, {"predict": 8, "explain": 8})
        return init_state(init(STUDENT.weights, jax.random.key(0)), optimizer, jax.random.key(1), last)

    return create(), jax.jit(make_train_step(objective, optimizer))


def _run(state, step, batches, numbers):
    rows = []
    for number in numbers:
        state, metrics = step(state, batches(number))
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


@pytest.mark.slow
def test_at_weight_zero_nothing_changes(batches):
    state, step = _start(None)
    plain, plain_rows = _run(state, step, batches, range(50))
    state, step = _start(dataclasses.replace(VMM, weight=0.0))
    distilled, rows = _run(state, step, batches, range(50))
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(distilled.params), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(plain_rows, rows, strict=True):
        assert a == {name: b[name] for name in a}
    assert plain_rows[-1]["loss"] < 0.9 * plain_rows[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("output", ["vmm", "full", "top_k"])
def test_resume_equals_no_interruption(batches, output, tmp_path):
    distillation = dataclasses.replace(VMM, output=output, dtype=jnp.bfloat16)
    state, step = _start(distillation)
    whole, rows = _run(state, step, batches, range(6))
    assert rows[0]["loss/self_distillation"] == 0
    assert all(row["loss/self_distillation"] > 0 for row in rows[1:])
    assert [row["self_distillation/stored"] for row in rows] == [0, 1, 1, 1, 1, 1]
    half, _ = _run(state, step, batches, range(3))
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, half)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), half)
        restored = checkpoints.restore_latest(like)
    resumed, later = _run(restored, step, batches, range(3, 6))
    assert later == rows[3:]
    for a, b in zip(
        jax.tree.leaves(whole._replace(rng=0)), jax.tree.leaves(resumed._replace(rng=0)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
