"""Examples as token ids: what an example lacks is empty, and not counted."""

from cot_jax.config import DataConfig
from cot_jax.data.examples import Example
from cot_jax.data.views import METHODS
from cot_jax.text import formats
from cot_jax.training.encoding import tokenize

EXAMPLES = [
    Example("1", ("Why one?",), "one"),
    Example("2", ("Why two?",), "two", rationales=("two is two", "one and one")),
    Example("3", ("Why three?",), "three"),
]


def test_an_example_without_targets_is_empty_and_not_counted(tmp_path):
    for kind in ("seq2seq", "causal"):
        texts = [text for e in EXAMPLES for text in (*e.parts, e.label, *e.rationales)]
        format = formats.train(texts * 9, 64, tmp_path, kind)
        found = tokenize(METHODS["dss"], EXAMPLES, format, DataConfig())
        view = found.views["explain"]
        assert [n > 0 for n in view.inputs.lengths] == [False, True, False]
        assert view.first.tolist() == [0, 1, 3, 4]
        assert [n > 0 for n in view.targets.lengths] == [False, True, True, False]
        assert [format.decode("explain", view.targets[n].tolist()) for n in (1, 2)] == [
            *EXAMPLES[1].rationales
        ]
        inputs, targets = (line.partition("s ")[2] for line in found.report[2:])
        assert inputs.startswith("1 text, ")
        assert targets.startswith("2 texts, ")
        assert found.views["predict"].first is None
