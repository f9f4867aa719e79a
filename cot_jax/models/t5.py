"""T5 in Flax Linen: encoder, decoder, and the decoder's cached step.

v1.0 is Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (arXiv:1910.10683); the gated feed-forward of v1.1 and Flan is Shazeer, "GLU Variants
Improve Transformer" (arXiv:2002.05202). Parameters are float32 in a plain nested dict; those of a
stack's N layers are one leaf with a leading axis N.

Shape suffixes: B batch, S encoder length, T decoder length, D model, H heads, K head size,
F feed-forward, V vocabulary, N layers, R position buckets.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from cot_jax.errors import UserError

# Not -inf: a row in which everything is masked must stay finite.
_MASKED = float(np.finfo(np.float32).min)

# Attention with more scores than this, for one example and head, is computed by chunks of queries.
_WHOLE, _QUERIES = 512 * 512, 128

# What a layer keeps for the backward pass, beside its input, and does not compute again (Chen et al. 2016,
# "Training Deep Nets with Sublinear Memory Cost"): everything, the outputs of its linear maps, nothing.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "elementwise": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layers": jax.checkpoint_policies.nothing_saveable,
}

# feed_forward_proj -> (activation, gated)
_FEED_FORWARD = {"relu": (nn.relu, False), "gated-gelu": (lambda x: nn.gelu(x, approximate=True), True)}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture, in the field names and with the defaults of Hugging Face's config.json.

    `tie_word_embeddings` says whether the head is the embedding, `scale_decoder_outputs` whether
    hidden states are multiplied by d_model**-0.5 before the head. v1.0 does both, v1.1 neither.
    """

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "T5Config":
        """The config of a parsed config.json; fields that do not shape the model are ignored.

        Raises:
          UserError: another architecture, an unknown feed_forward_proj, a value of the wrong type.
        """
        if json.get("model_type", "t5") != "t5":
            raise UserError(f'config.json: model_type is "{json["model_type"]}", this model is for "t5"')
        given = {f.name: json[f.name] for f in dataclasses.fields(cls) if json.get(f.name) is not None}
        for name, value in given.items():
            expected = type(getattr(cls, name))
            if not isinstance(value, (int, float) if expected is float else expected):
                raise UserError(f"config.json: {name} is {value!r}, expected {expected.__name__}")
        # transformers 5 rewrites tie_word_embeddings to true in everything it saves and keeps what
        # it used to mean in scale_decoder_outputs; older files have the first field only.
        given.setdefault("scale_decoder_outputs", given.get("tie_word_embeddings", True))
        given.setdefault("num_decoder_layers", given.get("num_layers", cls.num_layers))
        given.setdefault("decoder_start_token_id", given.get("pad_token_id", cls.pad_token_id))
        config = cls(**given)
        if config.feed_forward_proj not in _FEED_FORWARD:
            known = ", ".join(_FEED_FORWARD)
            raise UserError(f'config.json: feed_forward_proj is "{config.feed_forward_proj}", known: {known}')
        return config

    def to_json(self) -> dict[str, Any]:
        """What config.json must say for transformers to build the same model."""
        return {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"} | dataclasses.asdict(
            self
        )


def _preset(d_model: int, d_ff: int, layers: int, heads: int, **others: Any) -> T5Config:
    depth = {"num_layers": layers, "num_decoder_layers": layers}
    return T5Config(d_model=d_model, d_ff=d_ff, num_heads=heads, **(depth | others))


_V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "scale_decoder_outputs": False}

PRESETS = {
    # Tied: with T5's vocabulary an untied head would be half of the parameters.
    "tiny": _preset(64, 128, layers=2, heads=4, d_kv=16, feed_forward_proj="gated-gelu"),
    "small": _preset(512, 1024, layers=8, heads=6, **_V1_1),
    "base": _preset(768, 2048, layers=12, heads=12, **_V1_1),
    "large": _preset(1024, 2816, layers=24, heads=16, **_V1_1),
    "xl": _preset(2048, 5120, layers=24, heads=32, **_V1_1),
    "xxl": _preset(4096, 10240, layers=24, heads=64, **_V1_1),
    # v1.0
    "t5-small": _preset(512, 2048, layers=6, heads=8),
    "t5-base": _preset(768, 3072, layers=12, heads=12),
    "t5-large": _preset(1024, 4096, layers=24, heads=16),
}


# The axes `fsdp` and `model` of a mesh on which the dimensions of a parameter lie, by the end of its path.
# On `model` each device has some of the heads, of F and of V; what layers pass to each other is whole.
PARTITION = (
    ("shared", P("model", "fsdp")),
    ("lm_head", P("fsdp", "model")),
    ("relative_bias", P(None, "model")),
    ("[qkv]", P(None, "fsdp", "model", None)),
    ("o", P(None, "model", None, "fsdp")),
    ("(wi|wi_0|wi_1)", P(None, "fsdp", "model")),
    ("wo", P(None, "model", "fsdp")),
    (r"\w+_norm/scale", P()),
)


class Memory(NamedTuple):
    """All that the decoder reads and that stays the same while it writes up to T tokens.

    Decoder rows may be a multiple G of B: rows b * G to b * G + G - 1 then read row b, as beams do.

    Attributes:
      keys, values: (N, B, S, H, K) of the encoded input for every decoder layer, compute dtype.
      mask: (B, 1, 1, S) bool, true at real input tokens.
      bias: (1, H, T, T) float32, the position bias of the decoder's self-attention.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array
    bias: jax.Array


class Cache(NamedTuple):
    """Keys and values (N, B, T, H, K) of the tokens decoded so far, compute dtype."""

    keys: jax.Array
    values: jax.Array


def by_example(x: jax.Array) -> jax.Array:
    """Rows of `x` (B, ...) where their examples are, on the ambient mesh, and nothing else of it divided.

    Left to itself, the compiler may divide D as a weight is, and send activations about instead of weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.axis_names)
    # A single row, as that of `init_params`, stays where it is.
    if math.prod(mesh.shape[axis] for axis in axes) == 1 or len(x) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(axes))


def _whole_rows(table_VD: jax.Array) -> jax.Array:
    """The embedding gathered over `fsdp`: else what is looked up would be, for all devices' examples."""
    if "model" not in jax.sharding.get_abstract_mesh().axis_names:
        return table_VD
    return jax.lax.with_sharding_constraint(table_VD, P("model"))


def relative_position_bucket(
    distance: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bias bucket of each distance (key position - query position), int32 of the same shape.

    Half of the buckets hold one distance each, the others grow logarithmically up to `max_distance`
    (Raffel et al., section 2.1). Causal attention has no bucket for the future: it counts as 0.
    """
    offset = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = num_buckets * (distance > 0)
        distance = np.abs(distance)
    else:
        distance = np.maximum(-distance, 0)
    exact = num_buckets // 2
    # On the host, because accelerators' logarithms differ in the last bit, and at the powers of two
    # that is another bucket.
    log = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    coarse = np.minimum(exact + (log * (num_buckets - exact)).astype(np.int32), num_buckets - 1)
    return (offset + np.where(distance < exact, distance, coarse)).astype(np.int32)


class _Part(nn.Module):
    """What every part shares: float32 parameters, arithmetic in `dtype`, dropout where there is a key."""

    config: T5Config
    dtype: DTypeLike

    def weight(self, name: str, shape: tuple[int, ...], std: float) -> jax.Array:
        return self.param(name, nn.initializers.normal(std), shape).astype(self.dtype)

    def norm(self) -> nn.RMSNorm:
        """RMS norm; Linen computes it in float32 whatever `dtype` is."""
        return nn.RMSNorm(epsilon=self.config.layer_norm_epsilon, dtype=self.dtype)

    def dropout(self, x: jax.Array) -> jax.Array:
        return _drop(x, self.config.dropout_rate, self.dropout_key())

    def dropout_key(self) -> jax.Array | None:
        active = self.config.dropout_rate > 0 and self.has_rng("dropout")
        return self.make_rng("dropout") if active else None


def _drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if key is None:
        return x
    kept = _bits(key, x.shape) < np.uint32((1 - rate) * 2**32)
    return jnp.where(kept, x / (1 - rate), 0)


def _bits(key: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Random uint32: a hash of each element's number and the key.

    Masks are all that it is for. A step needs as many bits as it has activations; threefry makes them at
    ten times the arithmetic, and those of "rbg" each device makes for all others, too. These are the
    same on any mesh, divided as what they mask, and computed where they are used.
    """
    number, stride = jnp.uint32(0), 1
    for axis in reversed(range(len(shape))):
        number += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride % 2**32)
        stride *= shape[axis]
    first, second, *_ = jax.random.key_data(key)
    return _mix(_mix(number + first) ^ second)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each bit of `x` turns each of the result over half of the time.

    Multipliers: Wellons 2018, "Prospecting for Hash Functions" (lowbias32).
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


class Attention(_Part):
    """Multi-head attention without the factor K**-0.5, which T5 moves into the initial scale of q.

    The scores of long sequences are never all in memory: queries are taken `_QUERIES` at a time and
    their scores computed again in the backward pass.
    """

    def setup(self):
        D, H, K = self.config.d_model, self.config.num_heads, self.config.d_kv
        self.q_DHK = self.weight("q", (D, H, K), (D * K) ** -0.5)
        self.k_DHK = self.weight("k", (D, H, K), D**-0.5)
        self.v_DHK = self.weight("v", (D, H, K), D**-0.5)
        self.o_HKD = self.weight("o", (H, K, D), (H * K) ** -0.5)

    def keys_values(self, x_BSD: jax.Array) -> tuple[jax.Array, jax.Array]:
        k_BSHK = jnp.einsum("BSD,DHK->BSHK", x_BSD, self.k_DHK)
        v_BSHK = jnp.einsum("BSD,DHK->BSHK", x_BSD, self.v_DHK)
        return k_BSHK, v_BSHK

    def __call__(self, x_BTD, k_BSHK, v_BSHK, mask, bias_1HTS=0.0):
        def attend(q_BTHK, mask, bias_1HTS, key):
            scores_BHTS = jnp.einsum("BTHK,BSHK->BHTS", q_BTHK, k_BSHK, preferred_element_type=jnp.float32)
            scores_BHTS = jnp.where(mask, scores_BHTS + bias_1HTS, _MASKED)
            weights_BHTS = _drop(nn.softmax(scores_BHTS).astype(self.dtype), self.config.dropout_rate, key)
            return jnp.einsum("BHTS,BSHK->BTHK", weights_BHTS, v_BSHK)

        q_BTHK = jnp.einsum("BTD,DHK->BTHK", x_BTD, self.q_DHK)
        if q_BTHK.shape[1] * k_BSHK.shape[1] <= _WHOLE:
            y_BTHK = attend(q_BTHK, mask, bias_1HTS, self.dropout_key())
        else:
            y_BTHK = _by_queries(attend, q_BTHK, mask, bias_1HTS, self.dropout_key())
        return jnp.einsum("BTHK,HKD->BTD", y_BTHK, self.o_HKD)


def _by_queries(attend, q_BTHK, mask, bias_1HTS, key):
    """`attend` for `_QUERIES` queries at a time, the last ones filled up."""
    T = q_BTHK.shape[1]
    chunks = -(-T // _QUERIES)

    def split(x, axis):
        x = jnp.pad(x, [(0, chunks * _QUERIES - T) if a == axis else (0, 0) for a in range(x.ndim)])
        return jnp.moveaxis(x.reshape(*x.shape[:axis], chunks, _QUERIES, *x.shape[axis + 1 :]), axis, 0)

    # What is the same for all queries is not split.
    split_mask, split_bias = mask.shape[2] == T, jnp.ndim(bias_1HTS) == 4

    @jax.checkpoint
    def one(i, q_BQHK, m, b):
        chunk_key = None if key is None else jax.random.fold_in(key, i)
        return attend(q_BQHK, m if split_mask else mask, b if split_bias else bias_1HTS, chunk_key)

    y_CBQHK = jax.lax.map(
        lambda xs: one(*xs),
        (
            jnp.arange(chunks),
            split(q_BTHK, 1),
            split(mask, 2) if split_mask else None,
            split(bias_1HTS, 2) if split_bias else None,
        ),
    )
    B, _, H, K = q_BTHK.shape
    return jnp.moveaxis(y_CBQHK, 0, 1).reshape(B, chunks * _QUERIES, H, K)[:, :T]


class FeedForward(_Part):
    """wo(act(wi(x))), or wo(act(wi_0(x)) * wi_1(x)) where gated."""

    @nn.compact
    def __call__(self, x_BTD):
        D, F = self.config.d_model, self.config.d_ff
        act, gated = _FEED_FORWARD[self.config.feed_forward_proj]
        wi_DF = self.weight("wi_0" if gated else "wi", (D, F), D**-0.5)
        x_BTF = act(jnp.einsum("BTD,DF->BTF", x_BTD, wi_DF))
        if gated:
            x_BTF *= jnp.einsum("BTD,DF->BTF", x_BTD, self.weight("wi_1", (D, F), D**-0.5))
        return jnp.einsum("BTF,FD->BTD", self.dropout(x_BTF), self.weight("wo", (F, D), F**-0.5))


class EncoderLayer(_Part):
    def setup(self):
        self.self_attention_norm = self.norm()
        self.self_attention = Attention(self.config, self.dtype)
        self.mlp_norm = self.norm()
        self.mlp = FeedForward(self.config, self.dtype)

    def __call__(self, x_BSD, mask_B11S, bias_1HSS):
        h_BSD = self.self_attention_norm(x_BSD)
        k_BSHK, v_BSHK = self.self_attention.keys_values(h_BSD)
        x_BSD += self.dropout(self.self_attention(h_BSD, k_BSHK, v_BSHK, mask_B11S, bias_1HSS))
        x_BSD += self.dropout(self.mlp(self.mlp_norm(x_BSD)))
        return by_example(x_BSD), None


class DecoderLayer(_Part):
    def setup(self):
        self.self_attention_norm = self.norm()
        self.self_attention = Attention(self.config, self.dtype)
        self.cross_attention_norm = self.norm()
        self.cross_attention = Attention(self.config, self.dtype)
        self.mlp_norm = self.norm()
        self.mlp = FeedForward(self.config, self.dtype)

    def remember(self, _, encoded_BSD):
        return None, self.cross_attention.keys_values(encoded_BSD)

    def __call__(self, carry, layer, memory, memory_mask_B11S, mask_11TT, bias_1HTT, position):
        x_BTD, cache = carry
        memory_k_BSHK, memory_v_BSHK = memory
        h_BTD = self.self_attention_norm(x_BTD)
        k_BTHK, v_BTHK = self.self_attention.keys_values(h_BTD)
        if cache is not None:
            # In place in the whole stack's cache, which the loop over layers carries along.
            start = (layer, 0, position, 0, 0)
            cache = Cache(
                jax.lax.dynamic_update_slice(cache.keys, k_BTHK[None], start),
                jax.lax.dynamic_update_slice(cache.values, v_BTHK[None], start),
            )
            k_BTHK, v_BTHK = cache.keys[layer], cache.values[layer]
        x_BTD += self.dropout(self.self_attention(h_BTD, k_BTHK, v_BTHK, mask_11TT, bias_1HTT))
        # Rows that read the same memory become more queries of it: it has no order of queries to keep,
        # and G copies of the memory would be the most that a step reads.
        h_BXD = self.cross_attention_norm(x_BTD).reshape(len(memory_k_BSHK), -1, x_BTD.shape[-1])
        y_BXD = self.cross_attention(h_BXD, memory_k_BSHK, memory_v_BSHK, memory_mask_B11S)
        x_BTD += self.dropout(y_BXD.reshape(x_BTD.shape))
        x_BTD += self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        return (by_example(x_BTD), cache), None


class _Stack(_Part):
    """Layers with stacked parameters, the position bias they share, and the norm after the last."""

    scan_unroll: int | bool
    remat: str

    def assemble(self, layer: type[_Part], num_layers: int, in_axes: dict[str, tuple]) -> None:
        """Sets up the stack; `in_axes` says of each method which arguments differ between layers (0)."""
        R, H, D = self.config.relative_attention_num_buckets, self.config.num_heads, self.config.d_model
        self.relative_bias_RH = self.param("relative_bias", nn.initializers.normal(D**-0.5), (R, H))
        common = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True, "dropout": True},
            "length": num_layers,
            "unroll": self.scan_unroll,
        }
        methods = {name: common | {"in_axes": axes} for name, axes in in_axes.items()}
        if self.remat != "none":
            layer = nn.remat(layer, policy=REMAT[self.remat], methods=["__call__"])
        self.layers = nn.scan(layer, methods=methods)(self.config, self.dtype)
        self.final_norm = self.norm()

    def position_bias(self, length: int, *, bidirectional: bool) -> jax.Array:
        position = np.arange(length)
        bucket_TT = relative_position_bucket(
            position[None, :] - position[:, None],
            bidirectional=bidirectional,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        return self.relative_bias_RH[bucket_TT].transpose(2, 0, 1)[None]


class Encoder(_Stack):
    def setup(self):
        self.assemble(EncoderLayer, self.config.num_layers, {"__call__": (nn.broadcast, nn.broadcast)})

    def __call__(self, x_BSD, mask_B11S):
        bias_1HSS = self.position_bias(x_BSD.shape[1], bidirectional=True)
        x_BSD, _ = self.layers(self.dropout(x_BSD), mask_B11S, bias_1HSS)
        return self.dropout(self.final_norm(x_BSD))


class Decoder(_Stack):
    def setup(self):
        in_axes = {"remember": (nn.broadcast,), "__call__": (0, 0) + 4 * (nn.broadcast,)}
        self.assemble(DecoderLayer, self.config.num_decoder_layers, in_axes)

    def remember(self, encoded_BSD, mask_B11S, length):
        _, (k_NBSHK, v_NBSHK) = self.layers.remember(None, encoded_BSD)
        return Memory(k_NBSHK, v_NBSHK, mask_B11S, self.position_bias(length, bidirectional=False))

    def __call__(self, x_BTD, memory, cache=None, position=None):
        bias_1HTT = memory.bias
        mask_11TT = jnp.tri(bias_1HTT.shape[-1], dtype=bool)[None, None]
        if cache is not None:
            bias_1HTT = jax.lax.dynamic_slice_in_dim(bias_1HTT, position, 1, axis=2)
            mask_11TT = jax.lax.dynamic_slice_in_dim(mask_11TT, position, 1, axis=2)
        layer_N = jnp.arange(self.config.num_decoder_layers)
        keys_values = (memory.keys, memory.values)
        x_BTD = self.dropout(x_BTD)
        (x_BTD, cache), _ = self.layers(
            (x_BTD, cache), layer_N, keys_values, memory.mask, mask_11TT, bias_1HTT, position
        )
        return self.dropout(self.final_norm(x_BTD)), cache


class T5(_Part):
    """Encoder and decoder up to the hidden states before the head.

    Dropout is active where `apply` gets a "dropout" key: after the embeddings, on the attention
    weights, inside the feed-forward, on each residual branch and after the final norms.

    Attributes:
      config: the architecture.
      dtype: of the arithmetic; parameters, norms, softmax and attention scores are float32.
      scan_unroll: layers in one iteration of the loop over layers; True is all of them, no loop.
      remat: what of a layer the backward pass computes again, one of `REMAT`.
    """

    scan_unroll: int | bool = 1
    remat: str = "none"

    def setup(self):
        D, V = self.config.d_model, self.config.vocab_size
        self.shared_VD = self.param("shared", nn.initializers.normal(1.0), (V, D))
        if not self.config.tie_word_embeddings:
            # As t5x, not as transformers (1.0): the final norm's output has unit entries and v1.1
            # does not scale it, so this is what makes the first logits N(0, 1) and the first loss
            # about log V.
            self.param("lm_head", nn.initializers.normal(D**-0.5), (D, V))
        self.encoder = Encoder(self.config, self.dtype, self.scan_unroll, self.remat)
        self.decoder = Decoder(self.config, self.dtype, self.scan_unroll, self.remat)

    def init_params(self, rng: jax.Array) -> dict[str, Any]:
        """Parameters with T5's initial distributions (float32)."""
        ids_11 = jnp.zeros((1, 1), jnp.int32)
        return self.init(rng, ids_11, jnp.ones(1, jnp.int32), ids_11)["params"]

    def __call__(self, input_ids_BS, input_length_B, decoder_ids_BT):
        encoded_BSD = self.encode(input_ids_BS, input_length_B)
        memory = self.remember(encoded_BSD, input_length_B, decoder_ids_BT.shape[1])
        return self.decode(decoder_ids_BT, memory)

    def encode(self, input_ids_BS: jax.Array, input_length_B: jax.Array) -> jax.Array:
        """The encoder's output (B, S, D), in which no real token has seen padding."""
        return self.encoder(self._embed(input_ids_BS), _input_mask(input_ids_BS.shape[1], input_length_B))

    def remember(self, encoded_BSD: jax.Array, input_length_B: jax.Array, length: int) -> Memory:
        """What `decode` and `decode_step` need of an encoded input to write `length` tokens."""
        return self.decoder.remember(encoded_BSD, _input_mask(encoded_BSD.shape[1], input_length_B), length)

    def decode(self, ids_BT: jax.Array, memory: Memory) -> jax.Array:
        """Hidden states (B, T, D) that predict the token after each of `ids_BT`; logits = hidden @ head.

        Self-attention is causal and nothing more: padding among `ids_BT` is not masked, as in the
        published training code.
        """
        hidden_BTD, _ = self.decoder(self._embed(ids_BT), memory)
        return self._scale(hidden_BTD)

    def decode_step(
        self, id_B: jax.Array, memory: Memory, cache: Cache, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """`decode` of one token at `position` given the cache of those before: hidden (B, D), new cache."""
        hidden_B1D, cache = self.decoder(self._embed(id_B[:, None]), memory, cache, position)
        return self._scale(hidden_B1D)[:, 0], cache

    def _embed(self, ids_BT):
        # First the rows, then the cast, so that their gradients add up in float32. An id beyond
        # the vocabulary gives NaN, not some other token's row.
        rows_BTD = jnp.take(_whole_rows(self.shared_VD), ids_BT, axis=0, mode="fill")
        return by_example(rows_BTD.astype(self.dtype))

    def _scale(self, hidden_BTD):
        return hidden_BTD * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else hidden_BTD


def _input_mask(length: int, input_length_B: jax.Array) -> jax.Array:
    return (jnp.arange(length)[None, :] < input_length_B[:, None])[:, None, None, :]


def empty_cache(memory: Memory, rows: int = 1) -> Cache:
    """The cache before the first token, as long as `memory` was made for, `rows` for each row of it."""
    N, B, _, H, K = memory.keys.shape
    zeros = jnp.zeros((N, B * rows, memory.bias.shape[-1], H, K), memory.keys.dtype)
    return Cache(zeros, zeros)
