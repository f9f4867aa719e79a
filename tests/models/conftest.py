"""Small T5 models of PyTorch Transformers with random weights, and batches to compare on."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cot_jax.batch import ViewArrays
from cot_jax.models import huggingface
from cot_jax.models.student import T5Student
from cot_jax.models.t5 import T5Config

# What config.json says of each kind. The depths differ, so that no stack can stand in for the other.
_SHAPE = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
KINDS = {
    "v1.0": _SHAPE,
    "v1.1-tied": _SHAPE | {"feed_forward_proj": "gated-gelu", "scale_decoder_outputs": False},
    "v1.1": _SHAPE | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def _scaled(name, normal):
    """Weights that make every term matter, from N(0, 1); `name` is transformers' or a path of ours."""
    if "norm" in name:
        return 1 + 0.2 * normal
    if "bias" in name:
        return normal
    return (0.1 if name.startswith(("shared", "lm_head")) else 0.15) * normal


@pytest.fixture(scope="session")
def untied():
    """A student of the shapes of T5 v1.1 and its random parameters; needs no PyTorch."""
    student, rng = T5Student(T5Config.from_json(KINDS["v1.1"]), scan_unroll=1), np.random.default_rng(0)
    shapes = flatten_dict(jax.eval_shape(student.init, jax.random.key(0)), sep="/")
    flat = {path: _scaled(path, rng.normal(size=leaf.shape).astype("f")) for path, leaf in shapes.items()}
    return student, unflatten_dict(flat, sep="/")


@pytest.fixture(scope="session")
def ending(untied):
    """`untied`, but the end is likely enough for answers of different lengths."""
    student, params = untied
    return student, params | {"lm_head": params["lm_head"] * np.where(np.arange(96) == 1, 2.5, 1).astype("f")}


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="parity needs PyTorch")


@pytest.fixture(scope="session")
def reference(torch, tmp_path_factory):
    """(kind, seed) -> (transformers model, its directory)."""
    import safetensors.torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    @functools.cache
    def make(kind, seed=0):
        config = transformers.T5Config(**KINDS[kind])
        generator = torch.Generator().manual_seed(seed)
        state = transformers.T5ForConditionalGeneration(config).state_dict()
        state = {k: v for k, v in state.items() if "embed_tokens" not in k and k != "lm_head.weight"}
        if kind == "v1.1":
            state["lm_head.weight"] = state["shared.weight"]
        for name, tensor in state.items():
            state[name] = _scaled(name, torch.randn(tensor.shape, generator=generator))
            if name in ("shared.weight", "lm_head.weight"):
                state[name][1] *= 2.5  # Rows of generated tokens shall end, some of them.
        directory = tmp_path_factory.mktemp(kind)
        config.save_pretrained(directory)
        safetensors.torch.save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
        model = transformers.T5ForConditionalGeneration.from_pretrained(directory).eval()
        assert (model.lm_head.weight is model.shared.weight) == (kind != "v1.1")
        return model, directory

    return make


@pytest.fixture(scope="session")
def ours(reference):
    """(kind, seed) -> our student and its parameters from the same directory; looped, to compile faster."""

    @functools.cache
    def make(kind, seed=0):
        config, params = huggingface.load(str(reference(kind, seed)[1]))
        return T5Student(config, scan_unroll=1), params

    return make


def random_view(seed, input_length, target_length, *, S=None, T=None, vocab_size=96):
    """A padded view with the given row lengths; no real token is pad (0) or end (1)."""
    rng = np.random.default_rng(seed)
    input_length, target_length = np.asarray(input_length, np.int32), np.asarray(target_length, np.int32)

    def ids(length, width):
        real = np.arange(width)[None, :] < length[:, None]
        return np.where(real, rng.integers(2, vocab_size, real.shape), 0).astype(np.int32)

    input_ids = ids(input_length, S or input_length.max())
    return ViewArrays(input_ids, input_length, ids(target_length, T or target_length.max()), target_length)


@pytest.fixture(scope="session")
def view():
    """A padded batch of four rows, S = 40 and T = 23: far enough apart for the wide position buckets."""
    return random_view(0, [40, 7, 1, 23], [5, 23, 2, 11])


@pytest.fixture(scope="session")
def make_view():
    return random_view


@pytest.fixture(scope="session")
def torch_inputs(torch):
    """The arguments with which transformers sees a view: labels are -100 at padding."""

    def convert(view):
        mask = np.arange(view.input_ids.shape[1])[None, :] < view.input_length[:, None]
        real = np.arange(view.target_ids.shape[1])[None, :] < view.target_length[:, None]
        arrays = {
            "input_ids": view.input_ids,
            "attention_mask": mask,
            "labels": np.where(real, view.target_ids, -100),
        }
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}

    return convert
