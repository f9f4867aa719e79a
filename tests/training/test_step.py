"""The step: one compile per shape, donation, randomness from the step alone."""

import functools
import re
from types import SimpleNamespace

import axes
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from cot_jax.batch import Texts
from cot_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from cot_jax.data.batches import Ragged, TokenizedView, make_batch, view_lengths
from cot_jax.data.lengths import as_shape, needed
from cot_jax.errors import UserError
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import init, layer_norms
from cot_jax.training.mesh import BATCH_AXES, by_example, make_mesh, replicated, require_divisible
from cot_jax.training.optimizer import make_optimizer, make_schedule
from cot_jax.training.step import init_state, make_train_step
from cot_jax.training.students import family, load_student

EXAMPLES, BATCH = 64, 16


@pytest.fixture(scope="module")
def views():
    rng = np.random.default_rng(0)

    def ragged(low, high):
        return Ragged([rng.integers(3, 100, size=rng.integers(low, high)).tolist() for _ in range(EXAMPLES)])

    return {
        "predict": TokenizedView(ragged(3, 16), ragged(1, 6)),
        "explain": TokenizedView(ragged(3, 16), ragged(2, 20)),
    }


def _student():
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return T5(T5Config(vocab_size=100, **sizes))


def _mesh(devices):
    return make_mesh(MeshConfig(), jax.devices()[:devices])


def _start(student, mesh):
    """Returns (initial state, jitted step) of the MI method on a mesh, as the loop makes them."""
    create, step = _compiled(student, mesh)
    return create(), step


@functools.cache
def _compiled(student, mesh):
    mi = MutualInformation("predict", "explain", 0.1, "reference", "max", "label")
    objective = make_objective(
        student,
        {"predict": "label", "explain": "rationale"},
        {"label": 0.5, "rationale": 0.5},
        mi,
        batch_axes=BATCH_AXES,
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100, student.weights)
    create = jax.jit(
        lambda: init_state(init(student.weights, jax.random.key(0)), optimizer, jax.random.key(1)),
        out_shardings=replicated(mesh),
    )
    step = jax.jit(
        make_train_step(objective, optimizer),
        in_shardings=(replicated(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )
    return create, step


def _batch(views, step, extra=0):
    """Returns a batch with `extra` slots more than any batch needs."""
    rows = np.arange(EXAMPLES).reshape(-1, BATCH)
    needs = needed(view_lengths(views, rows, padded=views), groups=1).max(axis=2)
    shape = as_shape(needs + np.array([extra, 0]))
    return make_batch(views, rows[step % len(rows)], shape, 0, 1, padded=views)


@pytest.mark.slow
def test_one_compile_per_shape_and_every_leaf_donated(views):
    compiles = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiles.append(event) if event.endswith("backend_compile_duration") else None
    )
    mesh = _mesh(1)
    try:
        with jax.set_mesh(mesh):
            state, step_fn = _start(_student(), mesh)
            batches = [
                jax.device_put(_batch(views, step, extra=8 * (step % 2)), by_example(mesh))
                for step in range(6)
            ]
            shapes = {str(jax.tree.map(jnp.shape, batch)) for batch in batches}
            assert len(shapes) == 2
            before = len(compiles)
            for batch in batches:
                old = state
                state, _ = step_fn(state, batch)
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
                assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(batch))
            assert len(compiles) - before == len(shapes)
    finally:
        jax.monitoring.clear_event_listeners()


@pytest.mark.slow
def test_dropout_is_a_function_of_the_step(views):
    mesh, student = _mesh(1), _student()
    with jax.set_mesh(mesh):
        _, step_fn = _start(student, mesh)

        def loss_at(step):
            state, _ = _start(student, mesh)
            return float(step_fn(state._replace(step=jnp.int32(step)), _batch(views, 0))[1]["loss"])

        assert loss_at(0) == loss_at(0) != loss_at(1)


def test_a_batch_must_divide_among_the_devices():
    with pytest.raises(UserError, match="batch size 12 is not divisible by the 8 devices"):
        require_divisible(_mesh(8), 12)
    with pytest.raises(
        UserError, match=r"24 is not divisible by the 8 devices in 2 equal parts: .* multiple of 16"
    ):
        require_divisible(_mesh(8), 24, parts=2)


def test_layer_norms_add_up_to_the_norm_of_the_gradient():
    student = _student()
    tree = jax.tree.map(jnp.ones_like, init(student.weights, jax.random.key(0)))
    norms = layer_norms(tree)
    assert {stack: norm_N.shape for stack, norm_N in norms.items()} == {"encoder": (1,), "decoder": (1,)}
    expected = sum(leaf.size for leaf in jax.tree.leaves(tree["decoder"]["layers"])) ** 0.5
    assert float(norms["decoder"][0]) == pytest.approx(expected, rel=1e-6)


def test_schedule():
    schedule = make_schedule(OptimizerConfig(learning_rate=4.0), 4)
    np.testing.assert_allclose([schedule(s) for s in range(5)], [4, 3, 2, 1, 0])
    schedule = make_schedule(OptimizerConfig(learning_rate=4.0, warmup_steps=2), 4)
    np.testing.assert_allclose([schedule(s) for s in range(5)], [0, 2, 4, 2, 0])


def test_weight_decay_spares_norms_and_biases():
    student = _student()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, weight_decay=0.5), 10, student.weights)

    @jax.jit
    def decay():
        params = init(student.weights, jax.random.key(0))
        zeros = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        return jax.tree.map(jnp.any, updates)

    moved = {
        jax.tree_util.keystr(path): bool(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(decay())
    }
    assert any(moved.values())
    for path, leaf_moved in moved.items():
        assert leaf_moved == (not ("norm" in path or "bias" in path)), path


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "tiny-llama", "tiny-bert", "tiny-deberta"])
def test_what_a_gpu_is_given_lowers_for_it_and_has_the_axes_of_its_names(preset, views):
    config = ModelConfig(preset=preset)
    labels = ("no", "yes") if preset in ("tiny-bert", "tiny-deberta") else ()
    config = config.resolved(family(config).usual)
    texts = Texts(100, pad_id=0, end_id=1, begin_id=2, labels=labels)
    student, *_ = load_student(config, SimpleNamespace(texts=texts), weights=False, platform="gpu")
    assert (student.dtype, student.unroll) == (jnp.bfloat16, preset == "tiny")
    if labels:  # one class of each example
        views = {
            "predict": TokenizedView(views["predict"].inputs, Ragged([[n % 2] for n in range(EXAMPLES)]))
        }
    terms = dict(zip(views, ("label", "rationale"), strict=False))
    mi = None if labels else MutualInformation("predict", "explain", 0.1, "reference", "max", "label")
    objective = make_objective(student, terms, dict.fromkeys(terms.values(), 0.5), mi)
    optimizer, key = make_optimizer(OptimizerConfig(), 100, student.weights), jax.random.key(0)
    state = jax.eval_shape(lambda: init_state(init(student.weights, key), optimizer, key))
    step = jax.jit(make_train_step(objective, optimizer))
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with axes.checked(), jax.sharding.use_abstract_mesh(mesh):
        lowered = step.trace(state, _batch(views, 0)).lower(lowering_platforms=("cuda",))
    program = lowered.as_text()
    # Attention that is one kernel, which DeBERTa's and a decoder's is not.
    assert ("attention_backward" in program) == (preset in ("tiny", "tiny-bert"))
    # Attention's, which are batched, are left out: gradients of scores are float32.
    maps = [
        line for line in program.splitlines() if "stablehlo.dot_general" in line and "batching" not in line
    ]
    assert len(maps) > 10
    assert all(re.search(r": \(tensor<\S*bf16>, tensor<\S*bf16>\)", line) for line in maps)
