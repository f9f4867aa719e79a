"""Write a run's best student for Transformers: python -m cot_jax.export --workdir=RUN --output=DIR"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cot_jax.errors import UserError
from cot_jax.training import saved


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 0, or 2 for a mistake in its arguments or files."""
    parser = argparse.ArgumentParser("python -m cot_jax.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="work directory of a run")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    options = parser.parse_args(argv)
    try:
        if options.output.exists() and any(options.output.iterdir()):
            raise UserError(f"{options.output} is not empty: choose another --output")
        saved.load(options.workdir).export(options.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"written to {options.output}: transformers' AutoModelForSeq2SeqLM and AutoTokenizer read it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
