"""The labels that a student chooses among."""

from cot_jax.errors import UserError
from cot_jax.training.experiment import Experiment


def answer_labels(experiment: Experiment) -> tuple[str, ...] | None:
    """Returns the labels to choose among; None if the student writes its answers.

    If the task does not define its labels, they are those of the training split.

    Raises:
      UserError: labels are not a closed set, or the answer view does not write a label alone.
    """
    splits, view, config = experiment.splits, experiment.answer_view, experiment.config
    if config.evaluation.answers == "generate":
        return None

    def refuse(why: str) -> UserError:
        fix = "use --config.evaluation.answers=generate"
        return UserError(f"config.evaluation.answers=score chooses among labels, but {why}: {fix}")

    if view.term != "label":
        raise refuse(f"method={config.objective.method} writes a rationale first")
    if splits.by_value:
        raise refuse(f"those of task={config.data.task} are equations, an open set")
    labels = splits.label_set or tuple(sorted({example.label for example in splits.train}))
    for example in (*splits.valid, *splits.test):
        if example.label not in labels:
            raise refuse(f"the label of {example.id}, {example.label!r}, is not in the training split")
    return labels
