"""Likelihoods of continuations of a text."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cot_jax.batch import Batch, Segments
from cot_jax.data.batches import Ragged, TokenizedView, evaluation_rows, evaluation_shapes, make_batch
from cot_jax.losses.vocabulary import vocabulary_pass
from cot_jax.models.weights import Params
from cot_jax.training.evaluation import ask_in_batches, jit_by_example
from cot_jax.training.mesh import BATCH_AXES, group_count
from cot_jax.training.saved import Saved

_VIEW = "continuation"


def likelihoods(
    saved: Saved, contexts: Sequence[str], continuations: Sequence[str]
) -> tuple[np.ndarray, str]:
    """Returns the log-probability of each continuation given its context, and a line of counts.

    The first is (N,) float32, summed over the tokens, without an end token. This is loglikelihood of
    lm-evaluation-harness: plain text, tokenized together (`Format.continued`), with the start token, if any,
    that the tokenizer adds by itself. Each pair is a view's input and target.

    Raises:
      UserError: the student is an encoder-decoder.
    """
    student, mesh = saved.student, saved.mesh
    inputs, targets = map(Ragged, saved.format.continued(contexts, continuations))
    views = {_VIEW: TokenizedView(inputs, targets)}
    groups, devices = group_count(mesh), jax.device_count()
    batch_size = -(-min(saved.config.evaluation.batch_size, len(contexts)) // devices) * devices
    batches = list(evaluation_rows(inputs.lengths + targets.lengths, batch_size))
    shapes = evaluation_shapes(views, batches, groups=groups, flops=student.flops)

    def log_probs(params: Params, batch: Batch) -> jax.Array:
        hidden_GYD, of_targets = student.hidden(params, batch, None)[_VIEW], batch.views[_VIEW].targets
        found = vocabulary_pass(hidden_GYD, student.head(params), of_targets, batch_axes=BATCH_AXES)
        return -jnp.sum(Segments.of(of_targets).unpack(found.nll_GY), axis=2).reshape(-1)

    shape_of = iter(shapes)

    def make(rows: np.ndarray) -> Batch:
        return make_batch(views, rows, next(shape_of), student.pad_id, groups)

    with jax.set_mesh(mesh):
        log_prob_N = ask_in_batches(jit_by_example(log_probs, mesh), saved.params, batches, make)
    report = (
        f"{len(contexts):,} continuations of {targets.lengths.mean():.1f} tokens on average, contexts of "
        f"{inputs.lengths.mean():.1f}"
    )
    return log_prob_N, report
