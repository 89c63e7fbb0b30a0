"""Figures, each against NumPy on random arrays, and where there is no image."""

import inspect

import numpy as np
import pytest
from scipy.stats import norm

from wasserstein_adv.evidence import figures

COUNT = 40
RNG = np.random.default_rng(0)
SUCCESS = RNG.random(COUNT) < 0.6
BUDGET = np.where(RNG.random(COUNT) < 0.3, 0, RNG.random(COUNT)).astype(np.float32)
RADIUS = np.where(SUCCESS, BUDGET, np.inf).astype(np.float32)
STEPS = RNG.integers(0, 6, COUNT).astype(np.int32)
PREDICTION, LABEL = RNG.integers(0, 3, COUNT), RNG.integers(0, 3, COUNT)
DISTANCE = RNG.random(25)  # of the first images
DISTANCE[[3, 7]] = np.inf, np.nan
VALUES = RNG.normal(size=COUNT)
HOLED = np.where(RNG.random(COUNT) < 0.2, np.nan, np.where(VALUES > 1, np.inf, VALUES))
AT = (0.1, 0.25, 0.5)


def wilson(where) -> list[float]:
    """Wilson's interval, by its formula."""
    n, p, z = len(where), np.mean(where), norm.ppf(0.975)
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [centre - half, centre + half]


def of_each_image(distance, success, budget) -> np.ndarray:
    """At which distance each image was fooled."""
    found = []
    for d, s, b in zip(distance, success, budget, strict=False):
        if s and b == 0:
            found.append(0.0)
        elif s and not np.isnan(d):
            found.append(d)
        else:
            found.append(np.inf)
    return np.array(found)


LEAST = np.minimum(
    of_each_image(DISTANCE, SUCCESS, BUDGET), of_each_image(DISTANCE[::-1], ~SUCCESS, 1 + BUDGET)
)
MEASURED = np.where(np.isnan(DISTANCE), 0.0, DISTANCE)
SHARES = np.array([d / b for d, b in zip(MEASURED, BUDGET.astype(float), strict=False) if b > 0])
FINITE = [value for value in HOLED if np.isfinite(value)]

FIGURES = {
    "count": ([VALUES], {}, COUNT),
    "mean": ([VALUES], {}, sum(VALUES) / COUNT),
    "median": ([VALUES], {}, sorted(VALUES)[19] / 2 + sorted(VALUES)[20] / 2),
    "largest": ([VALUES], {}, max(VALUES)),
    "extremes": ([VALUES], {}, {"median": np.median(abs(VALUES)), "max": max(map(abs, VALUES))}),
    "summary": (
        [HOLED],
        {},
        {
            "mean": np.mean(FINITE),
            "median": np.median(FINITE),
            "max": max(FINITE),
            "left_out": COUNT - len(FINITE),
        },
    ),
    "reached": ([SUCCESS], {}, sum(SUCCESS) / COUNT),
    "reached_interval": ([SUCCESS], {}, wilson(SUCCESS)),
    "left": ([SUCCESS], {}, 1 - sum(SUCCESS) / COUNT),
    "left_interval": ([SUCCESS], {}, wilson(~SUCCESS)),
    "accuracy": ([PREDICTION, LABEL], {}, np.mean(PREDICTION == LABEL)),
    "accuracy_interval": ([PREDICTION, LABEL], {}, wilson(PREDICTION == LABEL)),
    "at_most": ([VALUES], {"limit": 0.5}, sum(v <= 0.5 for v in VALUES) / COUNT),
    "above": ([RADIUS], {"at": AT}, {str(r): np.mean(r < RADIUS) for r in AT}),
    "above_interval": ([RADIUS], {"at": AT}, {str(r): wilson(r < RADIUS) for r in AT}),
    "after_steps": (
        [STEPS, SUCCESS],
        {"last": 5},
        {str(n): 1 - np.mean(SUCCESS & (n >= STEPS)) for n in range(6)},
    ),
    "at_distances": (
        [DISTANCE, SUCCESS, BUDGET, DISTANCE[::-1], ~SUCCESS, 1 + BUDGET],
        {"at": AT},
        {f"{d:g}": np.mean(d < LEAST) for d in AT},
    ),
    "inside": ([MEASURED, BUDGET], {}, np.mean(SHARES <= 1.0001)),
    "against": (
        [MEASURED, BUDGET],
        {},
        {
            "median": np.median(SHARES),
            "max": max(SHARES),
            "no_plan": np.mean(np.inf == SHARES),
            "inside": np.mean(SHARES <= 1.0001),
        },
    ),
}


def nearly(found, expected) -> None:
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            nearly(found[key], value)
    else:
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_every_figure_is_compared():
    assert set(FIGURES) == set(figures.__all__)


@pytest.mark.parametrize("how", FIGURES)
def test_figures_are_numpys(how):
    arrays, given, expected = FIGURES[how]
    found = getattr(figures, how)(*arrays, **given)
    nearly(found, expected)
    values = list(found.values()) if isinstance(found, dict) else [found]
    assert all(type(value) in (int, float, list) for value in values)  # as JSON has them


CURVES = {"above", "above_interval", "after_steps", "at_distances"}


@pytest.mark.parametrize("how", [how for how in FIGURES if how not in CURVES])
def test_no_image_has_no_figure(how):
    arrays, given, _ = FIGURES[how]
    found = getattr(figures, how)(*(array[:0] for array in arrays), **given)
    nothing = {"mean": None, "median": None, "max": None, "left_out": 0}
    expected = {"count": 0, "summary": nothing, "extremes": {}, "against": {}}
    assert found == expected.get(how)


def test_figures_of_what_is_not_finite():
    assert figures.largest(np.array([0.5, np.nan])) == figures.largest(np.array([np.inf])) == np.inf
    assert figures.largest(np.array([-np.inf, -2.0])) == -2.0
    assert figures.summary(np.full(3, np.nan)) == {
        "mean": None,
        "median": None,
        "max": None,
        "left_out": 3,
    }
    assert np.isnan(figures.median(HOLED)) and figures.median(RADIUS[~SUCCESS]) == np.inf
    assert figures.at_most(np.array([np.nan, np.inf, 0.5]), 0.5) == 1 / 3
    assert figures.inside(np.array([np.nan, np.inf]), np.ones(2)) == 0.0
    assert figures.inside(np.array([0.5]), np.zeros(3)) is None


def test_means_are_those_of_double_precision():
    values = np.full(1000, 16777217 / 2**24, np.float32)
    values[0] = 2.0**20
    assert figures.mean(values) == pytest.approx(values.astype(np.float64).mean(), rel=1e-15)


def test_a_distance_within_rounding_is_inside():
    assert figures.inside(np.array([1.00009, 1.00011, 0.0]), np.ones(3, np.float32)) == 2 / 3


def test_an_image_counts_with_the_least_distance_at_which_it_was_fooled():
    # Wrong at first, fooled in both, fooled in the larger ball, never fooled.
    budget = np.array([0.0, 1.0, 1.0, 1.0], np.float32)
    near = (np.array([0.0, 0.1, 0.09, 0.1]), np.array([True, True, False, False]), budget)
    far = (np.array([0.0, 0.04, 0.4, 0.5]), np.array([True, True, True, False]), budget)
    assert figures.least_distance(*near, *far).tolist() == [0, 0.04, 0.4, np.inf]
    at = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    left = figures.at_distances(*near, *far, at=at)
    assert left == dict(
        zip(map("{:g}".format, at), (0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25), strict=True)
    )
    # Fooled where no plan exists, wrong at first where none was measured, and one not measured.
    budget = np.array([0.5, 0.0, 0.5])
    found = figures.least_distance(np.array([np.inf, np.nan]), np.ones(3, bool), budget)
    assert found.tolist() == [np.inf, 0.0]


def test_every_figure_says_what_it_is():
    for how in figures.__all__:
        assert inspect.getdoc(getattr(figures, how))
