"""Train a student: python -m cot_jax.train --config=demo_mi [--workdir=DIR] [--config.x=y]"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cot_jax.config import parse_command_line
from cot_jax.errors import UserError, first_line
from cot_jax.imports import make_callable, unlimit_stack

if TYPE_CHECKING:
    from cot_jax.api import Trained


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 diverged, 2 usage, 75 stopped and saved."""
    try:
        command = parse_command_line(argv, __doc__)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from cot_jax import api  # --help does not wait for JAX
    from cot_jax.training.console import say
    from cot_jax.training.experiment import prepare
    from cot_jax.training.loop import PREEMPTED, Diverged, Preempted, dry_run, stoppable
    from cot_jax.training.mesh import another_was_lost, join, leads

    try:
        if command.processes:
            join(command.processes)
        with stoppable() if not command.processes else contextlib.nullcontext():
            if command.dry_run:
                print(*dry_run(prepare(command.config)), sep="\n")
                return 0
            result = api.train(command.config, command.workdir, command.profile_steps).result
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
    metric = result.get("metric", "accuracy")  # older runs have none
    say(
        f"best on validation: step {result['best_step']}, {metric} {result[f'valid/{metric}']:.4f}\n"
        f"test {metric}: {result[f'test/{metric}']:.4f}\n"
        f"written to {command.workdir / 'result.json'}"
    )
    return 0


def _train(*arguments: Any, **options: Any) -> "Trained":
    from cot_jax import api

    return api.train(*arguments, **options)


def _joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


make_callable(__name__, _train)

if __name__ == "__main__":
    unlimit_stack()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(75)
    )  # while libraries are imported, which takes seconds
    try:
        status = main(sys.argv)
    except Exception:
        if not _joined():
            raise
        traceback.print_exc()
        status = 1
    if status in (1, 2) and _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the others may be lost: JAX would wait for them and then abort
    sys.exit(status)
