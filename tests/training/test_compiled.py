"""Where compiled programs are kept."""

import importlib.util
import os
import platform
import resource
import sys

import jax
import jax.numpy as jnp
import pytest

from cot_jax.config import MeshConfig
from cot_jax.imports import restart_prepared
from cot_jax.training import compiled
from cot_jax.training.compiled import CompiledAhead, compiler_options, keep_compiled
from cot_jax.training.mesh import make_mesh


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
    assert "every run recompiles" in capsys.readouterr().err


def test_every_shape_is_compiled_in_the_background(capsys):
    step = jax.jit(
        lambda state, batch, _: (state + jnp.sum(batch), {"mean": jnp.mean(batch)}), donate_argnums=0
    )
    mesh, like = make_mesh(MeshConfig(), jax.devices()[:1]), jax.ShapeDtypeStruct((), jnp.float32)
    batches = {f"{n}x2": jax.ShapeDtypeStruct((n, 2), jnp.float32) for n in (3, 5)}
    state = jnp.float32(1.0)
    with CompiledAhead(step, mesh, like, batches, None) as ahead:
        for batch in [jnp.ones((n, 2)) for n in (5, 3, 5, 4)]:
            state, metrics = ahead(state, batch)
            assert float(metrics["mean"]) == 1.0
    assert float(state) == 35.0
    assert step._cache_size() == 0  # the jitted step itself never ran: nothing is compiled twice
    assert [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "compiled 1 of 2 programs: 3x2",
        "compiled 2 of 2 programs: 5x2",
        "compiled one more program",
    ]


@pytest.mark.parametrize(
    ("tpu", "stack", "tunables", "grown", "again"),
    [
        (True, 8 << 20, "x", True, True),
        (True, -1, "x", False, False),
        (False, 8 << 20, "x", False, False),
        (False, 8 << 20, None, False, True),
        (True, 8 << 20, None, True, True),
    ],
)
def test_a_command_begins_again_with_the_stack_and_the_pages_it_needs(
    tpu, stack, tunables, grown, again, monkeypatch
):
    limits, commands, most = [], [], resource.RLIM_INFINITY
    monkeypatch.setattr(os, "environ", {} if tunables is None else {"GLIBC_TUNABLES": tunables})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: {"libtpu": tpu or None}[name])
    monkeypatch.setattr(resource, "getrlimit", lambda which: (stack, most))
    monkeypatch.setattr(resource, "setrlimit", lambda which, new: limits.append(new))
    monkeypatch.setattr(os, "execv", lambda path, arguments: commands.append([path, *arguments[1:]]))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "cot_jax.plan", "--topology=v5e:2x2"])
    restart_prepared()
    assert limits == [(most, most)] * grown
    assert commands == [[sys.executable, "-m", "cot_jax.plan", "--topology=v5e:2x2"]] * again
    assert os.environ["GLIBC_TUNABLES"].startswith(tunables or "glibc.malloc.hugetlb=1:")


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_options_that_the_compiler_does_not_know_are_left_out(platform, monkeypatch):
    # Those of a GPU are known to a CPU's compiler too.
    assert bool(compiler_options(platform)) == (platform != "tpu")
    compiler_options.cache_clear()
    monkeypatch.setitem(compiled._OPTIONS, platform, {"xla_no_such_option": True})
    assert compiler_options(platform) == {}
    compiler_options.cache_clear()
