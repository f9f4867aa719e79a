"""Arrangements of eight devices: the same run on each, parameters whole nowhere, only what must crosses."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cot_jax.batch import Texts
from cot_jax.config import MeshConfig, OptimizerConfig
from cot_jax.data.batches import Ragged, TokenizedView, make_batch, view_lengths
from cot_jax.data.lengths import as_shape
from cot_jax.errors import UserError
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.losses.soft_targets import SelfDistillation
from cot_jax.models import student as students
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import Weight, init
from cot_jax.training.mesh import (
    BATCH_AXES,
    by_example,
    by_weights,
    data_parallel,
    group_count,
    make_mesh,
    of_state,
    replicated,
    spread,
)
from cot_jax.training.optimizer import make_optimizer
from cot_jax.training.step import init_state, make_train_step

STEPS, BATCH, EXAMPLES, V = 20, 16, 64, 256
WIDTHS = {"predict": 6, "explain": 14}

# Sizes by which every array of a compiled program is told from the others.
STUDENT = T5(
    T5Config(
        vocab_size=V,
        dropout_rate=0.1,
        d_model=48,
        d_kv=4,
        d_ff=40,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=8,
        tie_word_embeddings=False,
    )
)
TERMS = {"predict": "label", "explain": "rationale"}
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100, STUDENT.weights)
MI = MutualInformation("predict", "explain", 0.1, "reference", "max", "label")


def _distillation(method, output):
    settings = (4, jnp.float32)
    return SelfDistillation(method, tuple(TERMS), 1.0, 3.0, output, *settings)


METHODS = {
    "standard": ({"predict": "label"}, None, None),
    "dss with mi": (TERMS, MI, None),
    "mi, both sides, and dynsdpb": (
        TERMS,
        MutualInformation("predict", "explain", 0.1, "normalized", "mean", "none"),
        _distillation("dynsdpb", "vmm"),
    ),
    "dlb, all logits": (TERMS, None, _distillation("dlb", "full")),
    "dlb, the largest logits": (TERMS, None, _distillation("dlb", "top_k")),
}


def _mesh(arrangement):
    sizes = tuple(map(int, arrangement.split("x")))
    return make_mesh(MeshConfig(*sizes), jax.devices()[: math.prod(sizes)])


@functools.cache
def _views():
    rng = np.random.default_rng(0)

    def ragged(low, high):
        return Ragged([rng.integers(3, V, size=rng.integers(low, high)).tolist() for _ in range(EXAMPLES)])

    return {name: TokenizedView(ragged(3, 20), ragged(1, width)) for name, width in WIDTHS.items()}


def _batch(step, terms, mesh):
    # Each half of a batch was in the one before, as self-distillation wants it.
    halves = [np.arange(BATCH // 2) + BATCH // 2 * half for half in (step, step + 1)]
    rows = np.stack(halves, axis=1).ravel() % EXAMPLES
    views, groups = {name: _views()[name] for name in terms}, group_count(mesh)
    width = view_lengths(views, np.arange(EXAMPLES)).max(axis=-1, keepdims=True)
    shape = as_shape(width * np.array([BATCH // groups, 1]))
    return spread(make_batch(views, rows, shape, 0, groups, padded=views), by_example(mesh))


@functools.cache
def _create(method):
    """Makes the first state on one device: what a key gives may depend on where it is drawn."""
    distillation = METHODS[method][2]

    def create():
        last = distillation.empty(BATCH // 2, V, WIDTHS) if distillation else None
        return init_state(init(STUDENT.weights, jax.random.key(0)), OPTIMIZER, jax.random.key(1), last)

    return jax.jit(create)


@functools.cache
def _start(method, arrangement):
    """Returns the mesh, the shardings of a state and the compiled step, as `Run` does."""
    mesh = _mesh(arrangement)
    terms, mi, distillation = METHODS[method]
    objective = make_objective(
        STUDENT, terms, {"label": 0.5, "rationale": 0.5}, mi, distillation, batch_axes=BATCH_AXES
    )
    state = jax.eval_shape(_create(method))
    shardings = of_state(mesh, state, STUDENT.weights, distillation)
    step = jax.jit(
        make_train_step(objective, OPTIMIZER),
        in_shardings=(shardings, by_example(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    with jax.set_mesh(mesh):
        compiled = step.lower(state, _batch(0, terms, mesh)).compile()
    return mesh, shardings, compiled


@functools.cache
def _trajectory(method, arrangement):
    """Returns every step's metrics, the gradient's norm among them, and the last parameters."""
    mesh, shardings, step = _start(method, arrangement)
    state, rows = jax.device_put(_create(method)(), shardings), []
    for number in range(STEPS):
        state, metrics = step(state, _batch(number, METHODS[method][0], mesh))
        rows.append(jax.device_get(metrics))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, jax.device_get(state.params)


RUNS = [
    *((method, "2x2x2") for method in METHODS),
    *(("dss with mi", arrangement) for arrangement in ("8x1x1", "1x1x8")),
    ("mi, both sides, and dynsdpb", "1x8x1"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "arrangement"), RUNS)
def test_losses_gradients_and_trajectories_are_those_of_one_device(method, arrangement):
    expected, expected_params = _trajectory(method, "1x1x1")
    found, params = _trajectory(method, arrangement)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        # Float32 sums in another order: 1e-6 in the first step, which Adam carries on. It divides by the
        # gradient's own size, so that where this is rounding, so is the update.
        np.testing.assert_allclose(values[0], expected[name][0], rtol=3e-6, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    for leaf, expected_leaf in zip(jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True):
        # Twenty updates of at most 1e-3 each.
        assert np.mean(np.abs(leaf - expected_leaf)) < 2e-5


@pytest.mark.slow
def test_no_device_has_all_of_a_parameter_or_of_what_goes_with_it():
    _, shardings, _ = _start("dlb, all logits", "2x2x2")
    state = jax.device_put(_create("dlb, all logits")(), shardings)
    for tree in (state.params, state.opt_state):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name, parts = jax.tree_util.keystr(path), leaf.size // leaf.addressable_shards[0].data.size
            small = leaf.ndim == 0 or "norm" in name
            assert parts == (1 if small else 2 if "relative_bias" in name else 4), name
    for leaf in jax.tree.leaves(state.last_batch.outputs):
        assert leaf.sharding.spec == P(BATCH_AXES, None, "model")


def _crossing(compiled, kind):
    """Shapes of the arrays that a kind of collective gives in a compiled program."""
    lines = re.findall(rf"= (.*) {kind}(?:-start)?\(", compiled.as_text())
    return {
        tuple(map(int, dims.split(","))) for line in lines for dims in re.findall(r"f32\[([\d,]+)\]", line)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["mi, both sides, and dynsdpb", "dlb, all logits", "dlb, the largest logits"]
)
def test_what_is_gathered_is_a_layer_of_weights_over_fsdp_and_no_logits(method):
    *_, compiled = _start(method, "2x2x2")
    D, H, K, F, half = 48, 8, 4, 40, 2
    weights = {(D, H // half * K), (H // half * K, D), (D, F // half), (F // half, D)}
    heads = {(V // half, D), (D, V // half)}
    # Of each position and device: its best logit, or its candidates for the largest.
    rows = BATCH // 8
    small = {(rows, *shape) for T in (5, 13) for shape in ((T, half), (T, half * 4))} | {(rows, half)}
    gathered = _crossing(compiled, "all-gather")
    assert weights <= gathered
    assert gathered <= weights | heads | small
    assert not _crossing(compiled, "all-to-all")
    assert not any(V in shape or V // half in shape for shape in _crossing(compiled, "collective-permute"))
    reduced = {shape for shape in _crossing(compiled, "all-reduce") if set(shape) & {V, V // half}}
    assert reduced <= heads | {(V // half, D // half), (D // half, V // half)}  # of the gradient


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, -1, 1), "one of them may be -1"),
        ((0, 1, 1), "none may be 0"),
        ((-1, 3, 1), "config.mesh.fsdp=3, config.mesh.model=1: 3 devices or a multiple, but there are 8"),
        ((2, 2, 1), "4 devices, but there are 8"),
    ],
)
def test_axes_that_do_not_fit_the_devices_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshConfig(*sizes))


def test_axes_are_inferred():
    assert dict(make_mesh(MeshConfig(2, -1, 2)).shape) == {"data": 2, "fsdp": 2, "model": 2}
    assert dict(data_parallel().shape) == {"data": 8, "fsdp": 1, "model": 1}


def test_an_axis_that_does_not_divide_a_parameter_is_named():
    weights = {"layers/mlp/wo": Weight("NFD", (2, 42, 48), 1, 1.0, "wo")}
    shapes = {"layers": {"mlp": {"wo": jax.ShapeDtypeStruct((2, 42, 48), jnp.float32)}}}
    message = r"config.mesh.model=4 does not divide the 42 of layers/mlp/wo 2x42x48"
    with pytest.raises(UserError, match=message):
        by_weights(make_mesh(MeshConfig(2, 1, 4)), shapes, weights)


def test_adafactors_sums_of_a_sharded_bias_are_replicated():
    """A bias has no rows and columns: their sums have one element, which no axis divides."""
    student = students.from_scratch(
        "tiny-bert", texts=Texts(100, 0, 1, 2, ("no", "yes")), options=students.Options()
    )
    optimizer = make_optimizer(OptimizerConfig(name="adafactor"), 10, student.weights)
    state = jax.eval_shape(
        lambda: init_state(init(student.weights, jax.random.key(0)), optimizer, jax.random.key(1))
    )
    mesh = make_mesh(MeshConfig(2, 1, 4))
    shardings = of_state(mesh, state, student.weights, None)
    assert shardings.params["layers"]["mlp"]["up_bias"].spec == P(None, "model")
    (moments,) = (x for x in jax.tree.leaves(shardings.opt_state, is_leaf=_has_rows) if _has_rows(x))
    up_bias = [tree["layers"]["mlp"]["up_bias"].spec for tree in (moments.v_row, moments.v_col, moments.v)]
    assert up_bias == [P(), P(), P(None, "model")]


def _has_rows(x):
    return hasattr(x, "v_row")


def test_a_parameter_that_the_table_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="no weight is called adapter"):
        by_weights(data_parallel(), {"adapter": jax.ShapeDtypeStruct((2,), jnp.float32)}, STUDENT.weights)
