"""Answer questions: python -m cot_jax.predict RUN [--input=FILE] [--output=FILE] [--explain]

Reads JSON lines {"input": ..., "id"?: ..., "rationale"?: ...}, writes {"id", "input", "label", "rationale"?}
in the same order, a batch as soon as it is there; a file is OUTPUT.partial until it is whole. An input is a
text, or a list of several such as premise and hypothesis. With --samples=K the label is the one that most of
K drawn answers agree on; "votes" is their share and "samples" lists all, [{"label", "log_prob"}, ...]. With
--paths=cot it is what the student's own rationale ends in, with --paths=pot what its program gives (which is
interpreted, never executed but with --sandbox), with --paths=cot,pot what most of both agree on, with
--samples=K of K of each. A student that chooses among classes also writes, with --log_probs, "log_probs",
{label: number} of every label; of the training examples (--split=train) they teach another student
(--config.distillation.teacher=FILE).
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cot_jax.data.tasks import ALL_SPLITS
from cot_jax.errors import UserError, command, writing
from cot_jax.files import partial, read_json_lines, rows_of, whole


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    run, source, target, split = (options.pop(name) for name in ("run", "input", "output", "split"))
    from cot_jax.training import answering  # --help does not wait for JAX
    from cot_jax.training.saved import load

    with contextlib.ExitStack() as files:
        how = answering.Options(**options)
        _refuse_one_file(source, target)
        rows = rows_of(sys.stdin.buffer, "standard input") if source == "-" else read_json_lines(Path(source))
        saved = load(run)
        if split:
            rows = answering.rows_of_split(saved, split)
        sink = sys.stdout
        if target != "-":
            files.enter_context(writing(target))
            sink = files.enter_context(whole(Path(target)))
        for answer in answering.predict(saved, rows, how):
            print(json.dumps(answer, ensure_ascii=False), file=sink, flush=True)
    return 0


def _refuse_one_file(source: str, target: str) -> None:
    """
    Raises:
      UserError: what is read would be written over.
    """
    if "-" in (source, target) or not Path(source).is_file():
        return
    for file in (Path(target), partial(Path(target))):
        if file.exists() and file.samefile(source):
            raise UserError(f"--output={target} would write over --input: choose another file")


def _options(argv: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        "python -m cot_jax.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="work directory of a run, or its export")
    parser.add_argument("--input", default="-", help="JSON lines; - is standard input")
    parser.add_argument("--output", default="-", help="JSON lines; - is standard output")
    parser.add_argument(
        "--split", default="", choices=ALL_SPLITS, help="ask the questions of its own data instead of --input"
    )
    parser.add_argument(
        "--log_probs", action="store_true", help="write the log-probability of every class as well"
    )
    parser.add_argument("--explain", action="store_true", help="also write the rationale")
    parser.add_argument(
        "--paths", type=lambda text: text.split(","), help="who answers: label, cot, pot, joined by commas"
    )
    parser.add_argument("--beams", type=int, help="of the search; 1 = greedy, 0 = answers as in training")
    parser.add_argument("--samples", type=int, help="answers drawn to vote on; 0 = none are drawn")
    parser.add_argument("--temperature", type=float, help="of the draws; above 0")
    parser.add_argument("--top_k", type=int, help="draw from so many likeliest tokens; 0 = all")
    parser.add_argument("--top_p", type=float, help="draw from the fewest tokens that are so likely; 1 = all")
    parser.add_argument("--seed", type=int, help="of the draws")
    parser.add_argument("--batch_size", type=int, help="questions at once; 64 if not said")
    parser.add_argument("--max_new_tokens", type=int, help="longest answer; 0 = as in training")
    parser.add_argument(
        "--sandbox", action="store_true", help="run programs that the interpreter refuses, in bubblewrap"
    )
    options = vars(parser.parse_args(argv))
    if options["split"] and options["input"] != "-":
        parser.error("--split asks what the student's own data ask, --input what a file does: take either")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
