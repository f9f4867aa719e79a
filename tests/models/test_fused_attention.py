"""The kernels, interpreted, against attention of rectangles; and that they lower for their platforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cot_jax.batch import Tokens
from cot_jax.models import fused_attention
from cot_jax.models.layers import Attention, Layout

HEADS, SIZE, EXAMPLES = 4, 32, 4
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

        def attention(bias_HW):
            read = Layout(queries, example_GE)
            return Attention(read, Layout(keys, example_GE) if k_widths else read, bias_HW, **options)

        self._attention = attention
        slots = [sum(tokens.slots for tokens in side) for side in (queries, keys, keys)]
        self.arrays = [rng.normal(size=(groups, X, HEADS, SIZE)).astype(np.float32) for X in slots]
        self.bias_HW = rng.normal(size=(HEADS, 2 * max(q_widths))).astype(np.float32) if bias else None
        self._weight = rng.normal(size=self.arrays[0].shape).astype(np.float32)

    def run(self, arrays, bias_HW):
        """The attended values, and the gradients of a weighted sum of them."""

        def total(arrays, bias_HW):
            values = self._attention(bias_HW)(KEY, *arrays)
            return jnp.sum(self._weight * values), values

        gradients, values = jax.grad(total, (0, 1), has_aux=True)(arrays, bias_HW)
        return values, gradients


@pytest.fixture
def choose(monkeypatch):
    """A function that decides which platform's kernel, interpreted, computes attention; None: no kernel."""
    interpreted = functools.partial(fused_attention.attend, interpret=True)
    monkeypatch.setattr(fused_attention, "attend", interpreted)
    return lambda platform: monkeypatch.setattr(fused_attention, "suited", lambda *_: platform)


CASES = {
    "encoder": _Case((21, 70), None, 2, bias=True, rate=0.1, scale=0.7),  # queries of two tiles
    "decoder": _Case((9, 33), None, bias=True, rate=0.1, causal=True),
    "to the input": _Case((1, 17), (6, 22), 2, rate=0.3),
    "without dropout": _Case((20, 5), None),
}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_are_those_of_rectangles(case, platform, choose):
    found = {}
    for kernel in (platform, None):
        choose(kernel)
        found[kernel] = jax.jit(lambda *inputs: case.run(*inputs))(case.arrays, case.bias_HW)
    for ours, expected in zip(jax.tree.leaves(found[platform]), jax.tree.leaves(found[None]), strict=True):
        # In every slot: those without a token are zero.
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_eight_devices_compute_their_own_groups(platform, choose):
    choose(platform)
    case = _Case((9, 12), None, 8, bias=True, rate=0.1)
    expected = jax.jit(case.run)(case.arrays, case.bias_HW)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    groups = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        sharded = jax.jit(lambda *inputs: case.run(*inputs))
        arrays = jax.device_put(case.arrays, groups)
        found = sharded(arrays, case.bias_HW)
        program = sharded.lower(arrays, case.bias_HW).compile().as_text()
    assert "all-gather" not in program
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


def _mesh(platform, kind="", **axes):
    kind = kind or {"gpu": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite"}[platform]
    device = jax.sharding.AbstractDevice(kind, None, platform)
    return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes), abstract_device=device)


def _suited(widths, *, biased=False, slots=100, heads=4, size=64, dtype=jnp.bfloat16):
    x = jax.ShapeDtypeStruct((2, slots, heads, size), dtype)
    return fused_attention.suited(x, x, widths, biased)


def test_when_the_gpus_kernel_is_chosen(monkeypatch):
    with jax.sharding.use_abstract_mesh(_mesh("gpu", data=2)):
        assert _suited((500, 128)) == "gpu"
        assert _suited((64, 128), biased=True) == "gpu"
        assert _suited((65, 128), biased=True) is None
        assert _suited((65, 129)) is None
        assert _suited((9, 9), dtype=np.float32) is None
        assert _suited((9, 9), size=48) is None
        with monkeypatch.context() as later:
            later.setattr(fused_attention, "triton", None)  # a JAX without it
            assert _suited((64, 128)) is None
    with jax.sharding.use_abstract_mesh(_mesh("gpu", data=1, model=2)):
        assert _suited((9, 9)) is None
    assert _suited((9, 9)) is None  # on this CPU


def test_when_the_tpus_kernel_is_chosen():
    with jax.sharding.use_abstract_mesh(_mesh("tpu", data=2)):
        assert _suited((500, 500), biased=True, slots=8192) == "tpu"
        assert _suited((9, 9), slots=8193) is None
        assert _suited((9, 9), heads=3) is None  # two fill the lanes
        assert _suited((9, 9), heads=3, size=128) == "tpu"
        assert _suited((9, 9), heads=8, size=16) is None
        assert _suited((9, 9), dtype=np.float32) is None
    with jax.sharding.use_abstract_mesh(_mesh("tpu", data=1)):  # it has the slots of both groups
        assert _suited((9, 9), slots=8192) is None
    with jax.sharding.use_abstract_mesh(_mesh("tpu", data=1, model=2)):
        assert _suited((9, 9)) is None
    with jax.sharding.use_abstract_mesh(_mesh("tpu", "TPU v4", data=1)):  # a quarter of the VMEM it needs
        assert _suited((9, 9)) is None


@pytest.mark.parametrize(
    ("platform", "lowering", "call"),
    [("gpu", "cuda", "__gpu$xla.gpu.triton"), ("tpu", "tpu", "tpu_custom_call")],
)
@pytest.mark.parametrize("name", ["decoder", "to the input"])
def test_both_passes_lower(name, platform, lowering, call):
    case = CASES[name]
    arrays = [x.astype(jnp.bfloat16) for x in case.arrays]
    with jax.sharding.use_abstract_mesh(_mesh(platform, data=1)):
        lowered = jax.jit(lambda *inputs: case.run(*inputs)).trace(arrays, case.bias_HW)
        program = lowered.lower(lowering_platforms=(lowering,)).as_text()
    assert program.count(call) >= 1
    assert all(name in program for name in ("attention_forward", "attention_backward"))


def test_the_tpus_kernel_lowers_where_devices_have_groups_of_their_own():
    """All axes of the mesh are manual then: Mosaic's kernels are never partitioned automatically."""
    case = CASES["to the input"]
    arrays = [x.astype(jnp.bfloat16) for x in case.arrays]
    with jax.sharding.use_abstract_mesh(_mesh("tpu", data=2, fsdp=1, model=1)):
        lowered = jax.jit(lambda *inputs: case.run(*inputs)).trace(arrays, case.bias_HW)
        program = lowered.lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("tpu_custom_call") >= 2
