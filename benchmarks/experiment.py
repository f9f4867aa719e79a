"""What a whole published experiment takes: 10,000 steps with an evaluation every 250 and a test at the end.

    python -m benchmarks.experiment --model=base

Runs `cot_jax.train` with the published recipe, Distilling Step-by-Step with MI at batch 64, on as many
questions as SVAMP has, of random words in SVAMP's lengths. The weights are random and read as pretrained ones
are; such a student seldom ends an answer, which is the slowest case to evaluate. Each round runs it with
steps for one evaluation and for two, in turn, both with all programs compiled: the difference is a fortieth
of the whole, with input, checkpoints and all else that a run does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.startup import CACHE
from benchmarks.workload import LENGTHS, model_config, random_params
from cot_jax.config import STEPS, TrainConfig
from cot_jax.data.views import METHODS
from cot_jax.models import student as students
from cot_jax.models.t5 import T5
from cot_jax.text import tokenizer as tokenizers

_METHOD, _DATA, _PIECES = "mi", "svamp", 512
_SPLITS = {"train": 720, "valid": 80, "test": 200}  # SVAMP's


def main() -> None:
    options = _options()
    report = measure.Report(options)
    report.note(
        f"{options.model}, {_METHOD}, {_DATA} lengths (drawn), batch {options.batch}, an evaluation of "
        f"{_SPLITS['valid']} questions every {options.every} steps"
    )
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_data(directory)
        config = model_config(options.model)
        students.save(directory / "student", T5(config), random_params(config))
        # Runs of other lengths have other schedules, and so other programs: each is compiled first.
        cold, _ = (_train(directory, count, options) for count in (2, 1))
        rounds, starts = [], []
        for _ in range(options.repeats):
            one, two = (_train(directory, count, options) for count in (1, 2))
            rounds.append(two - one)
            starts.append(one - rounds[-1])
    each, start = measure.Seconds(tuple(rounds)), measure.Seconds(tuple(starts))
    report.row(f"{options.every} steps and an evaluation", each)
    report.row("start, test and end", start)
    compiling = cold - 2 * each.median - start.median
    report.number("seconds of compiling, the first time", compiling)
    count = STEPS / TrainConfig.eval_every
    whole = count * each.median * TrainConfig.eval_every / options.every + start.median + compiling
    report.number(f"minutes of {STEPS:,} steps and {count:.0f} evaluations", whole / 60)
    report.close()


def write_data(directory: Path) -> None:
    """Writes JSON lines of random words, each of which is one token, and their tokenizer."""
    rng = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    words = [first + second for first in syllables for second in syllables[:5]]
    prefixes = [view.prefix for view in METHODS[_METHOD]]
    tokenizers.train([" ".join([*prefixes, *words])] * 8, _PIECES, directory / "tokenizer")
    for split, count in _SPLITS.items():
        lengths = zip(*LENGTHS[_DATA].draw(count, rng), strict=True)
        with (directory / f"{split}.jsonl").open("w") as file:
            for n, most in enumerate(lengths):
                # An end token each, and the two of the prefix.
                texts = (" ".join(rng.choice(words, k)) for k in (most[0] - 3, most[1] - 1, most[2] - 1))
                row = dict(zip(("input", "label", "rationale"), texts, strict=True))
                file.write(json.dumps({"id": f"{split}-{n}", **row}) + "\n")


def _train(directory: Path, evaluations: int, options: argparse.Namespace) -> float:
    """Seconds of a run with so many evaluations on validation, its process from start to end."""
    environment = os.environ | CACHE | {"JAX_COMPILATION_CACHE_DIR": str(directory / "compiled")}
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            *(sys.executable, "-m", "cot_jax.train", f"--workdir={workdir}/run"),
            f"--config={Path(__file__).parents[1] / 'configs' / f'{_DATA}_{_METHOD}.py'}",
            "--config.data.task=jsonl",
            f"--config.data.root={directory}",
            f"--config.model.pretrained={directory / 'student'}",
            f"--config.model.tokenizer={directory / 'tokenizer'}",
            f"--config.train.steps={evaluations * options.every}",
            f"--config.train.eval_every={options.every}",
            f"--config.train.checkpoint_every={options.every}",
            f"--config.train.batch_size={options.batch}",
        ]
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"training ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    print(f"{evaluations * options.every} steps: {seconds:.1f} s", flush=True)
    return seconds


def _options() -> argparse.Namespace:
    parser = measure.parser(__doc__)
    parser.set_defaults(repeats=2)
    parser.add_argument("--model", default="base", help="preset, or directory of a model")
    parser.add_argument("--batch", type=int, default=TrainConfig.batch_size)
    parser.add_argument("--every", type=int, default=TrainConfig.eval_every, help="steps to an evaluation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
