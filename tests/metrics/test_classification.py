"""Class by class: counts by hand, ratios as scikit-learn has them."""

import numpy as np
import pytest

from cot_jax.metrics.classification import confusion_matrix, per_class

LABELS = ["yes", "no", "maybe"]


def test_answers_outside_the_labels_have_a_column_of_their_own():
    counts = confusion_matrix(["yes", "no ", "no"], [" yes", "maybe", "No"], LABELS)
    np.testing.assert_array_equal(counts, [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match="'perhaps' is none of the labels yes, no, maybe"):
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
