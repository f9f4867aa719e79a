"""The GPU's kernel, interpreted, against attention of rectangles; and that it lowers for a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cot_jax.batch import Tokens
from cot_jax.models import fused_attention
from cot_jax.models.layers import Attention, Layout

HEADS, SIZE, EXAMPLES = 3, 16, 4
KEY = jax.random.key(3)


def _tokens(rng, width, groups):
    length_GE = rng.integers(0, width + 1, (groups, EXAMPLES)).astype(np.int32)
    length_GE[0, 0] = width
    slots = int(length_GE.sum(axis=1).max()) + 3  # no group fills them
    return Tokens(np.zeros((groups, slots), np.int32), length_GE, width)


class _Case:
    """Attention of two views with random numbers."""

    def __init__(self, q_widths, k_widths, groups=1, *, bias=False, **options):
        rng = np.random.default_rng(0)
        queries = [_tokens(rng, width, groups) for width in q_widths]
        keys = [_tokens(rng, width, groups) for width in k_widths] if k_widths else queries
        example_GE = np.arange(groups * EXAMPLES).reshape(groups, -1)

        def attention(biases):
            read = Layout(queries, example_GE)
            return Attention(read, Layout(keys, example_GE) if k_widths else read, biases, **options)

        self._attention = attention
        slots = [sum(tokens.slots for tokens in side) for side in (queries, keys, keys)]
        self.arrays = [rng.normal(size=(groups, X, HEADS, SIZE)).astype(np.float32) for X in slots]
        self.biases = [
            rng.normal(size=(HEADS, q.width, k.width)).astype(np.float32) if bias else None
            for q, k in zip(queries, keys, strict=True)
        ]
        self._weight = rng.normal(size=self.arrays[0].shape).astype(np.float32)

    def run(self, arrays, biases):
        """The attended values, and the gradients of a weighted sum of them."""

        def total(arrays, biases):
            values = self._attention(biases)(KEY, *arrays)
            return jnp.sum(self._weight * values), values

        gradients, values = jax.grad(total, (0, 1), has_aux=True)(arrays, biases)
        return values, gradients


@pytest.fixture
def choose(monkeypatch):
    """A function that decides whether the kernel, interpreted, computes attention."""
    interpreted = functools.partial(fused_attention.attend, interpret=True)
    monkeypatch.setattr(fused_attention, "attend", interpreted)
    return lambda fused: monkeypatch.setattr(fused_attention, "suits", lambda *_: fused)


CASES = {
    "encoder": _Case((21, 70), None, 2, bias=True, rate=0.1, scale=0.7),  # queries of two tiles
    "decoder": _Case((9, 33), None, bias=True, rate=0.1, causal=True),
    "to the input": _Case((1, 17), (6, 22), 2, rate=0.3),
    "without dropout": _Case((20, 5), None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_rectangles(case, choose):
    found = {}
    for fused in (True, False):
        choose(fused)
        found[fused] = jax.jit(lambda *inputs: case.run(*inputs))(case.arrays, case.biases)
    for ours, expected in zip(jax.tree.leaves(found[True]), jax.tree.leaves(found[False]), strict=True):
        # In every slot: those without a token are zero.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_eight_devices_compute_their_own_groups(choose):
    choose(True)
    case = _Case((9, 12), None, 8, bias=True, rate=0.1)
    expected = jax.jit(case.run)(case.arrays, case.biases)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    groups = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        sharded = jax.jit(lambda *inputs: case.run(*inputs))
        arrays = jax.device_put(case.arrays, groups)
        found = sharded(arrays, case.biases)
        program = sharded.lower(arrays, case.biases).compile().as_text()
    assert "all-gather" not in program
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


def _gpu(**axes):
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
    return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), abstract_device=device)


def test_when_the_kernel_is_chosen(monkeypatch):
    q = jax.ShapeDtypeStruct((1, 100, 4, 64), jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(_gpu(data=2)):
        assert fused_attention.suits(q, (500, 128), biased=False)
        assert fused_attention.suits(q, (64, 128), biased=True)
        assert not fused_attention.suits(q, (65, 128), biased=True)
        assert not fused_attention.suits(q, (65, 129), biased=False)
        assert not fused_attention.suits(q.update(dtype=np.float32), (9, 9), biased=False)
        assert not fused_attention.suits(q.update(shape=(1, 100, 4, 48)), (9, 9), biased=False)
        with monkeypatch.context() as later:
            later.setattr(fused_attention, "triton", None)  # a JAX without it
            assert not fused_attention.suits(q, (64, 128), biased=True)
    with jax.sharding.use_abstract_mesh(_gpu(data=1, model=2)):
        assert not fused_attention.suits(q, (9, 9), biased=False)
    assert not fused_attention.suits(q, (9, 9), biased=False)  # on this CPU


@pytest.mark.parametrize("name", ["decoder", "to the input"])
def test_both_passes_lower_for_a_gpu(name):
    case = CASES[name]
    arrays = [x.astype(jnp.bfloat16) for x in case.arrays]
    with jax.sharding.use_abstract_mesh(_gpu(data=1)):
        lowered = jax.jit(lambda *inputs: case.run(*inputs)).trace(arrays, case.biases)
        program = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("__gpu$xla.gpu.triton") >= 1
    assert all(name in program for name in ("attention_forward", "attention_backward"))
