"""What encoders share: sequences, classes as targets of one token, the classification head.

A class is a target of one token over K classes, so every objective works on encoders unchanged. The state
that predicts it is the pooled first token, [CLS], followed by a 1 for the bias; the head holds the classes'
weights and biases. With multiple choice an input has one sequence for each of K choices, the state is their
K scores and the head is the identity.

Shape suffixes: G groups, E examples of a group, C sequences of a group (E, or E * K with multiple choice), X
input slots of a group, Y target slots of a group, D model, K classes, N layers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from cot_jax.batch import Batch, Segments, Texts, Tokens, Work
from cot_jax.errors import UserError
from cot_jax.models.base import Student, read_fields
from cot_jax.models.decoding import Prompt
from cot_jax.models.layers import Layout, affine, by_example, drop, layer_norm, split_key, stack
from cot_jax.models.weights import Params, Table

# hidden_act -> function. Transformers' "gelu" is the exact one.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}

# Prefix of the names that Transformers gives to unnamed classes.
_NAMELESS = "LABEL_"


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """What the families' configs share, with the field names of Hugging Face's config.json.

    Attributes:
      classifier_dropout: rate before the classifier; -1: hidden_dropout_prob.
      labels: names of the classes or, with `multiple_choice`, of the choices.
      cls_token_id, sep_token_id: begin a sequence and end each of its parts.
      dropout_rate: replaces all rates; -1: those of config.json.
    """

    model_type: str = ""
    vocab_size: int = 0
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float = -1.0
    pad_token_id: int = 0
    cls_token_id: int = 0
    sep_token_id: int = 0
    labels: tuple[str, ...] = ()
    multiple_choice: bool = False
    dropout_rate: float = -1.0

    @classmethod
    def sized(cls, hidden: int, layers: int, heads: int, **others: Any) -> Self:
        """A config of these sizes, with the usual width of the feed-forward."""
        return cls(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            **others,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields of config.json."""
        values = dataclasses.asdict(self) | {"classifier_dropout": self.head_dropout}
        for name in ("labels", "multiple_choice", "dropout_rate"):
            del values[name]
        family = self.model_type.title().replace("-", "")
        kind = "MultipleChoice" if self.multiple_choice else "SequenceClassification"
        return values | {
            "id2label": {str(n): label for n, label in enumerate(self.labels)},
            "label2id": {label: n for n, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
            "architectures": [f"{family}For{kind}"],
        }

    def for_texts(self, texts: Texts) -> Self:
        """A copy with the special ids and classes of `texts`."""
        return dataclasses.replace(
            self,
            cls_token_id=texts.begin_id,
            sep_token_id=texts.end_id,
            labels=texts.labels,
            multiple_choice=texts.multiple_choice,
        )

    def resized(self, vocab_size: int, pad_id: int | None) -> Self:
        """A copy with `vocab_size` rows of the embedding."""
        return dataclasses.replace(self, vocab_size=vocab_size, pad_token_id=pad_id or 0)

    def with_layers(self, layers: int) -> Self:
        """A copy with the first `layers` layers."""
        return dataclasses.replace(self, num_hidden_layers=layers)

    @property
    def head_dropout(self) -> float:
        return self.hidden_dropout_prob if self.classifier_dropout < 0 else self.classifier_dropout

    @property
    def positions(self) -> int:
        """The longest sequence; 0: no limit."""
        return self.max_position_embeddings


def read_config(cls: Any, json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an encoder's config class that a parsed config.json has, and those of its classes.

    Raises:
      UserError: a size is missing, or a value is of the wrong type or unknown.
    """
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    given = read_fields(cls, json, (*sizes, "max_position_embeddings"))
    heads = given["num_attention_heads"]
    if given["hidden_size"] % heads:
        raise UserError(f"config.json: {heads} heads do not divide hidden_size {given['hidden_size']}")
    for name in ("hidden_act", "pooler_hidden_act", "conv_act"):
        if given.get(name, "gelu") not in ACTIVATIONS:
            raise UserError(f'config.json: {name} is "{given[name]}", known: {", ".join(ACTIVATIONS)}')
    names = {str(key): name for key, name in (json.get("id2label") or {}).items()}
    if names.keys() != {str(n) for n in range(len(names))}:
        raise UserError(f"config.json: id2label numbers its classes {', '.join(names)}, expected 0, 1, ...")
    labels = tuple(str(names[str(n)]) for n in range(len(names)))
    if not any(label.startswith(_NAMELESS) for label in labels):
        given["labels"] = labels
    architectures = json.get("architectures") or [""]
    given["multiple_choice"] = str(architectures[0]).endswith("ForMultipleChoice")
    return given


class Sequences(Layout):
    """A batch's input sequences, flat.

    Attributes:
      type_GX: int32, 0 up to the first [SEP], 1 after it.
      first_seed_GC: uint32, the first tokens' seeds for `drop`.
    """

    def __init__(self, inputs: Tokens, example_GE: ArrayLike, config: EncoderConfig):
        choices = len(config.labels) if config.multiple_choice else 1
        lengths: Any = _choice_lengths(inputs, config.cls_token_id, choices) if choices > 1 else inputs.length
        numbers = jnp.repeat(jnp.asarray(example_GE), choices, axis=1)
        numbers = numbers * choices + jnp.arange(numbers.shape[1])[None] % choices
        super().__init__([dataclasses.replace(inputs, length=lengths, prefix=None)], numbers)
        (self.segments_GX,) = self.segments
        # Empty slots would continue the last sequence, beyond the table of positions.
        self.position_GX = jnp.where(self.segments_GX.real_GX, self.position_GX, 0)
        ends_GX = (self.ids_GX == config.sep_token_id).astype(jnp.int32)
        before_GX = jnp.cumsum(ends_GX, axis=1) - ends_GX
        self.type_GX = jnp.minimum(before_GX - self.spread(self.first(before_GX)), 1)
        self.first_seed_GC = self.first(self.seed_GX)

    def first(self, x: jax.Array) -> jax.Array:
        """(G, C, ...), the first token of each sequence; arbitrary for an empty one."""
        return self.segments_GX.first(x)

    def spread(self, x_GC: jax.Array) -> jax.Array:
        """(G, X), each sequence's value at its tokens."""
        return self.segments_GX.spread(x_GC)

    def at_first(self, x_GCD: jax.Array) -> jax.Array:
        """(G, X, D), each sequence's values at its first token, zeros elsewhere."""
        first_GX = self.segments_GX.real_GX & (self.position_GX == 0)
        return jnp.where(first_GX[..., None], self.spread(x_GCD), 0)


def _choice_lengths(inputs: Tokens, begin: int, choices: int) -> jax.Array:
    """(G, E * choices), the length of each choice in inputs that concatenate them.

    A choice begins at the id `begin`, which no text contains.
    """
    segments = Segments.of(inputs)
    starts_GX = ((jnp.asarray(inputs.ids) == begin) & segments.real_GX).astype(jnp.int32)
    choice_GX = (jnp.cumsum(starts_GX, axis=1) - 1) % choices
    place_GX = segments.example_GX * choices + choice_GX
    count = inputs.length.shape[1] * choices
    one = jax.vmap(lambda place, real: jnp.zeros(count, jnp.int32).at[place].add(real))
    return one(place_GX, segments.real_GX.astype(jnp.int32))


class Added(NamedTuple):
    """What is added to states: to the embedded tokens (G, X, D), and to the first tokens after all layers but
    the last (N - 1, G, C, D)."""

    embedded_GXD: jax.Array
    firsts_NGCD: jax.Array


# (w, x_GXD, of, key) -> the attended values; see `Encoder._attention`.
Attend = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Encoder(Student):
    """An encoder with a classification head, as a `Student`. Dropout is at Transformers' places."""

    peft_task = "SEQ_CLS"
    format = "classes"
    # -1: the rates of config.json, which differ by place. [ALBERT v2: 0, 0 and 0.1]
    usual: ClassVar[Mapping[str, Any]] = {"dropout_rate": -1, "lora_rank": 0}
    pad_id = 0  # any id: lengths decide

    @property
    def hf_class(self) -> str:
        kind = "MultipleChoice" if self.config.multiple_choice else "SequenceClassification"
        return f"AutoModelFor{kind}"

    @property
    def outputs(self) -> int:
        return len(self.config.labels)

    @property
    def ends(self) -> tuple[int, ...]:
        """Every class ends the target."""
        return tuple(range(self.outputs))

    @property
    def labels(self) -> tuple[str, ...]:
        return self.config.labels

    @property
    def aliases(self) -> dict[str, str]:
        """Old files name a norm's scale gamma and its bias beta."""
        old: dict[str, str] = {}
        for weight in self.weights.values():
            for new, past in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
                if weight.theirs.endswith(new):
                    for n in range(weight.layers):
                        name = weight.theirs.format(n=n)
                        name_then = name.replace(new, past)
                        old |= {name_then: name, name_then.removeprefix(self.prefix): name}
        return old

    @property
    def optional(self) -> tuple[str, ...]:
        """The head's weights, which files of a bare encoder lack."""
        return tuple(path for path in self.weights if path.split("/")[0] in ("pooler", "classifier"))

    def hidden(self, params: Params, batch: Batch, dropout_rng: jax.Array | None) -> dict[str, jax.Array]:
        return self.hidden_and_layers(params, batch, dropout_rng)[0]

    def hidden_and_layers(
        self,
        params: Params,
        batch: Batch,
        dropout_rng: jax.Array | None,
        added: Mapping[str, Added] | None = None,
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """`hidden`, and each view's states (G, N - 1, C, D) of first tokens after all layers but the last.

        Patient knowledge distillation matches the latter (Sun et al. 2019).

        Args:
          added: of each view; a gradient by it is one by these states.
        """
        states, layers = {}, {}
        for n, (name, view) in enumerate(sorted(batch.views.items())):
            key = None if dropout_rng is None else jax.random.fold_in(dropout_rng, n)
            of_view = added[name] if added else None
            states_GEP, firsts_NGCD = self._states(params, view.inputs, batch.example, key, of_view)
            layers[name] = firsts_NGCD.swapaxes(0, 1)
            # A target has one token at most.
            targets = Segments(view.targets.length, view.targets.slots, 1)
            states[name] = targets.pack(states_GEP[:, :, None])
        return states, layers

    def nothing_added(self, batch: Batch) -> dict[str, Added]:
        """Zeros for `hidden_and_layers`."""
        c = self.config
        choices = len(c.labels) if c.multiple_choice else 1
        added = {}
        for name, view in batch.views.items():
            (G, X), E = view.inputs.ids.shape, view.inputs.length.shape[1]
            shapes = (G, X, c.hidden_size), (c.num_hidden_layers - 1, G, E * choices, c.hidden_size)
            added[name] = Added(*(jnp.zeros(shape, self.dtype) for shape in shapes))
        return added

    def head(self, params: Params) -> jax.Array:
        if self.config.multiple_choice:
            return jnp.eye(self.outputs)
        return jnp.concatenate([params["classifier"]["w"], params["classifier"]["bias"][None]])

    def require_length(self, longest: int) -> None:
        if 0 < (most := self.config.positions) < longest:
            raise UserError(
                f"texts have up to {longest} tokens, the student has {most} positions: cut them with "
                f"--config.data.max_input_tokens={most}"
            )

    def prompt(self, params: Params, inputs: Tokens, most: int, rows: int = 1) -> Prompt:
        example_GE = jnp.zeros(inputs.length.shape, jnp.int32)
        states_GEP, _ = self._states(params, inputs, example_GE, None)
        states_RP = jnp.repeat(states_GEP.reshape(-1, states_GEP.shape[-1]), rows, axis=0)
        logits_RK = jnp.einsum("RP,PK->RK", states_RP, self.head(params), preferred_element_type=jnp.float32)

        def step(ids_RT, position, cache):
            return jnp.broadcast_to(cache[0][:, None], (*ids_RT.shape, self.outputs)), cache

        first_R = jnp.zeros(len(logits_RK), jnp.int32)
        return Prompt(step, logits_RK[None], first_R, self.ends, self.pad_id)

    def flops(self, works: Sequence[Work]) -> np.ndarray:
        c, total = self.config, np.zeros(np.shape(works[0].inputs))
        D, F, N = c.hidden_size, c.intermediate_size, c.num_hidden_layers
        # In the last layer only the first token has a query; all tokens have keys and values.
        maps = (N - 1) * (8 * D * D + 4 * D * F) + 4 * D * D + 4 * D
        for work in works:
            total += maps * work.inputs + (N - 1) * 4 * D * work.input_pairs
            total += (6 * D * D + 4 * D * F + 2 * (D + 1) * self.outputs) * work.targets
        return total

    # --- Parts ---

    def _embed(self, params: Params, sequences: Sequences, key: jax.Array | None) -> jax.Array:
        """(G, X, D) embedded tokens."""
        raise NotImplementedError

    def _attention(self, params: Params, sequences: Sequences) -> Attend:
        """A layer's attention, attend(w, x_GXD, of, key); what all layers share is computed once.

        Queries are all tokens if `of` is None, else only the first tokens, whose states (G, C, D) `of` holds.
        """
        raise NotImplementedError

    @property
    def _order(self) -> np.ndarray | None:
        """(N,), the index of each layer's weights in the stack; None: 0, 1, ..."""
        return None

    def _convolve(
        self, params: Params, x_GXD: jax.Array, embedded_GXD: jax.Array, sequences: Sequences, key
    ) -> jax.Array:
        """The first layer's states plus a convolution of the embedded tokens; for models with its weights."""
        raise NotImplementedError

    def rate(self, name: str) -> float:
        """The dropout rate `name` of config.json, or the one that replaces all rates."""
        rate = self.config.dropout_rate
        return float(getattr(self.config, name)) if rate < 0 else rate

    @jax.named_scope("encoder")
    def _states(
        self,
        params: Params,
        inputs: Tokens,
        example_GE: ArrayLike,
        key: jax.Array | None,
        added: Added | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """States (G, E, P) and `_read`'s second output. P is D + 1 or, for multiple choice, K scores."""
        c = self.config
        if not c.multiple_choice:  # else a width is that of all choices
            self.require_length(inputs.width - 7)  # widths are multiples of 8
        sequences = Sequences(inputs, example_GE, c)
        keys = split_key(key, 3)
        last_GCD, firsts_NGCD = self._read(params, sequences, keys[0], keys[1], added)
        pooled_GCD = self._pool(params, last_GCD, sequences, keys[2])
        if not c.multiple_choice:
            one = jnp.ones((*pooled_GCD.shape[:-1], 1), pooled_GCD.dtype)
            return jnp.concatenate([pooled_GCD, one], axis=-1), firsts_NGCD
        scores_GC1 = affine(pooled_GCD, params["classifier"], "w")
        return scores_GC1.reshape(*inputs.length.shape, self.outputs), firsts_NGCD

    def _read(self, params: Params, sequences: Sequences, embed_key, layers_key, added: Added | None):
        """The first tokens' states: (G, C, D) of the last layer, (N - 1, G, C, D) of those before it.

        The last layer is computed for the first tokens only.
        """
        c, order, blocks = self.config, self._order, params["layers"]
        x_GXD = self._embed(params, sequences, embed_key)
        x_GXD = embedded = x_GXD if added is None else x_GXD + added.embedded_GXD
        attend = self._attention(params, sequences)
        N = c.num_hidden_layers
        keys = None if layers_key is None else jax.random.split(layers_key, N + 1)

        def weights(which):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf)[which], blocks)

        def plus(x_GXD, first_GCD):
            return x_GXD if first_GCD is None else x_GXD + sequences.at_first(first_GCD)

        def layer(x_GXD, xs, _):
            w, key, first_GCD = xs
            w = w if order is None else weights(w)
            x_GXD = by_example(self._layer(x_GXD, None, w, attend, key, sequences.seed_GX))
            x_GXD = plus(x_GXD, first_GCD)
            return x_GXD, sequences.first(x_GXD)

        def some(x_GXD, first, last, more):
            if first >= last:
                return x_GXD, sequences.first(x_GXD)[None][:0]
            part = slice(first, last)
            w = weights(part) if order is None else jnp.asarray(order[part])
            xs = (w, None if keys is None else keys[part], None if more is None else more[part])
            return stack(layer, x_GXD, xs, unroll=self.unroll, remat=self.remat)

        begin, before, more = 0, [], None if added is None else added.firsts_NGCD
        if "convolution" in params:
            begin, (x_GXD, _) = 1, some(x_GXD, 0, 1, None)
            x_GXD = self._convolve(params, x_GXD, embedded, sequences, None if keys is None else keys[N])
            x_GXD = plus(x_GXD, None if more is None or N == 1 else more[0])
            before = [sequences.first(x_GXD)[None]]
        x_GXD, found = some(x_GXD, begin, N - 1, more)
        firsts_NGCD = jnp.concatenate([*before, found])
        first_GCD = sequences.first(x_GXD)
        if begin == N:  # the one layer has been applied
            return first_GCD, firsts_NGCD[:0]
        w = weights(N - 1 if order is None else order[-1])
        key = None if keys is None else keys[N - 1]
        return self._layer(x_GXD, first_GCD, w, attend, key, sequences.first_seed_GC), firsts_NGCD

    def _layer(self, x_GXD, first_GCD, w: Params, attend: Attend, key, seed) -> jax.Array:
        """A layer's states of all tokens or, given `first_GCD`, of the first tokens. Post-norm."""
        keys = split_key(key, 3)
        rate = self.rate("hidden_dropout_prob")
        x = x_GXD if first_GCD is None else first_GCD
        a, mlp = w["attention"], w["mlp"]
        y = affine(attend(a, x_GXD, first_GCD, keys[0]), a, "o", 2)
        x = self.norm(x + drop(y, rate, keys[1], seed), w["attention_norm"])
        h = ACTIVATIONS[self.config.hidden_act](affine(x, mlp, "up"))
        return self.norm(x + drop(affine(h, mlp, "down"), rate, keys[2], seed), w["mlp_norm"])

    def _pool(self, params: Params, first_GCD: jax.Array, sequences: Sequences, key) -> jax.Array:
        """The classifier's input: BERT's pooler, tanh of a linear map, then dropout."""
        pooled = jnp.tanh(affine(first_GCD, params["pooler"], "w"))
        return drop(pooled, self.rate("head_dropout"), key, sequences.first_seed_GC)

    def norm(self, x: jax.Array, w: Params) -> jax.Array:
        return layer_norm(x, w["scale"], w["bias"], self.config.layer_norm_eps)


# Parts of a layer -> BERT's tensors.
BERT_LAYER = {
    "attention/o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def add_block(table: Table, names: Mapping[str, str], layer: str, D: int, F: int, H: int) -> None:
    """Adds what follows attention in a layer; `names` maps our paths to tensors below `layer`."""
    shapes = {"attention/o": ("HKD", (H, D // H, D)), "mlp/up": ("DF", (D, F)), "mlp/down": ("FD", (F, D))}
    for path, (axes, shape) in shapes.items():
        table.linear(f"layers/{path}", axes, shape, f"{layer}{names[path]}", inputs=len(axes) - 1)
    for path in ("attention_norm", "mlp_norm"):
        table.norm(f"layers/{path}", D, f"{layer}{names[path]}")
