"""Calibration against definitions written a second time, in float64."""

import numpy as np
import pytest
from scipy import optimize, special

from cot_jax.metrics import calibration
from cot_jax.metrics.calibration import Bin


@pytest.fixture(scope="module")
def answers():
    rng = np.random.default_rng(0)
    confidence = rng.beta(4, 2, size=500)
    return confidence, (rng.uniform(size=500) < confidence**2).astype(float)


def test_by_hand():
    bins = calibration.equal_width_bins([0.0, 0.1, 0.11, 0.95, 1.0], [0, 1, 0, 1, 1])
    assert bins == [Bin(0.05, 0.5, 2), Bin(0.11, 0.0, 1), Bin(pytest.approx(0.975), 1.0, 2)]
    assert calibration.expected_error(bins) == pytest.approx((2 * 0.45 + 0.11 + 2 * 0.025) / 5)
    assert calibration.maximum_error(bins) == pytest.approx(0.45)
    assert calibration.brier_score([0.5, 1.0], [1, 0]) == 0.625


def test_equal_width_bins_are_half_open_on_the_left(answers):
    confidence, correct = answers
    expected = 0.0
    for b in range(10):
        inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    summary = calibration.summary(confidence, correct)
    assert summary["expected_calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_equal_mass_bins_hold_as_many_answers_each(answers):
    confidence, correct = answers
    bins = calibration.equal_mass_bins(confidence, correct)
    assert [b.count for b in bins] == [5] * 100
    by_confidence = np.argsort(confidence).reshape(100, 5)
    gaps = np.abs(correct[by_confidence].mean(axis=1) - confidence[by_confidence].mean(axis=1))
    assert calibration.expected_error(bins) == pytest.approx(gaps.mean(), abs=1e-12)
    # Fewer answers than bins: none is empty, none is lost.
    assert sum(b.count for b in calibration.equal_mass_bins(confidence[:7], correct[:7])) == 7


def test_the_brier_score_is_that_of_scikit_learn(answers):
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn")
    confidence, correct = answers
    expected = metrics.brier_score_loss(correct, confidence)
    assert calibration.summary(confidence, correct)["brier_score"] == pytest.approx(expected, abs=1e-12)


def test_the_fitted_temperature_is_where_the_likelihood_is_largest():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2000, 3))
    gold = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    # Overconfident by 2.5, and shifted by a constant per row, which must not matter.
    log_prob = 2.5 * logits - rng.normal(size=(2000, 1))
    temperature = calibration.fit_temperature(log_prob, gold)
    assert temperature == pytest.approx(2.5, rel=0.1)

    def slope(t):
        scaled = log_prob / t
        expected = (special.softmax(scaled, axis=1) * log_prob).sum(axis=1)
        return (expected - log_prob[np.arange(2000), gold]).mean()

    assert temperature == pytest.approx(optimize.brentq(slope, 0.1, 10), rel=1e-5)


def test_the_fitted_temperature_of_open_answers_corrects_their_confidence():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=4000)
    correct = (rng.uniform(size=4000) < special.expit(logits)).astype(float)
    confidence = special.expit(3 * logits)
    temperature = calibration.fit_binary_temperature(confidence, correct)
    assert temperature == pytest.approx(3.0, rel=0.1)
    scaled = calibration.scale_confidence(confidence, temperature)
    bins = calibration.equal_width_bins
    before = calibration.expected_error(bins(confidence, correct))
    assert calibration.expected_error(bins(scaled, correct)) < before / 4
    assert np.all(np.isfinite(calibration.scale_confidence([0.0, 1.0], 0.5)))


@pytest.mark.parametrize(("correct", "end"), [([1, 1, 1], 0.01), ([0, 0, 0], 100.0), ([0, 1, 1], None)])
def test_a_fit_without_an_optimum_is_told(correct, end):
    confidence = [0.7, 0.8, 0.9]
    temperature = calibration.fit_binary_temperature(confidence, correct)
    assert calibration.at_limit(temperature) == (end is not None)
    assert end is None or temperature == pytest.approx(end, rel=0.01)
