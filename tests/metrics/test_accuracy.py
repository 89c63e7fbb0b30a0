"""Accuracy by radius and its intervals."""

import numpy as np
import pytest
from scipy.stats import norm

from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import accuracy_at, wilson_interval


@pytest.mark.parametrize(("k", "n", "confidence"), [(7, 10, 0.95), (300, 1000, 0.99), (1, 2, 0.5)])
def test_wilson_ends_solve_the_score_equation(k, n, confidence):
    q = norm.ppf((1 + confidence) / 2)
    low, high = wilson_interval(k, n, confidence)
    assert 0 < low < k / n < high < 1
    for p in (low, high):
        assert abs(k / n - p) == pytest.approx(q * np.sqrt(p * (1 - p) / n), abs=1e-12)


def test_wilson_at_the_ends_is_one_sided_and_symmetric():
    q2 = norm.ppf(0.975) ** 2
    low, high = wilson_interval(0, 20)
    assert low == 0
    assert high == pytest.approx(q2 / (20 + q2))
    assert wilson_interval(20, 20) == pytest.approx((1 - high, 1))


@pytest.mark.parametrize(
    ("k", "n", "confidence"),
    [(1, 0, 0.95), (-1, 3, 0.95), (4, 3, 0.95), (1, 3, 1.0), (1, 3, 0.0), (1, 3, np.nan)],
)
def test_wilson_refuses(k, n, confidence):
    with pytest.raises(InputError):
        wilson_interval(k, n, confidence)


def test_accuracy_counts_radii_strictly_above():
    radii = [0.0, 0.5, 0.5, 1.0, np.inf]
    curve = accuracy_at(radii, [0.0, 0.4, 0.5, 1.0, 100.0])
    np.testing.assert_allclose(curve.accuracy, [0.8, 0.8, 0.4, 0.2, 0.2])
    for i, k in enumerate([4, 4, 2, 1, 1]):
        assert (curve.low[i], curve.high[i]) == wilson_interval(k, 5)


def test_accuracy_keeps_the_shape_of_the_radii():
    radii = np.linspace(0, 1, 11)
    one = accuracy_at(radii, 0)
    assert one.accuracy.shape == one.low.shape == ()
    assert one.accuracy == pytest.approx(10 / 11)
    assert accuracy_at(radii, [[0.15, 0.25]]).high.shape == (1, 2)
    assert accuracy_at(radii, []).low.shape == (0,)


def test_accuracy_falls_with_the_radius_and_the_interval_widens_with_confidence():
    radii = np.random.default_rng(0).random(200)
    at = np.linspace(0, 1, 30)
    curve, sure = accuracy_at(radii, at), accuracy_at(radii, at, confidence=0.999)
    assert np.all(np.diff(curve.accuracy) <= 0)
    assert np.all(sure.low <= curve.low) and np.all(sure.high > curve.high - 1e-15)
    assert np.all((curve.low <= curve.accuracy) & (curve.accuracy <= curve.high))


def test_fooled_at_a_float32_radius_does_not_withstand_it():
    radii = np.array([0.7], np.float32) * np.float32(1)
    fooled = np.array([0.3, 0.1], np.float32)  # float32(0.1), float32(0.3) lie above 0.1 and 0.3
    assert accuracy_at(fooled, 0.3).accuracy == 0
    assert accuracy_at(radii, 0.7).accuracy == 0
    assert accuracy_at(np.array([1, 2]), 1.5).accuracy == 0.5


@pytest.mark.parametrize(
    ("radii", "at"),
    [([0.1, np.nan], 0.5), ([0.1], np.nan), ([-0.1], 0.5), ([0.1], -0.5), ([], 0.5), (0.5, 0.5)],
)
def test_accuracy_refuses(radii, at):
    with pytest.raises(InputError):
        accuracy_at(radii, at)
