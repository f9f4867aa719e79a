"""A run killed at any moment, also while it saves, goes on to the very rows of one left alone."""

import pytest

from tests.kill_and_resume import main


@pytest.mark.slow
def test_a_kill_while_it_saves(capsys):
    """Twenty, at other moments too: `python -m tests.kill_and_resume --kills=20`."""
    status = main(["--kills=1", "--config.train.steps=18"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    assert "kill 1: killed after" in printed
    assert "half written: " in printed.splitlines()[0]
    assert "all rows and the result equal" in printed
