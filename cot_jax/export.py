"""Export a run's best student for Transformers: `python -m cot_jax.export RUN --output=DIR`

Writes to DIR the weights, config.json, the tokenizer, generation_config.json (unless the student is an
encoder) and README.md, a model card for the Hugging Face Hub: method, data, measured accuracy and the prefix
that the student expects before a question. --push_to_hub uploads DIR with the token of `hf auth login`.
"""

import argparse
import sys
from collections.abc import Sequence

from cot_jax.errors import argument_parser, command
from cot_jax.files import place


@command
def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    parser = argument_parser("export", __doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument
    add("run", type=place, metavar="RUN", help="work directory of a run")
    add("--output", type=place, required=True, help="directory to write")
    add("--adapter", action="store_true", help="write the LoRA adapter only, for PEFT")
    add("--license", help="license in the model card, e.g. apache-2.0 (default: other)")
    add("--push_to_hub", metavar="OWNER/NAME", help="upload to this model repository on the Hub")
    options = vars(parser.parse_args(argv))
    run = options.pop("run")
    from cot_jax.training import exporting  # --help does not wait for JAX
    from cot_jax.training.saved import load

    checked = exporting.Options(**options)  # before the student is read
    exporting.export(load(run), run, checked)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
