"""Scores and classes: counts by hand, ratios as scikit-learn has them."""

import numpy as np
import pytest

from cot_jax.metrics.classification import METRICS, confusion_matrix, per_class, scores

LABELS = ["yes", "no", "maybe"]


def test_answers_outside_the_labels_have_a_column_of_their_own():
    counts = confusion_matrix(["yes", "no ", "no"], [" yes", "maybe", "No"], LABELS)
    np.testing.assert_array_equal(counts, [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="'perhaps' is not one of the labels yes, no, maybe"):
        confusion_matrix(["perhaps"], ["yes"], LABELS)


def test_ratios_are_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    rng = np.random.default_rng(0)
    golds = rng.choice(LABELS[:2], size=60).tolist()
    answers = rng.choice([*LABELS, "else"], size=60).tolist()
    counts = confusion_matrix(golds, answers, LABELS)
    expected = metrics.confusion_matrix(golds, answers, labels=[*LABELS, "else"])
    np.testing.assert_array_equal(counts, expected[:3])
    ratios = metrics.precision_recall_fscore_support(golds, answers, labels=LABELS, zero_division=0)
    for row, *expected_row in zip(per_class(counts, LABELS), *ratios, strict=True):
        found = [row[key] for key in ("precision", "recall", "f1", "questions")]
        np.testing.assert_allclose(found, expected_row, rtol=1e-12)


NAMES = ["accuracy", "macro_f1", "matthews"]


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@pytest.mark.parametrize(
    ("labels", "golds", "answers"),
    [
        (LABELS, LABELS, [*LABELS, "else"]),
        (LABELS, LABELS[:2], LABELS),  # a class that never occurs
        (LABELS, LABELS[:2], LABELS[:2]),  # nor is answered
        (LABELS, LABELS, ["else", "no answer at all"]),
        (LABELS, LABELS, ["no"]),
        (LABELS, ["no"], LABELS),
        (LABELS, ["no"], ["no"]),
        (LABELS[:2], LABELS[:2], LABELS[:2]),
        (LABELS[:2], LABELS[:2], [*LABELS[:2], "else"]),
        (LABELS[:2], ["yes"], ["yes", "else"]),
        (LABELS[:1], ["yes"], ["yes", "else"]),
    ],
)
def test_scores_are_those_of_scikit_learn(labels, golds, answers):
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    rng = np.random.default_rng(1)
    for size in (1, 2, 7, 100):
        # Half of the answers are right, where they can be: not only coefficients near zero.
        gold = rng.choice(golds, size=size)
        said = np.where(rng.random(size) < 0.5, rng.choice(answers, size=size), gold)
        said = [answer if answer in answers else answers[0] for answer in said.tolist()]
        gold = gold.tolist()
        expected = {
            "accuracy": metrics.accuracy_score(gold, said),
            "macro_f1": metrics.f1_score(gold, said, labels=labels, average="macro", zero_division=0),
            "matthews": metrics.matthews_corrcoef(gold, said),
        }
        found = scores(NAMES, gold, said, labels)
        assert list(found) == NAMES
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
        if len(labels) == 2:
            f1 = metrics.f1_score(gold, said, labels=labels[1:], average="macro", zero_division=0)
            assert scores(["f1"], gold, said, labels)["f1"] == pytest.approx(f1, rel=1e-12, abs=1e-12)


def test_undefined_scores_are_0_as_in_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    gold = ["yes", "no", "yes"]
    assert scores(["matthews"], gold, ["no"] * 3, LABELS) == {"matthews": 0.0}
    assert metrics.matthews_corrcoef(gold, ["no"] * 3) == 0.0
    assert scores(["f1"], ["yes"], ["yes"], ["yes", "no"]) == {"f1": 0.0}


def test_the_second_of_two_labels_is_positive():
    gold, said = ["yes", "yes", "no", "no"], ["yes", "no", "no", "maybe"]
    assert scores(["f1"], gold, said, ["yes", "no"]) == {"f1": 0.5}
    assert scores(["f1"], gold, said, ["no", "yes"])["f1"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="f1 needs two labels, the second of them positive; found 3"):
        scores(["f1"], gold, said, LABELS)


def test_matthews_of_many_questions_does_not_overflow():
    counts = np.array([[300_000, 100_000, 0], [100_000, 300_000, 0]])
    assert METRICS["matthews"](counts) == pytest.approx(0.5, rel=1e-12)


def test_scores_are_of_each_of_many_confusion_matrices():
    counts = np.random.default_rng(0).integers(0, 9, (5, 2, 3))
    for metric in METRICS.values():
        np.testing.assert_allclose(metric(counts), [metric(one) for one in counts], rtol=1e-12)
