"""Upper limits of flags and keys: far above any real need, below what exhausts memory."""

from collections.abc import Collection, Mapping
from typing import Any

from cot_jax.errors import UserError

MOST_CHARACTERS = 10**6  # of one text: for ten times as many, tokenizers take minutes and gigabytes

# For flags, and for config keys of the same name.
MOST = {
    "batch_size": 2**16,
    "beams": 100,
    "concurrency": 1000,
    "examples": 10**7,
    "jobs": 10**4,
    "limit": 10**7,
    "max_new_tokens": 2**15,
    "max_tokens": 2**20,
    "max_words": 10**6,
    "per_minute": 10**6,
    "samples": 1000,
    "seed": 2**32 - 1,
    "seeds": 10**4,
    "shots": 10**4,
    "steps": 10**7,
    "temperature": 10**3,
    "timeout": 10**6,
    "top_k": 2**24,
}


def check_ranges(options: Mapping[str, Any], positive: Collection[str] = ()) -> None:
    """
    Raises:
      UserError: a flag of `MOST` is negative, or 0 if it is one of `positive`, or above its limit.
    """
    for name, most in MOST.items():
        value = options.get(name)
        least = 1 if name in positive else 0
        # Written so that NaN fails too.
        if isinstance(value, int | float) and not least <= value <= most:
            raise UserError(f"--{name}={value}: must be from {least} to {most:,}")
