"""Strict JAX for every test: eight CPU devices, float32 by default, no silent rank promotion."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Three quarters of the suite's time would be LLVM making tiny programs fast.
jax.config.update("jax_disable_most_optimizations", True)


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: real data is not at hand")
    return Path(value)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the published data sets (environment variable COT_JAX_DATA)."""
    return _folder("COT_JAX_DATA")


@pytest.fixture(scope="session")
def tokenizers_root() -> Path:
    """Folder with the T5, BERT and Llama vocabularies (environment variable COT_JAX_TOKENIZERS)."""
    return _folder("COT_JAX_TOKENIZERS")
