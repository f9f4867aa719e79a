"""What is trained on and what it costs: lengths, random weights, FLOPs, our step."""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from cot_jax.batch import Batch
from cot_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, SelfDistillationConfig
from cot_jax.data.batches import Ragged, TokenizedView, make_batch, view_lengths
from cot_jax.data.lengths import Shape, ViewShape, as_shape, needed, padded_work, real_work
from cot_jax.data.views import METHODS, View
from cot_jax.losses.objective import MutualInformation, make_objective
from cot_jax.losses.soft_targets import SelfDistillation
from cot_jax.models.t5 import PRESETS, T5, T5Config
from cot_jax.models.weights import Params
from cot_jax.training.compiled import compiler_options
from cot_jax.training.optimizer import make_optimizer
from cot_jax.training.step import TrainState, init_state, make_train_step

ALPHA, BETA = ObjectiveConfig.alpha, ObjectiveConfig.beta
DROPOUT = T5.usual["dropout_rate"]
Views = Mapping[str, TokenizedView]


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Token counts of a data set's inputs, labels and rationales, with the T5 vocabulary.

    Attributes:
      examples: in the training split.
      percentiles: of each of the three, at `_PERCENTILES`.
      correlation: rank correlations input-label, input-rationale, label-rationale.
    """

    examples: int
    percentiles: tuple[tuple[int, ...], ...]
    correlation: tuple[float, float, float]

    def draw(self, examples: int, rng: np.random.Generator) -> np.ndarray:
        """(3, examples) lengths with these marginals and (nearly) these correlations."""
        a, b, c = self.correlation
        normal = rng.multivariate_normal(np.zeros(3), [[1, a, b], [a, 1, c], [b, c, 1]], size=examples).T
        percentile = 100 * (normal.argsort(axis=1).argsort(axis=1) + 0.5) / examples
        drawn = [np.interp(p, _PERCENTILES, q) for p, q in zip(percentile, self.percentiles, strict=True)]
        return np.rint(drawn).astype(int)


_PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.9, 100)
# Counted over the training splits of the published experiments (ANLI: the teacher's labels).
LENGTHS = {
    "svamp": Lengths(
        720,
        (
            (19, 23, 28, 31, 36, 41, 50, 56, 64, 67, 68, 72, 73, 73),
            (8, 8, 9, 9, 10, 10, 12, 16, 17, 18, 18, 19, 19, 19),
            (9, 17, 22, 24, 29, 36, 46, 58, 65, 83, 89, 94, 98, 99),
        ),
        (0.08, 0.32, 0.32),
    ),
    "cqa": Lengths(
        8766,
        (
            (33, 36, 38, 40, 43, 47, 53, 58, 62, 69, 73, 78, 87, 102),
            (2, 2, 2, 2, 2, 3, 3, 4, 5, 6, 6, 7, 8, 10),
            (17, 21, 23, 24, 27, 30, 34, 38, 41, 45, 47, 50, 57, 71),
        ),
        (0.23, 0.07, 0.14),
    ),
    "anli1": Lengths(
        9877,
        (
            (56, 69, 76, 81, 90, 101, 113, 126, 135, 146, 153, 161, 177, 205),
            (2, 2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 5, 5, 5),
            (9, 12, 14, 15, 19, 26, 35, 44, 51, 60, 68, 79, 95, 124),
        ),
        (0.0, 0.16, -0.1),
    ),
    # Every example as long as the published code lets it be (targets: half of that for the label).
    "1024": Lengths(256, ((1024,) * 14, (128,) * 14, (256,) * 14), (0.0, 0.0, 0.0)),
}


def synthetic_views(lengths: str, method: str, vocab_size: int) -> Views:
    """Random tokens, as many as the data set has; views as `method` has them."""
    drawn = LENGTHS[lengths].draw(LENGTHS[lengths].examples, np.random.default_rng(0))
    targets = {"label": drawn[1], "rationale": drawn[2]}
    return _random_views({view.name: [drawn[0], targets[view.term]] for view in views_of(method)}, vocab_size)


def even_views(views: Views, rows: np.ndarray, vocab_size: int) -> Views:
    """As many examples as `rows`, all as long as the longest of these, rounded up to a multiple of 8.

    Nobody pads a batch of them: a rectangle has the tokens of the flat batch.
    """
    widths = zip(views, _up(longest(views, rows)), strict=True)
    return _random_views({name: [np.full(len(rows), n) for n in its] for name, its in widths}, vocab_size)


def _random_views(lengths: Mapping[str, list[np.ndarray]], vocab_size: int) -> Views:
    """Random tokens; `lengths` are those of the inputs and of the targets of each view."""
    rng = np.random.default_rng(0)

    def ragged(counts):
        return Ragged([[*rng.integers(3, vocab_size, size=n - 1).tolist(), 1] for n in counts])

    return {name: TokenizedView(*map(ragged, its)) for name, its in lengths.items()}


def real_views(task: str, method: str, root: Path, tokenizer: Path) -> Views:
    """The training split of a published data set."""
    from cot_jax.training.experiment import prepare

    data = DataConfig(task=task, root=str(root), label_source="teacher" if task == "anli1" else "gold")
    model = ModelConfig(preset="tiny", tokenizer=str(tokenizer))
    return prepare(Config(data=data, model=model, objective=ObjectiveConfig(method=method))).tokenized


def decoded_to_longest(method: str) -> Collection[str]:
    """The views whose targets are decoded up to the batch's longest, as the published MI reads them."""
    return [view.name for view in views_of(method)] if method == "mi" else ()


def flat_batch(views: Views, rows: np.ndarray, method: str) -> Batch:
    """The examples `rows` in one group, in the least shape whose sizes are multiples of 8."""
    padded = decoded_to_longest(method)
    needs = needed(view_lengths(views, rows, padded=padded), groups=1)
    return make_batch(views, rows, as_shape(_up(needs)), 0, padded=padded)


def _up(x: np.ndarray) -> np.ndarray:
    return -(-x // 8) * 8


def typical_rows(views: Views, batch_size: int, config: T5Config) -> np.ndarray:
    """Of 101 random batches the one with the median cost, were it padded to its longest."""
    examples = len(next(iter(views.values())).inputs)
    rng = np.random.default_rng(0)
    replace = batch_size > examples
    draws = np.stack([rng.choice(examples, batch_size, replace=replace) for _ in range(101)])
    return draws[np.argsort(rectangle_flops(config, batch_size, longest(views, draws)))[50]]


def step_flops(config: T5Config, batch: Batch) -> float:
    """FLOPs of a training step's matrix products for the tokens of a batch, and for nothing else.

    The same for both sides: what one recomputes is not counted, nor padding, nor what is done element by
    element.
    """
    lengths = [(view.inputs.length, view.targets.length) for view in batch.views.values()]
    return 3 * float(T5(config).flops(real_work(np.array(lengths))))


def slot_flops(config: T5Config, batch: Batch) -> float:
    """FLOPs of the same products over all slots of a flat batch, filled or not."""
    groups, examples = batch.example.shape
    return 3 * float(T5(config).flops(padded_work(np.array(shape(batch)), groups * examples, groups)))


def rectangle_flops(config: T5Config, batch_size: int, widths: np.ndarray) -> np.ndarray:
    """(...) FLOPs of the same products over rectangles of `widths`, (..., views, 2), inputs and targets."""
    shapes = np.stack([batch_size * widths, widths], axis=-1).astype(np.int64)  # FLOPs overflow an int32
    return 3 * T5(config).flops(padded_work(shapes, batch_size, groups=1))


def longest(views: Views, rows: np.ndarray) -> np.ndarray:
    """(..., views, 2) tokens of the longest input and target in the batches `rows`, (..., B)."""
    return np.moveaxis(view_lengths(views, rows).max(axis=-1), (0, 1), (-2, -1))


def shape(batch: Batch) -> Shape:
    return tuple(
        ViewShape(*((side.slots, side.width) for side in (view.inputs, view.targets)))
        for view in batch.views.values()
    )


def model_config(preset: str, vocab_size: int = 32128) -> T5Config:
    return dataclasses.replace(PRESETS[preset], vocab_size=vocab_size, dropout_rate=DROPOUT)


def random_params(config: T5Config) -> Params:
    """Normal weights of standard deviation 0.05 (norms: around 1), float32 NumPy.

    With the usual initialisations CPU time would be spent on denormal numbers that training never meets.
    Queries are smaller by what attention does not divide by: else its weights saturate, and a rounding
    error in the first layer is something else in the last.
    """
    rng, weights = np.random.default_rng(0), T5(config).weights
    flat = {path: 0.05 * rng.standard_normal(w.shape, np.float32) for path, w in weights.items()}
    for path, leaf in flat.items():
        if path.endswith("/q"):
            leaf *= config.d_kv**-0.5
        elif path.endswith("norm"):
            leaf += 1
    return unflatten_dict(flat, sep="/")


def views_of(method: str) -> tuple[View, ...]:
    return METHODS["dss" if method.startswith("dynsdpb") else method]


class OurStep:
    """Our training step, compiled once for each shape; called with a batch it makes one update.

    Args:
      method: "standard", "dss", "mi", "dynsdpb" (which is dss with it) or "dynsdpb_full" (which stores logits
        in bfloat16 instead of vocabulary maps).
      batch_size: B; all batches have it.
      widths: view -> widest target of all batches, for "dynsdpb_full".
    """

    def __init__(
        self,
        config: T5Config,
        params: Params,
        method: str,
        dtype: Any,
        batch_size: int,
        widths: Mapping[str, int] | None = None,
    ):
        unroll = T5.unrolls(config, jax.default_backend())  # as in training, and so is remat
        student = T5(config, dtype, unroll=unroll, remat="none" if unroll else "elementwise")
        terms = {view.name: view.term for view in views_of(method)}
        weights = {"label": ALPHA, "rationale": 1 - ALPHA} if len(terms) > 1 else {"label": 1.0}
        mi = distillation = last_batch = None
        if method == "mi":
            mi = MutualInformation("predict", "explain", BETA, "reference", "max", "label")
        elif method.startswith("dynsdpb"):
            c = SelfDistillationConfig()
            distillation = SelfDistillation(
                method="dynsdpb",
                views=tuple(terms),
                weight=c.weight,
                temperature=c.temperature,
                output="vmm" if widths is None else "full",
                top_k=c.top_k,
                dtype=jnp.bfloat16,
            )
            kept = dict(widths or dict.fromkeys(terms, 1))  # maps have no width
            last_batch = distillation.empty(batch_size // 2, config.vocab_size, kept)
        # A loop over layers for what is only compared: it compiles in half the time.
        looped = dataclasses.replace(student, unroll=False)
        self._compared = make_objective(looped, terms, weights, mi, distillation)
        objective = make_objective(student, terms, weights, mi, distillation)
        optimizer = make_optimizer(Config().resolved(T5.usual).optimizer, 10_000, student.weights)
        self._step = jax.jit(
            make_train_step(objective, optimizer),
            donate_argnums=0,
            compiler_options=compiler_options(jax.default_backend()),
        )
        self._compiled: dict[Shape, Any] = {}
        create = jax.jit(lambda p: init_state(p, optimizer, jax.random.key(0), last_batch))
        self._state: TrainState = create(params)

    def loss_and_norm(self, batch: Batch) -> tuple[float, float]:
        """The loss without dropout and the norm of its gradient."""

        def both(params, batch):
            (loss, _), gradient = jax.value_and_grad(self._compared, has_aux=True)(
                params, batch, None, self._state.last_batch
            )
            squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(gradient)]
            return loss, jnp.sqrt(sum(squares))

        options = compiler_options(jax.default_backend())
        loss, norm = jax.jit(both, compiler_options=options)(self._state.params, batch)
        return float(loss), float(norm)

    def compile(self, batches: Sequence[Batch]) -> None:
        """Compiles for every shape among `batches`, several at a time."""
        new = {shape(batch): batch for batch in batches if shape(batch) not in self._compiled}
        lowered = [self._step.lower(self._state, batch) for batch in new.values()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._compiled |= zip(new, pool.map(lambda program: program.compile(), lowered), strict=True)

    def compiled(self, batch: Batch) -> Any:
        if shape(batch) not in self._compiled:
            self.compile([batch])
        return self._compiled[shape(batch)]

    def __call__(self, batch: Batch) -> jax.Array:
        self._state, metrics = self.compiled(batch)(self._state, batch)
        return metrics["loss"]
