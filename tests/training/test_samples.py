"""Samples: in the order of the questions, drawn from short to long, kept batch by batch."""

import collections
import json

import numpy as np
import pytest

from cot_jax.data.examples import Example
from cot_jax.errors import UserError
from cot_jax.training.evaluation import Answers
from cot_jax.training.samples import Sample, draw_samples

WORDS = ("three words here", "one", "two words", "the longest of them all")
EXAMPLES = [Example(str(n), (text,), "") for n, text in enumerate(WORDS)]
HOW = {"samples": 2, "seed": 0}


def _draw(file, how=HOW, examples=EXAMPLES):
    asked = []

    def answer(some):
        texts = [f"{e.text} {n}" for e in some for n in range(2)]
        asked.append([e.id for e in some])
        lengths = np.array([len(text) for text in texts])
        return Answers(texts, texts, collections.Counter(), -1.0 * lengths, lengths, lengths > 10), ""

    return draw_samples(answer, examples, file, how, batch_size=3), asked


def test_samples_are_in_the_order_of_the_questions(tmp_path):
    file = tmp_path / "samples.jsonl"
    samples, asked = _draw(file)
    assert asked == [["1", "2", "0"], ["3"]]
    assert samples == [
        [Sample(f"{text} {n}", -len(text) - 2.0, len(text) + 2 > 10) for n in range(2)] for text in WORDS
    ]
    how, *rows = map(json.loads, file.read_text().splitlines())
    assert (how, [row["id"] for row in rows]) == (HOW, ["1", "2", "0", "3"])
    assert _draw(file) == (samples, [])  # nothing is drawn again


def test_only_samples_drawn_alike_are_kept(tmp_path, capsys):
    file = tmp_path / "samples.jsonl"
    _draw(file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]))
    assert _draw(file)[1] == [["0", "3"]]
    assert "2 of 4 questions are drawn already" in capsys.readouterr().err
    assert _draw(file, HOW | {"seed": 1})[1] == [["1", "2", "0"], ["3"]]
    assert "replaced" in capsys.readouterr().err


def test_a_file_that_was_changed_is_refused(tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text("")  # as good as none
    _draw(file)
    how, *rows = file.read_text().splitlines(keepends=True)
    fewer = json.loads(rows[0])
    fewer["samples"].pop()
    for changed, wrong in {
        (rows[1],): r":2: expected 2 samples of question '1': delete the file",
        (json.dumps(fewer),): r":2: expected 2 samples of question '1'",
        (*rows, rows[0]): r":6: expected no further row",
        (rows[0], rows[1][:-9]): r":3: ",
    }.items():
        file.write_text("".join((how, *changed)))
        with pytest.raises(UserError, match=wrong):
            _draw(file)
