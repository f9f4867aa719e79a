"""Pictures are made of the rows that are there."""

import json

import pytest

from cot_jax.metrics.plots import draw_layer_norms


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
