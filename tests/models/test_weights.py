"""The table of weights: its names and shapes are Transformers', and what follows from it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cot_jax.models import pretrained
from cot_jax.models.t5 import PRESETS, T5
from cot_jax.models.weights import Weight, decays, init, layer_norms, shapes

TABLE = {
    "embedding": Weight("VD", (12, 4), 0, 1.0, "emb.weight"),
    "bias": Weight("D", (4,), 0, 0.0, "bias"),
    "head": Weight("DV", (4, 12), 1, 0.5, "head.weight"),
    "stack/layers/norm": Weight("ND", (3, 4), 0, None, "layer.{n}.norm.weight"),
    "stack/layers/q": Weight("NDHK", (3, 4, 2, 5), 1, 0.1, "layer.{n}.q.weight"),
    "stack/layers/q_bias": Weight("NHK", (3, 2, 5), 0, 0.0, "layer.{n}.q.bias"),
    "stack/layers/o": Weight("NHKD", (3, 2, 5, 4), 2, 0.2, "layer.{n}.o.weight"),
    "layers/k": Weight("NDGK", (2, 4, 2, 5), 1, 0.1, "other.{n}.k.weight"),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_weight_is_a_tensor_of_transformers(torch, preset):
    """Names and shapes, of all tensors, each once."""
    import transformers

    # Two layers stand for any depth: the second has no position bias, as all further ones.
    config = dataclasses.replace(PRESETS[preset], num_layers=2, num_decoder_layers=2)
    student = T5(config)
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(**student.architecture()))
    want = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for copy in {*student.aliases, *({"lm_head.weight"} if config.tie_word_embeddings else ())}:
        assert want.pop(copy) == want["shared.weight"]
    found = [
        (
            weight.theirs.format(n=n),
            pretrained.to_torch(weight, np.empty(weight.shape[weight.is_stacked :])).shape,
        )
        for weight in student.weights.values()
        for n in range(weight.layers)
    ]
    assert dict(found) == want
    assert len(found) == len(want)
    assert all(len(weight.axes) == len(weight.shape) for weight in student.weights.values())


def test_shapes_and_fresh_parameters_are_those_of_the_table():
    params = init(TABLE, jax.random.key(0))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes(TABLE)
    )
    flat = flatten_dict(params, sep="/")
    assert flat.keys() == TABLE.keys()
    assert {leaf.dtype for leaf in flat.values()} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(flat["stack/layers/norm"], np.ones((3, 4)))
    for zero in ("bias", "stack/layers/q_bias"):
        assert not flat[zero].any()


def test_a_fresh_weight_depends_on_its_path_and_the_key_only():
    """Its numbers are drawn with the table's deviation, and no two leaves or layers draw the same."""
    table = {
        path: Weight("ND", (4, 5000), 1, std, "")
        for path, std in (("a", 1.0), ("b", 0.02), ("deeper/c", 3.0))
    }
    flat = flatten_dict(init(table, jax.random.key(1)), sep="/")
    rows = np.concatenate([flat[path] / table[path].std for path in table])
    assert np.abs(np.corrcoef(rows) - np.eye(12)).max() < 5 / 5000**0.5
    assert np.abs(rows.std(axis=1) - 1).max() < 5 / 10000**0.5
    assert np.abs(rows.mean(axis=1)).max() < 5 / 5000**0.5
    fewer = flatten_dict(init({"deeper/c": table["deeper/c"]}, jax.random.key(1)), sep="/")
    np.testing.assert_array_equal(fewer["deeper/c"], flat["deeper/c"])
    other = flatten_dict(init(table, jax.random.key(2)), sep="/")
    assert not any((other[path] == flat[path]).any() for path in table)


def test_what_is_given_is_kept_and_the_rest_is_drawn_as_before():
    given = unflatten_dict({"head": np.ones((4, 12), np.float32)}, sep="/")
    found = flatten_dict(init(TABLE, jax.random.key(0), given), sep="/")
    assert found["head"] is given["head"]
    for path, leaf in flatten_dict(init(TABLE, jax.random.key(0)), sep="/").items():
        assert path == "head" or np.array_equal(found[path], leaf)


def test_a_weight_is_a_matrix_a_table_or_a_vector():
    matrices = {
        "embedding": (12, 4),
        "bias": (4,),
        "head": (4, 12),
        "stack/layers/norm": (4,),
        "stack/layers/q": (4, 10),
        "stack/layers/q_bias": (10,),
        "stack/layers/o": (10, 4),
        "layers/k": (4, 10),
    }
    assert {path: weight.matrix for path, weight in TABLE.items()} == matrices
    assert {path: weight.layers for path, weight in TABLE.items() if weight.is_stacked} == {
        "stack/layers/norm": 3,
        "stack/layers/q": 3,
        "stack/layers/q_bias": 3,
        "stack/layers/o": 3,
        "layers/k": 2,
    }
    assert {path for path, weight in TABLE.items() if weight.is_vector} == {
        "bias",
        "stack/layers/norm",
        "stack/layers/q_bias",
    }


def test_a_linear_map_is_transposed_in_files_and_nothing_else_is():
    rng = np.random.default_rng(0)
    for weight in TABLE.values():
        array = rng.normal(size=weight.shape[weight.is_stacked :])
        want = array.reshape(weight.matrix).T if weight.inputs else array.reshape(weight.matrix)
        np.testing.assert_array_equal(pretrained.to_torch(weight, array), want)


@pytest.mark.parametrize(
    ("mesh", "want"),
    [
        (
            {"data": 2, "fsdp": 2, "model": 2},
            {
                "embedding": P("model", "fsdp"),
                "bias": P(),
                "head": P("fsdp", "model"),
                "stack/layers/norm": P(),
                "stack/layers/q": P(None, "fsdp", "model", None),
                "stack/layers/q_bias": P(None, "model", None),
                "stack/layers/o": P(None, "model", None, "fsdp"),
                "layers/k": P(None, "fsdp", "model", None),
            },
        ),
        # Two key-value heads do not divide among four devices: each has both.
        ({"data": 1, "fsdp": 2, "model": 4}, {"layers/k": P(None, "fsdp", None, None)}),
    ],
)
def test_weights_are_divided_by_their_letters(mesh, want):
    assert {path: TABLE[path].partition(mesh) for path in want} == want


@pytest.mark.parametrize("preset", ["small", "t5-small", "tiny"])
def test_a_students_weights_are_divided_by_kind(preset):
    """Heads, feed-forward and vocabulary over `model`, the width over `fsdp`; norms whole."""
    ends = {
        "embedding": P("model", "fsdp"),
        "head": P("fsdp", "model"),
        "relative_bias": P(None, "model"),
        "q": P(None, "fsdp", "model", None),
        "k": P(None, "fsdp", "model", None),
        "v": P(None, "fsdp", "model", None),
        "o": P(None, "model", None, "fsdp"),
        "wi": P(None, "fsdp", "model"),
        "wi_0": P(None, "fsdp", "model"),
        "wi_1": P(None, "fsdp", "model"),
        "wo": P(None, "model", "fsdp"),
    }
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "model"))
    for path, weight in T5(PRESETS[preset]).weights.items():
        spec = weight.partition(mesh.shape)
        assert spec == ends.get(path.split("/")[-1], P()), path
        assert path.endswith("norm") or spec != P(), path
        NamedSharding(mesh, spec).shard_shape(weight.shape)  # divides


def test_norms_and_biases_do_not_decay():
    assert {path for path, weight in TABLE.items() if decays(path, weight)} == {
        "embedding",
        "head",
        "stack/layers/q",
        "stack/layers/o",
        "layers/k",
    }
    weights = T5(PRESETS["tiny"]).weights
    still = {path for path, weight in weights.items() if not decays(path, weight)}
    assert still == {path for path in weights if path.endswith(("norm", "relative_bias"))}
    assert len(still) == 2 + 2 + 5  # position biases, final norms, norms of layers


def test_norms_of_layers_are_those_of_all_their_numbers():
    params = init({path: w._replace(std=w.std or 0.3) for path, w in TABLE.items()}, jax.random.key(0))
    flat = flatten_dict(params, sep="/")
    found = layer_norms(params)
    assert found.keys() == {"stack", "layers"}
    for stack, leaves in {"stack": ("norm", "q", "q_bias", "o"), "layers": ("k",)}.items():
        prefix = f"{stack}/layers" if stack == "stack" else "layers"
        parts = [np.asarray(flat[f"{prefix}/{leaf}"], float) for leaf in leaves]
        want = [
            np.linalg.norm(np.concatenate([part[n].ravel() for part in parts])) for n in range(len(parts[0]))
        ]
        np.testing.assert_allclose(found[stack], want, rtol=1e-6)
        assert found[stack].dtype == jnp.float32
