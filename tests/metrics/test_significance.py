"""Significance: what rounding must not make significant."""

import pytest

from cot_jax.metrics.significance import paired_p_value


def test_equal_differences_of_decimal_scores_have_no_p_value():
    a, b = [0.3, 0.8, 0.55], [0.2, 0.7, 0.45]
    assert len({x - y for x, y in zip(a, b, strict=True)}) > 1
    assert paired_p_value(a, b) is None
    assert paired_p_value([100 * x for x in a], [100 * x for x in b]) is None
    # One question of 10,000 is no rounding. t = 2 with 2 degrees of freedom: p = 1 - sqrt(2 / 3).
    assert paired_p_value([50.0, 50.0, 50.03], [50.0, 49.99, 50.0]) is not None
    assert paired_p_value([1.0, 1.0, 4.0], [0.0] * 3) == pytest.approx(1 - (2 / 3) ** 0.5)
