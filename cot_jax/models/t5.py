"""T5: encoder and decoder over flat tokens, and the decoder's cached step.

v1.0 is Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (arXiv:1910.10683); the gated feed-forward of v1.1 and Flan is Shazeer, "GLU Variants
Improve Transformer" (arXiv:2002.05202).

Shape suffixes: G groups, E examples of a group, X input slots, Y target slots of a group, R decoded
rows (E or a multiple of it for each group), S input positions, T decoder positions, D model, H heads, K
head size, F feed-forward, V vocabulary, N layers, P position buckets.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.batch import Batch, Texts, Tokens, Work
from cot_jax.errors import UserError
from cot_jax.models.base import Student, read_fields
from cot_jax.models.decoding import Prompt
from cot_jax.models.layers import (
    Attention,
    Cache,
    Keys,
    Layout,
    attend,
    by_example,
    drop,
    embed,
    linear,
    rms_norm,
    split_key,
    stack,
)
from cot_jax.models.weights import Params, Weight, Weights

# Of this width (d_model) or wider, training on CPU loops over layers.
_LOOPED = 256

# feed_forward_proj -> (activation, gated)
_FEED_FORWARD: dict[str, tuple[Callable, bool]] = {
    "relu": (jax.nn.relu, False),
    "gated-gelu": (partial(jax.nn.gelu, approximate=True), True),
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The architecture, with the field names and defaults of Hugging Face's config.json.

    With `tie_word_embeddings` the head is the embedding, with `scale_decoder_outputs` hidden states are
    multiplied by d_model**-0.5 before the head. v1.0 does both, v1.1 neither.
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
          UserError: an unknown feed_forward_proj, a value of the wrong type.
        """
        given = read_fields(cls, json)
        # Transformers 5 always saves tie_word_embeddings as true and keeps its old meaning in
        # scale_decoder_outputs; older files have the first field only.
        given.setdefault("scale_decoder_outputs", given.get("tie_word_embeddings", True))
        given.setdefault("num_decoder_layers", given.get("num_layers", cls.num_layers))
        given.setdefault("decoder_start_token_id", given.get("pad_token_id", cls.pad_token_id))
        config = cls(**given)
        if config.feed_forward_proj not in _FEED_FORWARD:
            known = ", ".join(_FEED_FORWARD)
            raise UserError(f'config.json: feed_forward_proj is "{config.feed_forward_proj}", known: {known}')
        buckets, longest = config.relative_attention_num_buckets, config.relative_attention_max_distance
        if not buckets < 2 * longest:
            raise UserError(
                f"config.json: relative_attention_max_distance is {longest}, expected above {buckets // 2}, "
                "half of the buckets"
            )
        return config

    def to_json(self) -> dict[str, Any]:
        names = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
        return names | dataclasses.asdict(self)

    def resized(self, vocab_size: int, pad_id: int | None) -> "T5Config":
        """A copy with `vocab_size` rows of the embedding; decoding starts from the padding id."""
        pad = self.pad_token_id if pad_id is None else pad_id
        return dataclasses.replace(self, vocab_size=vocab_size, pad_token_id=pad, decoder_start_token_id=pad)

    def for_texts(self, texts: Texts) -> "T5Config":
        """A copy with the end token of `texts`."""
        return dataclasses.replace(self, eos_token_id=texts.end_id)

    def with_layers(self, layers: int) -> "T5Config":
        """A copy with the first `layers` layers of both stacks."""
        return dataclasses.replace(self, num_layers=layers, num_decoder_layers=layers)

    @property
    def num_hidden_layers(self) -> int:
        """Layers that both stacks have."""
        return min(self.num_layers, self.num_decoder_layers)


def _preset(d_model: int, d_ff: int, layers: int, heads: int, **others: Any) -> T5Config:
    config = T5Config(d_model=d_model, d_ff=d_ff, num_heads=heads, **others)
    return config.with_layers(layers)


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


def relative_position_bucket(
    distance: np.ndarray, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """The bias bucket of each distance (key position - query position), int32 of the same shape.

    Half of the buckets hold one distance each, the others logarithmic ranges up to `max_distance`
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
    # On the host: accelerators' logarithms differ in the last bit, which at powers of two changes the bucket.
    log = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    coarse = np.minimum(exact + (log * (num_buckets - exact)).astype(np.int32), num_buckets - 1)
    return (offset + np.where(distance < exact, distance, coarse)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class T5(Student):
    """T5 as a `Student`.

    Dropout follows the embeddings, the attention weights, the activation of the feed-forward, each residual
    branch and the final norms.

    Unrolling makes a training step take 0.79 of the time on an H100 (base), and compiling 2.8 times as long.
    On CPU only the smallest students gain: v1.1-small takes up to twice the memory, which the system clears
    in every step, so batches of 8, 16 and 64 take 1.00, 1.03 and 1.10 of a loop's time. Decoding always
    loops, which takes 0.70 of the time on CPU: a decoding step does little but read weights.
    """

    config: T5Config
    config_class = T5Config
    hf_class = "AutoModelForSeq2SeqLM"
    peft_task = "SEQ_2_SEQ_LM"
    format = "seq2seq"
    usual: ClassVar[Mapping[str, Any]] = {
        "dropout_rate": 0.1,
        "lora_rank": 0,
        "lora_alpha": 16.0,
        "lora_targets": "attention/[qv]$",
    }
    # Other names of the embedding, and a bias in v1.0's checkpoints that T5 does not have.
    aliases: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"
    )
    leftovers: ClassVar[tuple[str, ...]] = (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    )

    @classmethod
    def unrolls(cls, config: T5Config, platform: str) -> bool:
        return platform == "gpu" or (platform == "cpu" and config.d_model < _LOOPED)

    @property
    def ends(self) -> tuple[int, ...]:
        return (self.config.eos_token_id,)

    @cached_property
    def weights(self) -> Weights:
        c = self.config
        D, H, K, F, V = c.d_model, c.num_heads, c.d_kv, c.d_ff, c.vocab_size
        table = {"embedding": Weight("VD", (V, D), 0, 1.0, "shared.weight")}
        if not c.tie_word_embeddings:
            # As t5x, not as Transformers (1.0): the final norm's output has unit entries and v1.1 does not
            # scale it, so this makes the first logits N(0, 1) and the first loss about log V.
            table["head"] = Weight("DV", (D, V), 1, D**-0.5, "lm_head.weight")
        attention = {
            "q": ("NDHK", (D, H, K), 1, (D * K) ** -0.5),  # without the factor K**-0.5 of the scores
            "k": ("NDHK", (D, H, K), 1, D**-0.5),
            "v": ("NDHK", (D, H, K), 1, D**-0.5),
            "o": ("NHKD", (H, K, D), 2, (H * K) ** -0.5),
        }
        gated = _FEED_FORWARD[c.feed_forward_proj][1]
        mlp = dict.fromkeys(("wi_0", "wi_1") if gated else ("wi",), ("NDF", (D, F), 1, D ** (-0.5)))
        mlp["wo"] = ("NFD", (F, D), 1, F**-0.5)
        maps: dict[str, tuple[str, dict[str, tuple]]] = {
            "self_attention": ("SelfAttention", attention),
            "cross_attention": ("EncDecAttention", attention),
            "mlp": ("DenseReluDense", mlp),
        }
        stacks = {
            "encoder": (c.num_layers, ("self_attention", "mlp")),
            "decoder": (c.num_decoder_layers, ("self_attention", "cross_attention", "mlp")),
        }
        for name, (N, parts) in stacks.items():
            bias = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            buckets = (c.relative_attention_num_buckets, H)
            table[f"{name}/relative_bias"] = Weight("PH", buckets, 0, D**-0.5, bias)
            table[f"{name}/final_norm"] = Weight("D", (D,), 0, None, f"{name}.final_layer_norm.weight")
            for n, part in enumerate(parts):
                layer = f"{name}.block.{{n}}.layer.{n}"
                norm = Weight("ND", (N, D), 0, None, f"{layer}.layer_norm.weight")
                table[f"{name}/layers/{part}_norm"] = norm
                theirs, leaves = maps[part]
                for leaf, (axes, shape, inputs, std) in leaves.items():
                    tensor = f"{layer}.{theirs}.{leaf}.weight"
                    table[f"{name}/layers/{part}/{leaf}"] = Weight(axes, (N, *shape), inputs, std, tensor)
        return table

    def hidden(self, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> dict[str, jax.Array]:
        views = sorted(batch.views)
        inputs, targets = (
            Layout([getattr(batch.views[view], side) for view in views], batch.example)
            for side in ("inputs", "targets")
        )
        encoder_key, *keys = split_key(dropout_rng, 4)
        encoded_GXD = self._encode(params, inputs, encoder_key)
        rate = self.config.dropout_rate
        to_self = Attention(
            targets, targets, self._distance_bias(params["decoder"], targets, False), causal=True, rate=rate
        )
        to_input = Attention(targets, inputs, rate=rate)

        def layer(x_GYD, w, key):
            self_key, input_key, *keys = split_key(key, 6)

            def attend_self(h_GYD):
                return to_self(self_key, *_queries_keys_values(w["self_attention"], h_GYD, h_GYD))

            def attend_input(h_GYD):
                return to_input(input_key, *_queries_keys_values(w["cross_attention"], h_GYD, encoded_GXD))

            return self._decoder_layer(x_GYD, w, attend_self, attend_input, keys, targets.seed_GX), None

        with jax.named_scope("decoder"):
            # The targets shifted right, after the start token.
            start, before_GY = self.config.decoder_start_token_id, jnp.roll(targets.ids_GX, 1, axis=1)
            read_GY = jnp.where(targets.position_GX == 0, start, before_GY)
            x_GYD = embed(params["embedding"], read_GY, self.dtype)
            x_GYD = self._drop(x_GYD, keys[0], targets.seed_GX)
            x_GYD, _ = self._stack(layer, x_GYD, params["decoder"]["layers"], keys[1])
            x_GYD = self._drop(self._norm(x_GYD, params["decoder"]["final_norm"]), keys[2], targets.seed_GX)
        return dict(zip(views, targets.split(self._scaled(x_GYD)), strict=True))

    def prompt(self, params: Params, inputs: Tokens, most: int, rows: int = 1) -> Prompt:
        c, (G, E) = self.config, inputs.length.shape
        layout = Layout([inputs], jnp.zeros((G, E), jnp.int32))
        (segments,) = layout.segments
        encoded_GXD = self._encode(params, layout, None)

        def remember(_, w, __):
            w = w["cross_attention"]
            unpacked = (segments.unpack(linear(encoded_GXD, w[name])) for name in "kv")
            return None, tuple(x.reshape(G * E, *x.shape[2:]) for x in unpacked)

        _, memory = stack(remember, None, params["decoder"]["layers"])
        mask_B1S = segments.real_GES.reshape(G * E, 1, -1)
        # One row is enough of a causal bias: entry most - 1 - d is for keys d positions back. The zeros are
        # for the future, which is masked.
        bias_HL = self._position_bias(params["decoder"], np.arange(1 - most, 1), False)
        bias_HL = jnp.pad(bias_HL, ((0, 0), (0, most)))
        head_DV = self.head(params).astype(self.dtype)

        def step(ids_RT, position, cache):
            query_T = position + jnp.arange(ids_RT.shape[1])
            mask_TM = jnp.arange(most)[None] <= query_T[:, None]
            bias_HTM = jax.vmap(
                lambda query: jax.lax.dynamic_slice_in_dim(bias_HL, most - 1 - query, most, axis=1), 0, 1
            )(query_T)

            def layer(carry, w, _):
                n, x_RTD, cache = carry
                w, (k_BSHK, v_BSHK) = w

                def attend_self(h_RTD):
                    nonlocal cache
                    q, *new = _queries_keys_values(w["self_attention"], h_RTD, h_RTD)
                    cache = cache.put(n, position, *new)
                    return attend(q, [Keys(cache.keys[n], cache.values[n], mask_TM[None], bias_HTM)])

                def attend_input(h_RTD):
                    # Rows of the same input become more queries of it, whose order does not matter: `rows`
                    # copies of its keys would dominate what a step reads.
                    h_BXD = h_RTD.reshape(G * E, -1, h_RTD.shape[-1])
                    q_BXHK = linear(h_BXD, w["cross_attention"]["q"])
                    y_BXHK = attend(q_BXHK, [Keys(k_BSHK, v_BSHK, mask_B1S)])
                    return y_BXHK.reshape(*h_RTD.shape[:2], *y_BXHK.shape[2:])

                x_RTD = self._decoder_layer(x_RTD, w, attend_self, attend_input, (None,) * 4, None)
                return (n + 1, x_RTD, cache), None

            x_RTD = embed(params["embedding"], ids_RT, self.dtype)
            (_, x_RTD, cache), _ = stack(
                layer, (jnp.int32(0), x_RTD, cache), (params["decoder"]["layers"], memory)
            )
            x_RTD = self._scaled(self._norm(x_RTD, params["decoder"]["final_norm"]))
            return jnp.einsum("RTD,DV->RTV", x_RTD, head_DV, preferred_element_type=jnp.float32), cache

        shape = (c.num_decoder_layers, G * E * rows, most, c.num_heads, c.d_kv)
        first_R = jnp.full(G * E * rows, c.decoder_start_token_id, jnp.int32)
        return Prompt(step, Cache.empty(shape, self.dtype), first_R, self.ends, self.pad_id)

    def flops(self, works: Sequence[Work]) -> np.ndarray:
        c, total = self.config, np.zeros(np.shape(works[0].inputs))
        product = 2 * c.d_model * c.num_heads * c.d_kv  # of one token with q, k, v or o
        feed_forward = 2 * c.d_model * c.d_ff * (3 if _FEED_FORWARD[c.feed_forward_proj][1] else 2)
        pair = 4 * c.num_heads * c.d_kv  # of two tokens: score and weighted value
        for work in works:
            total += c.num_layers * (work.inputs * (4 * product + feed_forward) + pair * work.input_pairs)
            total += c.num_decoder_layers * (
                work.targets * (6 * product + feed_forward)
                + pair * (work.target_pairs + work.cross_pairs)
                + work.inputs * 2 * product
            )
            total += work.targets * 2 * c.d_model * c.vocab_size
        return total

    # --- Parts ---

    @jax.named_scope("encoder")
    def _encode(self, params: Params, inputs: Layout, key: jax.Array | None) -> jax.Array:
        """The encoder's output (G, X, D)."""
        encoder, seed_GX = params["encoder"], inputs.seed_GX
        bias_HW = self._distance_bias(encoder, inputs, True)
        attention = Attention(inputs, inputs, bias_HW, rate=self.config.dropout_rate)

        def layer(x_GXD, w, key):
            self_key, *keys = split_key(key, 4)
            h_GXD = self._norm(x_GXD, w["self_attention_norm"])
            y_GXHK = attention(self_key, *_queries_keys_values(w["self_attention"], h_GXD, h_GXD))
            x_GXD += self._drop(linear(y_GXHK, w["self_attention"]["o"], 2), keys[0], seed_GX)
            return by_example(self._feed_forward(x_GXD, w, keys[1:], seed_GX)), None

        keys = split_key(key, 3)
        x_GXD = self._drop(embed(params["embedding"], inputs.ids_GX, self.dtype), keys[0], seed_GX)
        x_GXD, _ = self._stack(layer, x_GXD, encoder["layers"], keys[1])
        return self._drop(self._norm(x_GXD, encoder["final_norm"]), keys[2], seed_GX)

    def _decoder_layer(self, x, w, attend_self, attend_input, keys, seed):
        h = self._norm(x, w["self_attention_norm"])
        x += self._drop(linear(attend_self(h), w["self_attention"]["o"], 2), keys[0], seed)
        h = self._norm(x, w["cross_attention_norm"])
        x += self._drop(linear(attend_input(h), w["cross_attention"]["o"], 2), keys[1], seed)
        return by_example(self._feed_forward(x, w, keys[2:], seed))

    def _feed_forward(self, x, w, keys, seed):
        """x + wo(act(wi(h))), or wo(act(wi_0(h)) * wi_1(h)) where gated, of h = norm(x)."""
        act, gated = _FEED_FORWARD[self.config.feed_forward_proj]
        h, mlp = self._norm(x, w["mlp_norm"]), w["mlp"]
        inner = act(linear(h, mlp["wi_0"])) * linear(h, mlp["wi_1"]) if gated else act(linear(h, mlp["wi"]))
        return x + self._drop(linear(self._drop(inner, keys[0], seed), mlp["wo"]), keys[1], seed)

    def _norm(self, x: jax.Array, scale_D: jax.Array) -> jax.Array:
        return rms_norm(x, scale_D, self.config.layer_norm_epsilon)

    def _drop(self, x, key, seed):
        return drop(x, self.config.dropout_rate, key, seed)

    def _stack(self, layer, x, weights, key):
        return stack(layer, x, weights, key, unroll=self.unroll, remat=self.remat)

    def _distance_bias(self, part: Params, layout: Layout, bidirectional: bool) -> jax.Array:
        """(H, W) float32, as `Attention` takes it."""
        return self._position_bias(part, np.arange(-layout.width, layout.width), bidirectional)

    def _position_bias(self, part: Params, distance: np.ndarray, bidirectional: bool) -> jax.Array:
        """(H, ...) float32, the heads' biases at each distance (key position - query position)."""
        bucket = relative_position_bucket(
            distance,
            bidirectional=bidirectional,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        return jnp.moveaxis(part["relative_bias"][bucket], -1, 0)

    def _scaled(self, hidden: jax.Array) -> jax.Array:
        return hidden * self.config.d_model**-0.5 if self.config.scale_decoder_outputs else hidden


def _queries_keys_values(w: Params, x: jax.Array, memory: jax.Array) -> tuple[jax.Array, ...]:
    return linear(x, w["q"]), linear(memory, w["k"]), linear(memory, w["v"])
