"""The mutual information of a student's label and rationale view, estimated on held-out examples."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cot_jax.batch import Segments, Tokens
from cot_jax.data.batches import TokenizedView, make_batch, view_lengths
from cot_jax.data.lengths import as_shape, needed
from cot_jax.data.views import View
from cot_jax.errors import UserError
from cot_jax.metrics.info_nce import info_nce, most_nats
from cot_jax.models.student import Student
from cot_jax.models.weights import Params
from cot_jax.training.evaluation import ask_in_batches, jit_by_example
from cot_jax.training.mesh import group_count

# Limits the cost of an estimate to about that of an evaluation.
_MOST_PAIRS = 2048


def compared(views: Sequence[View], method: str) -> list[View]:
    """Returns the two views of a method that an estimate compares.

    Raises:
      UserError: it does not have both.
    """
    found = [view for view in views if view.term in ("label", "rationale")]
    if len(found) != 2:
        raise UserError(
            "mutual_information compares a label view with a rationale view; "
            f"method={method} does not have both"
        )
    return found


class InformationEstimate:
    """The InfoNCE bound between the pooled decoder states of two views (`metrics.info_nce`).

    The state of a view is the mean of the last decoder states over the target, teacher forced, without
    dropout. The critic is trained on the training split; the student does not change.

    Attributes:
      counts: number of training and of held-out pairs.
      most: upper limit of the bound, in nats.
    """

    def __init__(
        self,
        student: Student,
        mesh: Mesh,
        train: Mapping[str, TokenizedView],
        held_out: Mapping[str, TokenizedView],
        *,
        batch_size: int,
    ):
        """
        Args:
          train: two views; at most 2,048 of their examples are used.
          held_out: the same views of other examples. Examples without a target in a view are left out.
          batch_size: examples per batch, a multiple of the number of devices.

        Raises:
          UserError: fewer than two training or held-out examples have a target in both views.
        """
        self._pad_id, self._batch_size, self._mesh = student.pad_id, batch_size, mesh
        self._parts = [(views, _complete(views)) for views in (train, held_out)]
        self.counts = tuple(len(rows) for _, rows in self._parts)
        if min(self.counts) < 2:
            raise UserError(
                "mutual_information needs at least two examples with both a label and a rationale; "
                f"{self.counts[0]} training and {self.counts[1]} held-out examples have both"
            )
        self.most = most_nats(self.counts[1])
        self._groups = group_count(mesh)
        needs = [
            needed(view_lengths(views, some), self._groups)
            for views, rows in self._parts
            for some in self._batches(rows)
        ]
        self._shape = as_shape(np.max(needs, axis=0))

        def states(params, batch):
            hidden = student.hidden(params, batch, None)
            return {name: _pool(hidden[name], view.targets) for name, view in batch.views.items()}

        self._states = jit_by_example(states, mesh)

    def __call__(self, params: Params) -> float:
        """Returns the bound in nats."""
        (x, y), (held_out_x, held_out_y) = (self._collect(params, *part) for part in self._parts)
        return info_nce(x, y, held_out_x, held_out_y)

    def _batches(self, rows: np.ndarray) -> list[np.ndarray]:
        """Returns the rows in batches, the last one padded with -1."""
        padded = np.pad(rows, (0, -len(rows) % self._batch_size), constant_values=-1)
        return [*padded.reshape(-1, self._batch_size)]

    def _collect(
        self, params: Params, views: Mapping[str, TokenizedView], rows: np.ndarray
    ) -> list[np.ndarray]:
        """Returns the states (N, D) of each view."""

        def make(some):
            return make_batch(views, some, self._shape, self._pad_id, self._groups)

        with jax.set_mesh(self._mesh):
            found = ask_in_batches(self._states, params, self._batches(rows), make)
        return [found[name] for name in views]


def _complete(views: Mapping[str, TokenizedView]) -> np.ndarray:
    """Returns the examples with targets in all views, at most `_MOST_PAIRS`, drawn with a fixed seed."""
    has_all = np.all([view.longest_targets() > 0 for view in views.values()], axis=0)
    rows = np.flatnonzero(has_all)
    return np.sort(np.random.default_rng(0).permutation(rows)[:_MOST_PAIRS])


def _pool(hidden_GYD: jax.Array, targets: Tokens) -> jax.Array:
    """(B, D), the mean over each target."""
    total_GED = jnp.sum(Segments.of(targets).unpack(hidden_GYD.astype(jnp.float32)), axis=2)
    mean_GED = total_GED / jnp.maximum(targets.length, 1)[..., None]
    return mean_GED.reshape(-1, mean_GED.shape[-1])
