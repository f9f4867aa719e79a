"""Upper limits of flags and keys: far above any real need, below what exhausts memory."""

from collections.abc import Mapping
from typing import Any

from cot_jax.errors import UserError

MOST_CHARACTERS = 10**6  # of one text: for ten times as many, tokenizers take minutes and gigabytes

# For flags, and for config keys of the same name.
MOST = {
    "batch_size": 2**16,
    "beams": 100,
    "concurrency": 1000,
    "examples": 10**7,
    "limit": 10**7,
    "max_new_tokens": 2**13,
    "max_tokens": 2**20,
    "samples": 1000,
    "seed": 2**32 - 1,
    "seeds": 10**4,
    "steps": 10**7,
    "timeout": 10**6,
}


def refuse_too_much(options: Mapping[str, Any]) -> None:
    """
    Raises:
      UserError: a flag is above `MOST`.
    """
    for name, most in MOST.items():
        value = options.get(name, 0)
        if isinstance(value, int | float) and value > most:
            raise UserError(f"--{name}={value}: at most {most:,}")
