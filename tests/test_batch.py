"""The map between slots and rectangles: one place on either side, for every layout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flat_batches import by_example, flat, sequences
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from cot_jax.batch import Segments, Tokens

# (lengths of the groups' sequences, slots X, width S)
LAYOUTS = {
    "full": ([[3, 5, 2]], 10, 5),
    "room": ([[3, 5, 2]], 13, 7),
    "empty at the start": ([[0, 0, 4, 1]], 6, 4),
    "empty in between and at the end": ([[2, 0, 0, 3, 0]], 5, 3),
    "nothing": ([[0, 0]], 4, 2),
    "one token": ([[1]], 1, 1),
    "groups": ([[3, 0, 2], [0, 0, 0], [4, 4, 4], [1, 5, 0]], 12, 6),
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys(), scope="module")
def layout(request):
    """(lengths (G, E), X, S, the segments)."""
    lengths, slots, width = request.param
    length_GE = np.array(lengths, np.int32)
    return length_GE, slots, width, Segments(length_GE, slots, width)


def cells(length_GE):
    """(group, slot, example, position) of every token, counted one by one."""
    for g, length_E in enumerate(length_GE):
        slot = 0
        for e, n in enumerate(length_E):
            for position in range(n):
                yield g, slot, e, position
                slot += 1


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_every_token_knows_its_example_and_position(layout):
    length_GE, slots, width, segments = layout
    G, E = length_GE.shape
    real_GX, real_GES = np.zeros((G, slots), bool), np.zeros((G, E, width), bool)
    for g, slot, e, position in cells(length_GE):
        real_GX[g, slot] = real_GES[g, e, position] = True
        assert (segments.example_GX[g, slot], segments.position_GX[g, slot]) == (e, position)
    np.testing.assert_array_equal(segments.real_GX, real_GX)
    np.testing.assert_array_equal(segments.real_GES, real_GES)
    # What is in no sequence still points into the group.
    assert ((segments.example_GX >= 0) & (segments.example_GX < E)).all()


@pytest.mark.parametrize("rest", [(), (2,), (2, 3)])
def test_unpack_puts_tokens_in_rows_and_pack_takes_them_back(layout, rest):
    length_GE, slots, width, segments = layout
    G, E = length_GE.shape
    flat_x, rectangle_x = random(G, slots, *rest), random(G, E, width, *rest)
    unpacked, packed = np.zeros_like(rectangle_x), np.zeros_like(flat_x)
    for g, slot, e, position in cells(length_GE):
        unpacked[g, e, position] = flat_x[g, slot]
        packed[g, slot] = rectangle_x[g, e, position]
    np.testing.assert_array_equal(segments.unpack(flat_x), unpacked)
    np.testing.assert_array_equal(segments.pack(rectangle_x), packed)
    np.testing.assert_array_equal(segments.pack(segments.unpack(packed)), packed)
    np.testing.assert_array_equal(segments.unpack(segments.pack(unpacked)), unpacked)


def test_each_is_the_transpose_of_the_other(layout):
    length_GE, slots, width, segments = layout
    G, E = length_GE.shape
    x, y = jnp.asarray(random(G, slots, 2)), jnp.asarray(random(G, E, width, 2))
    # <unpack x, y> = <x, pack y>, to the last bit of every entry: the transposes move numbers only.
    _, transposed = jax.vjp(segments.unpack, x)
    np.testing.assert_array_equal(transposed(y)[0], segments.pack(y))
    _, transposed = jax.vjp(segments.pack, y)
    np.testing.assert_array_equal(transposed(x)[0], segments.unpack(x))


def test_gradients_are_those_of_finite_differences():
    length_GE, slots, width = LAYOUTS["groups"]
    segments = Segments(np.array(length_GE), slots, width)
    x, y = random(4, slots, 1), random(4, 3, width, 1)
    check_grads(jax.jit(lambda x: jnp.sin(segments.unpack(x))), (x,), order=2, modes=["rev"])
    check_grads(jax.jit(lambda y: jnp.sin(segments.pack(y))), (y,), order=2, modes=["rev"])


def test_no_program_scatters_and_nothing_leaves_its_group():
    mesh = jax.make_mesh((8,), ("data",))
    groups = NamedSharding(mesh, P("data"))
    tokens = flat(sequences(0, [3, 5, 2, 4] * 8), groups=8)

    def there_and_back(length_GE, x):
        segments = Segments(length_GE, tokens.slots, tokens.width)
        return jnp.sum(segments.pack(jnp.sin(segments.unpack(x))) ** 2, axis=(1, 2))

    def gradient(length_GE, x):
        return jax.grad(lambda x: jnp.sum(there_and_back(length_GE, x)))(x)

    x = jax.ShapeDtypeStruct((8, tokens.slots, 6), jnp.float32)
    program = jax.jit(gradient, in_shardings=(groups, groups), out_shardings=groups)
    text = program.lower(tokens.length, x).compile().as_text()
    assert set(re.findall(r" ([a-z-]*(?:gather|scatter|all-|permute)[a-z-]*)\(", text)) == {"gather"}


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.bool_, jnp.bfloat16])
def test_ids_seeds_and_masks_keep_their_type(dtype):
    segments = Segments(np.array([[2, 0, 3]], np.int32), 6, 4)
    x = jnp.arange(6)[None].astype(dtype)
    assert segments.unpack(x).dtype == segments.pack(segments.unpack(x)).dtype == dtype


def test_means_are_over_the_first_tokens_of_each_example(layout):
    length_GE, slots, _, segments = layout
    x_GX = random(len(length_GE), slots)
    counted_GE = np.random.default_rng(1).integers(0, length_GE + 1).astype(np.int32)
    within_GX, total_GE = np.zeros(x_GX.shape, bool), np.zeros(length_GE.shape)
    for g, slot, e, position in cells(length_GE):
        within_GX[g, slot] = position < counted_GE[g, e]
        total_GE[g, e] += x_GX[g, slot] * within_GX[g, slot]
    np.testing.assert_array_equal(segments.within(counted_GE), within_GX)
    found_GE = segments.mean(x_GX, counted_GE)
    np.testing.assert_allclose(found_GE, total_GE / np.maximum(counted_GE, 1), rtol=1e-6, atol=1e-7)
    # A token that does not count changes nothing, even if it holds no number.
    others = segments.mean(np.where(within_GX, x_GX, np.nan), counted_GE)
    np.testing.assert_array_equal(others, found_GE)


def test_lengths_are_data_and_width_is_not():
    traces = []

    @jax.jit
    def unpacked(tokens):
        traces.append(tokens.width)
        return Segments.of(tokens).unpack(tokens.ids)

    one, other = (flat(sequences(seed, lengths)) for seed, lengths in ((0, [4, 2]), (1, [2, 4])))
    assert unpacked(one).shape == unpacked(other).shape == (1, 2, 4)
    assert unpacked(Tokens(one.ids, one.length, 5)).shape == (1, 2, 5)
    assert traces == [4, 5]
    for tokens in (one, other):
        for row, ids in zip(unpacked(tokens)[0], by_example(tokens, tokens.ids), strict=True):
            np.testing.assert_array_equal(row, np.pad(ids, (0, 4 - len(ids))))
