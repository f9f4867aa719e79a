"""Train a student: `python -m cot_jax.train --config=demo_mi [--workdir=DIR] [--config.x=y]`"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cot_jax.config import parse_command_line
from cot_jax.errors import command, first_line
from cot_jax.imports import make_callable, restart_prepared
from cot_jax.training.result import RESULT_FILE, metric_of

if TYPE_CHECKING:
    from cot_jax.api import Trained


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, 1 diverged, 2 usage, 75 stopped and saved."""
    given = parse_command_line(argv, __doc__)
    from cot_jax import api  # --help does not wait for JAX
    from cot_jax.training.console import say
    from cot_jax.training.experiment import prepare
    from cot_jax.training.loop import PREEMPTED, Diverged, Preempted, dry_run, stoppable
    from cot_jax.training.mesh import another_was_lost, join, leads

    try:
        if given.processes:
            join(given.processes)
        with stoppable() if not given.processes else contextlib.nullcontext():
            if given.dry_run:
                print(*dry_run(prepare(given.config)), sep="\n")
                return 0
            complete = (given.workdir / RESULT_FILE).exists()
            trained = api.train(given.config, given.workdir, given.profile_steps)
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
    result, metric = trained.result, metric_of(trained.result)
    say(
        f"best on validation: step {result['best_step']}, {metric} {result[f'valid/{metric}']:.4f}\n"
        f"test {metric}: {result[f'test/{metric}']:.4f}\n"
        f"written to {given.workdir / RESULT_FILE}"
    )
    if given.show and not given.processes and not complete:
        trained.show(given.show)
        print(f"\nnext: python -m cot_jax.evaluate {given.workdir}")
    return 0


def _train(*arguments: Any, **options: Any) -> "Trained":
    from cot_jax import api

    return api.train(*arguments, **options)


def _joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


make_callable(__name__, _train)

if __name__ == "__main__":
    restart_prepared()
    # Until `stoppable`: libraries take seconds to import; those that import from C++ crash on an exception.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
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
