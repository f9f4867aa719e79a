"""DeBERTa v1, v2 and v3.

He et al. 2021, "DeBERTa: Decoding-enhanced BERT with Disentangled Attention" (arXiv:2006.03654); He et al.
2023, "DeBERTaV3" (arXiv:2111.09543). The score of a query and a key is the sum of content to content, content
to position (c2p) and position to content (p2c). A position is the distance of query and key; v2 and v3 take a
logarithmic bucket of it. v2 adds a convolution to the first layer.

Shape suffixes: those of `models.encoder`, and H heads, K head size, F feed-forward, V vocabulary, P rows of
the relative table, W window, S queries and T keys of a sequence, J = 2 S - 1 distances, from S - 1 down.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.batch import Work
from cot_jax.errors import UserError
from cot_jax.models.encoder import (
    ACTIVATIONS,
    BERT_LAYER,
    Attend,
    Encoder,
    EncoderConfig,
    Sequences,
    add_block,
    read_config,
)
from cot_jax.models.layers import Keys, add_bias, affine, attend, drop, embed, split_key
from cot_jax.models.numerics import mix
from cot_jax.models.weights import Params, Table, Weights


@dataclasses.dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """The architecture, with the field names and defaults of Hugging Face's config.json.

    Attributes:
      max_relative_positions: distances that are distinguished; below 1: max_position_embeddings.
      position_buckets: buckets of distances on either side; below 1: none, as in v1.
      share_att_key: whether distances are projected by the weights of the tokens.
      norm_rel_ebd: norm of the relative table, "layer_norm" or "none".
      pos_att_type: which of "c2p" and "p2c" are added to the scores.
      conv_kernel_size: tokens of the convolution's window; 0: no convolution.
    """

    model_type: str = "deberta-v2"
    vocab_size: int = 128_100
    layer_norm_eps: float = 1e-7
    cls_token_id: int = 1
    sep_token_id: int = 2
    max_relative_positions: int = -1
    position_buckets: int = -1
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    pos_att_type: tuple[str, ...] = ()
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    pooler_hidden_act: str = "gelu"
    pooler_dropout: float = 0.0

    def __post_init__(self):
        if self.model_type == "deberta" and self.multiple_choice:
            raise UserError("DeBERTa v1 has no head for multiple choice in Transformers; take v2 or v3")

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "DebertaConfig":
        """The config of a parsed config.json; fields that do not shape the model are ignored.

        Raises:
          UserError: a value is missing, of the wrong type or not supported.
        """
        v1 = json["model_type"] == "deberta"
        json = {key: value for key, value in json.items() if value is not None and not (v1 and key in _OF_V2)}
        json["classifier_dropout"] = json.get("cls_dropout", -1.0)
        fields = read_config(cls, json)
        kinds = json.get("pos_att_type", ())
        kinds = tuple(kinds.replace(" ", "").lower().split("|") if isinstance(kinds, str) else kinds)
        # No released model has Transformers' defaults of the first two.
        width = fields["hidden_size"]
        head = width // fields["num_attention_heads"]
        for name, default, known in (
            ("position_biased_input", True, (False,)),
            ("relative_attention", False, (True,)),
            ("type_vocab_size", 0, (0,)),
            ("talking_head", False, (False,)),
            ("embedding_size", width, (width,)),
            ("pooler_hidden_size", width, (width,)),
            ("attention_head_size", head, (head,)),
            ("conv_kernel_size", 0, (0, 3)),
            ("conv_groups", 1, (1,)),
            ("norm_rel_ebd", "none", ("none", "layer_norm")),
        ):
            if (value := json.get(name, default)) not in known:
                raise UserError(f"config.json: {name} is {value!r}, known: {', '.join(map(str, known))}")
        if len({"c2p", "p2c"}.intersection(kinds)) < len(kinds):
            raise UserError(f"config.json: pos_att_type is {json['pos_att_type']!r}, known: c2p, p2c")
        config = cls(**fields | {"pos_att_type": kinds})
        if config.position_buckets > 0 and not 2 <= config.position_buckets < 2 * (config.distances - 1):
            raise UserError(
                f"config.json: position_buckets is {config.position_buckets}, expected 2 to "
                f"{2 * config.distances - 3}"
            )
        return config

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        values |= {"cls_dropout": values.pop("classifier_dropout"), "type_vocab_size": 0}
        return values | {"relative_attention": True, "position_biased_input": False}

    @property
    def positions(self) -> int:
        """No limit: all greater distances share the last row."""
        return 0

    @property
    def distances(self) -> int:
        """The distances on either side that are distinguished or divided into buckets."""
        given = self.max_relative_positions
        return self.max_position_embeddings if given < 1 else given

    @property
    def span(self) -> int:
        """Half of the relative table's rows."""
        return self.distances if self.position_buckets < 1 else self.position_buckets

    def row(self, distance: np.ndarray) -> np.ndarray:
        """The relative table's row for a query's position minus a key's."""
        if self.position_buckets > 0:
            middle = self.position_buckets // 2
            far = np.maximum(np.abs(distance), middle)
            log = np.log(far / middle) / np.log((self.distances - 1) / middle) * (middle - 1)
            distance = np.where(
                far == middle, distance, np.sign(distance) * (np.ceil(log) + middle).astype(int)
            )
        return np.clip(distance + self.span, 0, 2 * self.span - 1)


# Fields that v1 ignores.
_OF_V2 = (
    "position_buckets",
    "share_att_key",
    "norm_rel_ebd",
    "conv_kernel_size",
    "conv_act",
    "conv_groups",
    "attention_head_size",
)


_V3: dict[str, Any] = {
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "pos_att_type": ("p2c", "c2p"),
}
PRESETS = {
    "tiny-deberta": DebertaConfig.sized(64, 2, 4, **_V3),
    "deberta-v3-base": DebertaConfig.sized(768, 12, 12, **_V3),
}


@dataclasses.dataclass(frozen=True)
class Deberta(Encoder):
    """DeBERTa as a `Student`."""

    config: DebertaConfig

    config_class = DebertaConfig
    prefix = "deberta."
    # Heads of other tasks, and positions that only they read.
    leftovers = (
        r"(.*\.)?position_ids",
        r"(.*\.)?position_embeddings\.weight",
        r"cls\..*",
        r"lm_predictions\..*",
        r"mask_predictions\..*",
    )

    @cached_property
    def weights(self) -> Weights:
        c, p = self.config, self.prefix
        D, F, H = c.hidden_size, c.intermediate_size, c.num_attention_heads
        K = D // H
        table = Table(c.num_hidden_layers)
        table.add("embedding/word", "VD", (c.vocab_size, D), 0, 0.02, f"{p}embeddings.word_embeddings.weight")
        table.norm("embedding/norm", D, f"{p}embeddings.LayerNorm")
        table.add("relative/table", "PD", (2 * c.span, D), 0, 0.02, f"{p}encoder.rel_embeddings.weight")
        if c.norm_rel_ebd == "layer_norm":
            table.norm("relative/norm", D, f"{p}encoder.LayerNorm")
        if c.conv_kernel_size:
            shape = (c.conv_kernel_size, D, D)
            table.linear("convolution/w", "WDO", shape, f"{p}encoder.conv.conv", inputs=2)
            table.norm("convolution/norm", D, f"{p}encoder.conv.LayerNorm")
        layer = f"{p}encoder.layer.{{n}}."
        attention = f"{layer}attention.self."
        if c.model_type == "deberta":
            # Each head's query, key and value in turn; the key has no bias.
            table.linear("layers/attention/qkv", "DH3K", (D, H, 3, K), f"{attention}in_proj", bias=False)
            for name in "qv":
                table.add(f"layers/attention/{name}_bias", "HK", (H, K), 0, 0.0, f"{attention}{name}_bias")
            relative = [("c2p", "k", "pos_proj"), ("p2c", "q", "pos_q_proj")]
        else:
            for name, theirs in (("q", "query_proj"), ("k", "key_proj"), ("v", "value_proj")):
                table.linear(f"layers/attention/{name}", "DHK", (D, H, K), f"{attention}{theirs}")
            relative = [("c2p", "k", "pos_key_proj"), ("p2c", "q", "pos_query_proj")]
        for kind, name, theirs in relative:
            if kind in c.pos_att_type and not c.share_att_key:
                path, place = f"layers/attention/pos_{name}", f"{attention}{theirs}"
                table.linear(path, "DHK", (D, H, K), place, bias=theirs != "pos_proj")
        add_block(table, BERT_LAYER, layer, D, F, H)
        table.linear("pooler/w", "DO", (D, D), "pooler.dense")
        table.linear("classifier/w", "DC", (D, 1 if c.multiple_choice else self.outputs), "classifier")
        return table.weights

    def flops(self, works: Sequence[Work]) -> np.ndarray:
        """Excludes the projections of the relative table, whose cost does not depend on the examples."""
        c = self.config
        D, N, kinds = c.hidden_size, c.num_hidden_layers, len(c.pos_att_type)
        total = super().flops(works)
        for work in works:
            total += kinds * (N - 1) * 2 * D * (2 * work.input_pairs - work.inputs)
            total += (kinds * 2 * D + 2 * c.conv_kernel_size * D * D) * work.inputs
        return total

    def _embed(self, params: Params, sequences: Sequences, key: jax.Array | None) -> jax.Array:
        table = params["embedding"]
        x_GXD = self.norm(embed(table["word"], sequences.ids_GX, self.dtype), table["norm"])
        return drop(x_GXD, self.rate("hidden_dropout_prob"), key, sequences.seed_GX)

    def _attention(self, params: Params, sequences: Sequences) -> Attend:
        c, segments = self.config, sequences.segments_GX
        scale = (c.hidden_size // c.num_attention_heads * (1 + len(c.pos_att_type))) ** -0.5
        S = segments.real_GES.shape[2]
        row_J = c.row(np.arange(S - 1, -S, -1))
        rows_JD = jnp.take(params["relative"]["table"], row_J, axis=0)
        if "norm" in params["relative"]:
            rows_JD = self.norm(rows_JD, params["relative"]["norm"])
        rows_JD = rows_JD.astype(self.dtype)
        # Distances that share a row share its dropout mask.
        row_seed_J = mix(jnp.asarray(row_J, jnp.uint32))
        mask_GC1T = segments.real_GES[:, :, None, :]

        def of_layer(w, x_GXD, of, key):
            keys = split_key(key, 2)
            if "qkv" in w:
                qkv = affine(x_GXD, w, "qkv")
                k, v = qkv[..., 1, :], qkv[..., 2, :]
                q = qkv[..., 0, :] if of is None else sequences.first(qkv[..., 0, :])
                q, v = add_bias(q, w["q_bias"]), add_bias(v, w["v_bias"])
            else:
                q = affine(x_GXD if of is None else of, w, "q")
                k, v = affine(x_GXD, w, "k"), affine(x_GXD, w, "v")
            k, v = segments.unpack(k), segments.unpack(v)
            rows = drop(rows_JD, self.rate("hidden_dropout_prob"), keys[0], row_seed_J)
            if of is None:
                q, seed = segments.unpack(q), segments.unpack(sequences.seed_GX)
            else:
                # The first token's distances are 0 and less.
                q, seed, rows = q[:, :, None], sequences.first_seed_GC[:, :, None], rows[S - 1 :]
            bias = self._bias(w, q, k, rows, of is not None) * scale if c.pos_att_type else None
            rate = self.rate("attention_probs_dropout_prob")
            all_keys = [Keys(k, v, mask_GC1T, bias)]
            found = attend(q, all_keys, scale=scale, rate=rate, key=keys[1], seed=seed)
            return segments.pack(found) if of is None else found[:, :, 0]

        return of_layer

    def _bias(self, w: Params, q_GCSHK: jax.Array, k_GCTHK: jax.Array, rows_JD: jax.Array, first: bool):
        """What c2p and p2c add to the scores, (G, C, H, S, T) float32; with `first`, S = 1 and J = T."""
        c, found = self.config, []

        def project(name):
            return affine(rows_JD, w, name if c.share_att_key else f"pos_{name}")

        def product(equation, a, b):
            return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)

        if "c2p" in c.pos_att_type:
            scores_GCHSJ = product("GCSHK,JHK->GCHSJ", q_GCSHK, project("k"))
            found.append(scores_GCHSJ if first else _skew(scores_GCHSJ))
        if "p2c" in c.pos_att_type:
            rows_JHK = project("q")
            if first:
                found.append(product("GCTHK,THK->GCHT", k_GCTHK, rows_JHK)[:, :, :, None])
            else:
                # From a key, the distances run in the opposite order.
                scores_GCHTJ = product("GCTHK,JHK->GCHTJ", k_GCTHK, rows_JHK[::-1])
                found.append(jnp.swapaxes(_skew(scores_GCHTJ), -1, -2))
        return sum(found)

    def _convolve(
        self, params: Params, x_GXD: jax.Array, embedded_GXD: jax.Array, sequences: Sequences, key
    ) -> jax.Array:
        w, segments = params["convolution"], sequences.segments_GX
        # Whether a token has a predecessor in its sequence: other sequences must not leak in.
        follows_GX1 = (segments.real_GX & (segments.position_GX > 0))[..., None]
        before = jnp.where(follows_GX1, jnp.roll(embedded_GXD, 1, axis=1), 0)
        after = jnp.roll(jnp.where(follows_GX1, embedded_GXD, 0), -1, axis=1)
        window_GXWD = jnp.stack([before, embedded_GXD, after], axis=2)
        y_GXD = drop(affine(window_GXWD, w, "w", 2), self.rate("hidden_dropout_prob"), key, sequences.seed_GX)
        return self.norm(x_GXD + ACTIVATIONS[self.config.conv_act](y_GXD), w["norm"])

    def _pool(self, params: Params, first_GCD: jax.Array, sequences: Sequences, key) -> jax.Array:
        before, after = split_key(key, 2)
        seed_GC = sequences.first_seed_GC
        x_GCD = drop(first_GCD, self.rate("pooler_dropout"), before, seed_GC)
        x_GCD = ACTIVATIONS[self.config.pooler_hidden_act](affine(x_GCD, params["pooler"], "w"))
        return drop(x_GCD, self.rate("head_dropout"), after, seed_GC)


def _skew(x: jax.Array) -> jax.Array:
    """(..., S, S) of `x` (..., S, 2 S - 1): row s starts at column S - 1 - s.

    A reshape to rows one column shorter shifts each row against the previous one, without a gather (Huang
    et al. 2019, "Music Transformer").
    """
    *lead, S, J = x.shape
    flat = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*lead, S * (J + 1))
    return flat[..., S - 1 : S - 1 + S * J].reshape(*lead, S, J)[..., :S]
