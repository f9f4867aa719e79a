"""The bound on Gaussians, whose mutual information is known."""

import math

import numpy as np
import pytest

from cot_jax.metrics.info_nce import info_nce, most_nats


def _gaussians(rng, count, correlation, width=4):
    x = rng.normal(size=(count, width))
    return x, correlation * x + math.sqrt(1 - correlation**2) * rng.normal(size=(count, width))


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_the_bound_is_below_the_truth_and_close(correlation):
    rng = np.random.default_rng(0)
    x, y = _gaussians(rng, 2048 + 512, correlation)
    bound = info_nce(x[:2048], 3 * y[:2048] + 1, x[2048:], 3 * y[2048:] + 1)
    truth = -2 * math.log(1 - correlation**2)
    assert most_nats(512) == math.log(512)
    assert 0.75 * truth - 0.1 < bound < truth + 0.05


def test_what_is_learned_by_heart_does_not_count():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 256 + 96, 32))
    assert info_nce(x[:256], y[:256], x[256:], y[256:]) < 0.0


def test_few_pairs_say_less():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 4))
    assert 0.5 * math.log(8) < info_nce(x, x, x[:8], x[:8]) <= most_nats(8) == math.log(8)
    with pytest.raises(ValueError, match="at least two held-out pairs"):
        info_nce(x, x, x[:1], x[:1])
