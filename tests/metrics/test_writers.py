"""Rows of metrics: what was written before a checkpoint is there, or the run is not resumed."""

import json
import re
import sys
import types

import pytest

from cot_jax.errors import UserError
from cot_jax.metrics.writers import MetricsWriter, last_step, log_answers, require_wandb


@pytest.fixture
def rows(tmp_path):
    with MetricsWriter(tmp_path, 0) as writer:
        for step in range(1, 5):
            writer.write(step, {"loss": 1.0})
            if step % 2 == 0:
                writer.write(step, {"valid/accuracy": step / 8})
    return tmp_path / "metrics.jsonl"


def test_rows_behind_the_checkpoint_are_written_again(rows):
    with MetricsWriter(rows.parent, 3) as writer:
        assert writer.evaluated == {2: 0.25}
        writer.write(4, {"loss": 2.0})
    assert rows.read_text().splitlines()[3:] == ['{"step": 3, "loss": 1.0}', '{"step": 4, "loss": 2.0}']
    assert last_step(rows.parent) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: content[:30] + bytes(8) + content[38:],
        lambda content: content[: content.index(b'{"step": 3')],
        lambda content: content.replace(b"2", b"\xff"),
    ],
)
def test_lost_rows_are_not_resumed_from(rows, damage):
    rows.write_bytes(damaged := damage(rows.read_bytes()))
    with pytest.raises(
        UserError, match=r"its rows end at step [0-2], the checkpoint is of step 4: restore the"
    ) as e:
        MetricsWriter(rows.parent, 4)
    assert rows.read_bytes() == damaged
    (row,) = re.findall("{.*}", str(e.value))
    rows.write_text(row + "\n")
    with MetricsWriter(rows.parent, 4) as writer:
        assert writer.evaluated == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # theirs
def test_weights_and_biases_take_metrics_and_answers(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="logging there needs cot-jax[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with MetricsWriter(tmp_path, 0, {"seed": 0}) as writer:
        writer.write(1, {"loss": 1.0})
    log_answers(
        tmp_path, {"seed": 0}, [{"answer": "</b>", "correct": False}, {"answer": "4", "correct": True}]
    )
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/answers_*.table.json")
    assert json.loads(table.read_text()) == {
        "columns": ["answer", "correct"], "data": [["</b>", False], ["4", True]],
    }  # fmt: skip
    assert len({run.name.rpartition("-")[2] for run in tmp_path.glob("wandb/offline-run-*")}) == 1


@pytest.mark.parametrize("installed", [True, False])
def test_weights_and_biases_that_do_not_start_are_one_line(tmp_path, monkeypatch, installed):
    class Error(Exception):
        pass

    def refuse(**given):
        raise Error("No API key configured. Use `wandb login` to log in.")

    wandb = types.SimpleNamespace(init=refuse, login=refuse, Error=Error) if installed else None
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    message = r"does not start \(Error: No API key.*WANDB_MODE=offline" if installed else "pip install"
    with pytest.raises(UserError, match=message):
        require_wandb()
    with pytest.raises(UserError, match=message):
        MetricsWriter(tmp_path, 0, {})
    assert not [*tmp_path.iterdir()]


def test_runs_of_one_name_are_not_one_at_weights_and_biases(tmp_path, monkeypatch):
    started = []
    run = types.SimpleNamespace(finish=lambda: None)
    wandb = types.SimpleNamespace(init=lambda **given: started.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for method in ("dss", "mi", "dss"):
        directory = tmp_path / method / "seed0"
        directory.mkdir(parents=True, exist_ok=True)
        with MetricsWriter(directory, 0, {}):
            pass
    assert [one["name"] for one in started] == [str(tmp_path / n / "seed0") for n in ("dss", "mi", "dss")]
    first, other, again = (one["id"] for one in started)
    assert first == again != other
