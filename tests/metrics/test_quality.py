"""Rationale quality against hand values, an own LCS and the teacher's real outputs."""

import importlib.util
import json
import math
import re

import numpy as np
import pytest

from cot_jax.errors import UserError
from cot_jax.metrics import quality

SAID = ["Tom has 3 pens, so 3 + 4 = 7.", "the cat sat on the mat", "no word in common", ""]
MEANT = ["Tom has 3 pens. So 3 + 4 = 7.", "the cat is on the mat", "entirely different text", "Tom has 3."]


def _rouge_l(said, meant):
    """F1 of the longest common subsequence of lower-case words and numbers."""
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (said, meant))
    table = np.zeros((len(a) + 1, len(b) + 1))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    common = table[-1, -1]
    return 2 * common / (len(a) + len(b))


def test_likeness_is_the_libraries_and_the_hand_value():
    import sacrebleu

    corpus, each = quality.likeness(SAID, MEANT)
    np.testing.assert_allclose(each["rouge_l"], list(map(_rouge_l, SAID, MEANT)), atol=1e-12)
    assert each["rouge_l"][1] == pytest.approx(5 / 6)  # the cat on the mat, of six words each
    assert corpus["rouge_l"] == pytest.approx(np.mean(each["rouge_l"]))
    assert corpus["bleu"] == pytest.approx(sacrebleu.corpus_bleu(SAID, [MEANT]).score)
    assert corpus["chrf"] == pytest.approx(sacrebleu.corpus_chrf(SAID, [MEANT]).score)
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, none of 3 quadruples, which smoothing counts as a half.
    by_hand = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25
    assert each["bleu"][1] == pytest.approx(by_hand)
    assert each["chrf"][1] == pytest.approx(sacrebleu.sentence_chrf(SAID[1], [MEANT[1]]).score)
    assert [each[name][3] for name in each] == [0, 0, 0]


def test_a_rationale_equal_to_the_teachers_is_perfect_however_short():
    corpus, each = quality.likeness(["So 7."], ["So 7."])
    assert {**corpus, "bleu": each["bleu"][0]} == pytest.approx({"bleu": 100, "chrf": 100, "rouge_l": 1})


def test_likeness_of_nothing_or_of_texts_that_do_not_pair_is_a_mistake():
    with pytest.raises(ValueError, match="no rationales"):
        quality.likeness([], [])
    with pytest.raises(ValueError, match="shorter"):
        quality.likeness(["a", "b"], ["a"])


def test_a_pair_that_would_take_gigabytes_is_refused():
    with pytest.raises(
        UserError, match="rationale 2 of those with a reference has 10,000 words, its reference"
    ):
        quality.likeness(["a", 10_000 * "a "], ["a", 10_000 * "b."])


def test_missing_libraries_are_named_with_the_fix(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cot-jax\[quality\]'"):
        quality.likeness(["a"], ["a"])
    with pytest.raises(UserError, match="pip install torch"):
        quality.similarity(["a"], ["a"], "encoder")


def test_correlations_are_the_definitions():
    rng = np.random.default_rng(0)
    grade = rng.integers(0, 8, 40).astype(float)  # with ties
    correct = rng.random(40) < grade / 10
    found = quality.correlations(grade, correct)
    r = np.corrcoef(grade, correct)[0, 1]
    assert found["n"] == 40
    assert found["pearson"]["r"] == pytest.approx(r)
    # Student's t with n - 2 degrees of freedom, two-sided, by numerical integration.
    t, degrees = abs(r) * math.sqrt(38 / (1 - r * r)), 38
    x = np.linspace(t, 200, 2_000_001)
    density = (1 + x * x / degrees) ** (-(degrees + 1) / 2)
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    assert found["pearson"]["p"] == pytest.approx(2 * scale * np.trapezoid(density, x), rel=1e-4)
    ranks = [np.array([(v < x).sum() + ((v == x).sum() + 1) / 2 for x in v]) for v in (grade, correct)]
    assert found["spearman"]["r"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize(
    ("grade", "correct"),
    [
        ([1, 1, 1, 1], [True, False, True, False]),
        ([0.1 + 0.2, 0.3, 0.3, 0.3], [True, False, True, False]),
        ([1, 2, 3, 4], [True, True, True, True]),
        ([1, 2], [True, False]),
        ([], []),
    ],
)
def test_what_does_not_vary_correlates_with_nothing(grade, correct):
    found = quality.correlations(grade, correct)
    assert found == {"n": len(grade), "pearson": None, "spearman": None}


def test_similarity_is_the_cosine_of_mean_hidden_states(tokenizers_root, tmp_path):
    torch = pytest.importorskip("torch", reason="the encoder runs in PyTorch")
    from transformers import BertConfig, BertModel, BertTokenizer

    words = (tokenizers_root / "bert-base-uncased" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def encode(text):  # alone, so without padding
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0).double().numpy()

    expected = []
    for a, b in zip(map(encode, SAID), map(encode, MEANT), strict=True):
        expected.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    found = quality.similarity(SAID, MEANT, str(tmp_path))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert max(expected) - min(expected) > 0.01
    # Its files name no limit; the model reads 512 tokens, two of them special.
    assert tokenizer.model_max_length > 10**6
    long, cut = quality.similarity(["cat " * 600, "cat " * 510], ["mat"] * 2, str(tmp_path))
    assert long == pytest.approx(cut, abs=1e-5)
    with pytest.raises(UserError, match="not a sentence encoder"):
        quality.similarity(SAID, MEANT, str(tmp_path / "none"))


def test_a_decoder_without_a_padding_token_encodes_texts_of_any_lengths(tokenizers_root, tmp_path):
    torch = pytest.importorskip("torch", reason="the encoder runs in PyTorch")
    from transformers import AutoTokenizer, LlamaConfig, LlamaModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizers_root / "llama")
    assert tokenizer.pad_token is None
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    together = quality.similarity(SAID[:3], MEANT[:3], str(tmp_path))
    alone = [quality.similarity([a], [b], str(tmp_path))[0] for a, b in zip(SAID[:3], MEANT[:3], strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_encoder_s_own_code_is_not_even_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="the encoder runs in PyTorch")
    named = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"}}
    (tmp_path / "config.json").write_text(json.dumps(named))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    with pytest.raises(UserError, match="not a sentence encoder"):
        quality.similarity(["a"], ["a"], str(tmp_path))
    assert not asked
    assert not (tmp_path / "ran").exists()
