"""The training step of a run, as a side of a comparison."""

import jax

from benchmarks import measure
from cot_jax.batch import Batch
from cot_jax.training.experiment import Experiment
from cot_jax.training.run import Run
from cot_jax.training.step import TrainState


class RunStep:
    """Our training step on one device."""

    def __init__(self, experiment: Experiment, like: Run | None = None):
        """`like` is a run whose batches this one has, too."""
        self.run = Run(experiment, jax.devices()[:1])
        if like is not None:
            self.run.batches = like.batches
        self.state: TrainState = self.run.initial_state()
        self._step = self.run.compiled_ahead(0)

    def compare(self, batch: Batch) -> tuple[float, float]:
        """Loss and gradient norm of a batch; the state remains as it is."""
        state = jax.tree.map(lambda x: x.copy(), self.state)
        with jax.set_mesh(self.run.mesh):
            _, metrics = self._step(state, batch)
        return float(metrics["loss"]), float(metrics["grad_norm"])

    def warm(self, batches: list[Batch]) -> None:
        """Calls every program once: first calls take longer. No others are compiled in the meantime."""
        with self._step:
            for batch in batches:
                measure.finish(self(batch))

    def __call__(self, batch: Batch) -> jax.Array:
        with jax.set_mesh(self.run.mesh):
            self.state, metrics = self._step(self.state, batch)
        return metrics["loss"]
