"""Strict JAX for every test: eight CPU devices, float32 by default, no silent rank promotion."""

import collections
import gc
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from cot_jax.config import Config, to_json
from cot_jax.models.t5 import T5, T5Config
from cot_jax.models.weights import shapes
from cot_jax.text import formats
from cot_jax.training.checkpoints import Checkpoints
from cot_jax.training.saved import STUDENT_FILE, write_answers

if jax.__version_info__ < (0, 11):
    # The emitters that later versions no longer have compile in half the time of the new ones. `.ci/run` also
    # trains the demo and runs `tests.attack` without this.
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
gc.set_threshold(50_000)  # as in a command
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Three quarters of the suite's time would be LLVM making tiny programs fast.
jax.config.update("jax_disable_most_optimizations", True)
# Nor is a program compiled twice, by another worker or a run before.
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


# Module fixtures that train a student, by file: whatever asks for them is slow.
_TRAINING = {
    "tests/test_notebooks.py": {"runs"},
    "tests/test_train.py": {"uninterrupted"},
    "tests/training/test_decoders.py": {"adapted", "runs"},
    "tests/training/test_encoders.py": {"chooser", "taught"},
    "tests/training/test_lora.py": {"trained"},
    "tests/training/test_teachers.py": {"taught"},
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.relative_to(Path(__file__).parents[1]).as_posix()
        if _TRAINING.get(file, set()) & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    # Quick files come last: they keep every worker busy until the end.
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: real data is not at hand")
    return Path(value)


@pytest.fixture
def one_device(monkeypatch):
    """Runs take one of the eight devices unless told otherwise; that saves a quarter of their time."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder with the published data sets (environment variable COT_JAX_DATA)."""
    return _folder("COT_JAX_DATA")


@pytest.fixture(scope="session")
def tokenizers_root() -> Path:
    """Folder with the T5, BERT and Llama vocabularies (environment variable COT_JAX_TOKENIZERS)."""
    return _folder("COT_JAX_TOKENIZERS")


def save_random_run(workdir: Path, config: Config, texts: list[str], pieces: int) -> Path:
    """Writes what a run of `config` that was evaluated once leaves behind, with random parameters."""
    format = formats.train(texts, pieces, workdir / "scratch", "seq2seq")
    tokenizer = format.tokenizer
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    student = T5(T5Config(vocab_size=tokenizer.size, pad_token_id=tokenizer.hf.pad_token_id, **sizes))
    rng = np.random.default_rng(0)
    like = shapes(student.weights)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), like)
    (workdir / "config.json").write_text(to_json(config))
    (workdir / STUDENT_FILE).write_text(json.dumps(student.architecture()))
    write_answers(workdir, format, by_value=True, labels=None)
    format.save(workdir / "tokenizer")
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save_if_best(1, jax.device_put(params), 0.5)
    return workdir


@pytest.fixture(scope="session")
def random_run():
    """`save_random_run`, for the commands that read a run."""
    return save_random_run
