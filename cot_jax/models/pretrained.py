"""Reads and writes weights in Hugging Face's files by a student's table of weights."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp  # also registers bfloat16 with NumPy, which safetensors needs
import numpy as np
import safetensors
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from cot_jax.errors import UserError, first_line
from cot_jax.files import read_json, write_json
from cot_jax.models.weights import Params, Weight, Weights

_HEAD, _EMBEDDING = "head", "embedding"


def read_config(path_or_id: str) -> dict[str, Any]:
    """The parsed config.json of a local directory, which needs no weights, or of a Hub repository.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    path = fetch(path_or_id, weights=False) / "config.json"
    if not path.exists():
        raise UserError(f"{path}: no such file; a model directory needs one")
    return read_json(path)


def read(
    directory: Path,
    weights: Weights,
    aliases: Mapping[str, str],
    leftovers: Sequence[str],
    prefix: str = "",
    *,
    optional: Collection[str] = (),
    more_layers: bool = False,
) -> tuple[Params, list[str]]:
    """Reads every weight of the table. float16 and bfloat16 tensors are widened.

    Args:
      aliases: other names of a tensor -> its name; copies must be equal.
      leftovers: regular expressions of tensors that are ignored and counted.
      prefix: prefix that the names may lack, as in files of a model without its head.
      optional: paths of weights that may be missing.
      more_layers: whether the files may have more layers than the table; these are ignored and counted.

    Returns:
      The parameters, a nested dict of float32 NumPy arrays, without the optional ones that are missing; and
      lines that report what was ignored and what is fresh.

    Raises:
      UserError: nothing to read, or the tensors are not exactly those of the table (the first quantized,
        unknown, missing, repeated or misshapen one is named).
    """
    # Tensor name -> (path of the parameter, index of the part that the tensor fills).
    places = {
        weight.theirs.format(n=n): (path, n if weight.is_stacked else ...)
        for path, weight in weights.items()
        for n in range(weight.layers)
    }
    params: dict[str, np.ndarray] = {}
    names: set[str] = set()
    filled: set[str] = set()
    ignored = []
    beyond = _beyond(weights, prefix) if more_layers else lambda name: False
    for file, name, tensor in _tensors(directory):
        place = aliases.get(name, name)
        if beyond(place) or any(re.fullmatch(pattern, name) for pattern in leftovers):
            ignored.append(name)
            continue
        # Checked first: quantized tensors also differ in name and shape.
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise UserError(
                f"{file}: tensor {name} is {tensor.dtype}; quantized weights cannot be read: take the "
                "unquantized model"
            )
        if place not in places and prefix + place in places:
            place = prefix + place
        if place not in places:
            raise UserError(
                f"{file}: tensor {name} is unknown to the model of config.json; is it another model's?"
            )
        if name in names:
            raise UserError(f"{file}: tensor {name} was already in another file; remove one of them")
        path, part = places[place]
        weight = weights[path]
        expected = _torch_shape(weight)
        if tensor.shape != expected:
            raise UserError(f"{file}: tensor {name} is {tensor.shape}, config.json asks for {expected}")
        # Allocated only now: config.json may claim any size.
        if path not in params:
            params[path] = np.empty(weight.shape, np.float32)
        array = params[path][part]
        tensor = tensor.astype(np.float32)
        value = (tensor.T if weight.inputs else tensor).reshape(array.shape)
        if place in filled:
            if not np.array_equal(array, value):
                raise UserError(f"{file}: tensor {name} differs from the other copies of {place}")
        else:
            array[...] = value
        names.add(name)
        filled.add(place)

    fresh = []
    for path in optional:
        if path in weights and weights[path].theirs in places.keys() - filled:
            del places[weights[path].theirs]
            if path != _HEAD:
                fresh.append(path)
    if missing := sorted(places.keys() - filled):
        raise UserError(f"{directory}: tensor {missing[0]} is missing, one of {len(missing)} in all")
    report = []
    if ignored:
        report.append(f"{directory}: unused tensors: {len(ignored)}, such as {ignored[0]}")
    if fresh:
        report.append(f"{directory}: fresh weights for {', '.join(fresh)}")
    return unflatten_dict({path: params[path] for path in weights if path in params}, sep="/"), report


def _beyond(weights: Weights, prefix: str) -> Callable[[str], bool]:
    """A test whether a tensor belongs to a layer after the table's last."""
    layers = {}
    for weight in weights.values():
        if weight.is_stacked:
            name = re.escape(weight.theirs.removeprefix(prefix)).replace(r"\{n\}", r"(\d+)")
            layers[re.compile(f"(?:{re.escape(prefix)})?{name}")] = weight.layers

    def is_beyond(name: str) -> bool:
        found = ((pattern.fullmatch(name), count) for pattern, count in layers.items())
        return any(match and int(match[1]) >= count for match, count in found)

    return is_beyond


def is_tied(params: Params) -> bool:
    """Whether the embedding serves as the head: there is no other head, or it is equal."""
    return _HEAD not in params or np.array_equal(params[_HEAD], params[_EMBEDDING].T)


def write(directory: Path, config: dict[str, Any], weights: Weights, params: Params) -> None:
    """Writes model.safetensors and config.json for Transformers."""
    flat = flatten_dict(params, sep="/")
    if flat.keys() != weights.keys():
        raise ValueError(f"parameters and config disagree: {sorted(flat.keys() ^ weights.keys())}")
    tensors = {}
    for path, weight in weights.items():
        leaf = np.asarray(flat[path], np.float32)
        for n, array in enumerate(leaf if weight.is_stacked else [leaf]):
            tensors[weight.theirs.format(n=n)] = np.ascontiguousarray(to_torch(weight, array))
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "model.safetensors", tensors)
    # Last: without it the directory is not a model, so an interrupted export cannot be taken for one.
    write_json(directory / "config.json", config)


def write_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes safetensors in PyTorch's format.

    Raises:
      OSError: they cannot be written.
    """
    try:
        save_file(tensors, file, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # also raised for a full disk
        raise OSError(str(error)) from None


def to_torch(weight: Weight, array: np.ndarray) -> np.ndarray:
    """A layer's part in PyTorch's layout: (outputs, inputs) for a linear map."""
    shape = _torch_shape(weight)
    return array.reshape(shape[::-1]).T if weight.inputs else array.reshape(shape)


def _torch_shape(weight: Weight) -> tuple[int, ...]:
    if "W" in weight.axes:  # a convolution: (outputs, inputs, window)
        return weight.shape[::-1]
    return weight.matrix[::-1] if weight.inputs else weight.matrix


def _tensors(directory: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """Yields (file, tensor name, tensor in PyTorch's layout), one at a time: models can be large."""
    name, files = _weight_files(directory)
    for file in files:
        try:
            for tensor_name, tensor in _READERS[name](file):
                if not isinstance(tensor, np.ndarray):
                    raise TypeError(f"{tensor_name} is not a tensor but {type(tensor).__name__}")
                yield file, tensor_name, tensor
        except UserError:
            raise
        except Exception as error:  # of safetensors, msgpack, PyTorch, or caused by the contents
            raise UserError(f"{file}: cannot be read ({first_line(error)})") from None


def _weight_files(directory: Path) -> tuple[str, list[Path]]:
    """The first format of `_READERS` found in the directory, and its files."""
    for name in _READERS:
        if (directory / name).is_file():
            return name, [directory / name]
        index = directory / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(read_json(index, {"weight_map": {str: str}})["weight_map"].values()))
            for shard in shards:
                if Path(shard).name != shard:
                    raise UserError(f"{index}: {shard!r} is not a file beside it")
            return name, [directory / shard for shard in shards]
    raise UserError(f"{directory}: no weights; expected one of {', '.join(_READERS)}")


def _read_safetensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with safetensors.safe_open(file, framework="numpy") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            yield name, tensors.get_tensor(name)


def _read_msgpack(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Flax's layout: a weight is named "kernel" and transposed, "embedding" or "scale"."""
    for (*module, kind), array in flatten_dict(msgpack_restore(file.read_bytes())).items():
        name = ".".join([*module, "bias" if kind == "bias" else "weight"])
        yield name, array.T if kind == "kernel" and isinstance(array, np.ndarray) else array


def _read_torch(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{file}: needs PyTorch to be read; install it, or give safetensors") from None
    for name, tensor in torch.load(file, map_location="cpu", weights_only=True).items():
        # NumPy has no torch.bfloat16.
        yield name, (tensor.float() if tensor.is_floating_point() else tensor).numpy()


# In order of preference.
_READERS = {
    "model.safetensors": _read_safetensors,
    "flax_model.msgpack": _read_msgpack,
    "pytorch_model.bin": _read_torch,
}


def fetch(path_or_id: str, *, weights: bool = True) -> Path:
    """A local directory, or a snapshot with config.json and the weights in one format from the Hub.

    Raises:
      UserError: it is out of reach.
    """
    if Path(path_or_id).is_dir():
        return Path(path_or_id)
    fix = "give a local directory with --config.model.pretrained=DIR"
    try:
        if not weights:
            return Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=["config.json"]))
        for name in _READERS:
            stem, suffix = name.split(".")
            patterns = ["config.json", f"{stem}*.{suffix}", f"{name}.index.json"]
            directory = Path(huggingface_hub.snapshot_download(path_or_id, allow_patterns=patterns))
            if any(directory.glob(f"{stem}*.{suffix}")):
                return directory
    except Exception as error:  # anything from the network and the Hub's client
        raise UserError(
            f"{path_or_id}: no such directory, and the Hub does not provide it ({first_line(error)}); {fix}"
        ) from None
    raise UserError(f"{path_or_id}: the Hub has no weights of it in {', '.join(_READERS)}; {fix}")
