"""BERT, RoBERTa and ALBERT, and models of their form, such as MiniLM.

Devlin et al. 2019, "BERT" (arXiv:1810.04805); Liu et al. 2019, "RoBERTa" (arXiv:1907.11692): positions begin
after the padding id, no token types, a head of its own; Lan et al. 2020, "ALBERT" (arXiv:1909.11942):
layers share weights, embeddings are narrow.

Shape suffixes: those of `models.encoder`, and H heads, K head size, F feed-forward, V vocabulary, P rows of
positions, T token types, E width of the embeddings, S positions of a sequence.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.batch import Work
from cot_jax.errors import UserError
from cot_jax.models.encoder import (
    BERT_LAYER,
    Attend,
    Encoder,
    EncoderConfig,
    Sequences,
    add_block,
    read_config,
)
from cot_jax.models.layers import Attention, Keys, affine, attend, drop, embed
from cot_jax.models.weights import Params, Table, Weights

# Tensors of ALBERT's layers, in the place of `BERT_LAYER`.
_ALBERT_LAYER = {
    "attention/o": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "mlp/up": "ffn",
    "mlp/down": "ffn_output",
    "mlp_norm": "full_layer_layer_norm",
}


@dataclasses.dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The architecture, with the field names and defaults of Hugging Face's config.json.

    Attributes:
      embedding_size: ALBERT's width of the embeddings; 0: hidden_size.
      num_hidden_groups: ALBERT's number of weight sets that layers share; 0: each layer has its own.
    """

    model_type: str = "bert"
    vocab_size: int = 30_522
    type_vocab_size: int = 2
    embedding_size: int = 0
    num_hidden_groups: int = 0
    cls_token_id: int = 101
    sep_token_id: int = 102

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "BertConfig":
        """The config of a parsed config.json; fields that do not shape the model are ignored.

        Raises:
          UserError: a value is missing, of the wrong type or not supported.
        """
        kind = json["model_type"]
        ignored = () if kind == "albert" else ("embedding_size", "num_hidden_groups")
        given = {key: value for key, value in json.items() if value is not None and key not in ignored}
        json = _DEFAULTS[kind] | given
        if kind == "albert":
            json["classifier_dropout"] = json.get("classifier_dropout_prob", 0.1)
            if (inner := json.get("inner_group_num", 1)) != 1:
                raise UserError(f"config.json: inner_group_num is {inner}, known: 1")
        if kind == "roberta" and "bos_token_id" in json:
            json |= {"cls_token_id": json["bos_token_id"], "sep_token_id": json.get("eos_token_id", 2)}
        if (positions := json.get("position_embedding_type", "absolute")) != "absolute":
            raise UserError(f'config.json: position_embedding_type is "{positions}", known: absolute')
        return cls(**read_config(cls, json))

    def to_json(self) -> dict[str, Any]:
        values = super().to_json()
        if self.model_type == "albert":
            values |= {"classifier_dropout_prob": values.pop("classifier_dropout"), "inner_group_num": 1}
        else:
            del values["embedding_size"], values["num_hidden_groups"]
        if self.model_type == "roberta":
            values |= {"bos_token_id": self.cls_token_id, "eos_token_id": self.sep_token_id}
        return values

    def with_layers(self, layers: int) -> Self:
        if (groups := self.num_hidden_groups) > 1:
            raise UserError(f"config.model.layers={layers}: the layers share {groups} sets of weights; use 0")
        return super().with_layers(layers)

    @property
    def first_position(self) -> int:
        """The first token's row of the position table."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def positions(self) -> int:
        return self.max_position_embeddings - self.first_position


# Transformers' defaults that differ from those of `BertConfig`.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "cls_token_id": 0, "sep_token_id": 2},
    "albert": {
        "embedding_size": 128,
        "num_hidden_groups": 1,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
}


PRESETS = {
    "tiny-bert": BertConfig.sized(64, 2, 4),
    "minilm-l6": BertConfig.sized(384, 6, 12),
    "bert-base": BertConfig.sized(768, 12, 12),
    "bert-large": BertConfig.sized(1024, 24, 16),
}


@dataclasses.dataclass(frozen=True)
class Bert(Encoder):
    """BERT, RoBERTa or ALBERT as a `Student`."""

    config: BertConfig

    config_class = BertConfig

    @property
    def prefix(self) -> str:
        return f"{self.config.model_type}."

    @property
    def leftovers(self) -> tuple[str, ...]:
        """Heads of other tasks, position ids, and the pooler that RoBERTa does not use."""
        c = self.config
        found = [
            r"(.*\.)?position_ids",
            r"cls\..*",
            r"lm_head\..*",
            r"predictions\..*",
            r"sop_classifier\..*",
        ]
        if c.model_type == "roberta" and not c.multiple_choice:
            found.append(r"(roberta\.)?pooler\..*")
        return tuple(found)

    @cached_property
    def weights(self) -> Weights:
        c, albert = self.config, self.config.model_type == "albert"
        D, F, H = c.hidden_size, c.intermediate_size, c.num_attention_heads
        E, K = c.embedding_size or D, D // H
        table = Table(c.num_hidden_groups or c.num_hidden_layers)
        for name, axes, rows in (
            ("word", "V", c.vocab_size),
            ("position", "P", c.max_position_embeddings),
            ("token_type", "T", c.type_vocab_size),
        ):
            letter = "E" if c.embedding_size else "D"
            theirs = f"{self.prefix}embeddings.{name}_embeddings.weight"
            table.add(f"embedding/{name}", axes + letter, (rows, E), 0, 0.02, theirs)
        table.norm("embedding/norm", E, f"{self.prefix}embeddings.LayerNorm")
        if c.embedding_size:
            theirs = f"{self.prefix}encoder.embedding_hidden_mapping_in"
            table.linear("embedding/map", "ED", (E, D), theirs)
        group = "albert_layer_groups.{n}.albert_layers.0." if albert else "layer.{n}."
        layer = f"{self.prefix}encoder.{group}"
        for name in ("query", "key", "value"):
            place = f"{layer}attention.{'' if albert else 'self.'}{name}"
            table.linear(f"layers/attention/{name[0]}", "DHK", (D, H, K), place)
        add_block(table, _ALBERT_LAYER if albert else BERT_LAYER, layer, D, F, H)
        outputs, last = 1 if c.multiple_choice else self.outputs, "classifier"
        if c.model_type == "roberta" and not c.multiple_choice:
            table.linear("pooler/w", "DO", (D, D), "classifier.dense")
            last = "classifier.out_proj"
        else:
            table.linear("pooler/w", "DO", (D, D), f"{self.prefix}pooler{'' if albert else '.dense'}")
        table.linear("classifier/w", "DC", (D, outputs), last)
        return table.weights

    def flops(self, works: Sequence[Work]) -> np.ndarray:
        c = self.config
        return super().flops(works) + sum(2 * c.embedding_size * c.hidden_size * w.inputs for w in works)

    def _embed(self, params: Params, sequences: Sequences, key: jax.Array | None) -> jax.Array:
        c, tables = self.config, params["embedding"]
        x_GXE = embed(tables["word"], sequences.ids_GX, self.dtype)
        # A position beyond the table would make every gradient NaN: empty slots get position 0.
        position_GX = jnp.where(sequences.segments_GX.real_GX, sequences.position_GX, 0) + c.first_position
        x_GXE += embed(tables["position"], position_GX, self.dtype)
        type_GX = sequences.type_GX if c.type_vocab_size > 1 else jnp.zeros_like(sequences.type_GX)
        x_GXE += embed(tables["token_type"], type_GX, self.dtype)
        x_GXE = self.norm(x_GXE, tables["norm"])
        x_GXE = drop(x_GXE, self.rate("hidden_dropout_prob"), key, sequences.seed_GX)
        return affine(x_GXE, tables, "map") if c.embedding_size else x_GXE

    @property
    def _order(self) -> np.ndarray | None:
        c = self.config
        if not c.num_hidden_groups:
            return None
        return np.arange(c.num_hidden_layers) * c.num_hidden_groups // c.num_hidden_layers

    def _attention(self, params: Params, sequences: Sequences) -> Attend:
        c = self.config
        scale = (c.hidden_size // c.num_attention_heads) ** -0.5
        rate = self.rate("attention_probs_dropout_prob")
        among_all = Attention(sequences, sequences, rate=rate, scale=scale)
        segments = sequences.segments_GX
        mask_GC1S = segments.real_GES[:, :, None, :]

        def of_layer(w, x_GXD, of, key):
            k, v = affine(x_GXD, w, "k"), affine(x_GXD, w, "v")
            if of is None:
                return among_all(key, affine(x_GXD, w, "q"), k, v)
            keys = Keys(segments.unpack(k), segments.unpack(v), mask_GC1S)
            seed = sequences.first_seed_GC[:, :, None]
            q = affine(of, w, "q")[:, :, None]
            return attend(q, [keys], scale=scale, rate=rate, key=key, seed=seed)[:, :, 0]

        return of_layer

    def _pool(self, params: Params, first_GCD: jax.Array, sequences: Sequences, key) -> jax.Array:
        if self.config.model_type == "roberta" and not self.config.multiple_choice:
            before = None if key is None else jax.random.fold_in(key, 1)
            first_GCD = drop(first_GCD, self.rate("head_dropout"), before, sequences.first_seed_GC)
        return super()._pool(params, first_GCD, sequences, key)
