"""Formats: the published ids of questions and targets, what is cut, and what comes back as text."""

import json
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer

from cot_jax.config import DataConfig
from cot_jax.data import tasks
from cot_jax.data.views import METHODS
from cot_jax.errors import UserError
from cot_jax.text import codec, formats
from cot_jax.training.encoding import encode_questions, fit, tokenize

# Of three training rows of each task: the ids that every view reads and writes, as the first release of this
# package had them.
PUBLISHED = json.loads((Path(__file__).parent / "published_ids.json").read_text())
TEXTS = ["Mia buys 37 marbles.", "Tom has 3 more marbles than Mia."]
PROGRAM = "x = 3\nans = {1: x}[1]"


@pytest.fixture(scope="module")
def t5(tokenizers_root):
    return formats.load(tokenizers_root / "t5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return formats.train(TEXTS * 8, 64, tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("method", ["dss", "single_task", "rationale_input"])
@pytest.mark.parametrize("task", PUBLISHED)
def test_questions_and_targets_have_the_published_ids(t5, data_root, task, method):
    by_id = {example.id: example for example in tasks.load(task, data_root).train}
    examples = [by_id[key] for key in PUBLISHED[task]["ids"]]
    format = fit(t5, METHODS[method], examples, DataConfig())
    tokenized = tokenize(METHODS[method], examples, format, DataConfig()).views
    for view in METHODS[method]:
        found = tokenized[view.name]
        asked, _ = encode_questions(view, examples, format, 1024)
        expected = PUBLISHED[task][view.name]
        for n in range(len(examples)):
            assert found.inputs[n].tolist() == asked[n].tolist() == expected["inputs"][n]
            assert found.targets[n].tolist() == expected["targets"][n]


@pytest.mark.parametrize("most", [1024, 30, 2, 1])
def test_cuts_are_those_of_transformers(t5, data_root, most):
    examples = tasks.load("svamp", data_root).train
    texts = [*(example.text for example in examples), "", "premise</s>hypothesis"]
    questions = [*(example.parts for example in examples), ("",), ("premise", "hypothesis")]
    reference = AutoTokenizer.from_pretrained(t5.tokenizer.hf.name_or_path)
    ids, report = t5.inputs("", questions, most)
    assert ids == reference(texts, max_length=most, truncation=True).input_ids
    cut = sum(row != whole for row, whole in zip(ids, t5.inputs("", questions, 1024).ids, strict=True))
    assert f", {cut} cut at {most}, " in report


def test_what_is_not_there_is_empty_and_not_counted(trained):
    (first, none, second), report = trained.targets("predict", [TEXTS[0], None, TEXTS[1]], 64)
    assert (first[-1], none, second[-1]) == (1, [], 1)
    mean = (len(first) + len(second)) / 2
    assert report == (
        f"2 texts, {mean:.1f} tokens on average, {max(len(first), len(second))} at most, 0 cut at 64, "
        "0.000 % unknown tokens"
    )
    assert trained.inputs("predict: ", [None], 9).ids == [[]]
    assert trained.targets("predict", [], 9).report.startswith("0 texts, 0.0 tokens on average, 0 at most")


def test_parts_follow_each_other_with_the_end_token_between(trained):
    (pair,), _ = trained.inputs("", [(TEXTS[0], TEXTS[1])], 64)
    (first, second), _ = trained.targets("", TEXTS, 64)
    assert pair == first + second


def test_targets_that_the_tokenizer_loses_are_spelled(t5):
    learned = {
        "predict": ["( 1 + 2 )"],
        "explain": ["One  and {two}."],
        "program": ["ans = 1\n"],
        "odd": ["a  b"],
    }
    format = t5.fit(learned, ["program"])
    assert format.spelled == ("explain", "program")  # two spaces are lost of `odd`, and may be
    for view in ("explain", "program"):
        (ids,), report = format.targets(view, learned[view], 64)
        assert report.endswith("0.000 % unknown tokens (spelled by the codec)")
        assert format.decode(view, ids) == learned[view][0]
        assert t5.decode(view, ids) == codec.encode(learned[view][0])
    assert format.targets("predict", learned["predict"], 64) == t5.targets("predict", learned["predict"], 64)


def test_saving_keeps_the_spelling(trained, tmp_path):
    format = trained.fit({"predict": TEXTS, "program": [PROGRAM]}, ["program"])
    format.save(tmp_path)
    again = formats.load(tmp_path)
    assert again.spelled == format.spelled == ("program",)
    assert again.targets("program", [PROGRAM], 64) == format.targets("program", [PROGRAM], 64)
    (tmp_path / "format.json").write_text('{"spelled": "program"}')
    with pytest.raises(UserError, match=r'format\.json: "spelled" must be a list of views'):
        formats.load(tmp_path)


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
def test_a_tokenizer_without_a_needed_token_is_refused(trained, tmp_path, role):
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained.tokenizer.hf.backend_tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    setattr(hf, role, None)
    hf.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"no {role}; name it in its tokenizer_config.json"):
        formats.load(tmp_path)
