"""The labels that a student chooses its answers among."""

from cot_jax.errors import UserError
from cot_jax.training.experiment import Experiment


def answer_labels(experiment: Experiment) -> tuple[str, ...] | None:
    """Returns the labels that answers are chosen among; None where the student writes them.

    Where the task does not define its labels, they are those of the training split.

    Raises:
      UserError: there is no closed set of labels, or the answer view does not write a label alone.
    """
    splits, view, config = experiment.splits, experiment.answer_view, experiment.config
    if config.evaluation.answers == "generate":
        return None

    def refuse(why: str) -> UserError:
        fix = "take --config.evaluation.answers=generate"
        return UserError(f"config.evaluation.answers=score chooses among labels, but {why}: {fix}")

    if view.term != "label":
        raise refuse(f"method={config.objective.method} writes a rationale first")
    if splits.by_value:
        raise refuse(f"those of task={config.data.task} are equations, an open set")
    labels = splits.label_set or tuple(sorted({example.label for example in splits.train}))
    for example in (*splits.valid, *splits.test):
        if example.label not in labels:
            raise refuse(f"{example.label!r}, that of {example.id}, is none of the training split's")
    return labels
