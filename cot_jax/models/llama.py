"""Llama and its relatives over flat tokens, and their cached step: Llama, SmolLM, Mistral, Qwen.

Touvron et al. 2023, "LLaMA" (arXiv:2302.13971); grouped-query attention and windows: Jiang et al. 2023,
"Mistral 7B" (arXiv:2310.06825); biases, norms of queries and keys: Qwen2 (arXiv:2407.10671) and Qwen3
(arXiv:2505.09388). Rotary positions: Su et al. 2021, "RoFormer" (arXiv:2104.09864), on the two halves of a
head; their scalings: Peng et al. 2023, "YaRN" (arXiv:2309.00071), and Llama 3.1's code.

A view is one sequence in three sections: the prefix that all examples share, computed once; the rest of the
input; the target. The target's section holds the input's last token and all target tokens but the last, so
each state predicts the target token of its slot.

Shape suffixes: G groups, E examples of a group, X slots of all sections, Y target slots of a group, P prefix
positions, S input positions, T target positions, R decoded rows (E or a multiple of it for each
group), D model, H heads, J key-value heads, K head size, F feed-forward, V vocabulary, N layers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cot_jax.batch import Batch, Segments, Texts, Tokens, Work
from cot_jax.errors import UserError
from cot_jax.models.base import Student, read_fields
from cot_jax.models.decoding import Prompt
from cot_jax.models.layers import (
    Cache,
    Keys,
    Layout,
    affine,
    attend,
    by_example,
    embed,
    lift,
    rms_norm,
    stack,
)
from cot_jax.models.weights import Params, Table, Weights


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions of queries and keys.

    Attributes:
      theta: base of the wavelengths.
      kind: one of `_SCALINGS`.
      settings: (name, value) pairs of the scaling, as config.json names them.
    """

    theta: float = 10_000.0
    kind: str = "default"
    settings: tuple[tuple[str, float], ...] = ()

    @classmethod
    def from_json(cls, json: Mapping[str, Any], longest: int) -> "Rope":
        """Reads `rope_parameters` of Transformers 5, or `rope_theta` and `rope_scaling` of older files.

        Raises:
          UserError: an unknown rope_type or setting, or one that is missing or not a positive number.
        """
        given = dict(json.get("rope_parameters") or json.get("rope_scaling") or {})
        kind = given.pop("rope_type", given.pop("type", "default"))
        given.pop("type", None)
        theta = given.pop("rope_theta", json.get("rope_theta"))
        theta = cls.theta if theta is None else theta
        share = given.pop("partial_rotary_factor", json.get("partial_rotary_factor"))
        if share not in (None, 1):
            raise UserError(
                f"config.json: partial_rotary_factor is {share!r}; partial rotation is not supported"
            )
        if kind not in _SCALINGS:
            raise UserError(f'config.json: rope_type is "{kind}", known: {", ".join(_SCALINGS)}')
        wanted, optional = _SCALINGS[kind]
        if _ORIGINAL in (*wanted, *optional):
            given.setdefault(_ORIGINAL, longest)
        if missing := [name for name in wanted if given.get(name) is None]:
            raise UserError(f"config.json: rope_type={kind} needs {missing[0]}")
        settings = {name: given[name] for name in (*wanted, *optional) if given.get(name) is not None}
        for name, value in (settings | {"rope_theta": theta}).items():
            if name != "truncate" and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise UserError(f"config.json: {name} of rope is {value!r}, expected a number above 0")
        if theta == 1 and kind == "yarn":
            raise UserError("config.json: rope_type=yarn needs a rope_theta other than 1")
        if unknown := sorted(given.keys() - {*wanted, *optional, *_IGNORED}):
            raise UserError(f"config.json: rope_type={kind} has no setting {unknown[0]}")
        return cls(float(theta), kind, tuple(settings.items()))

    def to_json(self) -> dict[str, Any]:
        """The fields of Transformers 5 and those of older versions."""
        scaling = {"rope_type": self.kind} | dict(self.settings)
        old = {"rope_theta": self.theta, "rope_scaling": None if self.kind == "default" else scaling}
        return old | {"rope_parameters": scaling | {"rope_theta": self.theta}}

    def frequencies(self, size: int) -> tuple[np.ndarray, float]:
        """Radians per position of each pair, (K / 2,) float32, in heads of `size`; factor of cos and sin."""
        of = dict(self.settings)
        plain = self.theta ** (-np.arange(0, size, 2) / size)
        # The share of a pair's frequency that is not divided by the factor.
        share, attention_factor = np.ones(1), 1.0
        if self.kind == "linear":
            share = np.zeros(1)
        elif self.kind == "llama3":
            low, high = of["low_freq_factor"], of["high_freq_factor"]
            turns = of[_ORIGINAL] * plain / (2 * np.pi)
            share = np.clip((turns - low) / (high - low), 0, 1)
        elif self.kind == "yarn":

            def pair_of(turns: float) -> float:
                """The pair that makes `turns` rotations within the original length."""
                return size * math.log(of[_ORIGINAL] / (2 * math.pi * turns)) / (2 * math.log(self.theta))

            first, last = pair_of(of.get("beta_fast", 32.0)), pair_of(of.get("beta_slow", 1.0))
            if of.get("truncate", True):
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, size - 1)
            ramp = (np.arange(size // 2) - first) / (max(last - first, 0) or 1e-3)
            share = 1 - np.clip(ramp, 0, 1)
            usual = 0.1 * math.log(of["factor"]) + 1 if of["factor"] > 1 else 1.0
            attention_factor = float(of.get("attention_factor", usual))
        scaled = (1 - share) * plain / of.get("factor", 1.0) + share * plain
        return scaled.astype(np.float32), attention_factor


_ORIGINAL = "original_max_position_embeddings"
# rope_type -> (required settings, optional settings). "dynamic" equals the default up to the longest length.
_SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL), ()),
    "yarn": (("factor", _ORIGINAL), ("attention_factor", "beta_fast", "beta_slow", "truncate")),
}
# Settings that files may contain and these types ignore.
_IGNORED = {_ORIGINAL, "finetuned"}


class _Family(NamedTuple):
    """What a model_type implies and its config.json does not state.

    Attributes:
      qkv_bias: whether q, k and v have a bias, whatever `attention_bias` says.
      head_norms: whether queries and keys are normalised before they are rotated.
      head_dim: if config.json has none; None: hidden_size / num_attention_heads.
      window: `sliding_window`, if config.json has none.
    """

    hf_class: str
    qkv_bias: bool = False
    head_norms: bool = False
    head_dim: int | None = None
    window: int | None = None


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM"),
    "mistral": _Family("MistralForCausalLM", window=4096),
    "qwen2": _Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": _Family("Qwen3ForCausalLM", head_norms=True, head_dim=128),
}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """The architecture, with the field names of Hugging Face's config.json if it has them.

    Attributes:
      head_dim: K; need not be hidden_size / num_attention_heads.
      windows: for each layer, how many positions a query sees, its own included; 0: all.
      eos_token_ids: each of them ends a text.
    """

    model_type: str = "llama"
    vocab_size: int = 32_000
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    rope: Rope = Rope()
    windows: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int = 0
    eos_token_ids: tuple[int, ...] = (2,)
    dropout_rate: float = 0.0

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> "LlamaConfig":
        """The config of a parsed config.json; fields that do not shape the model are ignored.

        Raises:
          UserError: a value is missing, of the wrong type or not supported.
        """
        family = _FAMILIES[json["model_type"]]
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        given = read_fields(cls, json, sizes)
        given.pop("pad_token_id", None)
        if json.get("quantization_config"):
            method = json["quantization_config"].get("quant_method", "quantized")
            raise UserError(f"config.json: the weights are quantized ({method}); take the unquantized model")
        if (act := json.get("hidden_act", "silu")) != "silu":
            raise UserError(f'config.json: hidden_act is "{act}", known: silu')
        heads = given["num_attention_heads"]
        given.setdefault("num_key_value_heads", heads)
        given.setdefault("head_dim", family.head_dim or given["hidden_size"] // heads)
        if heads % given["num_key_value_heads"] or given["head_dim"] % 2:
            raise UserError(
                f"config.json: {heads} heads of size {given['head_dim']} and {given['num_key_value_heads']} "
                "key-value heads do not fit"
            )
        given["rope"] = Rope.from_json(
            json, given.get("max_position_embeddings", cls.max_position_embeddings)
        )
        given["windows"] = _windows(json, family, given["num_hidden_layers"])
        ends = json.get("eos_token_id")
        ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
        pad = json.get("pad_token_id")
        # Some files write -1 for none. Any id will do: lengths decide.
        fill = pad if isinstance(pad, int) and pad >= 0 else (ends or (0,))[0]
        begin = json.get("bos_token_id")
        return cls(**given, eos_token_ids=ends, pad_token_id=fill, bos_token_id=begin)

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        for name in ("rope", "windows", "eos_token_ids", "dropout_rate"):
            del values[name]
        ends = self.eos_token_ids
        values |= self.rope.to_json() | {
            "architectures": [_FAMILIES[self.model_type].hf_class],
            "hidden_act": "silu",
            "eos_token_id": ends[0] if len(ends) == 1 else list(ends),
        }
        if self.model_type != "llama":
            windows = self.windows or (0,) * self.num_hidden_layers
            values["sliding_window"] = max(windows) or None
            if self.model_type != "mistral":
                values["use_sliding_window"] = any(windows)
                values["max_window_layers"] = windows.index(max(windows)) if any(windows) else len(windows)
                values["layer_types"] = ["sliding_attention" if w else "full_attention" for w in windows]
        return values

    def resized(self, vocab_size: int, pad_id: int | None) -> "LlamaConfig":
        """A copy with `vocab_size` rows of the embedding, for a tokenizer without a start token."""
        return dataclasses.replace(
            self,
            vocab_size=vocab_size,
            pad_token_id=-1 if pad_id is None else pad_id,
            eos_token_ids=(),
            bos_token_id=None,
        )

    def for_texts(self, texts: Texts) -> "LlamaConfig":
        """A copy in which the end token of `texts` ends a text."""
        ends, end = self.eos_token_ids, texts.end_id
        fill = end if self.pad_token_id < 0 else self.pad_token_id
        return dataclasses.replace(
            self, eos_token_ids=ends if end in ends else (end, *ends), pad_token_id=fill
        )

    def with_layers(self, layers: int) -> "LlamaConfig":
        """A copy with the first `layers` layers."""
        return dataclasses.replace(self, num_hidden_layers=layers, windows=self.windows[:layers])


def _windows(json: Mapping[str, Any], family: _Family, layers: int) -> tuple[int, ...]:
    """The window of each layer; () if no layer has one."""
    window = json.get("sliding_window", family.window)
    if json["model_type"] == "llama" or not window:
        return ()
    if json["model_type"] == "mistral":
        return (window,) * layers
    if not json.get("use_sliding_window", False):
        return ()
    kinds = json.get("layer_types") or [
        "sliding_attention" if n >= json.get("max_window_layers", 28) else "full_attention"
        for n in range(layers)
    ]
    if len(kinds) != layers or {*kinds} - {"sliding_attention", "full_attention"}:
        raise UserError(
            f"config.json: layer_types is {kinds}, expected {layers} of full or sliding attention"
        )
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def _preset(hidden: int, feed_forward: int, layers: int, heads: int, kv: int, **others: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        **({"head_dim": hidden // heads} | others),
    )


PRESETS = {
    "tiny-llama": _preset(64, 176, 2, heads=4, kv=2, tie_word_embeddings=True),
    "smollm2-135m": _preset(576, 1536, 30, heads=9, kv=3, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "smollm2-1.7b": _preset(2048, 8192, 24, heads=32, kv=32, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "qwen3-0.6b": _preset(
        1024, 3072, 28, heads=16, kv=8, head_dim=128, model_type="qwen3", tie_word_embeddings=True
    ),
    "llama2-7b": _preset(4096, 11_008, 32, heads=32, kv=32, rms_norm_eps=1e-5),
    "llama3-8b": _preset(4096, 14_336, 32, heads=32, kv=8, rms_norm_eps=1e-5, rope=Rope(5e5)),
}


class _View(NamedTuple):
    """The sections of a view.

    Attributes:
      prefix: positions (P,) of the shared prefix.
      inputs, targets: segments of their tokens; no targets when decoding.
      input_position: (S,), of the rest of the inputs.
      target_position: (G, E, T).
    """

    prefix: jax.Array
    inputs: Segments
    input_position: jax.Array
    targets: Segments | None = None
    target_position: jax.Array | None = None


class _Sections:
    """The tokens of some views side by side: all prefixes, then all inputs, then all targets.

    Attributes:
      views: their sections.
      ids_GX, position_GX: int32.
      seed_GX: uint32 for dropout.
      longest: upper bound of the lengths.
    """

    def __init__(self, inputs: Sequence[Tokens], targets: Sequence[Tokens], example_GE: ArrayLike):
        G = inputs[0].length.shape[0]
        self._layout = layout = Layout([*inputs, *targets], example_GE)
        none = np.zeros((G, 0), np.int32)
        prefixes = [jnp.asarray(none if tokens.prefix is None else tokens.prefix) for tokens in inputs]
        self._widths = [prefix.shape[1] for prefix in prefixes]
        ids, positions = layout.split(layout.ids_GX), layout.split(layout.position_GX)
        ranges, seeds = [], []
        self.views, self.longest = [], 0
        for n, (P, tokens) in enumerate(zip(self._widths, inputs, strict=True)):
            before = layout.segments[n]
            view = _View(jnp.arange(P), before, P + jnp.arange(tokens.width))
            positions[n] += P
            ranges.append(jnp.broadcast_to(view.prefix, (G, P)))
            seeds.append(ranges[n].astype(jnp.uint32) + np.uint32(n << 16))
            self.longest = max(self.longest, P + tokens.width)
            if targets:
                m = len(inputs) + n
                after = layout.segments[m]
                # The target's section begins with the input's last token.
                begin_GE = P + jnp.asarray(tokens.length) - 1
                position_GET = begin_GE[:, :, None] + jnp.arange(targets[n].width)[None, None]
                view = view._replace(targets=after, target_position=position_GET)
                first_GY = after.position_GX == 0
                last_GY = after.spread(before.last(ids[n]))
                ids[m] = jnp.where(first_GY, last_GY, jnp.roll(ids[m], 1, axis=1))
                positions[m] += after.spread(begin_GE)
                self.longest = max(self.longest, P + tokens.width + targets[n].width)
            self.views.append(view)
        self.ids_GX = jnp.concatenate([*prefixes, *ids], axis=1)
        self.position_GX = jnp.concatenate([*ranges, *positions], axis=1)
        self.seed_GX = jnp.concatenate([*seeds, layout.seed_GX], axis=1)

    def unpack(self, x: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Prefixes (G, P, ...), and rectangles (G, E, S or T, ...) of all inputs, then of all targets."""
        *prefixes, rest = jnp.split(x, np.cumsum(self._widths), axis=1)
        return prefixes, self._layout.unpack(rest)

    def pack(self, prefixes: Sequence[jax.Array], rectangles: Sequence[jax.Array]) -> jax.Array:
        """The inverse of `unpack`."""
        return jnp.concatenate([*prefixes, self._layout.pack(rectangles)], axis=1)

    def targets(self, x: jax.Array) -> list[jax.Array]:
        """The views' target slots (G, Y, ...) of `x` (G, X, ...)."""
        return self._layout.split(x[:, sum(self._widths) :])[len(self.views) :]


# A decoding step reads at least this many positions of the cache.
_READ = 64


@dataclasses.dataclass(frozen=True)
class Llama(Student):
    """A decoder as a `Student`. Dropout is on the attention weights, as in Transformers."""

    config: LlamaConfig
    config_class = LlamaConfig
    hf_class = "AutoModelForCausalLM"
    peft_task = "CAUSAL_LM"
    format = "causal"
    # LoRA adapts all linear maps (Dettmers et al. 2023, "QLoRA", section 4), with a common rank and alpha.
    usual: ClassVar[Mapping[str, Any]] = {
        "dropout_rate": 0.0,
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "lora_targets": "attention/[qkvo]$|mlp/[a-z]+$",
    }
    prefix = "model."
    leftovers: ClassVar[tuple[str, ...]] = (r"(.*\.)?rotary_emb\.inv_freq",)

    @classmethod
    def unrolls(cls, config: LlamaConfig, platform: str) -> bool:
        # On CPU (SmolLM2-135M, LoRA) unrolled layers take 1.6 times the time. Recomputing elementwise parts
        # takes 0.9 of a step's time and 0.6 of its memory.
        return False

    @property
    def ends(self) -> tuple[int, ...]:
        return self.config.eos_token_ids

    @cached_property
    def weights(self) -> Weights:
        c, family = self.config, _FAMILIES[self.config.model_type]
        N, D, F, V = c.num_hidden_layers, c.hidden_size, c.intermediate_size, c.vocab_size
        H, J, K = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        table = Table(N)
        table.add("embedding", "VD", (V, D), 0, 0.02, "model.embed_tokens.weight")
        if not c.tie_word_embeddings:
            table.add("head", "DV", (D, V), 1, 0.02, "lm_head.weight")
        table.scale("final_norm", "D", D, "model.norm")
        layer = "model.layers.{n}."
        table.scale("layers/attention_norm", "D", D, f"{layer}input_layernorm")
        table.scale("layers/mlp_norm", "D", D, f"{layer}post_attention_layernorm")
        biased = c.attention_bias or family.qkv_bias
        for name, letter, count in (("q", "H", H), ("k", "G", J), ("v", "G", J)):
            path, theirs = f"layers/attention/{name}", f"{layer}self_attn.{name}"
            table.linear(path, f"D{letter}K", (D, count, K), f"{theirs}_proj", bias=biased)
            if family.head_norms and name != "v":
                table.scale(f"{path}_norm", "K", K, f"{theirs}_norm")
        biased = c.attention_bias and not family.qkv_bias
        table.linear("layers/attention/o", "HKD", (H, K, D), f"{layer}self_attn.o_proj", 2, biased)
        for name, axes, shape in (("gate", "DF", (D, F)), ("up", "DF", (D, F)), ("down", "FD", (F, D))):
            table.linear(f"layers/mlp/{name}", axes, shape, f"{layer}mlp.{name}_proj", bias=c.mlp_bias)
        return table.weights

    def hidden(self, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> dict[str, jax.Array]:
        views = sorted(batch.views)
        inputs = [batch.views[view].inputs for view in views]
        sections = _Sections(inputs, [batch.views[view].targets for view in views], batch.example)
        x_GXD, _ = self._read(params, sections, dropout_rng)
        x_GXD = self._norm(x_GXD, params["final_norm"])
        return dict(zip(views, sections.targets(x_GXD), strict=True))

    def prompt(self, params: Params, inputs: Tokens, most: int, rows: int = 1) -> Prompt:
        c, (G, E) = self.config, inputs.length.shape
        sections = _Sections([inputs], [], jnp.zeros((G, E), jnp.int32))
        (view,), longest = sections.views, sections.longest + most
        self.require_length(longest)
        _, memory = self._read(params, sections, None, remember=True)
        # Decoding begins with the input's last token, at its position; its entry in the memory is masked.
        begin_GE = len(view.prefix) + jnp.asarray(inputs.length) - 1
        begin_GER1 = jnp.broadcast_to(begin_GE[:, :, None, None], (G, E, rows, 1))
        seen_GE11S = (lift(view.input_position, 3) < begin_GE[:, :, None])[:, :, None, None]
        written_position = begin_GER1 + lift(jnp.arange(most), 4)
        head_DV = self.head(params).astype(self.dtype)
        # Few answers use all their room: a step reads the written part, rounded up to one of these sizes.
        sizes = [*(_READ << n for n in range(most.bit_length()) if _READ << n < most), most]

        def step(ids_RT, position, cache):
            T = ids_RT.shape[1]
            position_GERT = begin_GER1 + position + lift(jnp.arange(T), 4)
            causal_TT = jnp.arange(most)[None] <= (position + jnp.arange(T))[:, None]
            rotary = self._rotary(position_GERT.reshape(-1, T))
            size = jnp.sum(position + T > jnp.array(sizes[:-1], jnp.int32), dtype=jnp.int32)

            def masks(written):
                sets = (
                    (view.prefix, None),
                    (view.input_position, seen_GE11S),
                    (written_position[..., :written], causal_TT[None, None, None, :, :written]),
                )
                return self._masks(position_GERT, sets, longest)

            def layer(carry, w, _):
                n, x_RTD, cache = carry
                w, windowed, (prefix, inputs) = w

                def attention(q_RTHK, *new):
                    nonlocal cache
                    cache = cache.put(n, position, *new)
                    q = q_RTHK.reshape(G, E, rows, *q_RTHK.shape[1:])

                    def over(size, cache):
                        part = (1, *cache.keys.shape[1:2], size, *cache.keys.shape[3:])
                        taken = (jax.lax.dynamic_slice(x, (n, 0, 0, 0, 0), part) for x in cache)
                        written = (x.reshape(G, E, rows, *part[2:]) for x in taken)
                        sets = zip((prefix, inputs, written), masks(size)(windowed), strict=True)
                        return attend(q, [Keys(k, v, m) for (k, v), m in sets], scale=c.head_dim**-0.5)

                    branches = [functools.partial(over, size) for size in sizes]
                    return jax.lax.switch(size, branches, cache).reshape(q_RTHK.shape)

                x_RTD = self._layer(x_RTD, w, rotary, attention)
                return (n + 1, x_RTD, cache), None

            x_RTD = embed(params["embedding"], ids_RT, self.dtype)
            (_, x_RTD, cache), _ = stack(
                layer, (jnp.int32(0), x_RTD, cache), (params["layers"], self._windowed, memory)
            )
            x_RTD = self._norm(x_RTD, params["final_norm"])
            return jnp.einsum("RTD,DV->RTV", x_RTD, head_DV, preferred_element_type=jnp.float32), cache

        shape = (c.num_hidden_layers, G * E * rows, most, c.num_key_value_heads, c.head_dim)
        first_R = jnp.repeat(view.inputs.last(jnp.asarray(inputs.ids)).reshape(-1), rows)
        return Prompt(step, Cache.empty(shape, self.dtype), first_R, self.ends, self.pad_id)

    def flops(self, works: Sequence[Work]) -> np.ndarray:
        c, total = self.config, np.zeros(np.shape(works[0].inputs))
        maps = 2 * c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
        maps += 6 * c.hidden_size * c.intermediate_size
        pair = 4 * c.num_attention_heads * c.head_dim  # of two tokens: score and weighted value
        for work in works:
            pairs = work.input_pairs + work.cross_pairs + work.target_pairs
            total += c.num_hidden_layers * (maps * (work.inputs + work.targets) + pair * pairs)
            total += work.targets * 2 * c.hidden_size * c.vocab_size
        return total

    # --- Parts ---

    @cached_property
    def _windowed(self) -> np.ndarray | None:
        """(N,) bool, whether each layer has a window; None if no layer has one."""
        return np.array(self.config.windows) > 0 if self.config.windows else None

    @jax.named_scope("decoder")
    def _read(
        self, params: Params, sections: _Sections, key: jax.Array | None, remember: bool = False
    ) -> tuple[jax.Array, Any]:
        """The last layer's states (G, X, D) of all sections.

        With `remember`, also the first view's keys and values, with a leading axis N: those of its prefix,
        (G, P, J, K), and those of its inputs, (G, E, S, J, K).
        """
        self.require_length(sections.longest)
        rotary = self._rotary(sections.position_GX)
        seeds = sections.unpack(sections.seed_GX)
        masks = [self._view_masks(view, sections.longest) for view in sections.views]

        def layer(x_GXD, w, key):
            w, windowed = w
            kept = None

            def attention(q_GXHK, k_GXJK, v_GXJK):
                nonlocal kept
                q, k, v = (sections.unpack(x) for x in (q_GXHK, k_GXJK, v_GXJK))
                kept = [(k[side][0], v[side][0]) for side in range(2)] if remember else None
                found = [
                    self._attention(n, len(masks), q, k, v, [mask(windowed) for mask in its], key, seeds)
                    for n, its in enumerate(masks)
                ]
                prefixes, *rectangles = zip(*found, strict=True)
                return sections.pack(prefixes, [x for group in rectangles for x in group])

            x_GXD = by_example(self._layer(x_GXD, w, rotary, attention))
            return x_GXD, kept

        x_GXD = embed(params["embedding"], sections.ids_GX, self.dtype)
        weights = (params["layers"], self._windowed)
        return stack(layer, x_GXD, weights, key, unroll=self.unroll, remat=self.remat)

    def _attention(self, n, views, q, k, v, masks, key, seeds) -> list[jax.Array]:
        """Attention of the sections of view `n`: (G, P, H, K), then (G, E, S or T, H, K)."""
        # Of each section (0: a prefix, 1: a rectangle; its index). A section sees itself and those before it.
        places = [(0, n), (1, n), (1, views + n)][: len(masks)]
        found = []
        for m, (side, at) in enumerate(places):
            keys = [Keys(k[s][i], v[s][i], mask) for (s, i), mask in zip(places, masks[m], strict=False)]
            found.append(
                attend(
                    q[side][at],
                    keys,
                    scale=self.config.head_dim**-0.5,
                    rate=self.config.dropout_rate,
                    key=key,
                    seed=seeds[side][at],
                )
            )
        return found

    def _view_masks(self, view: _View, longest: int) -> list[Callable[[Any], list[jax.Array | None]]]:
        """For each section, the masks (`_masks`) of its queries over the sections up to its own."""
        prefix, inputs = view.prefix, lift(view.input_position, 3)
        causal_GESS = _causal(len(view.input_position), view.inputs)
        found = [
            self._masks(prefix[None], [(prefix, jnp.tri(len(prefix), dtype=bool)[None])], longest),
            self._masks(inputs, [(prefix, None), (inputs, causal_GESS)], longest),
        ]
        if view.targets is not None and view.target_position is not None:
            targets = view.target_position
            before_GE1S = (inputs < targets[:, :, :1])[:, :, None]
            causal_GETT = _causal(targets.shape[2], view.targets)
            sets = [(prefix, None), (inputs, before_GE1S), (targets, causal_GETT)]
            found.append(self._masks(targets, sets, longest))
        return found

    def _masks(
        self,
        position: jax.Array,
        sets: Sequence[tuple[jax.Array, jax.Array | None]],
        longest: int,
    ) -> Callable[[Any], list[jax.Array | None]]:
        """The masks of a layer, given whether it has a window.

        Args:
          position: (*lead, S) of the queries.
          sets: of keys: their positions, (T,) or (*lead, T), and their mask without a window.
          longest: upper bound of the lengths.
        """
        window = max(self.config.windows, default=0)
        if not 0 < window < longest:
            return lambda _: [mask for _, mask in sets]

        def of_layer(windowed):
            found = []
            for of_keys, mask in sets:
                of_keys = lift(of_keys, position.ndim)
                near = of_keys[..., None, :] > position[..., :, None] - window
                near |= ~windowed
                found.append(near if mask is None else mask & near)
            return found

        return of_layer

    def _layer(self, x, w, rotary, attention):
        h, a, mlp = self._norm(x, w["attention_norm"]), w["attention"], w["mlp"]
        q, k, v = (affine(h, a, name, unpacked=True) for name in "qkv")
        if "q_norm" in a:
            q, k = self._norm(q, a["q_norm"]), self._norm(k, a["k_norm"])
        y = attention(_rotate(q, rotary), _rotate(k, rotary), v)
        x += affine(y, a, "o", 2, unpacked=True)
        h = self._norm(x, w["mlp_norm"])
        return x + affine(jax.nn.silu(affine(h, mlp, "gate")) * affine(h, mlp, "up"), mlp, "down")

    def _norm(self, x: jax.Array, scale: jax.Array) -> jax.Array:
        return rms_norm(x, scale, self.config.rms_norm_eps)

    def _rotary(self, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """cos and sin (..., X, 1, K / 2) float32 of positions (..., X)."""
        frequency, factor = self.config.rope.frequencies(self.config.head_dim)
        angle = position[..., None, None].astype(jnp.float32) * lift(frequency, position.ndim + 2)
        return jnp.cos(angle) * factor, jnp.sin(angle) * factor

    def require_length(self, longest: int) -> None:
        c = self.config
        if c.rope.kind == "dynamic" and longest > c.max_position_embeddings:
            raise UserError(
                f"config.json: rope_type=dynamic is supported up to {c.max_position_embeddings} positions, "
                f"sequences have up to {longest}: reduce config.data.max_input_tokens"
            )


def _causal(width: int, segments: Segments) -> jax.Array:
    """(G, E, S, S) bool: a token sees its sequence up to itself."""
    return jnp.tri(width, dtype=bool)[None, None] & segments.real_GES[:, :, None]


def _rotate(x: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the two halves of each head (..., X, H, K) by its position."""
    cos, sin = rotary
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
