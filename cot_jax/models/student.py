"""What the rest of the house knows of a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from numpy.typing import ArrayLike

from cot_jax.batch import ViewArrays
from cot_jax.errors import UserError
from cot_jax.models import generation, huggingface
from cot_jax.models.generation import Sampling
from cot_jax.models.t5 import PARTITION, PRESETS, T5, Memory, T5Config, empty_cache
from cot_jax.models.t5 import REMAT as REMAT

Params = dict[str, Any]
# (regular expression for the end of a parameter's path "a/b/c", the mesh axes of its dimensions) ...
Partition = Sequence[tuple[str, PartitionSpec]]


def as_matrices(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A parameter's shape as that of a stack of its layers' (N, inputs, outputs), or (N, D) of vectors.

    Every student names its parameters alike: below `layers` a leaf's first axis is the layer, elsewhere
    N is 1, and of three further axes two are heads and head size: of `o` the inputs, else the outputs.
    """
    *_, name = names = path.split("/")
    N, *axes = shape if "layers" in names else (1, *shape)
    if len(axes) == 3:
        first, second, third = axes
        axes = [first * second, third] if name == "o" else [first, second * third]
    return (N, *axes)


class Student(Protocol):
    """A model that learns views: pure functions of parameters, which are a plain nested dict.

    Attributes:
      vocab_size: V, rows of the embedding; a tokenizer fits if all its ids are below.
      pad_id, eos_id: what follows a target, and what ends it.
      partition: how parameters are divided among devices, on the axes `fsdp` and `model` of a mesh.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def partition(self) -> Partition: ...

    def architecture(self) -> dict[str, Any]:
        """What `from_architecture` makes this model of again, as JSON has it: Hugging Face's config.json."""

    def save(self, directory: Path, params: Params) -> None:
        """Writes weights and config.json that Transformers loads."""

    def init(self, rng: jax.Array) -> Params:
        """Fresh float32 parameters."""

    def hidden(
        self, params: Params, batch: dict[str, ViewArrays], dropout_rng: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Per view the states (B, T, D) that predict target_ids: logits_BTV = hidden_BTD @ head_DV.

        Teacher forcing; dropout where a key is given.
        """

    def head(self, params: Params) -> jax.Array:
        """(D, V) float32."""

    def layer_norms(self, tree: Params) -> dict[str, jax.Array]:
        """Per stack of layers the norms (N,) of each layer's part of a tree like the parameters."""

    def flops(self, inputs: ArrayLike, targets: Sequence[ArrayLike]) -> np.ndarray:
        """Floating-point operations of the forward pass's matrix products, head included, for one example.

        `inputs` is the width to which every view's input is padded, `targets` each view's target width;
        arrays of equal shape give an array. A training step takes three times as many, not counting
        what is computed twice to save memory.
        """

    def generate(
        self, params: Params, input_ids_BS: jax.Array, input_length_B: jax.Array, max_new_tokens: int
    ) -> tuple[jax.Array, jax.Array]:
        """Greedy continuations (B, max_new_tokens) int32, `eos_id` included, then `pad_id`.

        With them the sums (B,) float32 of their log-probabilities: what `score` gives of the same tokens.
        """

    def sample(
        self,
        params: Params,
        input_ids_BS: jax.Array,
        input_length_B: jax.Array,
        max_new_tokens: int,
        key_B: jax.Array,
        *,
        samples: int,
        sampling: Sampling,
    ) -> tuple[jax.Array, jax.Array]:
        """Drawn continuations (B, samples, max_new_tokens) int32 and their log-probabilities (B, samples).

        These are under the model's own distribution, as those of `generate`. A row's draws depend on
        nothing but the row and its key; the first of many are those of fewer.
        """

    def beam_search(
        self,
        params: Params,
        input_ids_BS: jax.Array,
        input_length_B: jax.Array,
        max_new_tokens: int,
        *,
        beams: int,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """The best continuations (B, beams, max_new_tokens) int32 and their scores (B, beams) float32.

        `generation.beam_search`, with the defaults of Transformers.
        """

    def score(
        self,
        params: Params,
        input_ids_BS: jax.Array,
        input_length_B: jax.Array,
        label_ids_LT: jax.Array,
        label_length_L: jax.Array,
    ) -> jax.Array:
        """log p(label | input) of each label (B, L) float32, summed over its tokens, `eos_id` included."""


@dataclasses.dataclass(frozen=True)
class T5Student:
    """T5 as a `Student`; `dtype`, `scan_unroll` and `remat` as in `T5`, the last for `hidden` only.

    `hidden` unrolls the loop over layers: on CPU, v1.1-small, a training step then takes 0.91 of
    the time (2.92 against 3.21 CPU seconds) and compiling 1.5 times as long (18.7 against 12.7).
    `generate` does not, which takes 0.70 of the time (1.38 against 1.98): a step of it does little
    else than read weights, and unrolled, those of all layers are sliced out before the first is used.
    """

    config: T5Config
    dtype: DTypeLike = jnp.float32
    scan_unroll: int | bool = True
    remat: str = "none"

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def pad_id(self) -> int:
        return self.config.pad_token_id

    @property
    def eos_id(self) -> int:
        return self.config.eos_token_id

    @property
    def partition(self) -> Partition:
        return PARTITION

    def architecture(self) -> dict[str, Any]:
        return self.config.to_json()

    def save(self, directory: Path, params: Params) -> None:
        huggingface.save(directory, self.config, params)

    def init(self, rng: jax.Array) -> Params:
        return T5(self.config, self.dtype).init_params(rng)

    def hidden(
        self, params: Params, batch: dict[str, ViewArrays], dropout_rng: jax.Array | None
    ) -> dict[str, jax.Array]:
        views = sorted(batch)
        passes = 1 + len(views)
        keys = [None] * passes if dropout_rng is None else jax.random.split(dropout_rng, passes)

        # In a loop a layer is computed again when its turn comes, whatever order the compiler prefers.
        unroll = self.scan_unroll if self.remat == "none" else 1
        module = T5(self.config, self.dtype, unroll, self.remat)

        def apply(key, *args, method):
            rngs = {} if key is None else {"dropout": key}
            return module.apply({"params": params}, *args, method=method, rngs=rngs)

        # One encoder pass over all views. They become a new axis after B, so that the rows of an
        # example, and with them a batch sharded over B, stay on their device.
        input_ids_BWS = jnp.stack([batch[view].input_ids for view in views], axis=1)
        input_length_BW = jnp.stack([batch[view].input_length for view in views], axis=1)
        B, W, S = input_ids_BWS.shape
        encoded_XSD = apply(
            keys[0], input_ids_BWS.reshape(B * W, S), input_length_BW.reshape(B * W), method=T5.encode
        )
        encoded_BWSD = encoded_XSD.reshape(B, W, S, -1)

        hidden = {}
        for w, view in enumerate(views):
            ids_BT = self._decoder_ids(batch[view].target_ids, batch[view].target_length)
            memory = apply(
                None, encoded_BWSD[:, w], input_length_BW[:, w], ids_BT.shape[1], method=T5.remember
            )
            hidden[view] = apply(keys[1 + w], ids_BT, memory, method=T5.decode)
        return hidden

    def head(self, params: Params) -> jax.Array:
        return params["shared"].T if self.config.tie_word_embeddings else params["lm_head"]

    def layer_norms(self, tree: Params) -> dict[str, jax.Array]:
        norms = jax.vmap(optax.tree.norm)  # the layers of a stack are a leading axis
        return {stack: norms(tree[stack]["layers"]) for stack in ("encoder", "decoder") if stack in tree}

    def flops(self, inputs: ArrayLike, targets: Sequence[ArrayLike]) -> np.ndarray:
        c = self.config
        product = 2 * c.d_model * c.num_heads * c.d_kv  # of one token with q, k, v or o
        feed_forward = 2 * c.d_model * c.d_ff * (3 if c.feed_forward_proj == "gated-gelu" else 2)
        pair = 4 * c.num_heads * c.d_kv  # of two tokens: score and weighted value
        S, total = np.asarray(inputs, float), np.zeros(np.shape(inputs))
        for target in targets:
            T = np.asarray(target, float)
            total += c.num_layers * S * (4 * product + feed_forward + pair * S)
            total += c.num_decoder_layers * T * (6 * product + feed_forward + pair * (S + T))
            total += c.num_decoder_layers * S * 2 * product
            total += T * 2 * c.d_model * c.vocab_size
        return total

    def generate(
        self, params: Params, input_ids_BS: jax.Array, input_length_B: jax.Array, max_new_tokens: int
    ) -> tuple[jax.Array, jax.Array]:
        memory = self._read(params, input_ids_BS, input_length_B, max_new_tokens)
        return self._decode(params, memory, max_new_tokens, generation.greedy)

    def sample(
        self,
        params: Params,
        input_ids_BS: jax.Array,
        input_length_B: jax.Array,
        max_new_tokens: int,
        key_B: jax.Array,
        *,
        samples: int,
        sampling: Sampling,
    ) -> tuple[jax.Array, jax.Array]:
        memory = self._read(params, input_ids_BS, input_length_B, max_new_tokens)
        split = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        key_BK = split(key_B, jnp.arange(samples))
        choose = generation.sampler(key_BK.reshape(-1), sampling)
        tokens_XT, log_prob_X = self._decode(params, memory, max_new_tokens, choose, rows=samples)
        return tokens_XT.reshape(*key_BK.shape, max_new_tokens), log_prob_X.reshape(key_BK.shape)

    def beam_search(
        self,
        params: Params,
        input_ids_BS: jax.Array,
        input_length_B: jax.Array,
        max_new_tokens: int,
        *,
        beams: int,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        memory = self._read(params, input_ids_BS, input_length_B, max_new_tokens)
        return generation.beam_search(
            self._step(params, memory),
            empty_cache(memory, rows=beams),
            jnp.full(input_length_B.shape, self.config.decoder_start_token_id, jnp.int32),
            beams=beams,
            max_new_tokens=max_new_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
        )

    def score(
        self,
        params: Params,
        input_ids_BS: jax.Array,
        input_length_B: jax.Array,
        label_ids_LT: jax.Array,
        label_length_L: jax.Array,
    ) -> jax.Array:
        B, T = len(input_ids_BS), label_ids_LT.shape[1]
        memory = self._read(params, input_ids_BS, input_length_B, T)
        head_DV = self.head(params).astype(self.dtype)

        def score_one(label: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            ids_T, decoder_ids_T, length = label
            decoder_ids_BT = jnp.broadcast_to(decoder_ids_T, (B, T))
            hidden_BTD = self._apply(params, decoder_ids_BT, memory, method=T5.decode)
            logits_BTV = jnp.einsum("BTD,DV->BTV", hidden_BTD, head_DV, preferred_element_type=jnp.float32)
            log_prob_BT = generation.log_prob(logits_BTV, jnp.broadcast_to(ids_T, (B, T)))
            return jnp.sum(log_prob_BT, axis=1, where=jnp.arange(T)[None, :] < length)

        # One label after the other: the logits of all would not fit where there are many.
        decoder_ids_LT = self._decoder_ids(label_ids_LT, label_length_L)
        return jax.lax.map(score_one, (label_ids_LT, decoder_ids_LT, label_length_L)).T

    def _apply(self, params: Params, *args: Any, method: Any) -> Any:
        """Without dropout, and the loop over layers as a loop."""
        return T5(self.config, self.dtype).apply({"params": params}, *args, method=method)

    def _read(
        self, params: Params, input_ids_BS: jax.Array, input_length_B: jax.Array, length: int
    ) -> Memory:
        """The input as the decoder needs it to write `length` tokens."""
        encoded_BSD = self._apply(params, input_ids_BS, input_length_B, method=T5.encode)
        return self._apply(params, encoded_BSD, input_length_B, length, method=T5.remember)

    def _decode(
        self, params: Params, memory: Memory, max_new_tokens: int, choose: generation.Choose, rows: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """`generation.decode`, `rows` of it for each row of the memory."""
        return generation.decode(
            self._step(params, memory),
            empty_cache(memory, rows),
            jnp.full(len(memory.mask) * rows, self.config.decoder_start_token_id, jnp.int32),
            choose,
            max_new_tokens=max_new_tokens,
            eos_id=self.eos_id,
            pad_id=self.pad_id,
        )

    def _step(self, params: Params, memory: Memory) -> generation.Step:
        head_DV = self.head(params).astype(self.dtype)

        def step(id_B, position, cache):
            hidden_BD, cache = self._apply(params, id_B, memory, cache, position, method=T5.decode_step)
            return jnp.einsum("BD,DV->BV", hidden_BD, head_DV, preferred_element_type=jnp.float32), cache

        return step

    def _decoder_ids(
        self, target_ids_BT: np.ndarray | jax.Array, target_length_B: np.ndarray | jax.Array
    ) -> jax.Array:
        """The targets shifted right behind the start token; their padding reads as `pad_id`."""
        B, T = target_ids_BT.shape
        real_BT = jnp.arange(T)[None, :] < target_length_B[:, None]
        start_B1 = jnp.full((B, 1), self.config.decoder_start_token_id, jnp.int32)
        return jnp.concatenate([start_B1, jnp.where(real_BT, target_ids_BT, self.pad_id)[:, :-1]], axis=1)


def from_scratch(
    preset: str,
    *,
    vocab_size: int,
    dropout_rate: float,
    dtype: DTypeLike,
    pad_id: int,
    eos_id: int,
    remat: str = "none",
) -> Student:
    """An untrained T5 for a tokenizer of `vocab_size` ids.

    The embedding gets as many rows, rounded up to a multiple of 128 as in T5 (32,100 -> 32,128):
    it then splits evenly over devices.

    Raises:
      UserError: no such preset.
    """
    if preset not in PRESETS:
        raise UserError(f'config.model.preset: no "{preset}"; choose one of {", ".join(PRESETS)}')
    config = dataclasses.replace(
        PRESETS[preset],
        vocab_size=-(-vocab_size // 128) * 128,
        dropout_rate=dropout_rate,
        pad_token_id=pad_id,
        decoder_start_token_id=pad_id,
        eos_token_id=eos_id,
    )
    return T5Student(config, dtype, remat=remat)


def from_architecture(json: Mapping[str, Any], *, dtype: DTypeLike) -> Student:
    """The student of `Student.architecture`, for parameters that are at hand."""
    return T5Student(T5Config.from_json(json), dtype)


def from_pretrained(
    path_or_id: str, *, dropout_rate: float, dtype: DTypeLike, remat: str = "none"
) -> tuple[Student, Params]:
    """A T5 of a local directory or Hub repository, and its parameters as NumPy arrays.

    Raises:
      UserError: see `huggingface.load`.
    """
    config, params = huggingface.load(path_or_id)
    return T5Student(dataclasses.replace(config, dropout_rate=dropout_rate), dtype, remat=remat), params


def without_weights(path_or_id: str, *, dropout_rate: float, dtype: DTypeLike, remat: str) -> Student:
    """The T5 of `from_pretrained`, of which config.json alone is read.

    Raises:
      UserError: see `huggingface.load_config`.
    """
    config = dataclasses.replace(huggingface.load_config(path_or_id), dropout_rate=dropout_rate)
    return T5Student(config, dtype, remat=remat)
