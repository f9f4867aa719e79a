"""The optimizers: Adafactor against transformers', moments in bfloat16 against float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from cot_jax.config import OptimizerConfig
from cot_jax.models.weights import Weight
from cot_jax.training.optimizer import make_optimizer

STEPS = 20


WEIGHTS = {
    "encoder/layers/self_attention/q": Weight("NDHK", (2, 130, 2, 70), 1, 1.0, "q"),
    "encoder/layers/self_attention/o": Weight("NHKD", (2, 2, 70, 130), 2, 1.0, "o"),
    "encoder/layers/mlp/wi": Weight("NDF", (2, 130, 4), 1, 1.0, "wi"),
    "encoder/layers/mlp_norm": Weight("ND", (2, 130), 0, None, "mlp_norm"),
    "encoder/final_norm": Weight("D", (130,), 0, None, "final_norm"),
    "embedding": Weight("VD", (150, 130), 0, 1.0, "embedding"),
}
ONE = {"w": Weight("K", (1,), 0, 0.0, "w")}


def _tree(make):
    """Every kind of leaf; 70 x 2 heads make matrices large enough to be factored, 4 x 30 does not."""
    return unflatten_dict({path: make(*weight.shape) for path, weight in WEIGHTS.items()}, sep="/")


def _torch_parameters(torch, tree):
    """The same numbers as transformers' T5 would hold them: one matrix or vector for each layer."""
    shapes = {"q": (130, 140), "o": (140, 130)}
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [key.key for key in path]
        for x in leaf if "layers" in names else [leaf]:
            found.append(torch.tensor(x.reshape(shapes.get(names[-1], x.shape))))
    return found


def test_adafactor_is_that_of_transformers():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    from transformers.optimization import Adafactor

    rng = np.random.default_rng(0)
    tree = _tree(lambda *shape: rng.normal(size=shape).astype(np.float32))
    tree["embedding"] *= 1e-4  # below the least scale of a parameter
    grads = [_tree(lambda *shape: rng.normal(size=shape).astype(np.float32)) for _ in range(STEPS)]

    theirs = [torch.nn.Parameter(p) for p in _torch_parameters(torch, tree)]
    reference = Adafactor(theirs, lr=1e-2, scale_parameter=True, relative_step=False, warmup_init=False)
    config = OptimizerConfig(name="adafactor", learning_rate=1e-2, schedule="constant", clip_norm=0.0)
    optimizer = make_optimizer(config, STEPS, WEIGHTS)
    update = jax.jit(optimizer.update)
    params, state = tree, optimizer.init(tree)
    for grad in grads:
        for parameter, g in zip(theirs, _torch_parameters(torch, grad), strict=True):
            parameter.grad = g
        reference.step()
        updates, state = update(grad, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)

    ours = _torch_parameters(torch, jax.tree.map(np.asarray, params))
    start = _torch_parameters(torch, tree)
    for before, a, b in zip(start, ours, theirs, strict=True):
        if a.ndim < 2 or min(a.shape) >= 128:  # transformers has no such limit
            moved = (b.detach() - before).abs().max()
            assert moved > 1e-5
            np.testing.assert_allclose(a.numpy(), b.detach().numpy(), atol=float(2e-6 * moved + 1e-7))


def test_adafactor_keeps_next_to_nothing():
    tree = jax.eval_shape(lambda: _tree(lambda *shape: jnp.zeros(shape)))
    sizes = {}
    for name in ("adamw", "adafactor"):
        optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=1.0), 10, WEIGHTS)
        sizes[name] = sum(x.size for x in jax.tree.leaves(jax.eval_shape(optimizer.init, tree)))
    assert sizes["adamw"] > 2 * sum(x.size for x in jax.tree.leaves(tree))
    assert sizes["adafactor"] < 0.03 * sizes["adamw"]


def _moments(dtype, grads):
    config = OptimizerConfig(learning_rate=1e-2, schedule="constant", clip_norm=0.0, moment_dtype=dtype)
    optimizer = make_optimizer(config, len(grads), ONE)

    @jax.jit
    def run(grads):
        params = {"w": jnp.zeros(grads.shape[1:])}

        def step(carry, grad):
            params, state = carry
            updates, state = optimizer.update({"w": grad}, state, params)
            return (jax.tree.map(jnp.add, params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[0]

    params, state = run(grads)
    return params["w"], state[1][0].mu["w"], state[1][0].nu["w"]


def test_moments_in_bfloat16_follow_those_in_float32():
    """A thousand large gradients, then a thousand small ones: rounded to nearest, nu would never fall."""
    grads = np.random.default_rng(0).normal(size=(2000, 512)).astype(np.float32)
    grads[1000:] *= 0.1
    whole, half = (_moments(dtype, grads) for dtype in ("float32", "bfloat16"))
    assert [x.dtype for x in half] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    nu, nu_half = (np.asarray(x[2], np.float32) for x in (whole, half))
    assert nu.mean() < 0.4  # it has fallen by e
    # No bias, though each walks around its true value, by 8 % (half as much in the step).
    assert nu_half.mean() == pytest.approx(nu.mean(), rel=1e-2)
    assert np.std(nu_half / nu) < 0.12
    moved, moved_half = (np.asarray(x[0]) for x in (whole, half))
    assert np.corrcoef(moved, moved_half)[0, 1] > 0.999


def test_a_constant_schedule_and_no_clip():
    config = OptimizerConfig(learning_rate=2.0, schedule="constant", warmup_steps=2, clip_norm=0.0)
    optimizer = make_optimizer(config, 4, ONE)
    params = {"w": jnp.zeros(1)}
    state, moved = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update({"w": jnp.full(1, 1e6)}, state, params)
        moved.append(float(updates["w"][0]))
    np.testing.assert_allclose(moved, [0, -1, -2, -2], rtol=1e-4)
