"""The recipe of finished runs by Transformers: a BERT's test scores, ours and theirs.

    python -m benchmarks.accuracy RUN [RUN ...]

Theirs begins with a run's initial weights and reads its batches, padded, with AdamW, the run's learning rates
and weight decay. Only dropout draws other numbers. As in the run, the parameters that are best on validation
are tested.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks import measure
from benchmarks.encoders import Theirs, labelled, questions
from cot_jax.metrics.classification import scores
from cot_jax.models import student as students
from cot_jax.training.experiment import prepare
from cot_jax.training.optimizer import make_schedule
from cot_jax.training.result import metric_of, read_result
from cot_jax.training.run import Run
from cot_jax.training.saved import load


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a finished run")
    options = parser.parse_args()
    report, both = measure.Report(options), []
    for directory in options.runs:
        if not (result := read_result(directory)):
            parser.error(f"{directory} is not a finished run")
        metric = metric_of(result)
        theirs = _train_theirs(Run(prepare(load(directory).config), jax.devices()[:1]), metric)
        ours = result[f"test/{metric}"]
        both.append((ours, theirs))
        report.note(f"{directory}: test {metric} {100 * ours:.2f} % ours, {100 * theirs:.2f} % theirs")
    if len(both) > 1:
        columns = 100 * np.array(both).T
        means = (f"{column.mean():.2f} ± {column.std(ddof=1):.2f} %" for column in columns)
        report.note("mean ± standard deviation: {} ours, {} theirs".format(*means))
    report.close()


def _train_theirs(run: Run, metric: str) -> float:
    """Trains Transformers' model as `run` was trained; returns its score on test."""
    experiment = run.experiment
    config, sep_id = experiment.config, experiment.student.config.sep_token_id
    with tempfile.TemporaryDirectory() as name:
        students.save(Path(name), experiment.student, jax.device_get(run.initial_state().params))
        model = Theirs(Path(name), "sdpa", "float32", config.optimizer.weight_decay)
    rates, steps = make_schedule(config.optimizer, config.train.steps), config.train.steps
    best, weights = -np.inf, model.weights()
    for step in range(steps):
        model.at_rate(float(rates(step)))(labelled(run.batches(step), sep_id))
        if (step + 1) % config.train.eval_every and step + 1 < steps:
            continue
        if (found := _score(run, model, "valid", metric)) > best:
            best, weights = found, model.weights()
    model.restore(weights)
    return _score(run, model, "test", metric)


def _score(run: Run, model: Theirs, split: str, metric: str) -> float:
    labels = run.experiment.student.labels
    given, order = questions(run, split, run.experiment.config.evaluation.batch_size)
    answers = [labels[n] for n in model.predict(given, order).argmax(1)]
    return scores([metric], [example.label for example in run.examples(split)], answers, labels)[metric]


if __name__ == "__main__":
    main()
