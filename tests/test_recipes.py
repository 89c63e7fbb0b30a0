"""Recipes: the learning rates, and the optimiser."""

import jax.numpy as jnp
import numpy as np
import pytest

from wasserstein_adv.recipes import Recipe, learning_rates, optimizer_of


def test_schedules():
    one_cycle = learning_rates(Recipe(1, 0.5, schedule="one-cycle"), 100)
    assert float(one_cycle(20)) == pytest.approx(0.5)
    assert float(one_cycle(0)) == pytest.approx(0.02)
    assert float(one_cycle(100)) < 1e-4
    drop = learning_rates(Recipe(1, 0.5, schedule="drop"), 9)
    np.testing.assert_allclose([float(drop(step)) for step in range(9)], [0.5] * 5 + [0.05] * 4)
    constant = learning_rates(Recipe(1, 0.5, schedule="constant"), 9)
    assert {float(constant(step)) for step in range(9)} == {0.5}


def test_sgd_is_pytorchs():
    """v ← 0.9 v + g + 0.0005 w, w ← w − rate · v."""
    optimizer = optimizer_of(Recipe(1, 0.1, "sgd", "constant"), 10)
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    params = jnp.asarray(w)
    state = optimizer.init(params)
    for gradient in np.random.default_rng(0).standard_normal((5, 2)):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = params + updates
        v = 0.9 * v + gradient + 5e-4 * w
        w = w - 0.1 * v
    np.testing.assert_allclose(params, w, rtol=1e-5)
