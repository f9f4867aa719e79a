"""Soft targets: from the student itself one step ago, or from a teacher in the same step.

DLB is Shen et al., "Self-Distillation from the Last Mini-Batch for Consistency Regularization" (CVPR
2022); DynSDPB, its per-example weights and temperatures and vocabulary map matching, is Fu et al.,
"Dynamic Self-Distillation via Previous Mini-batches for Fine-tuning Small Language Models" (2024).
Batches overlap by half: examples 2i of a batch were examples 2i + 1 of the previous one, so an example's
stored outputs are on the device that needs them.

Over the n examples with stored outputs, the term is

    1/n sum_i weight_i temperature_i**2 KL(stored_i at temperature_i || present_i at temperature_i)

and with u_i = mean token entropy / log V, DynSDPB makes weight_i = weight (1 - u_i) and temperature_i =
temperature clip(CE_i / mean CE, 1/2, 2). Neither carries a gradient. The form of the second and the
normalisation of u over a sequence are ours, as the paper gives none.

A teacher's term is T**2 KL(teacher at T || student at T), the mean over the learned tokens (Hinton et al.
2015, "Distilling the Knowledge in a Neural Network"). Patience adds the term of Sun et al. 2019 (PKD), Eq. 6:
the mean squared difference of the normalised states of [CLS] after some layers. Their code also averages the
KL term over the K classes: its weight a is a / K here.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from cot_jax.batch import Segments, ViewArrays
from cot_jax.losses.vocabulary import VocabularyPass, logits

# Below every probability that matters; its reciprocal, the slope of the logarithm, does not overflow.
_LEAST = 1e-30


class TopK(NamedTuple):
    """The k largest logits of each position, (h, T, k), and their ids, int32."""

    logits: jax.Array
    ids: jax.Array


class LastBatch(NamedTuple):
    """Outputs of the right half of a batch, kept for the next step.

    Attributes:
      example_h: int32, the examples' numbers; -1 for none.
      outputs: view -> what `SelfDistillation.output` selects.
    """

    example_h: jax.Array
    outputs: dict[str, Any]


class Distilled(NamedTuple):
    """The self-distillation of one view.

    Attributes:
      loss: the term, () float32.
      example_weight_GE: weights of the examples' cross-entropies; None for 1.
      outputs: what is stored of the right half, or None.
      diagnostics: float32 scalars, means over the examples with stored outputs (`dynamic`: with a target).
    """

    loss: jax.Array | float
    example_weight_GE: jax.Array | None
    outputs: Any
    diagnostics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class SelfDistillation:
    """What is stored of a view and how it is matched.

    Attributes:
      method: "dlb", "dynsdpb", or "dynamic": the paper's ablation, in which the dynamic weights, scaled
        to a mean of 1, weight the examples' cross-entropies and nothing is distilled.
      views: names of the views it acts on.
      weight: weight of the term, added to the view's cross-entropy (the papers' alpha).
      temperature: the papers' tau.
      output: "vmm": vocabulary maps, the sum over real positions of softmax(z), (h, V); "full": logits
        (h, T, V); "top_k": the logits of the `top_k` most probable tokens of each position, (h, T, k),
        on which both sides are renormalised.
      top_k: k.
      dtype: dtype of stored logits.
    """

    method: str
    views: tuple[str, ...]
    weight: float
    temperature: float
    output: str
    top_k: int
    dtype: DTypeLike

    @property
    def distills(self) -> bool:
        return self.method != "dynamic"

    @property
    def dynamic(self) -> bool:
        return self.method != "dlb"

    @property
    def stores_vocabulary(self) -> bool:
        """Whether the last axis of stored outputs is the vocabulary."""
        return self.output != "top_k"

    @property
    def differentiates_outputs(self) -> bool:
        """Whether more than a cross-entropy with known weights is differentiated in the vocabulary pass."""
        return (self.output == "vmm" and self.weight > 0) or not self.distills

    def empty(self, rows: int, vocab_size: int, widths: dict[str, int]) -> "LastBatch":
        """The state before the first step, without outputs of any example.

        Args:
          rows: h, half a batch.
          vocab_size: V.
          widths: view -> the longest target.
        """
        outputs: dict[str, Any] = {}
        for view in self.views if self.distills else ():
            shape_hT = (rows, widths[view])
            if self.output == "vmm":
                outputs[view] = jnp.zeros((rows, vocab_size), jnp.float32)
            elif self.output == "full":
                outputs[view] = jnp.zeros((*shape_hT, vocab_size), self.dtype)
            else:
                k = min(self.top_k, vocab_size)
                outputs[view] = TopK(
                    jnp.zeros((*shape_hT, k), self.dtype), jnp.zeros((*shape_hT, k), jnp.int32)
                )
        return LastBatch(jnp.full(rows, -1, jnp.int32), outputs)

    def __call__(
        self,
        passed: VocabularyPass,
        hidden_GYD: jax.Array,
        head_DV: jax.Array,
        view: ViewArrays,
        stored: Any,
        linked_h: jax.Array | None,
        batch_axes: tuple[str, ...] = (),
    ) -> Distilled:
        """The term of one view.

        Args:
          passed: the view's pass, with entropy if `dynamic`, with the map "sum" if the output is "vmm".
          hidden_GYD: the view's hidden states.
          head_DV: output embedding.
          view: the view.
          stored: the view's part of `LastBatch.outputs`.
          linked_h: bool, whether outputs of the left examples are stored.
          batch_axes: axes of the ambient mesh that shard the groups.
        """
        segments, counts_GE = Segments.of(view.targets), jnp.asarray(view.learned) > 0
        ones_GE = jnp.ones(counts_GE.shape, passed.nll_GY.dtype)
        weight_GE, tau_GE, diagnostics = self.weight * ones_GE, self.temperature * ones_GE, {}
        if self.dynamic:
            assert passed.entropy_GY is not None
            nll_GE, entropy_GE = (
                segments.mean(jax.lax.stop_gradient(x), view.learned)
                for x in (passed.nll_GY, passed.entropy_GY)
            )
            # Rounding may lift the entropy of a flat distribution above log V.
            certainty_GE = 1 - jnp.minimum(entropy_GE / jnp.log(head_DV.shape[1]), 1)
            weight_GE *= certainty_GE
            # Harder examples get softer targets.
            mean_nll = _mean(nll_GE, counts_GE)
            tau_GE *= jnp.clip(nll_GE / jnp.where(mean_nll > 0, mean_nll, 1), 0.5, 2)
            diagnostics["uncertainty"] = _mean(1 - certainty_GE, counts_GE)
            if not self.distills:
                relative_GE = certainty_GE / jnp.maximum(_mean(certainty_GE, counts_GE), _LEAST)
                return Distilled(0.0, relative_GE, None, diagnostics)
        assert linked_h is not None
        linked_h &= left(counts_GE)
        weight_h, tau_h = left(weight_GE), left(tau_GE)
        if self.output == "vmm":
            outputs = right(passed.maps["sum"])
            # For a target of one token the log of the map equals its logits, and the term DLB's.
            before_hV, now_hV = (
                jnp.log(jnp.maximum(map_hV, _LEAST)) for map_hV in (stored, left(passed.maps["sum"]))
            )
            agree_h = before_hV.argmax(-1) == now_hV.argmax(-1)
            divergence_h = divergence(before_hV, now_hV, tau_h)
        else:
            hidden_GETD, learned_GET = (
                _on_devices(segments.unpack(x), batch_axes)
                for x in (hidden_GYD, segments.within(view.learned))
            )
            inputs = (hidden_GETD, head_DV, left(learned_GET), stored, tau_h)
            divergence_h, agree_h, outputs = self._match_tokens(*inputs, batch_axes)
        outputs = jax.tree.map(lambda new, old: jax.lax.stop_gradient(new.astype(old.dtype)), outputs, stored)
        diagnostics |= {
            "weight": _mean(weight_h, linked_h),
            "temperature": _mean(tau_h, linked_h),
            "agreement": _mean(agree_h, linked_h),
            "stored": linked_h.mean(),
        }
        loss = _mean(weight_h * divergence_h, linked_h)
        # At weight 0 the step equals that without self-distillation bit for bit (MI: with the general pass).
        loss = loss if self.weight > 0 else jax.lax.stop_gradient(loss)
        return Distilled(loss, None, outputs, diagnostics)

    def _match_tokens(self, hidden_GETD, head_DV, learned_hT, stored, tau_h, batch_axes):
        if batch_axes:  # gathered once
            head_DV = jax.lax.with_sharding_constraint(head_DV, PartitionSpec(None, "model"))
        now_hTV, next_hTV = (
            _on_devices(logits(half(hidden_GETD), head_DV), batch_axes, None, "model")
            for half in (left, right)
        )
        T = now_hTV.shape[1]
        before = jax.tree.map(lambda x: x[:, :T], stored)
        best_hT = now_hTV.argmax(-1)
        kept: Any = next_hTV
        if self.output == "full":
            agree_hT = before.argmax(-1) == best_hT
            old, now = before, now_hTV
        else:
            agree_hT = before.ids[..., 0] == best_hT
            kept = _top_k(jax.lax.stop_gradient(next_hTV), before.ids.shape[-1], batch_axes)
            old, now = before.logits, jnp.take_along_axis(now_hTV, before.ids, axis=-1)
        divergence_hT = divergence(old.astype(now.dtype), now, tau_h[:, None])

        def pad(new, old):
            return jnp.pad(new, [(0, 0), (0, old.shape[1] - T), (0, 0)])

        divergence_h, agree_h = (_mean(x_hT, learned_hT, axis=1) for x_hT in (divergence_hT, agree_hT))
        return divergence_h, agree_h, jax.tree.map(pad, kept, stored)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A teacher in the step and how it is matched.

    Attributes:
      model: a `Student` with the same token ids, or its stored answers (`training.teachers.Stored`); without
        training or dropout.
      weight: weight of its term; the view's cross-entropy has 1 - weight (the papers' alpha).
      temperature: T.
      order: the teacher's column for each column of the student's head; None: they are the same.
      layers: pairs (student layer, teacher layer), from 0, whose states are matched.
      layer_weight: weight of that term (PKD's beta).
      gradient_weight: weight of `gradient_loss` (GKD-CLS's gamma), which matches the same layers.
    """

    model: Any
    weight: float
    temperature: float
    order: tuple[int, ...] | None = None
    layers: tuple[tuple[int, int], ...] = ()
    layer_weight: float = 0.0
    gradient_weight: float = 0.0

    def head(self, params: Any) -> jax.Array:
        """(D, V), its columns in the student's order."""
        head_DV = self.model.head(params)
        return head_DV if self.order is None else head_DV[:, jnp.array(self.order)]


# The logits of student and teacher are in memory for this many slots at once.
_SLOTS = 2048


def teacher_loss(
    hidden_GYD: jax.Array,
    head_DV: jax.Array,
    teacher_GYD: jax.Array,
    teacher_head_DV: jax.Array,
    weight_GY: jax.Array,
    temperature: float,
) -> jax.Array:
    """sum(weight * T**2 KL(teacher || student)), with logits of a few slots at a time.

    The states' last axes may differ. The teacher carries no gradient.
    """
    G, Y, _ = hidden_GYD.shape
    chunks = -(-G * Y // _SLOTS)
    size = -(-Y // chunks)

    def split(x):
        x = jnp.pad(x, [(0, 0), (0, chunks * size - Y), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(G, chunks, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def one(parts):
        student, teacher, weight = parts
        tau = jnp.full(weight.shape, temperature)
        return jnp.sum(weight * divergence(logits(teacher, teacher_head_DV), logits(student, head_DV), tau))

    parts = (hidden_GYD, jax.lax.stop_gradient(teacher_GYD), weight_GY)
    return jnp.sum(jax.lax.map(one, jax.tree.map(split, parts)))


def patience_loss(
    states_GNCD: jax.Array, teacher_GNCD: jax.Array, counts_GC: jax.Array, layers: tuple[tuple[int, int], ...]
) -> jax.Array:
    """The mean squared difference of normalised states, over the sequences that count.

    Args:
      states_GNCD, teacher_GNCD: states of the first tokens after the layers.
      counts_GC: bool, of the sequences.
      layers: as in `Teacher`.
    """
    own, others = (jnp.array(which) for which in zip(*layers, strict=True))
    distance_GNC = _squared_distance(states_GNCD[:, own], teacher_GNCD[:, others])
    return _mean(jnp.mean(distance_GNC, axis=1), counts_GC) / states_GNCD.shape[-1]


def gradient_loss(
    gradients: tuple[jax.Array, jax.Array],
    teachers: tuple[jax.Array, jax.Array],
    counts_GX: jax.Array,
    counts_GC: jax.Array,
    layers: tuple[tuple[int, int], ...],
) -> jax.Array:
    """GKD-CLS's term: squared distances of normalised gradients of the largest probability.

    The mean over tokens for the embedded tokens, plus for each pair of layers the mean over sequences for the
    first tokens, as in the released code of Wang et al. 2022.

    Args:
      gradients, teachers: by the embedded tokens (G, X, D), and by the first tokens' states after the layers
        (N, G, C, D).
      counts_GX, counts_GC: bool, of tokens and of sequences.
      layers: as in `Teacher`.
    """
    own, others = (jnp.array(which) for which in zip(*layers, strict=True))
    total = _mean(_squared_distance(gradients[0], teachers[0]), counts_GX)
    distance_NGC = _squared_distance(gradients[1][own], teachers[1][others])
    return total + sum(_mean(distance_GC, counts_GC) for distance_GC in distance_NGC)


def _squared_distance(x: jax.Array, teachers: jax.Array) -> jax.Array:
    """Of the normalised last axes. The teacher carries no gradient; that of zeros is 0."""

    def normalised(x):
        x = x.astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

    return jnp.sum((normalised(x) - normalised(jax.lax.stop_gradient(teachers))) ** 2, axis=-1)


def _on_devices(x: jax.Array, batch_axes: tuple[str, ...], *others: str | None) -> jax.Array:
    """Shards the first axis of `x`; otherwise the compiler may send all logits to all devices."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(batch_axes, *others)) if batch_axes else x


def left(x: jax.Array) -> jax.Array:
    """The examples that were also in the last batch: (G, E, ...) -> (h, ...)."""
    return _halves(x)[:, 0]


def right(x: jax.Array) -> jax.Array:
    """The examples that will also be in the next batch: (G, E, ...) -> (h, ...)."""
    return _halves(x)[:, 1]


def _halves(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0] * x.shape[1] // 2, 2, *x.shape[2:])


def _top_k(logits_hTV: jax.Array, k: int, batch_axes: tuple[str, ...]) -> TopK:
    """The k largest logits of each position; each device searches its own rows and tokens.

    The compiler does not shard a top-k: it would send all logits to all devices.
    """
    parts = jax.sharding.get_abstract_mesh().shape.get("model", 1)
    # Classes that the axis does not divide are replicated.
    vocabulary = "model" if parts > 1 and logits_hTV.shape[-1] % parts == 0 else None

    def search(z_hTV):
        found = TopK(*jax.lax.top_k(z_hTV, min(k, z_hTV.shape[-1])))
        if not vocabulary:
            return found
        found = found._replace(ids=found.ids + jax.lax.axis_index(vocabulary) * z_hTV.shape[-1])
        candidates = jax.lax.all_gather(found, vocabulary, axis=2, tiled=True)
        best_hTk, place_hTk = jax.lax.top_k(candidates.logits, k)
        return TopK(best_hTk, jnp.take_along_axis(candidates.ids, place_hTk, axis=-1))

    if not batch_axes:
        return search(logits_hTV)
    rows = PartitionSpec(batch_axes)
    return jax.shard_map(
        search, in_specs=PartitionSpec(batch_axes, None, vocabulary), out_specs=rows, check_vma=False
    )(logits_hTV)


def divergence(stored_logits: jax.Array, logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """temperature**2 KL(softmax(stored / temperature) || softmax(logits / temperature)) over the last axis.

    `temperature` has one axis fewer than the logits. The stored logits carry no gradient.
    """
    tau = temperature[..., None]
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(stored_logits) / tau)
    log_q = jax.nn.log_softmax(logits / tau)
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def _mean(values: jax.Array, counted: jax.Array, axis: int | None = None) -> jax.Array:
    """The mean of the counted values; 0 if there are none."""
    return jnp.sum(values, axis=axis, where=counted) / jnp.maximum(counted.sum(axis=axis), 1)
