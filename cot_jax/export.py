"""Write a run's best student for Transformers: python -m cot_jax.export RUN --output=DIR

DIR receives weights, config.json, the tokenizer, generation_config.json if the student writes, and README.md,
the model card of the Hugging Face Hub: method, data, measured accuracy and the texts that the student expects
before a question. --push_to_hub uploads DIR to the Hub, with the token that `hf auth login` keeps.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cot_jax.errors import command


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    parser = argparse.ArgumentParser(
        "python -m cot_jax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="work directory of a run")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--adapter",
        action="store_true",
        help="write the adapter that LoRA trained, for PEFT",
    )
    parser.add_argument("--license", help="for the model card, e.g. apache-2.0; other if not said")
    parser.add_argument(
        "--push_to_hub", metavar="OWNER/NAME", help="upload to this model repository of the Hub"
    )
    options = vars(parser.parse_args(argv))
    run = options.pop("run")
    from cot_jax.training import exporting  # --help does not wait for JAX
    from cot_jax.training.saved import load

    how = exporting.Options(**options)
    exporting.export(load(run), run, how)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
