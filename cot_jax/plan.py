"""Does it fit? `python -m cot_jax.plan --config=FILE --topology=v5e:4x4 | --devices=8 --memory=80GiB`

Compiles the training step of FILE at its costliest shape, from shapes alone. Prints how much of a device's
memory parameters, optimizer state, the last batch of self-distillation and activations need. If they do not
fit, prints the cheapest change that makes them fit. --topology, e.g. v5e:1x1 for a single chip, uses the TPU
compiler, without the hardware (pip install 'cot-jax[tpu]'); --devices uses the CPU compiler, on as many
virtual devices, in the precision of a GPU. No weights are read: --config.model.pretrained=
--config.model.preset=xxl plans for a size. All other flags are those of cot_jax.train.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from cot_jax.config import parse_command_line
from cot_jax.errors import UserError, command
from cot_jax.imports import restart_prepared


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0: it fits, 1: it does not, 2: usage."""
    options, rest = _options(argv)
    config = parse_command_line([argv[0], *rest], __doc__).config  # or --help
    if not (options.topology or (options.devices and options.memory)):
        raise UserError("give the devices to plan for: --topology=v5e:4x4, or --devices=8 --memory=80GiB")
    from cot_jax.training.planning import FITS, report  # --help does not wait for JAX

    line = ""
    for line in report(config, options.topology, options.devices, options.memory):
        print(line, flush=True)
    return 0 if line == FITS else 1


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--topology")
    where.add_argument("--devices", type=int)
    parser.add_argument("--memory", type=_memory)
    try:
        options, rest = parser.parse_known_args(list(argv[1:]))
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if options.devices is not None and options.devices < 1:
        raise UserError(f"--devices={options.devices}: at least 1")
    return options, rest


def _memory(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(GiB|GB)", text)
    memory = int(float(found[1]) * {"GiB": 2**30, "GB": 10**9}[found[2]]) if found else 0
    if not memory:
        raise argparse.ArgumentTypeError(f"{text!r}: write a number and GiB or GB above 0, e.g. 80GiB")
    return memory


if __name__ == "__main__":
    restart_prepared()
    sys.exit(main(sys.argv))
