"""Train a student: python -m cot_jax.train --config=configs/demo_mi.py [--workdir=DIR] [--config.x=y]"""

import os
import sys
import traceback
from collections.abc import Sequence

import jax

from cot_jax.config import parse_command_line
from cot_jax.errors import command, first_line, writing
from cot_jax.training.compiled import keep_compiled, unlimit_stack
from cot_jax.training.console import say
from cot_jax.training.experiment import prepare
from cot_jax.training.loop import PREEMPTED, Diverged, Preempted, dry_run, train
from cot_jax.training.mesh import another_was_lost, join, leads
from cot_jax.training.result import RESULT_FILE, metric_of


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 diverged, 2 usage, 75 stopped and saved."""
    try:
        given = parse_command_line(argv, __doc__)
        if given.processes:
            join(given.processes)
        keep_compiled()
        experiment = prepare(given.config)
        if given.dry_run:
            print(*dry_run(experiment), sep="\n")
            return 0
        with writing(given.workdir):
            result = train(experiment, given.workdir, given.profile_steps)
    except Diverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Preempted as notice:
        if leads():
            print(notice, file=sys.stderr)
        return PREEMPTED
    except Exception as error:
        if not another_was_lost(error):
            raise
        print(
            f"error: {first_line(error)}; if another process of this run was lost, start all "
            "of them again: they resume from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    metric = metric_of(result)
    say(
        f"best on validation: step {result['best_step']}, {metric} {result[f'valid/{metric}']:.4f}\n"
        f"test {metric}: {result[f'test/{metric}']:.4f}\n"
        f"written to {given.workdir / RESULT_FILE}"
    )
    return 0


if __name__ == "__main__":
    unlimit_stack()
    try:
        status = main(sys.argv)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        status = 1
    if status in (1, 2) and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the others may be lost: JAX would wait for them and then abort
    sys.exit(status)
