"""The vocabulary pass with its gradient: streamed, by several chunk sizes, against all logits at once.

"As trained" are the passes of a training step on CPU and TPU, which needs no gradient of the label's map.

python -m benchmarks.head --batch=8 --targets 16 48
python -m benchmarks.head --batch=64 --targets 128 256 --memory_only
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from cot_jax.batch import Segments, Tokens
from cot_jax.losses.mutual_information import losses, mutual_information_loss
from cot_jax.losses.vocabulary import (
    MapLoss,
    VocabularyMap,
    VocabularyPass,
    cross_entropy_pass,
    logits,
    matching_pass,
    vocabulary_pass,
)
from cot_jax.training.compiled import compiler_options


def plain_vocabulary_pass(
    hidden_GYD: jax.Array,
    head_DV: jax.Array,
    targets: Tokens,
    maps: Mapping[str, VocabularyMap] = MappingProxyType({}),
    *,
    entropy: bool = False,
) -> VocabularyPass:
    """The definition of `vocabulary_pass`: all logits at once, gradients by automatic differentiation."""
    logp_GYV, segments = jax.nn.log_softmax(logits(hidden_GYD, head_DV)), Segments.of(targets)
    made = {}
    for name, kind in maps.items():
        length_GE = targets.length if kind.length_GE is None else kind.length_GE
        counted_GY1 = segments.within(length_GE)[..., None]
        p_GETV = segments.unpack(jnp.where(counted_GY1, jnp.exp(logp_GYV), 0))
        if kind.reduction == "max":  # jnp.max would divide the gradient among equal maxima
            first_GE1V = jnp.argmax(p_GETV, axis=2, keepdims=True)
            made[name] = jnp.take_along_axis(p_GETV, first_GE1V, axis=2)[:, :, 0]
        else:
            made[name] = jnp.sum(p_GETV, axis=2)
        if kind.reduction == "mean":
            made[name] /= jnp.maximum(length_GE, 1)[..., None]
    return VocabularyPass(
        nll_GY=-jnp.take_along_axis(logp_GYV, targets.ids[..., None], axis=-1)[..., 0],
        entropy_GY=-jnp.sum(jnp.exp(logp_GYV) * logp_GYV, axis=-1) if entropy else None,
        maps=made,
    )


def main() -> None:
    options = _options()
    report = measure.Report(options)
    dtype = measure.compute_dtype(options.dtype)
    B, D, V, lengths = options.batch, options.width, options.vocabulary, options.targets
    rng = np.random.default_rng(0)
    hidden = [jnp.asarray(rng.standard_normal((1, B * T, D), np.float32), dtype) for T in lengths]
    head_DV = jnp.asarray(rng.standard_normal((D, V), np.float32) / np.float32(D) ** 0.5)
    targets = jax.device_put(
        [
            Tokens(rng.integers(V, size=(1, B * T), dtype=np.int32), np.full((1, B), T, np.int32), T)
            for T in lengths
        ]
    )
    report.note(f"B {B}, T {lengths}, D {D}, V {V}, {dtype.name}; loss and its gradient, {options.loss}")

    passes: dict[str, Callable[..., VocabularyPass]] = {"plain": plain_vocabulary_pass}
    for rows in options.chunk_rows:
        passes[f"chunk_rows {rows}"] = lambda *args, rows=rows, **kw: vocabulary_pass(
            *args, chunk_rows=rows, **kw
        )
    passes["chunk_rows chosen"] = vocabulary_pass
    totals = {name: _loss(one, options.loss) for name, one in passes.items()}
    totals["as trained"] = partial(_as_trained, options.loss)
    programs = {
        name: jax.jit(
            jax.value_and_grad(total, argnums=(0, 1)),
            compiler_options=compiler_options(jax.default_backend()),
        )
        .lower(hidden, head_DV, targets)
        .compile()
        for name, total in totals.items()
    }
    temporary = {name: measure.temporary_bytes(p) for name, p in programs.items()}
    if options.memory_only:
        report.rows += [{"": name, "temporary memory": measure.in_bytes(n)} for name, n in temporary.items()]
    else:
        _agree({name: program(hidden, head_DV, targets) for name, program in programs.items()}, dtype)
        sides = {name: lambda _, p=p: p(hidden, head_DV, targets) for name, p in programs.items()}
        seconds = measure.in_turn(sides, options.repeats)
        flops = 3 * 2 * B * sum(lengths) * D * V  # what is formed twice is not counted
        for name, time in seconds.items():
            columns = {"TFLOP/s": f"{flops / time.median / 1e12:.3g}"}
            report.row(name, time, **columns, **{"temporary memory": measure.in_bytes(temporary[name])})
        ours = seconds["as trained"]
        report.ratio("times as fast as plain", ours, seconds["plain"])
        report.ratio("times as fast as the general pass", ours, seconds["chunk_rows chosen"])
    report.number("memory of plain", temporary["as trained"] / temporary["plain"])
    report.close()


def _loss(one_pass: Callable[..., VocabularyPass], loss: str) -> Callable[..., jax.Array]:
    """Cross-entropy of every target, with "mi" also the published term between the first and the last."""

    def total(hidden, head_DV, targets):
        maps = {"mi": VocabularyMap("max")} if loss == "mi" else {}
        found: Any = [one_pass(h, head_DV, t, maps) for h, t in zip(hidden, targets, strict=True)]
        value = sum((each.nll_GY.mean() for each in found), jnp.zeros(()))
        if loss == "mi":
            label_GEV, rationale_GEV = found[0].maps["mi"], found[-1].maps["mi"]
            counts_GE = jnp.ones(label_GEV.shape[:2], bool)
            value += 0.1 * mutual_information_loss(
                label_GEV, rationale_GEV, counts_GE, variant="reference", detach="label"
            )
        return value

    return total


def _as_trained(loss: str, hidden, head_DV, targets) -> jax.Array:
    """The same with the passes that `losses.objective` takes."""
    maps = {"mi": VocabularyMap("max")} if loss == "mi" else {}
    value, made = jnp.zeros(()), list[jax.Array]()
    for n, (h, t) in enumerate(zip(hidden, targets, strict=True)):
        mean_GY = jnp.full(t.ids.shape, 1 / t.ids.size, jnp.float32)
        if loss == "mi" and n == len(targets) - 1:
            weight_GE = jnp.full(t.length.shape, 0.1 / t.length.size, jnp.float32)
            matched = MapLoss(maps["mi"], partial(losses, variant="reference"), made[0], weight_GE)
            value += matching_pass(h, head_DV, t, mean_GY, matched)[0]
            continue
        found, passed = cross_entropy_pass(h, head_DV, t, mean_GY, maps)
        value += found
        made += passed.maps.values()
    return value


def _agree(results: dict[str, Any], dtype: np.dtype) -> None:
    tolerance = 1e-4 if dtype == np.float32 else 2e-2
    plain, *others = (np.array([r[0], jnp.linalg.norm(r[1][1])], float) for r in results.values())
    for name, other in zip(list(results)[1:], others, strict=True):
        if not (np.abs(other / plain - 1) <= tolerance).all():
            raise ValueError(f"{name}: (loss, norm of the head's gradient) {other}, plain {plain}")


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--targets", type=int, nargs="+", default=[16, 48], help="T of each view")
    parser.add_argument("--width", type=int, default=512, help="D")
    parser.add_argument("--vocabulary", type=int, default=32128, help="V")
    parser.add_argument("--chunk_rows", type=int, nargs="+", default=[128, 512, 4096])
    parser.add_argument("--loss", default="mi", choices=["cross-entropy", "mi"])
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--memory_only", action="store_true", help="compile but do not run")
    options = parser.parse_args()
    if options.loss == "mi" and len(options.targets) < 2:
        parser.error("--loss=mi is between two views: give two --targets, or --loss=cross-entropy")
    return options


if __name__ == "__main__":
    main()
