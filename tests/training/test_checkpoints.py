"""Checkpoints: the newest state and the best parameters come back as they were."""

import gc
import itertools
import re
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from cot_jax.errors import UserError
from cot_jax.training.checkpoints import Checkpoints, _verify
from cot_jax.training.step import init_state

OPTIMIZER = optax.adamw(1e-3)


def _state(step):
    params = {"layer": {"w": jnp.full((3, 2), float(step))}}
    state = init_state(params, OPTIMIZER, jax.random.key(step, impl="rbg"))
    return state._replace(step=jnp.int32(step))


def _placed(state):
    """The shapes of a state on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.eval_shape(lambda: state)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def test_latest_and_best_survive_the_process(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        assert checkpoints.best is None
        for step, accuracy, best in [
            (1, 0.25, 1),
            (2, 0.5, 2),
            (3, 0.5, 2),
            (4, float("nan"), 2),
            (4, 0.0, 2),
        ]:
            if step != checkpoints.latest_step:
                checkpoints.save(step, _state(step))
            assert checkpoints.save_if_best(step, _state(step).params, accuracy, "valid/f1") == best
        assert checkpoints.best == (2, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 4
        assert checkpoints.best == (2, 0.5)  # the earlier of equals
        like = _placed(_state(0))
        state = checkpoints.restore_latest(like)
        best = checkpoints.restore_best(like.params)
    assert jax.tree.structure(state) == jax.tree.structure(_state(4))
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(_state(4)), strict=True):
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, expected = jax.random.key_data(found), jax.random.key_data(expected)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(best["layer"]["w"], np.full((3, 2), 2.0))
    assert sorted(path.name for path in (tmp_path / "latest").iterdir()) == ["3", "4"]
    assert [path.name for path in (tmp_path / "best").iterdir()] == ["2"]


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    """The loop donates the state to the next step while its checkpoint is still being written."""
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    params = {"w": jnp.zeros((512, 512))}
    state = init_state(params, optax.identity(), jnp.zeros(2, jnp.uint32))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        for _ in range(20):
            state = advance(state)
        saved = checkpoints.restore_latest(_placed(state))
    assert not np.any(saved.params["w"])


def _cut(directory):
    for file in directory.rglob("d/*"):  # they hold the arrays
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _lose_arrays(directory):
    for file in directory.rglob("d/*"):
        file.unlink()


def _lose_metadata(directory):
    for file in directory.rglob("_METADATA"):
        file.unlink()


@pytest.fixture
def broken_reads():
    """Of several reads that fail Orbax awaits one and leaves the others to a closed event loop."""
    yield
    gc.collect()  # here, and not in the test after


_IGNORE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@_IGNORE
@pytest.mark.usefixtures("broken_reads")
@pytest.mark.parametrize("damage", [_cut, _lose_arrays, _lose_metadata])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_read(tmp_path, capsys, damage):
    like = _placed(_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, _state(step))
    damage(tmp_path / "latest" / "4")
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore_latest(like).step) == 3
        assert f"{tmp_path / 'latest' / '4'} cannot be read (" in capsys.readouterr().out
        # The steps since then are made again, and saved again.
        checkpoints.save(4, _state(4))
        assert int(checkpoints.restore_latest(like).step) == 4
        assert capsys.readouterr().out == ""


def _lost(*_, **__):
    raise ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer")


def test_a_read_that_a_lost_process_breaks_is_not_called_damage(tmp_path, capsys, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, _state(step))
        checkpoints.save_if_best(4, _state(4).params, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(ocp.CheckpointManager, "restore", _lost)
        for restore in (checkpoints.restore_latest, checkpoints.restore_best):
            with pytest.raises(ValueError, match="Gloo"):
                restore(None)
        monkeypatch.undo()
        assert "cannot be read" not in capsys.readouterr().out
        assert int(checkpoints.restore_latest(_placed(_state(0))).step) == 4


def test_a_write_that_a_lost_process_breaks_is_not_blamed_on_the_disk(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "save", _lost)
        with pytest.raises(UserError, match="cannot be written"):
            checkpoints.save(3, _state(3))
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        with pytest.raises(ValueError, match="Gloo"):
            checkpoints.save(3, _state(3))
        monkeypatch.undo()


def test_other_shapes_are_one_line(tmp_path, capfd):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, _state(3))
        checkpoints.save_if_best(3, _state(3).params, 0.5)
    wide = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], 7)), _state(0).params)
    other = _placed(init_state({"layer": wide["layer"] | {"b": jnp.zeros(7)}}, OPTIMIZER, jax.random.key(0)))
    with Checkpoints(tmp_path) as checkpoints:
        message = r"layer/w has shape \(3, 2\), the student's has \(3, 7\)\); restore it"
        with pytest.raises(UserError, match=message):
            checkpoints.restore_best(other.params)
        with pytest.raises(UserError, match="no checkpoint can be read"):
            checkpoints.restore_latest(other)
    out, err = capfd.readouterr()
    assert re.fullmatch(r".*latest/3 cannot be read \(ValueError: \S*layer/w has shape .*\)\n", out)
    assert err == ""


def test_every_bit_that_flips_is_noticed(tmp_path, capsys):
    like, draw = _placed(_state(0)), np.random.default_rng(0)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, _state(step))
        checkpoints.save_if_best(4, _state(4).params, 0.5)
    for directory in (tmp_path / "latest" / "4", tmp_path / "best" / "4"):
        files = [path for path in directory.glob("**/*") if path.is_file() and path.stat().st_size]
        assert {"_CHECKPOINT_METADATA", "crc32.json", "crc32_commit.json"} < {file.name for file in files}
        for n in range(100):
            file = files[n % len(files)]
            whole = file.read_bytes()
            _flip(file, int(draw.integers(8 * len(whole))))
            with pytest.raises((ValueError, UserError)):
                _verify(directory)
            file.write_bytes(whole)
        _verify(directory)
        arrays = max((directory / "default").glob("**/d/*"), key=lambda file: file.stat().st_size)
        _flip(arrays, 4 * arrays.stat().st_size)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match=r"best/4 cannot be read \(ValueError: default/\S+ is damaged"):
            checkpoints.restore_best(like.params)
        assert int(checkpoints.restore_latest(like).step) == 3
    assert re.search(r"latest/4 cannot be read \(ValueError: default/\S+ is damaged", capsys.readouterr().out)
    # Nor does a run go on for hours before it says that its best parameters are lost.
    with pytest.raises(UserError, match="is damaged"):
        Checkpoints(tmp_path, clean=True)


def test_reading_writes_nothing(tmp_path):
    """Also where the last run was killed just before it wrote the sums of Orbax's own files."""
    like = _placed(_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, _state(3))
        checkpoints.save_if_best(3, _state(3).params, 0.5)
    for outer in tmp_path.glob("*/3/crc32_commit.json"):
        outer.unlink()
    before = sorted(tmp_path.glob("**/*"))
    with Checkpoints(tmp_path) as checkpoints:
        assert int(checkpoints.restore_latest(like).step) == 3
        assert checkpoints.best == (3, 0.5)
        checkpoints.restore_best(like.params)
    assert sorted(tmp_path.glob("**/*")) == before
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, _state(4))
    assert [path.parent.name for path in tmp_path.glob("*/*/crc32_commit.json")] == ["4"]


def _flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_a_checkpoint_without_checksums_is_read_and_reported(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, _state(3))  # the first one is waited for
        (tmp_path / "latest" / "3" / "crc32.json").unlink()
        assert int(checkpoints.restore_latest(_placed(_state(0))).step) == 3
    assert "latest/3 is older than crc32.json: cannot check it for damage" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["2", "99", "4 (copy)", "5.orbax-checkpoint-tmp"])
def test_a_stray_directory_hides_no_checkpoint(tmp_path, name):
    like = _placed(_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, _state(4))
        checkpoints.save_if_best(4, _state(4).params, 0.5)
    for kind in ("latest", "best"):
        (tmp_path / kind / name / "half").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == (4, 0.5)
        assert checkpoints.restore_best(like.params)["layer"]["w"][0, 0] == 4.0
        assert int(checkpoints.restore_latest(like).step) == 4
        checkpoints.save(6, _state(6))
        if name == "99":
            with pytest.raises(
                UserError, match="best: step 6 is not saved because there is a later step, 99"
            ):
                checkpoints.save_if_best(6, _state(6).params, 0.75)
    assert (tmp_path / "latest" / "6").is_dir()


def test_any_number_is_better_than_nan(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert [
            checkpoints.save_if_best(n, _state(n).params, value)
            for n, value in enumerate((float("nan"), float("nan"), 0.0, float("nan")))
        ] == [0, 0, 2, 2]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best == (2, 0.0)
        assert [path.name for path in (tmp_path / "best").iterdir()] == ["2"]


@_IGNORE
def test_checkpoints_of_another_student_are_kept(tmp_path, capsys, broken_reads):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, _state(step))
    params = {"layer": {"w": jnp.zeros((4, 2))}}
    other = _placed(init_state(params, OPTIMIZER, jax.random.key(0, impl="rbg")))
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint can be read"):
            checkpoints.restore_latest(other)
        assert "shape" in capsys.readouterr().out
        assert int(checkpoints.restore_latest(_placed(_state(0))).step) == 4


def test_only_the_run_removes_unfinished_files(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1))
    unfinished = tmp_path / "latest" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path) as checkpoints:  # as `predict` does while the run saves
        assert checkpoints.latest_step == 1
    assert unfinished.exists()
    with Checkpoints(tmp_path, clean=True) as checkpoints:
        checkpoints.save(2, _state(2))
    assert sorted(path.name for path in (tmp_path / "latest").iterdir()) == ["1", "2"]


def test_too_little_space_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50))
        with pytest.raises(
            UserError, match=r"the checkpoint of step 1 needs .* 0.0 are free; free some space"
        ):
            checkpoints.save(1, _state(1))
        assert not any((tmp_path / "latest").iterdir())


def test_a_clock_change_during_a_save_does_no_harm(tmp_path, monkeypatch):
    clock, hours = time.time, itertools.count()
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(time, "time", lambda: clock() + 5 * 3600 * next(hours))
        checkpoints.save(1, _state(1))
        checkpoints.save(2, _state(2))
    assert next(hours) > 10
    assert (tmp_path / "latest" / "2").is_dir()


def test_a_failure_in_the_background_is_reported(tmp_path, monkeypatch):
    def fail(_):
        raise ValueError("RESOURCE_EXHAUSTED: Disk quota exceeded")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(1))
        with monkeypatch.context() as patch:
            patch.setattr("orbax.checkpoint.CheckpointManager.wait_until_finished", fail)
            with pytest.raises(UserError, match=r"cannot be written \(ValueError: .* quota exceeded\); fix"):
                checkpoints.save(2, _state(2))


@_IGNORE
@pytest.mark.usefixtures("broken_reads")
def test_a_run_never_restarts_if_no_checkpoint_can_be_read(tmp_path):
    like = _placed(_state(0))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, _state(step))
            checkpoints.save_if_best(step, _state(step).params, 0.5)
    for name in ("latest/3", "latest/4", "best/3"):
        _cut(tmp_path / name)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="no checkpoint can be read, for the reasons above; restore"):
            checkpoints.restore_latest(like)
        with pytest.raises(UserError, match=r"best/3 cannot be read \(ValueError: default/\S+ is damaged"):
            checkpoints.restore_best(like.params)
        assert checkpoints.latest_step == 4  # nothing was deleted
