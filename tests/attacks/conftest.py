"""A small problem that the attack tests share: few pixels, few steps, little to compile."""

from typing import NamedTuple

import numpy as np
import pytest
from plainly import jit


class Problem(NamedTuple):
    """Images and a linear classifier, `weights` (pixels, classes) and `bias` (classes,)."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def logits(self, images):
        return images.reshape(len(images), -1) @ self.weights + self.bias


@pytest.fixture(scope="session")
def problem() -> Problem:
    """Eight 8×8 images: the first misclassified as it is, the last blank, so never in a ball."""
    rng = np.random.default_rng(0)
    shape = (8, 8, 8, 1)
    x = (rng.random(shape) * (rng.random(shape) < 0.6)).astype(np.float32)
    x[-1] = 0
    weights = rng.normal(size=(64, 4)).astype(np.float32)
    bias = np.array([0.1, 0, 0, 0], np.float32)
    y = np.argmax(x.reshape(8, -1) @ weights + bias, -1).astype(np.int32)
    y[0] = (y[0] + 1) % 4
    return Problem(x, y, weights, bias)


@pytest.fixture(scope="session")
def quick_jit():
    """`jax.jit` that does not optimise: it compiles in half of the time."""
    return lambda f: jit(f)
