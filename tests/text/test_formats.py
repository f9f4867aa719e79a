"""Formats: the published ids of questions and targets, what is cut, and what comes back as text."""

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pytest
import transformers
from tokenizers import processors
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
    return formats.load(tokenizers_root / "t5", "seq2seq")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return formats.train(TEXTS * 8, 64, tmp_path_factory.mktemp("trained"), "seq2seq")


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
        assert found.inputs.prefix.size == asked.prefix.size == 0
        for n in range(len(examples)):
            assert found.inputs[n].tolist() == asked[n].tolist() == expected["inputs"][n]
            assert found.targets[n].tolist() == expected["targets"][n]


@pytest.mark.parametrize("most", [1024, 30, 2, 1])
def test_cuts_are_those_of_transformers(t5, data_root, most):
    examples = tasks.load("svamp", data_root).train
    texts = [*(example.text for example in examples), "", "premise</s>hypothesis"]
    questions = [*(example.parts for example in examples), ("",), ("premise", "hypothesis")]
    reference = AutoTokenizer.from_pretrained(t5.tokenizer.hf.name_or_path)
    ids, report, prefix = t5.inputs("", questions, most)
    assert prefix == ()
    assert ids == reference(texts, max_length=most, truncation=True).input_ids
    cut = sum(row != whole for row, whole in zip(ids, t5.inputs("", questions, 1024).ids, strict=True))
    assert f", {cut} cut at {most}, " in report


def test_texts_are_counted(trained):
    (first, second), report, _ = trained.targets("predict", TEXTS[:2], 64)
    assert (first[-1], second[-1]) == (1, 1)
    mean = (len(first) + len(second)) / 2
    assert report == (
        f"2 texts, {mean:.1f} tokens on average, {max(len(first), len(second))} at most, 0 cut at 64, "
        "0.000 % unknown tokens"
    )
    assert trained.targets("predict", [], 9).report.startswith("0 texts, 0.0 tokens on average, 0 at most")


def test_parts_follow_each_other_with_the_end_token_between(trained):
    (pair,), *_ = trained.inputs("", [(TEXTS[0], TEXTS[1])], 64)
    (first, second), *_ = trained.targets("", TEXTS, 64)
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
        (ids,), report, _ = format.targets(view, learned[view], 64)
        assert report.endswith("0.000 % unknown tokens (spelled by the codec)")
        assert format.decode(view, ids) == learned[view][0]
        assert t5.decode(view, ids) == codec.encode(learned[view][0])
    assert format.targets("predict", learned["predict"], 64) == t5.targets("predict", learned["predict"], 64)


def test_saving_keeps_the_spelling(trained, tmp_path):
    format = trained.fit({"predict": TEXTS, "program": [PROGRAM]}, ["program"])
    format.save(tmp_path)
    again = formats.load(tmp_path, "seq2seq")
    assert again.spelled == format.spelled == ("program",)
    assert again.targets("program", [PROGRAM], 64) == format.targets("program", [PROGRAM], 64)
    (tmp_path / "format.json").write_text('{"spelled": "program"}')
    with pytest.raises(UserError, match=r"format\.json: spelled is 'program', expected a list"):
        formats.load(tmp_path, "seq2seq")


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
def test_a_tokenizer_without_a_needed_token_is_refused(trained, tmp_path, role):
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained.tokenizer.hf.backend_tokenizer, pad_token="<pad>", eos_token="</s>"
    )
    setattr(hf, role, None)
    hf.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"no {role}; name it in its tokenizer_config.json"):
        formats.load(tmp_path, "seq2seq")


# Templates of a chat: an answer follows a line break, a space (as of Llama 2), or a bracket that may merge.
TEMPLATES = {
    "chatml": "{% for turn in messages %}<|{{ turn.role }}|>\n{{ turn.content | trim }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "inst": "{% for turn in messages %}{% if turn.role == 'user' %}{{ bos_token }}[INST] {{ turn.content }} "
    "[/INST]{% else %} {{ turn.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "merging": "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
}
QUESTIONS = [("Tom has 3 pens.", "How many pens?"), ("A B ?\n",), ("",), ("\u201c½ of 7\u201d",)]
SHOTS = [(("Ann has 2 pens.", "And now?"), "She has 2.\n\n\nSo 2"), (("One?",), "1")]
# What a tokenizer may lose, or merge with the end of a prompt.
TARGETS = ["( 3 + 4 )", "42", "", " a  b . ", "isn't\t½ ş", "ans = 1\nif x:\n    ans = 2\n", "\n\nx"]


def _llama(folder, tokenizers_root, kind):
    hf = AutoTokenizer.from_pretrained(tokenizers_root / "llama")
    if kind == "started":
        start = (hf.bos_token, hf.bos_token_id)
        hf.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "$A $B", [start])
    hf.chat_template = TEMPLATES.get(kind)
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["plain", "started", *TEMPLATES, "smollm2", "smollm2 plain"])
def causal(request, tokenizers_root, tmp_path_factory):
    """The Llama tokenizer, and that of a chat model, with the prompts that they can have."""
    if not request.param.startswith("smollm2"):
        folder = _llama(tmp_path_factory.mktemp("tokenizer"), tokenizers_root, request.param)
        return formats.load(folder, "causal")
    if not (models := os.environ.get("COT_JAX_MODELS")):
        pytest.skip("COT_JAX_MODELS is not set: pretrained models are not at hand")
    chat = "plain" if request.param.endswith("plain") else "auto"
    return formats.load(Path(models) / "smollm2-135m-instruct", "causal", chat)


def _written_out(format, prefix, parts, shots=()):
    """The text of a prompt and what is between it and a target, as `Causal` describes them."""
    hf = format.tokenizer.hf
    turns = []
    for question, target in [*shots, (parts, None)]:
        turns.append({"role": "user", "content": prefix + "\n".join(question)})
        turns.append({"role": "assistant", "content": target})
    turns.pop()
    if format.chat:
        text = hf.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return text, " " if text.endswith("[/INST]") else ""
    text = ""
    for turn in turns:
        if turn["role"] == "user":
            text += turn["content"] + "\nAnswer:"
        else:
            text += " " + turn["content"].replace("\n\n\n", "\n") + "\n\n"
    return text, " "


def _ids(format, text):
    """The ids of a text that begins with a prompt."""
    hf = format.tokenizer.hf
    return hf(text, add_special_tokens=not format.chat).input_ids


def _common(rows):
    """What all rows begin with."""
    same = itertools.takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return [token for token, *_ in same]


def _whole(encoded):
    return [[*encoded.prefix, *ids] for ids in encoded.ids]


@pytest.mark.parametrize("prefix", ["", "predict: "])
def test_prompt_and_completion_are_the_ids_of_their_text(causal, prefix):
    targets = [TARGETS[:2], TARGETS[2:4], TARGETS[4:6], TARGETS[6:]]
    inputs, learned = causal.pairs("predict", prefix, QUESTIONS, targets, 512, 128)
    texts = iter(learned.ids)
    for read, parts, its in zip(_whole(inputs), QUESTIONS, targets, strict=True):
        prompt, lead = _written_out(causal, prefix, parts)
        joined = [_ids(causal, prompt + lead + text) for text in its]
        for row in joined:
            assert [*read, *next(texts)] == [*row, causal.tokenizer.eos_id]
        # And no earlier than the tokens ask for.
        ways = {tuple(row[: len(read) + 1]) for row in (_ids(causal, prompt), *joined)}
        assert len(ways) > 1
    assert next(texts, None) is None
    asked = causal.inputs(prefix, QUESTIONS, 512)
    assert _whole(asked) == [_ids(causal, _written_out(causal, prefix, parts)[0]) for parts in QUESTIONS]


def test_the_seam_moves_where_tokens_merge(tokenizers_root, tmp_path):
    format = formats.load(_llama(tmp_path, tokenizers_root, "merging"), "causal")
    inputs, targets = format.pairs("predict", "", [("Why?",), ("Why?",)], [["(1)", "42"], ["42"]], 64, 64)
    bracket, merged = (format.tokenizer.hf.convert_tokens_to_ids(token) for token in ("]", "]("))
    asked = format.inputs("", [("Why?",)], 64).ids[0]
    assert inputs.ids == [asked[:-1], asked]
    assert asked[-1] == bracket
    assert [ids[0] for ids in targets.ids[:2]] == [merged, bracket]
    assert targets.ids[1][1:] == targets.ids[2]
    # What is cut is the question, however far the seam moved.
    long = ("Why " * 40 + "?",)
    cut, _ = format.pairs("predict", "", [long, long], [["(1)"], ["42"]], 32, 64)
    first, second = _whole(cut)
    assert len(first) == len(second) == 32
    assert first[-3:] == second[-4:-1]
    assert format.tokenizer.decode(first[:-3]).endswith("Why Why Why")


def test_a_question_is_cut_and_its_prompt_is_not(causal):
    question = " ".join(f"Tom has {n} pens, doesn't he?" for n in range(20))
    (whole,) = _whole(causal.inputs("", [(question,)], 1000))
    short = _ids(causal, _written_out(causal, "", ("Tom",))[0])
    tail = _common([short[::-1], _ids(causal, _written_out(causal, "", ("pens",))[0])[::-1]])[::-1]
    for most in (len(whole), len(whole) - 1, len(whole) - 2, len(whole) - 9, 80):
        encoded = causal.inputs("", [(question,), ("Tom",)], most)
        cut = most < len(whole)
        assert f", {int(cut)} cut at {most}, " in encoded.report
        assert _whole(encoded) == [[*whole[: most - len(tail)], *tail] if cut else whole, short]
    least = len(causal.inputs("", [], 1000).prefix) + len(tail)
    assert len(_whole(causal.inputs("", [(question,)], least + 1))[0]) == least + 1
    with pytest.raises(
        UserError, match=rf"^config\.data\.max_input_tokens={least}: a prompt has {least} tok"
    ):
        causal.inputs("", [(question,)], least)


def test_a_target_is_cut_before_its_end(causal):
    (whole,), *_ = causal.targets("predict", ["one two three four five six"], 64)
    (cut,), report, _ = causal.targets("predict", ["one two three four five six"], 4)
    assert cut == [*whole[:3], causal.tokenizer.eos_id]
    assert ", 1 cut at 4, " in report
    _, learned = causal.pairs("predict", "", [("Tom?",)], [["one two three four five six"]], 64, 4)
    assert learned.ids == [cut]


def test_prompts_share_what_no_question_changes(causal):
    for prefix, shots in (("", ()), ("predict: ", ()), ("", SHOTS)):
        format = causal.with_shots(shots)
        prompts = [_ids(causal, _written_out(causal, prefix, (text,), shots)[0]) for text in 'aB0"']
        shared = _common(prompts)
        assert format.inputs(prefix, [], 512).prefix == tuple(shared)
        for questions in ([("Tom?",)], [("Ann",), ("Tom?",)]):
            assert format.inputs(prefix, questions, 512).prefix == tuple(shared)
    # A row that disagrees shortens it, and no row is left with nothing.
    many = causal.inputs("predict", [("",), ("ion",), ("or",)], 512)
    assert all(many.ids)
    assert _whole(many) == [
        _ids(causal, _written_out(causal, "predict", (end,))[0]) for end in ("", "ion", "or")
    ]


def test_shots_are_written_before_the_question(causal):
    format = causal.with_shots(SHOTS)
    encoded = format.inputs("explain: ", [("Tom?", "Or Ann?"), ("Ann?",)], 512)
    questions = [("Tom?", "Or Ann?"), ("Ann?",)]
    texts = [_written_out(causal, "explain: ", parts, SHOTS)[0] for parts in questions]
    assert _whole(encoded) == [_ids(causal, text) for text in texts]
    ids = causal.targets("predict", ["42\n\nTom?\nAnswer: 7"], 64).ids[0]
    assert format.decode("predict", ids) == ("42\n\nTom?\nAnswer: 7" if causal.chat else "42")
    assert causal.decode("predict", ids) == "42\n\nTom?\nAnswer: 7"


def test_what_is_written_comes_back(causal):
    merging = causal.tokenizer.hf.chat_template == TEMPLATES["merging"]
    texts = [text for text in TARGETS if not text.startswith(("\n", "(") if merging else "\n")]
    rows = causal.targets("predict", texts, 64).ids
    for text, ids in zip(texts, rows, strict=True):
        assert causal.decode("predict", ids) == text
        assert causal.decode("predict", [*ids, *ids, 5, 0]) == text
    _, learned = causal.pairs("predict", "", [("Tom?",)] * len(texts), [[text] for text in texts], 512, 64)
    assert learned.ids == rows


def test_only_what_a_tokenizer_loses_is_spelled(t5, causal):
    learned = {"predict": ["( 1 + 2 )"], "explain": ["One  and {two}."], "program": [PROGRAM]}
    assert causal.fit(learned, ["program"]).spelled == ()
    format = formats.Causal(t5.tokenizer, chat=False).fit(learned, ["program"])
    assert format.spelled == ("explain", "program")
    inputs, targets = format.pairs("program", "program: ", [TEXTS[:1]], [[PROGRAM]], 64, 64)
    assert targets.report.endswith("(spelled by the codec)")
    assert format.decode("program", targets.ids[0]) == PROGRAM
    assert targets.ids == format.targets("program", [PROGRAM], 64).ids
    assert format.tokenizer.decode(_whole(inputs)[0]) == f"program: {TEXTS[0]} Answer:"


def test_a_trained_tokenizer_knows_the_words_of_its_prompts(tmp_path):
    format = formats.train(["pens " * 4] * 8, 64, tmp_path, "causal")
    assert not format.chat
    inputs, targets = format.pairs("", "", [("pens",)], [["pens"]], 64, 64)
    assert inputs.report.endswith(" 0.000 % unknown tokens")
    assert format.decode("", targets.ids[0]) == "pens"


@pytest.mark.slow
def test_a_saved_format_is_that_of_its_kind(trained, tokenizers_root, tmp_path):
    _llama(tmp_path / "chat", tokenizers_root, "chatml")
    (tmp_path / "saved").mkdir()
    for chat in (True, False):
        format = formats.load(tmp_path / "chat", "causal", "template" if chat else "plain")
        assert format.chat == chat
        dataclasses.replace(format, spelled=("program",)).save(tmp_path / "saved")
        again = formats.load(tmp_path / "saved", "causal")
        assert (again.chat, again.spelled) == (chat, ("program",))
        assert again.inputs("", QUESTIONS, 64) == format.inputs("", QUESTIONS, 64)
        assert formats.load(tmp_path / "saved", "causal", "plain").chat is False
        assert formats.load(tmp_path / "saved", "causal", "template").chat is True
    with pytest.raises(
        UserError, match=r"format\.json: the format is 'causal', the student reads 'seq2seq'; "
    ):
        formats.load(tmp_path / "saved", "seq2seq")
    (tmp_path / "saved/format.json").write_text('{"kind": "causal", "spelled": [], "chat": "yes"}')
    with pytest.raises(UserError, match=r"format\.json: chat is 'yes', expected true or false"):
        formats.load(tmp_path / "saved", "causal")
    # As the first releases wrote it.
    trained.tokenizer.save(tmp_path / "old")
    (tmp_path / "old/format.json").write_text('{"spelled": ["program"]}')
    assert formats.load(tmp_path / "old", "seq2seq").spelled == ("program",)
    with pytest.raises(
        UserError, match=r"format\.json: the format is 'seq2seq', the student reads 'causal'; "
    ):
        formats.load(tmp_path / "old", "causal")


def test_what_a_format_cannot_do_is_refused(trained, tokenizers_root, tmp_path):
    trained.tokenizer.save(tmp_path)
    with pytest.raises(
        UserError, match=r"no chat template; put its chat_template\.jinja there, or use plain"
    ):
        formats.load(tmp_path, "causal", "template")
    with pytest.raises(UserError, match=r"^config\.data\.chat=template: .* reads no chat$"):
        formats.load(tmp_path, "seq2seq", "template")
    assert trained.with_shots(()) == trained
    with pytest.raises(UserError, match=r"^2 shots: an encoder-decoder reads the question only"):
        trained.with_shots(SHOTS)
    _llama(tmp_path / "broken", tokenizers_root, "chatml")
    (tmp_path / "broken/chat_template.jinja").write_text("{{ raise_exception('no user') }}")
    with pytest.raises(UserError, match=r"its chat template fails .*no user.*; fix it, or use plain prompts"):
        formats.load(tmp_path / "broken", "causal").inputs("", [("Tom?",)], 64)


def test_a_decoder_needs_an_end_token_alone(trained, tmp_path):
    hf = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained.tokenizer.hf.backend_tokenizer, eos_token="</s>"
    )
    hf.save_pretrained(tmp_path)
    tokenizer = formats.load(tmp_path, "causal").tokenizer
    assert (tokenizer.hf.pad_token_id, tokenizer.eos_id) == (None, 1)
    hf.eos_token = None
    hf.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no eos_token; name it in its tokenizer_config\.json"):
        formats.load(tmp_path, "causal")


def test_no_prompt_depends_on_the_day_or_has_thoughts(tokenizers_root, tmp_path):
    _llama(tmp_path, tokenizers_root, "chatml")
    template = "{{ date_string }}|{{ enable_thinking }}|{{ messages[0].content }}|"
    (tmp_path / "chat_template.jinja").write_text(template)
    format = formats.load(tmp_path, "causal")
    (ids,) = _whole(format.inputs("", [("Tom?",)], 64))
    assert format.tokenizer.decode(ids) == "26 Jul 2024|False|Tom?|"


def test_a_text_and_what_follows_it_are_tokenised_together(trained, tmp_path, tokenizers_root):
    started = formats.load(_llama(tmp_path, tokenizers_root, "started"), "causal")
    contexts, continuations = ["Home: A man", "Home: A man  "], [" sits.", "sits."]
    inputs, targets = started.continued(contexts, continuations)
    begin = started.tokenizer.hf.bos_token_id
    assert inputs[0] == inputs[1] == [begin, *started.tokenizer.encode(["Home: A man"])[0]]
    for n in range(2):
        whole = started.tokenizer.encode([contexts[n] + continuations[n]])[0]
        assert [*inputs[n], *targets[n]] == [begin, *whole]
    with pytest.raises(UserError, match=r"^the student is an encoder-decoder: it has no likelihood"):
        trained.continued(contexts, continuations)
