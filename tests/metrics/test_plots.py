"""Pictures are made of the rows that are there."""

import json

import numpy as np
import pytest

from cot_jax.metrics.plots import draw_heat_map, draw_layer_norms, read_curves


def test_layer_norms_are_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need Matplotlib")
    rows = [
        {"step": step, "loss": 1.0}
        | {f"grad_norm/{stack}/{n}": 1 / (step + n) for stack in ("encoder", "decoder") for n in range(3)}
        for step in (10, 20, 30)
    ]
    rows.insert(1, {"step": 11, "loss": 1.0, "grad_norm": 3.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_layer_norms(tmp_path / "metrics.jsonl", "grad_norm/", tmp_path / "norms.png")
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_rows_of_layer_norms_has_no_picture_of_them(tmp_path):
    """As one that resumed at its last step, from the one row which the message of lost rows asks for."""
    pytest.importorskip("matplotlib", reason="plots need Matplotlib")
    (tmp_path / "metrics.jsonl").write_text('{"step": 98}\n{"step": 99, "loss": 1.0}\n')
    draw_layer_norms(tmp_path / "metrics.jsonl", "grad_norm/", tmp_path / "norms.png")
    assert not (tmp_path / "norms.png").exists()


def test_a_heat_map_is_drawn_with_its_numbers(tmp_path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure", reason="plots need Matplotlib")
    written, write = [], figure.Figure.savefig

    def save(self, *given, **how):
        (panel, _) = self.axes
        written.extend([panel.get_xlabel(), panel.get_ylabel(), *(text.get_text() for text in panel.texts)])
        write(self, *given, **how)

    monkeypatch.setattr(figure.Figure, "savefig", save)
    scores = np.array([[50.0, np.nan], [61.04, 70.0]])
    rows, columns = ("tau", {"tau=1": 1.0, "tau=2": 2.0}), ("alpha", {"alpha=0": 0.0, "alpha=1": 1.0})
    draw_heat_map(scores, rows, columns, "accuracy", tmp_path / "map.png")
    assert written == ["alpha", "tau", "50.0", "61.0", "70.0"]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("rows", "points"), [(1, 1), (9, 9), (40, 10), (250, 10), (1000, 40)])
def test_short_runs_have_curves_too(tmp_path, rows, points):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f'{{"step": {n}, "loss": {n}.0}}\n' for n in range(1, rows + 1)))
    curve = read_curves([file])["loss"]
    assert len(curve.steps) == points
    np.testing.assert_array_equal(curve.steps, curve.mean)
