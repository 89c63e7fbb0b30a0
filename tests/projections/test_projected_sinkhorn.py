"""The projection against an interior-point solver, and its invariances."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit
from scipy.sparse import coo_array

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import (
    dense_grid,
    euclidean_power,
    local_grid,
    separable_grid,
    separable_power,
)
from wasserstein_adv.projections import (
    Duals,
    block_ascent,
    dual_objective,
    projected_sinkhorn,
)

COST, WINDOW = euclidean_power(1), 3


def image(shape, seed, kept=0.6):
    rng = np.random.default_rng(seed)
    return rng.random(shape) * (rng.random(shape) < kept)


def stepped(x, seed, size=0.3):
    return x + size * np.random.default_rng(seed).uniform(-1, 1, x.shape)


def interior_point(cost, x, w, radius, reg):
    """Equation (17) over the finite costs of a dense matrix: (z in x's unit, the value)."""
    mass = x.sum()
    x, w = (a.reshape(len(cost), -1) / mass for a in (x, w))
    value, spent, images = 0.0, 0.0, []
    for c in range(x.shape[1]):
        i, j = np.nonzero(np.isfinite(cost) & (x[:, c] > 0)[:, None])
        arcs, n = np.arange(len(i)), len(cost)
        plan, z = cp.Variable(len(i), nonneg=True), cp.Variable(n)
        rows, cols = (coo_array((np.ones(len(i)), (k, arcs)), (n, len(i))) for k in (i, j))
        images.append((plan, z, rows.tocsr()[np.unique(i)], cols.tocsr(), np.unique(i)))
        value += reg / 2 * cp.sum_squares(w[:, c] - z) - cp.sum(cp.entr(plan))
        spent += cost[i, j] @ plan
    constraints = [spent <= radius]
    for c, (plan, z, rows, cols, sources) in enumerate(images):
        constraints += [rows @ plan == x[sources, c], cols @ plan == z]
    problem = cp.Problem(cp.Minimize(value), constraints)
    problem.solve("CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return np.stack([z.value for _, z, *_ in images], -1) * mass, problem.value


@functools.cache
def solver(geometry_name, side, max_iterations=20_000, tolerance=1e-4):
    geometry = {
        "dense": lambda: dense_grid((side, side), COST, WINDOW),
        "local": lambda: local_grid((side, side), COST, WINDOW),
        "separable": lambda: separable_grid((side, side), 2),
        "separable, dense": lambda: dense_grid((side, side), separable_power(2)),
    }[geometry_name]()
    project = functools.partial(
        projected_sinkhorn, geometry, tolerance=tolerance, max_iterations=max_iterations
    )
    return jit(project)


objective = jit(dual_objective)

# The same problems for all of the geometries: (seed, radius, λ).
PROBLEMS = [(0, 0.15, 200.0), (1, 0.05, 1000.0), (2, 0.4, 50.0), (3, 1e-3, 5000.0)]


@pytest.mark.parametrize(("geometry", "side"), [("dense", 6), ("local", 5), ("separable", 5)])
def test_agrees_with_an_interior_point_in_float64(x64, geometry, side):
    grid = {
        "separable": lambda: dense_grid((side, side), separable_power(2)),
        "dense": lambda: dense_grid((side, side), COST, WINDOW),
        "local": lambda: dense_grid((side, side), COST, WINDOW),
    }[geometry]()
    cost = np.asarray(grid.cost_matrix)
    for seed, radius, reg in PROBLEMS if geometry == "dense" else PROBLEMS[:2]:
        x = image((side, side), seed)
        w = stepped(x, seed + 100)
        got = solver(geometry, side, tolerance=1e-8)(x, w, radius, reg)
        truth, value = interior_point(cost, x, w, radius, reg)
        assert bool(got.converged)
        np.testing.assert_allclose(
            got.point / x.sum(), truth.reshape(side, side) / x.sum(), atol=1e-5
        )
        bound = objective(grid, x / x.sum(), w / x.sum(), radius, reg, got.duals)
        # 1e-3 of the budget may remain unspent by the ψ that finishes: second order in the value.
        assert float(bound) == pytest.approx(value, abs=2e-4 * abs(value))
        assert float(bound) <= value + 1e-6 * abs(value)
        rng = np.random.default_rng(seed)
        other = Duals(got.duals.beta + rng.normal(size=x.shape), got.duals.psi * 1.5 + 1)
        below = objective(grid, x / x.sum(), w / x.sum(), radius, reg, other)
        assert float(below) < value


@pytest.mark.parametrize("geometry", ["dense", "local"])
def test_agrees_with_an_interior_point_in_float32(geometry):
    cost = np.asarray(dense_grid((5, 5), COST, WINDOW).cost_matrix)
    for seed, radius, reg in PROBLEMS:
        x = image((5, 5), seed).astype(np.float32)
        w = stepped(x, seed + 100).astype(np.float32)
        got = solver(geometry, 5)(x, w, radius, reg)
        truth, _ = interior_point(cost, x.astype(np.float64), w.astype(np.float64), radius, reg)
        assert got.point.dtype == jnp.float32 and bool(got.converged)
        np.testing.assert_allclose(got.point / x.sum(), truth.reshape(5, 5) / x.sum(), atol=1e-4)


def test_channels_share_one_budget(x64):
    cost = np.asarray(dense_grid((4, 4), COST, WINDOW).cost_matrix)
    x = image((4, 4, 3), 7) * np.array([1.0, 0.2, 0.5])
    w = stepped(x, 8)
    got = solver("dense", 4, tolerance=1e-8)(x, w, 0.2, 300.0)
    truth, _ = interior_point(cost, x, w, 0.2, 300.0)
    np.testing.assert_allclose(got.point / x.sum(), truth.reshape(x.shape) / x.sum(), atol=1e-5)
    np.testing.assert_allclose(got.point.sum((0, 1)), x.sum((0, 1)), rtol=1e-10)
    # A single channel is the same with and without its axis.
    one = solver("dense", 4, tolerance=1e-8)(x[..., :1], w[..., :1], 0.2, 300.0)
    flat = solver("dense", 4, tolerance=1e-8)(x[..., 0], w[..., 0], 0.2, 300.0)
    np.testing.assert_array_equal(one.point[..., 0], flat.point)


def test_a_blank_channel_stays_blank():
    x = image((4, 4, 3), 7).astype(np.float32)
    x[..., 1] = 0
    got = solver("dense", 4)(x, stepped(x, 8).astype(np.float32), 0.2, 300.0)
    np.testing.assert_array_equal(got.point[..., 1], 0.0)
    np.testing.assert_allclose(got.point.sum((0, 1)), x.sum((0, 1)), rtol=1e-5)
    assert np.abs(got.point - x).max() > 1e-2 and bool(got.converged)


def test_separable_and_dense_geometry_give_the_same(x64):
    x = image((5, 5), 4)
    w = stepped(x, 5)
    got = [
        solver(g, 5, tolerance=1e-8)(x, w, 0.3, 400.0) for g in ("separable", "separable, dense")
    ]
    np.testing.assert_allclose(got[0].point, got[1].point, atol=1e-8)
    assert int(got[0].iterations) == int(got[1].iterations)


X = image((6, 6), 20).astype(np.float32)
W = stepped(X, 21).astype(np.float32)


def project(*args, **kwargs):
    return solver("dense", 6)(*args, **kwargs)


def test_a_warm_start_is_faster_and_ends_in_the_same_place():
    cold = project(X, W, 0.2, 1000.0)
    warm = project(X, W, 0.2, 1000.0, cold.duals)
    near = project(X, W + 0.01 * stepped(0 * X, 3), 0.2, 1000.0, cold.duals)
    assert int(warm.iterations) < int(near.iterations) < int(cold.iterations)
    np.testing.assert_allclose(warm.point, cold.point, atol=1e-3)
    elsewhere = project(X, W, 0.2, 1000.0, Duals(jnp.zeros_like(X), jnp.float32(30.0)))
    np.testing.assert_allclose(elsewhere.point, cold.point, atol=1e-3)


def test_a_batch_gives_what_its_images_give_alone():
    x = np.stack([X, np.zeros_like(X), 1e-3 * X, np.flip(X)])
    w = x + 0.1 * np.stack([stepped(0 * X, s) for s in range(4)]).astype(np.float32)
    radius = np.array([0.1, 0.2, 0.01, 0.5], np.float32)
    solve = solver("dense", 6, 300)  # in which all but the faint image converge
    batch = jax.vmap(solve, (0, 0, 0, None))(x, w, radius, 500.0)
    for k in range(4):
        alone = solve(x[k], w[k], radius[k], 500.0)
        # Mixing amplifies rounding: both end within the tolerance, not at the same place in it.
        np.testing.assert_allclose(batch.point[k], alone.point, atol=1e-6, rtol=1e-3)
        assert abs(int(batch.iterations[k]) - int(alone.iterations)) <= 2


@pytest.mark.parametrize("geometry", ["dense", "local"])
def test_a_blank_image_is_its_own_projection(geometry):
    x = np.zeros((5, 5), np.float32)
    got = solver(geometry, 5)(x, x + np.float32(0.3), 0.1, 1000.0)
    np.testing.assert_array_equal(got.point, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    assert float(got.cost) == 0 and bool(got.converged)


def test_inside_the_ball_the_budget_costs_nothing():
    # No plan inside a 3×3 window costs more than √2.
    got = project(X, W, 1.5, 1000.0)
    assert float(got.duals.psi) == 0 and bool(got.converged) and float(got.cost) < 1.5
    beyond = project(X, W, 100.0, 1000.0)
    np.testing.assert_allclose(beyond.point, got.point, atol=1e-5)


def test_a_smaller_ball_is_filled():
    got = project(X, W, 0.2, 1000.0)
    assert 0.2 * (1 - 2e-3) <= float(got.cost) <= 0.2 * (1 + 1e-5) and float(got.duals.psi) > 0


@pytest.mark.parametrize("scale", [255.0, 1e-3, 0.37])
def test_the_unit_of_the_images_does_not_matter(scale):
    base, scaled = project(X, W, 0.2, 300.0), project(scale * X, scale * W, 0.2, 300.0)
    np.testing.assert_allclose(scaled.point / scale, base.point, atol=2e-4)
    np.testing.assert_allclose(scaled.duals.psi, base.duals.psi, rtol=2e-2)


@pytest.mark.parametrize("constant", [0.5, -40.0, 1000.0])
def test_a_constant_added_to_the_target_changes_beta_alone(x64, constant):
    base, shifted = project(X, W, 0.2, 300.0), project(X, W + constant, 0.2, 300.0)
    np.testing.assert_allclose(shifted.point, base.point, atol=2e-4)
    beta = base.duals.beta + 300.0 * constant / X.sum()
    np.testing.assert_allclose(shifted.duals.beta, beta, atol=1e-2)


def test_a_constant_per_channel_is_harmless_in_float32():
    x = np.stack([X, 0.5 * X, np.flip(X)], -1)
    w = stepped(x, 30).astype(np.float32)
    constant = np.array([100.0, -50.0, 0.0], np.float32)
    base = project(x, w, 0.2, 1000.0)
    # Rounding w + 100 to float32 alone moves it by 4e-6.
    shifted = project(x, w + constant, 0.2, 1000.0)
    assert bool(base.converged) and bool(shifted.converged)
    np.testing.assert_allclose(shifted.point, base.point, atol=1e-3)


def test_another_step_is_honoured():
    def half(kernel, problem, state):
        new = block_ascent(kernel, problem, state)
        beta = 0.5 * (state.beta + new.beta)
        return new._replace(beta=beta, z=problem.w - beta / problem.reg)

    def stop(kernel, problem, state):
        return state._replace(residual=jnp.zeros_like(state.residual))

    geometry = dense_grid((6, 6), COST, WINDOW)
    base = project(X, W, 0.2, 300.0)
    damped, stopped = (
        jit(functools.partial(projected_sinkhorn, geometry, step=step))(X, W, 0.2, 300.0)
        for step in (half, stop)
    )
    assert bool(damped.converged) and int(damped.iterations) != int(base.iterations)
    np.testing.assert_allclose(damped.point, base.point, atol=1e-3)
    assert int(stopped.iterations) == 1
    # Not solved, but still feasible.
    assert float(stopped.point.sum()) == pytest.approx(float(X.sum()), rel=1e-5)
    assert float(stopped.cost) <= 0.2 * (1 + 1e-5)


@pytest.mark.parametrize("argument", [0, 1, 2, 3])
def test_gradients_are_refused(argument):
    def value(*args):
        return project(*args).point.sum()

    with pytest.raises(TypeError, match="stop_gradient"):
        jax.grad(value, argument)(X, W, 0.2, 300.0)


def test_a_stopped_projection_stands_in_a_differentiated_function():
    def value(w):
        return (project(X, jax.lax.stop_gradient(w), 0.2, 300.0).point * w).sum()

    point = project(X, W, 0.2, 300.0).point
    np.testing.assert_allclose(jax.grad(value)(W), point, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("x", "w", "kwargs", "message"),
    [
        (X[0], X[0], {}, "x must"),
        (X[None, ..., None], X[None, ..., None], {}, "x must"),
        (X, W[:5], {}, "w must"),
        (X, W[..., None], {}, "w must"),
        (X[:5], W[:5], {}, "geometry"),
        (X.reshape(4, 9), W.reshape(4, 9), {}, "geometry"),
        (X, W, {"tolerance": 0.0}, "tolerance"),
        (X, W, {"tolerance": np.nan}, "tolerance"),
        (X, W, {"max_iterations": 0}, "max_iterations"),
    ],
)
def test_wrong_arguments_are_refused(x, w, kwargs, message):
    geometry = local_grid((6, 6), COST, WINDOW)
    with pytest.raises(InputError, match=message):
        projected_sinkhorn(geometry, x, w, 0.2, **kwargs)
