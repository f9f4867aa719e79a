"""T5 weights in Hugging Face's files, read and written through one table of names."""

import dataclasses
import json
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp  # also registers bfloat16 with NumPy, which safetensors needs
import numpy as np
import safetensors
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from cot_jax.errors import UserError
from cot_jax.models.t5 import T5, T5Config

# Parameter path -> (tensor name, input axes). torch keeps the weight of a linear map as (outputs,
# inputs); ours has its input axes first, and this says how many (0: not a linear map, kept as is).
Names = dict[str, tuple[str, int]]

_ATTENTION: Names = {"q": ("q", 1), "k": ("k", 1), "v": ("v", 1), "o": ("o", 2)}

# One tensor, which some files hold under several of these names.
_EMBEDDING = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEAD = "lm_head.weight"

# In the v1.0 checkpoints: a bias for cross-attention, which T5 does not have. transformers ignores it too.
_IGNORED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def name_table(config: T5Config) -> Names:
    """Every parameter's path and tensor name; "{n}" stands for the layer, the parameter's axis 0."""
    gated = config.feed_forward_proj.startswith("gated-")
    table: Names = {"shared": (_EMBEDDING[0], 0)}
    if not config.tie_word_embeddings:
        table["lm_head"] = (_HEAD, 1)
    blocks = {
        "encoder": {"self_attention": "SelfAttention", "mlp": "DenseReluDense"},
        "decoder": {
            "self_attention": "SelfAttention",
            "cross_attention": "EncDecAttention",
            "mlp": "DenseReluDense",
        },
    }
    feed_forward: Names = {name: (name, 1) for name in (("wi_0", "wi_1", "wo") if gated else ("wi", "wo"))}
    for stack, parts in blocks.items():
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table[f"{stack}/relative_bias"] = (bias, 0)
        table[f"{stack}/final_norm/scale"] = (f"{stack}.final_layer_norm.weight", 0)
        for position, (part, theirs) in enumerate(parts.items()):
            layer = f"{stack}.block.{{n}}.layer.{position}"
            table[f"{stack}/layers/{part}_norm/scale"] = (f"{layer}.layer_norm.weight", 0)
            for name, (their_name, inputs) in (feed_forward if part == "mlp" else _ATTENTION).items():
                table[f"{stack}/layers/{part}/{name}"] = (f"{layer}.{theirs}.{their_name}.weight", inputs)
    return table


def load(path_or_id: str) -> tuple[T5Config, dict[str, Any]]:
    """Reads a local directory or a Hub repository.

    The head is the file's own where there is one that differs from the embedding, whatever
    config.json says of tying. float16 and bfloat16 tensors are widened.

    Returns:
      The config and the parameters, a nested dict of float32 NumPy arrays.

    Raises:
      UserError: nothing to read, or the tensors are not exactly those the config asks for (the
        first unknown, missing, repeated or misshapen one is named).
    """
    directory = Path(path_or_id) if Path(path_or_id).is_dir() else _download(path_or_id)
    config = _read_config(directory / "config.json")
    optional = {_HEAD} if config.tie_word_embeddings else set()
    config = dataclasses.replace(config, tie_word_embeddings=False)
    shapes = jax.eval_shape(T5(config, jnp.float32).init_params, jax.random.key(0))
    params = {path: np.empty(leaf.shape, np.float32) for path, leaf in flatten_dict(shapes, sep="/").items()}

    # Tensor name -> (the array it fills, input axes).
    places: dict[str, tuple[np.ndarray, int]] = {}
    for path, (name, inputs) in name_table(config).items():
        layers = params[path] if "{n}" in name else [params[path]]
        places |= {name.format(n=n): (array, inputs) for n, array in enumerate(layers)}
    places |= dict.fromkeys(_EMBEDDING, places[_EMBEDDING[0]])

    seen: set[str] = set()
    for file, name, tensor in _tensors(directory):
        if name == _IGNORED:
            continue
        if name not in places:
            raise UserError(
                f"{file}: tensor {name} is unknown to the T5 of config.json; is it another model's?"
            )
        if name in seen:
            raise UserError(f"{file}: tensor {name} was already in another file; remove one of them")
        array, inputs = places[name]
        expected = _torch_shape(array.shape, inputs)
        if tensor.shape != expected:
            raise UserError(f"{file}: tensor {name} is {tensor.shape}, config.json asks for {expected}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(f"{file}: tensor {name} is {tensor.dtype}; quantized weights cannot be read")
        tensor = tensor.astype(np.float32)
        value = tensor.T.reshape(array.shape) if inputs else tensor
        if name in _EMBEDDING and not seen.isdisjoint(_EMBEDDING):
            if not np.array_equal(array, value):
                raise UserError(f"{file}: tensor {name} differs from the other copies of {_EMBEDDING[0]}")
        else:
            array[...] = value
        seen.add(name)

    optional.update(_EMBEDDING[1:] if seen.isdisjoint(_EMBEDDING) else _EMBEDDING)
    if missing := sorted(places.keys() - seen - optional):
        raise UserError(f"{directory}: tensor {missing[0]} is missing, one of {len(missing)} in all")
    if _HEAD not in seen or np.array_equal(params["lm_head"], params["shared"].T):
        del params["lm_head"]
        config = dataclasses.replace(config, tie_word_embeddings=True)
    return config, unflatten_dict(params, sep="/")


def load_config(path_or_id: str) -> T5Config:
    """What `load` finds of the architecture; a local directory needs no weights.

    Raises:
      UserError: nothing to read.
    """
    directory = Path(path_or_id) if Path(path_or_id).is_dir() else _download(path_or_id, weights=False)
    return _read_config(directory / "config.json")


def save(directory: Path, config: T5Config, params: dict[str, Any]) -> None:
    """Writes model.safetensors and config.json for `transformers.T5ForConditionalGeneration`."""
    flat = flatten_dict(params, sep="/")
    table = name_table(config)
    if flat.keys() != table.keys():
        raise ValueError(f"parameters and config disagree: {sorted(flat.keys() ^ table.keys())}")
    tensors = {}
    for path, (name, inputs) in table.items():
        leaf = np.asarray(flat[path], np.float32)
        for n, array in enumerate(leaf if "{n}" in name else [leaf]):
            array = array.reshape(math.prod(array.shape[:inputs]), -1).T if inputs else array
            tensors[name.format(n=n)] = np.ascontiguousarray(array)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    # Last: without it the directory is not a model, so an interrupted export cannot be taken for one.
    (directory / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")


def _torch_shape(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs])) if inputs else shape


def _read_config(path: Path) -> T5Config:
    try:
        return T5Config.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs one") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def _tensors(directory: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """(file, tensor name, tensor in torch's layout), one after another: models can be large."""
    name, files = _weight_files(directory)
    for file in files:
        try:
            yield from ((file, *item) for item in _READERS[name](file))
        except (
            OSError,
            ValueError,
            RuntimeError,
            safetensors.SafetensorError,
            pickle.UnpicklingError,
        ) as error:
            raise UserError(f"{file}: cannot be read ({_first_line(error)})") from None


def _weight_files(directory: Path) -> tuple[str, list[Path]]:
    """The first format of `_READERS` that the directory has, and its files."""
    for name in _READERS:
        if (directory / name).is_file():
            return name, [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            return name, [directory / shard for shard in sorted(shards)]
    raise UserError(f"{directory}: no weights; expected one of {', '.join(_READERS)}")


def _read_safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with safetensors.safe_open(file, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            yield name, tensors.get_tensor(name)


def _read_msgpack(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Flax's layout: linear maps are called "kernel" and transposed, embeddings "embedding"."""
    for path, array in flatten_dict(msgpack_restore(file.read_bytes())).items():
        name = ".".join((*path[:-1], "weight"))
        yield name, array.T if path[-1] == "kernel" else array


def _read_torch(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: needs PyTorch to be read; install it, or give safetensors") from None
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        # NumPy knows no torch.bfloat16.
        yield name, (tensor.float() if tensor.is_floating_point() else tensor).numpy()


# In order of preference.
_READERS = {
    "model.safetensors": _read_safetensors,
    "flax_model.msgpack": _read_msgpack,
    "pytorch_model.bin": _read_torch,
}


def _download(repository: str, *, weights: bool = True) -> Path:
    """A snapshot with config.json and the weights in one format, from the Hub or its local cache."""
    mend = "give a local directory with --config.model.pretrained=DIR"
    try:
        if not weights:
            return Path(huggingface_hub.snapshot_download(repository, allow_patterns=["config.json"]))
        for name in _READERS:
            stem, suffix = name.split(".")
            patterns = ["config.json", f"{stem}*.{suffix}", f"{name}.index.json"]
            directory = Path(huggingface_hub.snapshot_download(repository, allow_patterns=patterns))
            if any(directory.glob(f"{stem}*.{suffix}")):
                return directory
    except Exception as error:  # whatever the network and the Hub's client come up with
        raise UserError(
            f"{repository}: no such directory, and not to be had from the Hub ({_first_line(error)}); {mend}"
        ) from None
    raise UserError(f"{repository}: the Hub has no weights of it in {', '.join(_READERS)}; {mend}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
