"""Where compiled programs are kept."""

import platform

import jax
import pytest

from cot_jax.training.compiled import keep_compiled


@pytest.fixture
def unset():
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", kept)


def test_in_the_users_cache_directory(unset, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    directory = tmp_path / "cot_jax" / "xla" / platform.node()
    assert jax.config.jax_compilation_cache_dir == str(directory)
    assert directory.is_dir()


def test_where_the_user_says():
    chosen = jax.config.jax_compilation_cache_dir
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == chosen is not None


def test_nowhere_if_nothing_can_be_written(unset, tmp_path, monkeypatch, capsys):
    (tmp_path / "cot_jax").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    assert "every run compiles anew" in capsys.readouterr().err
