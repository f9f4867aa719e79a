import dataclasses
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import jax
import ml_dtypes
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from cot_jax.errors import UserError
from cot_jax.models import pretrained
from cot_jax.models import student as students
from cot_jax.models.student import Options
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import Weight, shapes

KINDS = ["v1.0", "v1.1-tied", "v1.1"]
TINY = T5Config(
    vocab_size=24,
    d_model=8,
    d_kv=2,
    d_ff=10,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=2,
    dropout_rate=0.0,
)
GATED = dataclasses.replace(TINY, feed_forward_proj="gated-gelu", scale_decoder_outputs=False)
UNTIED = dataclasses.replace(GATED, tie_word_embeddings=False)
IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@functools.cache
def random_params(config):
    rng = np.random.default_rng(0)
    like = shapes(T5(config).weights)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), like)


def saved(directory, config=UNTIED):
    """Saves a model; returns its tensors to tamper with."""
    students.save(directory, T5(config), random_params(config))
    return load_file(directory / "model.safetensors")


def load(directory):
    """The config and the parameters."""
    student, params, _ = students.from_pretrained(str(directory), Options())
    return student.config, params


def rewrite(directory, tensors):
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def refused(directory):
    with pytest.raises(UserError) as error:
        load(directory)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- Our own files ---


@pytest.mark.parametrize("config", [TINY, GATED, UNTIED], ids=KINDS)
def test_load_gives_back_what_was_saved(tmp_path, config):
    params = random_params(config)
    students.save(tmp_path / "new" / "model", T5(config), params)
    loaded_config, loaded = load(tmp_path / "new" / "model")
    assert loaded_config == config
    assert_equal(loaded, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_parameters_of_another_config_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="head"):
        students.save(tmp_path / "model", T5(TINY), random_params(TINY) | {"head": np.zeros((8, 24))})
    assert not (tmp_path / "model").exists()


# --- Files of others ---


def assert_reads_as(directory, state, config):
    """What was loaded is the state dict, tensor by tensor, under the table's names."""
    loaded_config, params = load(directory)
    assert loaded_config == config
    flat, weights = flatten_dict(params, sep="/"), T5(config).weights
    assert flat.keys() == weights.keys()
    for path, weight in weights.items():
        for n, array in enumerate(flat[path] if weight.is_stacked else [flat[path]]):
            want = np.asarray(state[weight.theirs.format(n=n)], np.float32)
            want = want.T.reshape(array.shape) if weight.inputs else want
            np.testing.assert_array_equal(array, want)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_shards(reference, tmp_path, kind):
    model, directory = reference(kind)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    config, _ = load(directory)
    assert config.tie_word_embeddings == (kind != "v1.1")
    assert config.scale_decoder_outputs == (kind == "v1.0")
    assert_reads_as(tmp_path, {k: v.numpy() for k, v in model.state_dict().items()}, config)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_files_with_their_redundant_copies(torch, reference, tmp_path, kind):
    model, directory = reference(kind)
    state = model.state_dict()
    assert {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} < state.keys()
    # As in the v1.0 checkpoints, whose config.json is from before several fields.
    torch.save(state | {IGNORED: torch.ones(32, 4)}, tmp_path / "pytorch_model.bin")
    shutil.copy(directory / "config.json", tmp_path)
    config, _ = load(directory)
    assert_reads_as(tmp_path, {k: v.numpy() for k, v in state.items()}, config)


def test_torch_shards_in_bfloat16(torch, reference, tmp_path):
    model, directory = reference("v1.1")
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    names = sorted(state)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shutil.copy(directory / "config.json", tmp_path)
    config, _ = load(directory)
    assert_reads_as(tmp_path, {k: v.float().numpy() for k, v in state.items()}, config)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("config", [TINY, UNTIED], ids=["v1.0", "v1.1"])
def test_flax_files(tmp_path, config, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in saved(tmp_path, config).items()}
    (tmp_path / "model.safetensors").unlink()
    # The layout of transformers' former Flax classes: kernels are (inputs, outputs).
    tree = {}
    for name, tensor in tensors.items():
        path = tuple(name.split(".")[:-1])
        if "norm" in name:
            tree[*path, "weight"] = tensor
        elif name == "shared.weight" or "bias" in name:
            tree[*path, "embedding"] = tensor
        else:
            tree[*path, "kernel"] = np.ascontiguousarray(tensor.T)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(unflatten_dict(tree)))
    assert_reads_as(tmp_path, tensors, config)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_safetensors(tmp_path, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in saved(tmp_path).items()}
    rewrite(tmp_path, tensors)
    assert_reads_as(tmp_path, tensors, UNTIED)


def test_safetensors_come_first(torch, tmp_path):
    tensors = saved(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "flax_model.msgpack").write_bytes(b"")
    assert_reads_as(tmp_path, tensors, UNTIED)


def test_an_embedding_under_another_of_its_names(tmp_path):
    tensors = saved(tmp_path, TINY)
    rewrite(tmp_path, tensors | {"encoder.embed_tokens.weight": tensors.pop("shared.weight")})
    assert_equal(load(tmp_path)[1], random_params(TINY))


def test_the_head_is_the_files_whatever_config_says_of_tying(tmp_path):
    tensors = saved(tmp_path, UNTIED)
    config = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))  # as transformers 5 writes it
    assert load(tmp_path)[0] == UNTIED
    rewrite(tmp_path, tensors | {"lm_head.weight": tensors["shared.weight"]})
    config, params = load(tmp_path)
    assert config == GATED
    assert "head" not in params


# --- And back to transformers ---


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_what_we_write(torch, reference, ours, pair, torch_inputs, tmp_path, kind):
    model, _ = reference(kind)
    student, params = ours(kind)
    students.save(tmp_path, student, params)
    again, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert (again.lm_head.weight is again.shared.weight) == (kind != "v1.1")
    assert again.config.scale_decoder_outputs == (kind == "v1.0")
    inputs = torch_inputs(*pair)
    with torch.no_grad():
        np.testing.assert_array_equal(again.eval()(**inputs).logits, model(**inputs).logits)
        del inputs["labels"]
        generated = [m.generate(**inputs, max_new_tokens=5, do_sample=False).numpy() for m in (model, again)]
    np.testing.assert_array_equal(*generated)


# --- What is refused ---


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (UNTIED, "decoder.block.2.layer.1.EncDecAttention.v.weight"),
        (UNTIED, "shared.weight"),
        (UNTIED, "lm_head.weight"),
        (TINY, "shared.weight"),  # one of 1: a tied head is not missing
    ],
)
def test_a_missing_tensor(tmp_path, config, name):
    tensors = saved(tmp_path, config)
    del tensors[name]
    rewrite(tmp_path, tensors)
    assert f"tensor {name} is missing, one of 1 in all" in refused(tmp_path)


def test_an_unknown_tensor(tmp_path):
    tensors = saved(tmp_path)
    rewrite(tmp_path, tensors | {"encoder.block.2.layer.0.layer_norm.weight": np.ones(8, np.float32)})
    message = refused(tmp_path)
    assert "model.safetensors: tensor encoder.block.2.layer.0.layer_norm.weight is unknown" in message


def test_a_bias_that_is_not_the_ignored_one(tmp_path):
    tensors = saved(tmp_path)
    rewrite(tmp_path, tensors | {IGNORED: np.ones((32, 2), np.float32)})
    _, _, (report,) = students.from_pretrained(str(tmp_path), Options())
    assert report == f"{tmp_path}: unused tensors: 1, such as {IGNORED}"
    name = IGNORED.replace("block.0", "block.1")
    rewrite(tmp_path, tensors | {name: np.ones((32, 2), np.float32)})
    assert f"tensor {name} is unknown" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("encoder.block.0.layer.0.SelfAttention.q.weight", (8, 4), (4, 8)),
        ("encoder.block.0.layer.0.SelfAttention.o.weight", (4, 8), (8, 4)),
        ("encoder.block.1.layer.0.layer_norm.weight", (1,), (8,)),
        ("shared.weight", (8, 24), (24, 8)),
    ],
)
def test_a_wrong_shape(tmp_path, name, shape, expected):
    rewrite(tmp_path, saved(tmp_path) | {name: np.zeros(shape, np.float32)})
    assert f"tensor {name} is {shape}, config.json asks for {expected}" in refused(tmp_path)


def test_quantized_weights(tmp_path):
    tensors = saved(tmp_path)
    tensors["shared.weight"] = tensors["shared.weight"].astype(np.int8)
    rewrite(tmp_path, tensors)
    assert "tensor shared.weight is int8; quantized" in refused(tmp_path)


@pytest.mark.parametrize(("config", "copies"), [(UNTIED, []), (TINY, ["encoder.embed_tokens.weight"])])
def test_a_tensor_in_two_shards(tmp_path, config, copies):
    tensors = saved(tmp_path, config)
    (tmp_path / "model.safetensors").unlink()
    save_file(tensors, tmp_path / "a.safetensors")
    repeated = dict.fromkeys([*copies, "shared.weight"], tensors["shared.weight"])
    save_file(repeated, tmp_path / "b.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors") | {"shared.weight": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "b.safetensors: tensor shared.weight was already in another file" in refused(tmp_path)


def test_a_tied_copy_that_differs(tmp_path):
    tensors = saved(tmp_path)
    name = "decoder.embed_tokens.weight"
    rewrite(tmp_path, tensors | {name: tensors["shared.weight"]})
    load(tmp_path)
    rewrite(tmp_path, tensors | {name: tensors["shared.weight"] + np.eye(24, 8, dtype=np.float32)})
    assert "differs from the other copies of shared.weight" in refused(tmp_path)


def test_no_weights(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    expected = "expected one of model.safetensors, flax_model.msgpack, pytorch_model.bin"
    assert f"{tmp_path}: no weights; {expected}" in refused(tmp_path)


def test_no_config(tmp_path):
    saved(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json: no such file" in refused(tmp_path)
    (tmp_path / "config.json").write_text('{"d_model": 8,')
    assert "config.json: not valid JSON" in refused(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "flax_model.msgpack", "pytorch_model.bin"])
def test_a_torn_file(request, tmp_path, name):
    if name.endswith(".bin"):
        request.getfixturevalue("torch")
    saved(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    assert f"{name}: cannot be read (" in refused(tmp_path)


def test_a_missing_shard(tmp_path):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"shared.weight": "gone.safetensors"}}'
    )
    assert "gone.safetensors: cannot be read (" in refused(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_pickle_runs_nothing(torch, tmp_path, capsys):
    saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"shared.weight": Evil()}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin: cannot be read (" in refused(tmp_path)
    assert capsys.readouterr().out == ""


def test_torch_files_without_torch(tmp_path, monkeypatch):
    saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pytorch_model.bin: needs PyTorch to be read" in refused(tmp_path)


# --- Weights that no file has ---


def test_fresh_weights_are_reported_and_leftovers_counted(tmp_path):
    weights = {
        "embedding": Weight("VD", (5, 4), 0, 1.0, "emb.weight"),
        "layers/k": Weight("NDGK", (2, 4, 1, 3), 1, 0.1, "layer.{n}.k.weight"),
        "classifier": Weight("DC", (4, 2), 1, 0.02, "classifier.weight"),
    }
    rng = np.random.default_rng(0)
    tensors = {"emb.weight": (5, 4), "layer.0.k.weight": (3, 4), "layer.1.k.weight": (3, 4)}
    tensors |= {f"cls.{n}": (1,) for n in range(4)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensors.items()}
    rewrite(tmp_path, tensors)
    params, report = pretrained.read(tmp_path, weights, {}, (r"cls\..*",), optional=("classifier",))
    assert flatten_dict(params, sep="/").keys() == {"embedding", "layers/k"}
    np.testing.assert_array_equal(params["layers"]["k"][1, :, 0], tensors["layer.1.k.weight"].T)
    assert report == [
        f"{tmp_path}: unused tensors: 4, such as cls.0",
        f"{tmp_path}: fresh weights for classifier",
    ]


# --- The Hub ---


def test_only_one_format_is_downloaded(tmp_path, monkeypatch):
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    tensors = saved(hub)
    for extra in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "spiece.model"):
        (hub / extra).write_bytes(b"")

    def snapshot_download(repository, allow_patterns):
        assert repository == "google/t5-v1_1-small"
        cache.mkdir(exist_ok=True)
        for file in hub.iterdir():
            if any(Path(file.name).match(pattern) for pattern in allow_patterns):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    config, params = load("google/t5-v1_1-small")
    assert (config, sorted(f.name for f in cache.iterdir())) == (UNTIED, ["config.json", "model.safetensors"])
    np.testing.assert_array_equal(params["embedding"], tensors["shared.weight"])

    # A repository without safetensors.
    shutil.rmtree(cache)
    (hub / "model.safetensors").unlink()
    assert "flax_model.msgpack: cannot be read" in refused("google/t5-v1_1-small")
    assert sorted(f.name for f in cache.iterdir()) == ["config.json", "flax_model.msgpack"]

    # And one without any.
    shutil.rmtree(cache)
    for name in ("pytorch_model.bin", "flax_model.msgpack"):
        (hub / name).unlink()
    assert "the Hub has no weights of it" in refused("google/t5-v1_1-small")


def test_no_network(tmp_path):
    names = ["google/t5-v1_1-small", "runs/typo/model", "not a name"]
    code = f"""
from cot_jax.errors import UserError
from cot_jax.models import student
for name in {names!r}:
    try:
        student.from_pretrained(name, student.Options())
    except UserError as error:
        print(error)
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    for name, message in zip(names, result.stdout.splitlines(), strict=True):
        assert message.startswith(f"{name}: no such directory, and the Hub does not provide it (")
        assert message.endswith("give a local directory with --config.model.pretrained=DIR")
