"""All commands under one name: cot-jax COMMAND [...], or python -m cot_jax COMMAND [...]

`cot-jax train --config=demo_mi` is the same as `python -m cot_jax.train --config=demo_mi`.
"""

import runpy
import sys
from collections.abc import Sequence

from cot_jax import __version__
from cot_jax.errors import command

COMMANDS = {
    "train": "train a student",
    "evaluate": "measure a student: accuracy, calibration, every prediction",
    "predict": "answer questions",
    "export": "write a student for Transformers, with a model card",
    "sweep": "train over seeds, methods and shares of the data, or a whole published table",
    "compare": "make the table and the plots of a sweep",
    "judge": "measure how good a student's rationales are",
    "rationalize": "ask a language model for rationales and programs",
    "plan": "check whether a run fits into the memory of its devices",
    "prepare_data": "fetch published data sets",
}


def main() -> int:
    """Runs a command, which exits; returns 0 after --help or --version, 2 for an unknown command."""
    match sys.argv[1:]:
        case [name, *_] if name in COMMANDS:
            del sys.argv[1]
            runpy.run_module(f"cot_jax.{name}", run_name="__main__", alter_sys=True)
            return 0
        case arguments:
            return _say(arguments)


@command
def _say(argv: Sequence[str]) -> int:
    match argv:
        case ["--version"]:
            print(__version__)
        case [] | ["--help" | "-h"]:
            print("usage: cot-jax COMMAND [...]; cot-jax COMMAND --help lists its flags\n")
            print(*(f"  {command:14}{summary}" for command, summary in COMMANDS.items()), sep="\n")
        case [word, *_]:
            print(f"error: {word}: no such command; cot-jax --help lists them", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
