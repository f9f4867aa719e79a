"""Tokenizers: the genuine T5's ids, and our own as SentencePiece and Transformers see them."""

import json

import pytest
import transformers
from transformers import AutoTokenizer

from cot_jax.data.word_problems import generate
from cot_jax.errors import UserError
from cot_jax.text import tokenizer as tokenizers

PROBLEMS = generate(1000, seed=0, max_steps=3, distractors=2, max_number=40)
TEXTS = [text for p in PROBLEMS for text in (p.text, p.label, p.rationale, *p.programs)]


@pytest.fixture(scope="module")
def t5(tokenizers_root):
    return tokenizers.load(tokenizers_root / "t5")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tokenizers.train(TEXTS, 500, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


# The genuine T5 tokenizer.


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (
            "translate English to German: That is good.",
            [13959, 1566, 12, 2968, 10, 466, 19, 207, 5],
        ),
        (" ", []),
        ("", []),
        ("391", [220, 4729]),
        ("a man</s>a dog", [3, 9, 388, 1, 3, 9, 1782]),
        ("{ } < ^", [3, 2, 3, 2, 3, 2, 3, 2]),
    ],
)
def test_t5_ids(t5, text, ids):
    assert t5.encode([text]) == [ids]


def test_t5_special_ids_and_size(t5):
    assert (t5.hf.pad_token_id, t5.eos_id, t5.unk_id, t5.eos_token, t5.size) == (0, 1, 2, "</s>", 32_100)


def svamp_inputs(data_root):
    with (data_root / "svamp" / "svamp_train.json").open(encoding="utf-8") as lines:
        return [json.loads(line)["input"] for line in lines]


def test_decoding_is_hugging_faces_and_returns_the_text(t5, data_root):
    texts = svamp_inputs(data_root)
    padded = [[0, *row, 1, 0, 0] for row in t5.encode(texts)]
    assert [t5.decode(row) for row in padded] == t5.hf.batch_decode(padded, skip_special_tokens=True)
    for text, row in zip(texts, padded, strict=True):
        assert "".join(t5.decode(row).split()) == "".join(text.split())


def test_rows_of_the_embedding_beyond_the_vocabulary_decode_to_nothing(t5):
    assert t5.decode([207, 32_127, 5, 1]) == t5.decode([207, 5, 1]) == "good."


def test_unknown_rate(t5):
    assert t5.unknown_rate(t5.encode(["{ } < ^", "good."])) == 4 / 10
    assert t5.unknown_rate([]) == 0.0


@pytest.mark.parametrize("plain", [False, True])
def test_ids_are_transformers_and_saved_truncation_and_padding_are_ignored(trained, tmp_path, plain):
    texts = [*TEXTS[:50], "a </s> b", "<pad>", ""]
    trained.save(tmp_path)
    cutting = tokenizers.load(tmp_path)
    cutting.hf.backend_tokenizer.enable_truncation(3)
    cutting.hf.backend_tokenizer.enable_padding(length=100)
    ids = cutting.encode(texts, plain=plain)
    options = {"add_special_tokens": False, "split_special_tokens": plain}
    assert ids == trained.hf(texts, **options)["input_ids"]


def test_nothing_to_encode(t5):
    assert t5.encode([]) == []


def test_long_texts_do_not_warn(t5, caplog):
    transformers.logging.enable_propagation()
    (row,) = t5.encode(["good " * 600])
    transformers.logging.disable_propagation()
    assert (len(row), caplog.records) == (600, [])


# One that is trained here.


def test_every_field_of_every_problem_survives(trained):
    rows = trained.encode(TEXTS)
    assert trained.unknown_rate(rows) == 0.0
    assert [trained.decode(row) for row in rows] == TEXTS


def test_ids_begin_as_t5s_and_the_end_token_can_be_written(trained):
    assert (trained.hf.pad_token_id, trained.eos_id, trained.unk_id, trained.eos_token) == (0, 1, 2, "</s>")
    joined, first, second = trained.encode(["Mia has</s>Tom has", "Mia has", "Tom has"])
    assert joined == [*first, 1, *second]


def test_ids_are_the_sentencepiece_models(trained):
    model = tokenizers._train_sentencepiece(TEXTS, 500)
    assert len(model) == trained.size < 250
    texts = [*TEXTS, "391 zebras {12.5}", "  two  spaces ", ""]
    assert trained.encode(texts) == [model.encode(text) for text in texts]


def test_words_and_numbers_are_one_token_each(trained):
    (row,) = trained.encode(["Mia buys 37 marbles."])
    assert trained.hf.convert_ids_to_tokens(row) == ["▁Mia", "▁buys", "▁37", "▁marbles", "."]


def test_unseen_text_falls_apart_into_pieces_and_unknown_characters(trained):
    (row,) = trained.encode(["Mias 1234 { }"])
    assert trained.decode(row).split()[:2] == ["Mias", "1234"]
    assert row.count(trained.unk_id) == 2


def test_training_is_deterministic_and_saving_loses_nothing(trained, tmp_path):
    again = tokenizers.train(TEXTS, 500, tmp_path / "again")
    trained.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text('{"model_type": "t5"}')  # as in an exported model
    saved = tokenizers.load(tmp_path / "saved")
    hugging_face = AutoTokenizer.from_pretrained(tmp_path / "saved")
    rows = trained.encode(TEXTS)
    assert again.encode(TEXTS) == saved.encode(TEXTS) == rows
    assert hugging_face(TEXTS).input_ids == [[*row, 1] for row in rows]
    assert [saved.decode(row) for row in rows] == TEXTS
    first, second = (tmp_path / name / "tokenizer.json" for name in ("again", "saved"))
    assert first.read_bytes() == second.read_bytes()


def test_vocabulary_keeps_to_its_size(trained, tmp_path):
    assert tokenizers.train(TEXTS, 120, tmp_path).size == 120


def test_vocabulary_that_holds_no_words(tmp_path):
    texts = ["abc abd"]  # a, b, c, d, the space, and three special tokens
    assert tokenizers.train(texts, 8, tmp_path).size == 8
    with pytest.raises(UserError, match="vocab_size=7: the characters of the texts alone need 8"):
        tokenizers.train(texts, 7, tmp_path)


# What can be wrong with a user's tokenizer: one line that names it and the fix.


def error_of(path):
    with pytest.raises(UserError) as caught:
        tokenizers.load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_missing_directory(tmp_path):
    message = error_of(tmp_path / "missing")
    assert "missing: no such directory; give a directory with tokenizer.json" in message


def test_directory_without_tokenizer(tmp_path):
    assert "give a directory with tokenizer.json" in error_of(tmp_path)


def test_broken_file(trained, tmp_path):
    trained.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text()[:-100])
    assert "cannot be loaded" in error_of(tmp_path)


@pytest.mark.usefixtures("offline")
def test_hub_out_of_reach():
    assert "a repository id in reach" in error_of("nobody/no-such-tokenizer")


def test_a_tokenizer_without_padding_and_end_tokens_is_a_tokenizer(tokenizers_root):
    llama = tokenizers.load(tokenizers_root / "llama")
    assert llama.decode(*llama.encode(["A man sleeps."])) == "A man sleeps."


def test_slow_tokenizer(tmp_path):
    transformers.ByT5Tokenizer().save_pretrained(tmp_path)
    assert "ByT5Tokenizer is not a fast tokenizer" in error_of(tmp_path)
