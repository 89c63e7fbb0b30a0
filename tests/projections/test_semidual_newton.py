"""Projected Sinkhorn where block ascent does not converge: large λ, long steps, small budgets.

The reference is a plan of float64 duals in plain NumPy, whose dual value bounds the problem's: a
point is near the solution if its primal value is near the dual's.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit

from wasserstein_adv.geometry import dense_grid, euclidean_power, local_grid
from wasserstein_adv.projections import projected_sinkhorn
from wasserstein_adv.projections.pairs import carry, grid_step, minus

COST, WINDOW = euclidean_power(1), 5
SHAPE = (8, 7, 1)
CASES = 24


@functools.cache
def compiled(shape, capped, max_iterations=1000):
    geometry = local_grid(shape[:2], COST, WINDOW)

    def project(x, w, radius, reg):
        return projected_sinkhorn(
            geometry, x, w, radius, reg, cap=1.0 if capped else None, max_iterations=max_iterations
        )

    return jit(jax.vmap(project))


def problems(shape, seed):
    """Dense, sparse, dark, full and one-pixel images, and steps up to five times white: x, w, ε, λ,
    of which λ and ε are spread evenly over their logarithms."""
    rng = np.random.default_rng(seed)
    x = rng.random((CASES, *shape))
    x[1::6] *= rng.random(x[1::6].shape) < 0.2
    x[2::6] *= 1e-4
    x[3::6] = np.minimum(2 * x[3::6], 1.0)
    x[4::6] = 0
    x[4::6, shape[0] // 2, shape[1] // 2] = 1
    sizes = 5 * 10 ** rng.uniform(-2, 0, CASES)
    steps = np.where(
        (np.arange(CASES) % 2 == 0).reshape(-1, *[1] * len(shape)),
        rng.standard_normal(x.shape),
        rng.choice([-1.0, 1.0], x.shape),
    )
    w = x + sizes.reshape(-1, *[1] * len(shape)) * steps
    radius = 10 ** rng.permutation(np.linspace(-3, np.log10(4), CASES))
    reg = 10 ** rng.permutation(np.linspace(0, 5, CASES))
    return [np.asarray(a, np.float32) for a in (x, w, radius, reg)]


def gap(shape, x, w, radius, reg, cap, found):
    """(primal − dual value of the normalised problem, all in float64, by the answer's duals)."""
    cost = np.asarray(dense_grid(shape[:2], COST, WINDOW).cost_matrix, np.float64)
    mass = x.sum(dtype=np.float64)
    x, w, z, beta = (
        np.asarray(a, np.float64).reshape(-1) for a in (x, w, found.point, found.duals.beta)
    )
    x, w, z, psi = x / mass, w / mass, z / mass, float(found.duals.psi)
    score = np.where(np.isfinite(cost), beta - psi * np.where(np.isfinite(cost), cost, 0), -np.inf)
    top = score.max(1)
    lse = np.log(np.exp(score - top[:, None]).sum(1)) + top
    held = np.minimum(w - beta / reg, cap / mass)
    entropy = np.sum(x[x > 0] * np.log(x[x > 0]))
    dual = np.sum(reg / 2 * (w - held) ** 2 + beta * held) - psi * radius - x @ lse + entropy
    plan = x[:, None] * np.exp(score - lse[:, None])
    kept = plan[plan > 0]
    primal = reg / 2 * np.sum((w - plan.sum(0)) ** 2) + np.sum(kept * np.log(kept))
    return primal - dual, np.abs(plan.sum(0) - z).sum()


@pytest.mark.parametrize("capped", [False, True])
def test_the_whole_range_converges_and_is_feasible(capped):
    x, w, radius, reg = problems(SHAPE, 1)
    found = jax.tree.map(np.asarray, compiled(SHAPE, capped)(x, w, radius, reg))
    assert found.converged.all()
    assert_feasible(x, found, radius, capped)


@pytest.mark.parametrize("capped", [False, True])
@pytest.mark.parametrize("max_iterations", [1, 10])
@pytest.mark.parametrize("shape", [SHAPE, (5, 5, 2)], ids=str)
def test_every_answer_is_feasible(shape, max_iterations, capped):
    x, w, radius, reg = problems(shape, 2)
    found = jax.tree.map(np.asarray, compiled(shape, capped, max_iterations)(x, w, radius, reg))
    assert not found.converged.all() and (found.iterations <= max_iterations).all()
    assert_feasible(x, found, radius, capped)


def assert_feasible(x, found, radius, capped):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    masses = (np.sum(a, (1, 2), dtype=np.float64) for a in (found.point, x))
    np.testing.assert_allclose(*masses, rtol=1e-6)
    assert found.point.min() >= 0
    assert (found.cost <= radius * (1 + 2e-6)).all()
    assert not capped or found.point.max() <= 1 + 1e-6


def test_one_bright_pixel_keeps_its_mass_under_the_cap():
    x = np.zeros((3, 5, 5, 1), np.float32)
    x[:, 2, 2] = 1
    w = x + np.float32(5) * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    radius, reg = np.float32([0.01, 0.3, 2]), np.full(3, 1e5, np.float32)
    found = jax.tree.map(np.asarray, compiled((5, 5, 1), True)(x, w, radius, reg))
    assert found.converged.all()
    assert_feasible(x, found, radius, True)


def test_a_full_image_is_its_own_projection():
    x = np.ones((2, *SHAPE), np.float32)
    w = x + np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    radius, reg = np.float32([0.1, 1]), np.float32([10, 1e4])
    found = compiled(SHAPE, True)(x, w, radius, reg)
    np.testing.assert_array_equal(found.point, x)
    assert found.converged.all() and not found.cost.any()


@pytest.mark.parametrize("capped", [False, True])
def test_no_other_plan_is_better_by_more_than_the_duals_say(x64, capped):
    """In float64, to a residual of 1e-4, at the largest λ: the duality gap is that small."""
    x, w, radius, reg = (a.astype(np.float64) for a in problems(SHAPE, 3))
    reg = 10 * reg**0.8  # up to 1e5, none below 10
    some = np.r_[0, 1, 3, 6, 7, 9]
    found = jax.tree.map(
        np.asarray, compiled(SHAPE, capped)(x[some], w[some], radius[some], reg[some])
    )
    assert found.converged.all() and (found.iterations > 100).any()
    for k, i in enumerate(some):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], found)
        cap = 1.0 if capped else np.inf
        excess, moved = gap(SHAPE, x[i], w[i], radius[i], reg[i], cap, one)
        scale = reg[i] / 2 * np.sum((x[i] - w[i]) ** 2) / x[i].sum() ** 2
        assert abs(excess) <= 1e-3 * (1 + scale)
        assert moved <= 2e-4


def test_pairs_hold_twice_the_digits():
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1e5, 1e5, 1000) for _ in range(2))
    step = grid_step(jnp.float32(1e5))

    def pair(exact):
        high = np.asarray(exact, np.float32)
        return jit(carry)(step, jnp.zeros_like(high), high), (exact - high).astype(np.float32)

    (first, rest_a), (second, rest_b) = pair(a), pair(b)
    first, second = (
        jit(carry)(step, p.high, p.low + rest) for p, rest in ((first, rest_a), (second, rest_b))
    )
    assert float(step) == 2.0 ** np.round(np.log2(float(step)))
    np.testing.assert_array_equal(np.asarray(first.high) % float(step), 0)
    assert np.abs(first.low).max() <= 0.5 * float(step)
    np.testing.assert_allclose(jit(minus)(first, second), a - b, rtol=2e-7, atol=1e-8)
