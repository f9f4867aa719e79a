"""Answer questions: `python -m cot_jax.predict RUN [--input=FILE] [--output=FILE] [--explain]`

Reads JSON lines {"input": ..., "id"?: ..., "rationale"?: ...}. Writes {"id", "input", "label", "rationale"?}
in the same order, batch by batch; until it is complete, the file is OUTPUT.partial. An input is a text, or a
list of texts such as premise and hypothesis.

--samples=K draws K answers; the label is their majority vote, "votes" is its share, and "samples" lists all
answers, [{"label", "log_prob"}, ...]. --paths=cot takes the answer at the end of the student's own rationale,
--paths=pot the result of its program (which is interpreted; only --sandbox executes it), --paths=cot,pot the
majority of both, with --samples=K of K samples of each.

--log_probs also writes, for a student that chooses among classes, "log_probs": {label: number} for every
label. Those of the training examples (--split=train) can teach another student
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
from cot_jax.errors import UserError, argument_parser, command, writing
from cot_jax.files import local, partial, place, read_json_lines, rows_of, whole


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    options = _options(argv)
    run, source, target, split = (options.pop(name) for name in ("run", "input", "output", "split"))
    from cot_jax.training import answering  # --help does not wait for JAX
    from cot_jax.training.saved import load

    with contextlib.ExitStack() as files:
        checked = answering.Options(**options)
        _refuse_one_file(source, target)
        rows = rows_of(sys.stdin.buffer, "standard input") if source == "-" else read_json_lines(Path(source))
        saved = load(run)
        if split:
            rows = answering.rows_of_split(saved, split)
        sink = sys.stdout
        if target != "-":
            files.enter_context(writing(target))
            sink = files.enter_context(whole(Path(target)))
        for answer in answering.predict(saved, rows, checked):
            print(json.dumps(answer, ensure_ascii=False), file=sink, flush=True)
    return 0


def _refuse_one_file(source: str, target: str) -> None:
    """
    Raises:
      UserError: the output would overwrite the input.
    """
    if "-" in (source, target) or not Path(source).is_file():
        return
    for file in (Path(target), partial(Path(target))):
        if file.exists() and file.samefile(source):
            raise UserError(f"--output={target} would write over --input: choose another file")


def _options(argv: Sequence[str]) -> dict[str, Any]:
    parser = argument_parser("predict", __doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("run", type=place, metavar="RUN", help="work directory of a run, or its export")
    add("--input", default="-", help="JSON lines; - is standard input")
    add("--output", default="-", help="JSON lines; - is standard output")
    split = "answer a split of the student's own data set instead of --input"
    add("--split", default="", choices=ALL_SPLITS, help=split)
    add("--log_probs", action="store_true", help="also write the log-probability of every class")
    add("--explain", action="store_true", help="also write the rationale")
    paths = "paths that answer: label, cot, pot, joined by commas"
    add("--paths", help=paths)
    add("--beams", type=int, help="beam width; 1 = greedy, 0 = as in training")
    add("--samples", type=int, help="samples to vote on; 0 = no vote")
    add("--temperature", type=float, help="sampling temperature, above 0")
    add("--top_k", type=int, help="sample from the K most likely tokens; 0 = all")
    add("--top_p", type=float, help="sample from the smallest set of tokens of this probability; 1 = all")
    add("--seed", type=int, help="sampling seed")
    add("--batch_size", type=int, help="questions per batch (default: 64)")
    add("--max_new_tokens", type=int, help="longest answer; 0 = as in training")
    add("--sandbox", action="store_true", help="run programs that the interpreter refuses, in bubblewrap")
    options = vars(parser.parse_args(argv))
    for name in ("input", "output"):
        local(options[name])
    if options["split"] and options["input"] != "-":
        parser.error("--split takes the questions of the student's data, --input those of a file: give one")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
