"""LoRA (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models"): W + alpha / rank * A B.

The pretrained weights W are frozen. A product of two thin matrices is added to some of them; only these are
trained and stored. Training never forms the sum: an adapted student's parameters have `layers.LowRank`
leaves.
"""

import re
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file

from cot_jax.errors import UserError, first_line
from cot_jax.files import Shape, read_json, write_json
from cot_jax.models.layers import LowRank
from cot_jax.models.pretrained import write_tensors
from cot_jax.models.weights import Params, Weight, Weights

_RANKS = range(1, 2**16)
# The shape of a saved `Lora.settings`.
SETTINGS: Shape = {"rank": _RANKS, "alpha": float, "targets": str}


class Lora:
    """The adapters of a student: the weights that are trained.

    Attributes:
      settings: the arguments, without the weights.
      rank, alpha: R, and R times the product's factor.
      weights: for every adapted matrix PATH/a (N, P, R) and PATH/b (N, R, Q), with N layers, P inputs and Q
        outputs (all heads of an attention together).
    """

    def __init__(self, weights: Weights, *, rank: int, alpha: float, targets: str):
        """
        Args:
          targets: regular expression that is searched in the parameters' paths.

        Raises:
          UserError: `targets` is not a regular expression, matches no path, or one that is no layer's matrix.
        """
        self.settings = {"rank": rank, "alpha": alpha, "targets": targets}
        self.rank, self.alpha = rank, alpha
        try:
            wanted = re.compile(targets)
        except re.error as error:
            raise UserError(f"config.model.lora_targets={targets!r}: {error}") from None
        self._adapted = {path: weight for path, weight in weights.items() if wanted.search(path)}
        if not self._adapted:
            raise UserError(f"config.model.lora_targets={targets!r} matches no parameter's path")
        self.weights: dict[str, Weight] = {}
        for path, weight in self._adapted.items():
            if not weight.inputs or not weight.is_stacked:
                raise UserError(
                    f"config.model.lora_targets={targets!r} matches {path}, which is not a layer's matrix"
                )
            N, (P, Q) = weight.layers, weight.matrix
            # Small, so replicated: the mesh has no axes for these letters.
            self.weights[f"{path}/a"] = Weight("Nio", (N, P, rank), 1, P**-0.5, weight.theirs)
            self.weights[f"{path}/b"] = Weight("Nio", (N, rank, Q), 1, 0.0, weight.theirs)

    @property
    def modules(self) -> dict[str, tuple[str, int]]:
        """Module in Hugging Face's files -> (path, layer), of every adapted matrix."""
        return _modules(self._adapted)

    def init(self, rng: jax.Array, given: Params | None = None) -> Params:
        """The adapters that are `given`, or else initial ones, float32.

        As in the released code, A is uniform within P**-0.5 and B zero: training starts from the pretrained
        student.
        """
        if given is not None:
            return given
        flat = {}
        for n, path in enumerate(sorted(self._adapted)):
            shape_NPR = self.weights[f"{path}/a"].shape
            limit, key = shape_NPR[1] ** -0.5, jax.random.fold_in(rng, n)
            flat[f"{path}/a"] = jax.random.uniform(key, shape_NPR, minval=-limit, maxval=limit)
            flat[f"{path}/b"] = jnp.zeros(self.weights[f"{path}/b"].shape)
        return unflatten_dict(flat, sep="/")

    def attach(self, frozen: Params, trained: Params) -> Params:
        """The parameters of the adapted student; nothing is copied."""
        # Here and not at the use of the weight: a loop over layers would keep the result for the backward
        # pass, a copy of all layers' weights.
        frozen = jax.lax.stop_gradient(frozen)
        flat, own = flatten_dict(frozen, sep="/"), flatten_dict(trained, sep="/")
        for path in self._adapted:
            flat[path] = LowRank(flat[path], own[f"{path}/a"], own[f"{path}/b"], self.alpha / self.rank)
        return unflatten_dict(flat, sep="/")


def merged(params: Params) -> Params:
    """An adapted student's parameters with its `LowRank` leaves summed, float32."""

    def one(leaf):
        if not isinstance(leaf, LowRank):
            return leaf.astype(jnp.float32)
        product_NPQ = jnp.einsum("NPR,NRQ->NPQ", leaf.a, leaf.b, precision="highest")
        return leaf.w.astype(jnp.float32) + leaf.scale * product_NPQ.reshape(leaf.w.shape)

    return jax.tree.map(one, params, is_leaf=lambda leaf: isinstance(leaf, LowRank))


def fingerprint(params: Params) -> int:
    """A checksum of NumPy parameters: an adapter fits no others."""
    crc = 0
    for _, leaf in sorted(flatten_dict(params, sep="/").items()):
        crc = zlib.crc32(np.ascontiguousarray(leaf).data, crc)
    return crc


# --- The files of PEFT ---

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"

# PEFT's options beyond a product of two matrices, and the values that switch them off.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}
# The same of newer options, which are not written: older versions of PEFT warn of them.
_LATER = {"alora_invocation_tokens": None, "arrow_config": None}
# Ways to draw the initial product that leave the adapted weights alone; others, such as PiSSA, change them.
_INITS = (True, "gaussian", "eva", "orthogonal")


def write_adapter(directory: Path, lora: Lora, trained: Params, base: str, task: str | None = None) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, which PEFT applies to the weights `base`.

    PEFT's Auto classes load both at once by `task`, its name of their purpose.
    """
    flat = flatten_dict(trained, sep="/")
    tensors = {}
    for name, (path, n) in lora.modules.items():
        for side in "ab":
            layer = np.asarray(flat[f"{path}/{side}"][n], np.float32)
            tensors[_tensor(name, side)] = np.ascontiguousarray(layer.T)
    config = _PLAIN | {
        "base_model_name_or_path": base,
        "task_type": task,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(lora.modules),
        "inference_mode": True,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / _TENSORS, tensors)
    write_json(directory / _CONFIG, config)


def read_adapter(directory: Path, weights: Weights) -> tuple[Lora, Params]:
    """Reads an adapter of PEFT or `write_adapter`: the adapted weights, and the adapter in NumPy arrays.

    Raises:
      UserError: a file is missing or malformed, it has options other than a plain product, or its tensors
        are not exactly those of a student with `weights`.
    """
    file, tensors_file = directory / _CONFIG, directory / _TENSORS
    config = read_json(file, {"r": _RANKS, "lora_alpha": float})
    rank, alpha = config["r"], float(config["lora_alpha"])
    try:
        tensors = load_file(tensors_file)
    except Exception as error:  # of the file system, and of the Rust side
        raise UserError(f"{tensors_file}: cannot be read ({first_line(error)})") from None
    if not tensors:
        raise UserError(f"{tensors_file}: there is no tensor in it")
    for key, plain in (_PLAIN | _LATER).items():
        if config.get(key) not in (plain, None):
            raise UserError(f"{file}: {key} is {config[key]!r}; only {plain!r} can be read")
    if (drawn := config.get("init_lora_weights") or True) not in _INITS:
        raise UserError(
            f"{file}: init_lora_weights is {drawn!r}, which changes the adapted weights; save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion"
        )
    paths = _modules({path: w for path, w in weights.items() if w.inputs and w.is_stacked})
    modules = {name: name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors}
    if unknown := sorted(name for name, module in modules.items() if module not in paths):
        raise UserError(f"{tensors_file}: {unknown[0]} adapts no layer's matrix of the student")
    adapted = sorted({paths[module][0] for module in modules.values()})
    targets = "|".join(f"^{re.escape(path)}$" for path in adapted)
    lora = Lora(weights, rank=rank, alpha=alpha, targets=targets)
    flat = {path: np.empty(w.shape, np.float32) for path, w in lora.weights.items()}
    for name, (path, n) in lora.modules.items():
        for side in "ab":
            tensor, place = tensors.get(_tensor(name, side)), flat[f"{path}/{side}"]
            if tensor is None or tensor.T.shape != place[n].shape:
                was = "missing" if tensor is None else f"{tensor.shape}"
                raise UserError(
                    f"{tensors_file}: {_tensor(name, side)} is {was}, expected {place[n].T.shape}"
                )
            place[n] = tensor.T.astype(np.float32)
    known = {_tensor(name, side) for name in lora.modules for side in "ab"}
    if unknown := sorted(tensors.keys() - known):
        raise UserError(f"{tensors_file}: {unknown[0]} is not part of a plain product")
    return lora, unflatten_dict(flat, sep="/")


def _modules(weights: Weights) -> dict[str, tuple[str, int]]:
    """Module in Hugging Face's files -> (path, layer) of the weights."""
    return {
        weight.theirs.format(n=n).removesuffix(".weight"): (path, n)
        for path, weight in weights.items()
        for n in range(weight.layers)
    }


_PREFIX = "base_model.model."


def _tensor(module: str, side: str) -> str:
    return f"{_PREFIX}{module}.lora_{side.upper()}.weight"
