"""Small T5 models of PyTorch Transformers with random weights, and flat batches to compare on."""

import functools

import jax
import numpy as np
import pytest
from flat_batches import rectangle, sequences
from flax.traverse_util import unflatten_dict

from cot_jax.models.student import Options, build, from_pretrained

# The config.json of each kind. The depths differ, so that no stack can stand in for the other.
_SHAPE = {
    "model_type": "t5",
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
    return (0.1 if name.startswith(("shared", "lm_head", "embedding", "head")) else 0.15) * normal


@pytest.fixture(scope="session")
def random_params():
    """Table of weights -> parameters, NumPy, in which every term matters."""

    def make(weights):
        rng = np.random.default_rng(0)
        flat = {path: _scaled(path, rng.normal(size=w.shape).astype("f")) for path, w in weights.items()}
        return unflatten_dict(flat, sep="/")

    return make


@pytest.fixture(scope="session")
def untied(random_params):
    """A student of the shapes of T5 v1.1 and its random parameters; needs no PyTorch."""
    student = build(KINDS["v1.1"], Options())
    return student, random_params(student.weights)


@pytest.fixture(scope="session")
def ending(untied):
    """`untied`, but the end is likely enough for answers of different lengths."""
    student, params = untied
    return student, params | {"head": params["head"] * np.where(np.arange(96) == 1, 2.5, 1).astype("f")}


@pytest.fixture(scope="session")
def torch():
    torch = pytest.importorskip("torch", reason="parity needs PyTorch")
    torch.set_num_threads(1)  # for tensors this small, threads are what takes the time
    return torch


@pytest.fixture(scope="session")
def transformers(torch):
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@pytest.fixture(scope="session")
def reference(torch, transformers, tmp_path_factory):
    """(kind, seed) -> (transformers model, its directory)."""
    import safetensors.torch

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
    """(kind, seed) -> our student and its parameters from the same directory."""

    @functools.cache
    def make(kind, seed=0):
        return from_pretrained(str(reference(kind, seed)[1]), Options())[:2]

    return make


@functools.cache
def _compiled(student):
    return jax.jit(student.hidden)


@pytest.fixture(scope="session")
def hidden():
    """`hidden(student, params, batch, key=None)`, compiled once for each student and shape."""
    return lambda student, params, batch, key=None: _compiled(student)(params, batch, key)


@pytest.fixture(scope="session")
def pair():
    """Inputs and targets of four examples: up to 40 and 23 tokens reach the wide position buckets."""
    return sequences(0, [40, 7, 1, 23]), sequences(1, [5, 23, 2, 11])


@pytest.fixture(scope="session")
def torch_inputs(torch):
    """The arguments with which transformers sees sequences: labels are -100 at padding."""

    def convert(inputs, targets=None):
        ids, mask = rectangle(inputs)
        arrays = {"input_ids": ids, "attention_mask": mask}
        if targets is not None:
            arrays["labels"] = rectangle(targets, -100)[0]
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}

    return convert
