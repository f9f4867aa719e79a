"""What a run prints while it trains."""

import itertools

from cot_jax.training import console


def test_progress_shows_the_time_that_is_left(monkeypatch, capsys):
    clock = itertools.count(0.0, 30.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.Progress(first=3, steps=200, batch_size=12, every=5) as progress:
        for step in range(4, 11):
            progress.update(step, {"loss": 1.5, "grad_norm": 2.0})
    assert capsys.readouterr().out.splitlines() == [
        "step 5: loss 1.5000, 0.8 examples/s, 48:45 left",
        "step 10: loss 1.5000, 2.0 examples/s, 19:00 left",
    ]
