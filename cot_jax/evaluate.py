"""Evaluate a student: `python -m cot_jax.evaluate RUN [--split=test] [--task=T --root=DIR]`

Measures accuracy with a bootstrap interval, the task's other metrics, per-class scores and calibration.
Writes evaluation.json, predictions.jsonl and plots to RUN/evaluation/TASK_SPLIT. `--task` evaluates on
another data set, e.g. a student of e-SNLI on ANLI. `--samples=K` also takes the majority vote of K samples.

RUN may also be a Hugging Face directory of a model that was not trained here. It then needs `--task`.
`--shots=K` shows it K training examples before every question; without, it gets an instruction.

`--task=hellaswag_likelihood` generates nothing: it compares the likelihoods of the endings, as
lm-evaluation-harness does for HellaSwag (acc, acc_norm). It needs a decoder.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cot_jax.errors import argument_parser, command
from cot_jax.files import local, place


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    from cot_jax.training.assessment import Options, evaluate  # --help does not wait for JAX

    evaluate(Options(**options))
    return 0


def _options(argv: Sequence[str]) -> dict[str, Any]:
    parser = argument_parser("evaluate", __doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("run", type=place, metavar="RUN", help="work directory of a run, its export, or a pretrained model")
    add("--split", help="valid or test (default: test)")
    add("--task", help="another data set")
    add("--root", type=local, help="folder with the data sets (default: the run's)")
    add("--limit", type=int, help="ask the first N questions only; 0 = all")
    add("--shots", type=int, help="training examples shown to a pretrained model (default: 0)")
    longest = "longest answer; 0 = as in training; for a pretrained model 256 with rationales, 64 without"
    add("--max_new_tokens", type=int, help=longest)
    add("--chat", help="prompt format of a pretrained model: auto, plain or template (default: auto)")
    add("--output", type=place, help="directory to write (default: RUN/evaluation/TASK_SPLIT)")
    written = "also generate rationales and programs, if the student learned them"
    add("--rationales", action=argparse.BooleanOptionalAction, help=written)
    add("--samples", type=int, help="samples to vote on; 0 = no vote")
    paths = "paths that vote: label, cot, pot, joined by commas (default: cot,pot if learned, else label)"
    add("--paths", help=paths)
    add("--temperature", type=float, help="sampling temperature, above 0")
    add("--seed", type=int, help="sampling seed")
    information = "also estimate the mutual information of label and rationale view (InfoNCE)"
    add("--mutual_information", action="store_true", help=information)
    add("--sandbox", action="store_true", help="run programs that the interpreter refuses, in bubblewrap")
    return vars(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
