"""The log-kernel without temperature against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wasserstein_adv.geometry import (
    best_destination,
    dense_grid,
    euclidean_power,
    local_grid,
    log_kernel,
    separable_grid,
    separable_power,
)

SHAPE = (5, 4)
GEOMETRIES = {
    "local": (
        lambda: local_grid(SHAPE, euclidean_power(1), 3),
        lambda: dense_grid(SHAPE, euclidean_power(1), 3),
    ),
    "dense": (
        lambda: dense_grid(SHAPE, euclidean_power(1)),
        lambda: dense_grid(SHAPE, euclidean_power(1)),
    ),
    "manhattan": (lambda: separable_grid(SHAPE, 1), lambda: dense_grid(SHAPE, separable_power(1))),
    "separable": (lambda: separable_grid(SHAPE, 2), lambda: dense_grid(SHAPE, separable_power(2))),
}


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("psi", [0.0, 0.3, 5.0])
def test_is_the_maximum(x64, name, psi):
    geometry, dense = (make() for make in GEOMETRIES[name])
    cost = np.asarray(dense.cost_matrix)
    y = np.random.default_rng(0).normal(size=SHAPE)
    choice = jax.jit(lambda y: best_destination(geometry, y, psi))(y)
    with np.errstate(invalid="ignore"):
        scores = np.where(np.isinf(cost), -np.inf, y.ravel() - psi * cost)
    np.testing.assert_allclose(choice.score.ravel(), scores.max(1), rtol=1e-12)
    rows, there = np.arange(y.size), np.asarray(choice.destination).ravel()
    np.testing.assert_allclose(choice.cost.ravel(), cost[rows, there], rtol=1e-12)
    np.testing.assert_allclose(scores[rows, there], scores.max(1), rtol=1e-12)


def test_is_the_limit_of_the_log_kernel(x64):
    geometry = local_grid(SHAPE, euclidean_power(1), 5)
    y = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE))
    choice = best_destination(geometry, y, 0.5)
    cold = log_kernel(geometry, y / 1e-6, jnp.asarray(0.5 / 1e-6))
    np.testing.assert_allclose(choice.score, 1e-6 * cold.lse, atol=1e-5)


def test_of_equal_scores_the_cheapest_is_taken():
    choice = best_destination(local_grid(SHAPE, euclidean_power(1), 3), jnp.zeros(SHAPE), 0.0)
    np.testing.assert_array_equal(choice.cost, 0.0)
