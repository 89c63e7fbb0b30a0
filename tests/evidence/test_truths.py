"""What is true of every image, each against a sentence in plain Python on cases of all kinds."""

import numpy as np
import pytest

from wasserstein_adv.evidence import truths

COUNT = 64
RNG = np.random.default_rng(1)
CLEAN = RNG.uniform(0.1, 0.9, (COUNT, 3, 2, 1)).astype(np.float32)
MOVED = CLEAN + RNG.uniform(-0.3, 0.3, CLEAN.shape).astype(np.float32) * (
    np.arange(COUNT) % 2
).astype(np.float32).reshape(-1, 1, 1, 1)
MOVED[5, 0, 0, 0] = np.nan
IMAGES = np.clip(MOVED, 0, 1)
IMAGES[::7, 1, 1, 0] += np.float32(1e-3)
SUCCESS = RNG.random(COUNT) < 0.5
BUDGET = (RNG.integers(0, 3, COUNT) / 2).astype(np.float32)
BUDGET[:2] = -0.5, np.nan
RADIUS = np.where(RNG.random(COUNT) < 0.7, np.where(SUCCESS, BUDGET, np.inf), 0.5)
PREDICTION, LABEL = RNG.integers(0, 2, COUNT), RNG.integers(0, 2, COUNT)


def pixels(*images):
    return zip(*(image.ravel().tolist() for image in images), strict=True)


CASES = {
    "in_unit_interval": (
        [MOVED],
        {},
        lambda image: all(0 <= pixel <= 1 for (pixel,) in pixels(image)),
    ),
    "clamped": (
        [MOVED, IMAGES],
        {},
        lambda before, image: all(
            abs(min(max(b, 0), 1) - z) <= 1e-6 and b == b for b, z in pixels(before, image)
        ),
    ),
    "answered": ([SUCCESS, PREDICTION, LABEL], {}, lambda s, p, y: s == (p != y)),
    "reached": ([SUCCESS, PREDICTION, LABEL], {}, lambda s, p, t: s == (p == t)),
    "kept": ([RADIUS, BUDGET, SUCCESS], {}, lambda r, b, s: r == (b if s else np.inf)),
    "bounded": ([BUDGET], {"largest": 0.5}, lambda b: 0 <= b <= 0.5 * 1.0001),
    "unchanged": (
        [CLEAN, IMAGES, BUDGET],
        {},
        lambda x, z, b: b > 0 or all(abs(u - v) <= 1e-6 for u, v in pixels(x, z)),
    ),
    "nominal": (
        [PREDICTION, LABEL, SUCCESS, BUDGET],
        {},
        lambda p, y, s, b: (s and not b > 0) == (p != y),
    ),
}


def test_every_truth_is_compared():
    assert set(CASES) == set(truths.__all__)


@pytest.mark.parametrize("how", CASES)
def test_truths_are_what_they_say(how):
    arrays, given, sentence = CASES[how]
    found = getattr(truths, how)(*arrays, **given)
    expected = [bool(sentence(*image)) for image in zip(*arrays, strict=True)]
    assert found.dtype == bool and found.tolist() == expected
    assert 0 < sum(expected) < COUNT  # there are cases of both
    assert getattr(truths, how)(*(array[:0] for array in arrays), **given).shape == (0,)


def test_rounding_of_a_radius_is_allowed():
    radius = np.array([0.5, 0.50004, 0.50006, 0.0])
    assert truths.bounded(radius, 0.5).tolist() == [True, True, False, True]
