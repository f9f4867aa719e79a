"""Evaluate a student: python -m cot_jax.evaluate RUN [--split=test] [--task=T --root=DIR]

Accuracy with its bootstrap interval, the task's other metrics, a table per class, calibration, every
prediction. Writes evaluation.json, predictions.jsonl and pictures to RUN/evaluation/TASK_SPLIT. `--task` asks
the questions of another data set, e.g. those of ANLI to a student of e-SNLI. `--samples=K` also lets K drawn
answers vote.

RUN may be a directory of Hugging Face, of a model that was not trained here: `--task` is needed then, and
`--shots=K` shows it K training examples before every question; with none it is told what to answer.

`--task=hellaswag_likelihood` is another measure: nothing is written, the likelihoods of the endings are
compared, as lm-evaluation-harness does it for HellaSwag (acc, acc_norm). It needs a decoder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_jax.errors import command


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    from cot_jax.training.assessment import Options, evaluate  # --help does not wait for JAX

    evaluate(Options(**options))
    return 0


def _options(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        "python -m cot_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN", help="work directory of a run, its export, or a pretrained model"
    )
    parser.add_argument("--split", help="valid or test, which is the usual one")
    parser.add_argument("--task", help="another data set")
    parser.add_argument("--root", type=Path, help="folder with the data sets, if not the run's")
    parser.add_argument("--limit", type=int, help="ask the first so many questions; 0 = all")
    parser.add_argument("--shots", type=int, help="examples that a pretrained model is shown; 0 if not said")
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        help="longest answer; 0 = the run's, or of a pretrained model 256 with reasons and 64 without",
    )
    parser.add_argument(
        "--chat", help="auto, plain or template: how a pretrained model is asked; auto if not said"
    )
    parser.add_argument("--output", type=Path, help="directory to write, if not RUN/evaluation/TASK_SPLIT")
    parser.add_argument(
        "--rationales",
        action=argparse.BooleanOptionalAction,
        help="also let the student write its rationales and programs, where it was taught any",
    )
    parser.add_argument("--samples", type=int, help="answers drawn to vote on; 0 = none are drawn")
    parser.add_argument(
        "--paths",
        type=lambda text: text.split(","),
        help="whose samples vote: label, cot, pot, joined by commas; if not said, cot and pot, or else label",
    )
    parser.add_argument("--temperature", type=float, help="of the draws; above 0")
    parser.add_argument("--seed", type=int, help="of the draws")
    parser.add_argument(
        "--mutual_information",
        action="store_true",
        help="also estimate what label and rationale side know of each other (InfoNCE)",
    )
    parser.add_argument(
        "--sandbox", action="store_true", help="run programs that the interpreter refuses, in bubblewrap"
    )
    return vars(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
