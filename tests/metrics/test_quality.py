"""Rationale quality against hand values, an own LCS and the teacher's real outputs."""

import importlib.util
import math
import re
import time

import numpy as np
import pytest

from cot_jax.answers.equality import is_correct
from cot_jax.data import tasks, word_problems
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

    found = quality.likeness(SAID, MEANT)
    np.testing.assert_allclose(found.each["rouge_l"], list(map(_rouge_l, SAID, MEANT)), atol=1e-12)
    assert found.each["rouge_l"][1] == pytest.approx(5 / 6)  # the cat on the mat, of six words each
    assert found.corpus["rouge_l"] == pytest.approx(np.mean(found.each["rouge_l"]))
    assert found.corpus["bleu"] == pytest.approx(sacrebleu.corpus_bleu(SAID, [MEANT]).score)
    assert found.corpus["chrf"] == pytest.approx(sacrebleu.corpus_chrf(SAID, [MEANT]).score)
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, none of 3 quadruples, which smoothing counts as a half.
    by_hand = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 0.5 / 3) ** 0.25
    assert found.each["bleu"][1] == pytest.approx(by_hand)
    assert found.each["chrf"][1] == pytest.approx(sacrebleu.sentence_chrf(SAID[1], [MEANT[1]]).score)
    assert [found.each[name][3] for name in found.each] == [0, 0, 0]


def test_a_rationale_equal_to_the_teachers_is_perfect_however_short():
    found = quality.likeness(["So 7."], ["So 7."])
    assert {**found.corpus, "bleu": found.each["bleu"][0]} == pytest.approx(
        {"bleu": 100, "chrf": 100, "rouge_l": 1}
    )


def test_likeness_of_nothing_or_of_texts_that_do_not_pair_is_a_mistake():
    with pytest.raises(ValueError, match="no rationales"):
        quality.likeness([], [])
    with pytest.raises(ValueError, match="shorter"):
        quality.likeness(["a", "b"], ["a"])


def test_missing_libraries_are_named_with_the_mend(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'cot-jax\[quality\]'"):
        quality.likeness(["a"], ["a"])
    with pytest.raises(UserError, match="pip install torch"):
        quality.similarity(["a"], ["a"], "encoder")


@pytest.mark.parametrize(
    ("rationale", "answer"),
    [
        ("Ben has 11. So 11 + 6 = 17. Then 17 + 2 = 19.", "19"),
        ("So she needs 10 - 7 = 3 cups of flour. She needs 2 cups of sugar.", "3"),  # the last "=" counts
        ("57 + 26 + 27 is 100.", "100"),
        ("So they planted 10 * 45 seeds.", "10 * 45"),
        ("So (12 + 4 = 16).", "16"),
        ("36 - 68 = -32. So 32 more got off.", "-32"),
        ("So 500 * 3 = $1,500.50 in all.", "1500.50"),
        ("So x = 36 / 4.", "36 / 4"),
        ("5 + 3 = many.", "5 + 3"),
        ("12 / 0", None),
        ("Ann has some.", None),
        ("", None),
        ("( ( 4 - 2 ) * 3 )", "( ( 4 - 2 ) * 3 )"),
    ],
)
def test_the_final_answer_of_a_sum(rationale, answer):
    assert quality.final_answer(rationale, by_value=True) == answer


def test_hostile_text_is_read_quickly():
    began = time.process_time()
    for text in ("(", "-", "1+", "1 ", "1 )", "= (", "9"):
        quality.final_answer(text * 20_000, by_value=True)
    assert time.process_time() - began < 5  # one quadratic pattern takes 30 s


@pytest.mark.parametrize(
    ("rationale", "answer"),
    [
        ("A cabinet. Only the Kitchen Cabinet holds cups.", "kitchen cabinet"),
        ("Kitchen cabinets hold cups, and so does a cabinet", "cabinet"),
        ("Only churches have one.", "church"),
        ("Cabinetry is no choice, nor is a miscabinet.", None),
        ("In Washington D.C there are many.", "washington d.c"),
    ],
)
def test_the_final_answer_among_choices_is_the_last_whole_word(rationale, answer):
    candidates = ("cabinet", "kitchen cabinet", "church", "washington d.c")
    assert quality.final_answer(rationale, False, candidates) == answer
    assert quality.final_answer(rationale, False) is None


def test_a_letter_is_an_answer_only_where_it_is_called_one():
    for rationale, answer in [
        ("A man runs. E = 7, so (B) it is.", "B"),
        ("Option A is too small. The answer is D.", "D"),
        ("A man runs. B is larger", None),
    ]:
        assert quality.final_answer(rationale, False, tuple("ABCDE")) == answer


def test_choices_are_those_that_the_question_lists():
    question = "Where (a) or (b)?\nAnswer Choices:\n(a) bank\n(b) high street\n(c) mall"
    assert quality.choices(question) == ("bank", "high street", "mall")
    assert quality.choices("Where?") == ()


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


def test_generated_rationales_arrive_at_their_label():
    for example in word_problems.generate(300, 0, max_steps=3, max_number=40, teacher_error_rate=0.3):
        answer = quality.final_answer(example.rationale, by_value=True)
        assert is_correct(answer, example.teacher_label, by_value=True)


def test_svamps_teacher_agrees_with_itself_as_measured(data_root):
    examples = tasks.load("svamp", data_root).test
    said = [e for e in examples if e.rationale and e.teacher_label]
    answers = [quality.final_answer(e.rationale, by_value=True) for e in said]
    agree = sum(is_correct(a, e.teacher_label, True) for a, e in zip(answers, said, strict=True) if a)
    assert (len(said), answers.count(None)) == (193, 0)
    assert agree == pytest.approx(170, abs=3)


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
    with pytest.raises(UserError, match="not a sentence encoder"):
        quality.similarity(SAID, MEANT, str(tmp_path / "none"))
