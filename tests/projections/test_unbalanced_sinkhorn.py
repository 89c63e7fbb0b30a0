"""The unbalanced projection against an interior-point solver, its equations and its invariances."""

import functools
import warnings

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import jit
from scipy.optimize import brentq
from scipy.sparse import coo_array
from scipy.special import logsumexp

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import (
    dense_grid,
    local_grid,
    log_kernel,
    separable_grid,
    separable_power,
    unit_square,
)
from wasserstein_adv.projections import (
    euclidean,
    exact,
    kkt_residual,
    kl_alpha_step,
    kl_beta_step,
    published,
    unbalanced_sinkhorn,
)

RULES = {"exact": exact, "euclidean": euclidean, "published": published(1e-10)}


def image(shape, seed, kept=0.6):
    rng = np.random.default_rng(seed)
    return rng.random(shape) * (rng.random(shape) < kept)


def stepped(x, seed, size=0.1):
    noise = np.random.default_rng(seed).normal(size=x.shape)
    return np.clip(x + size * noise, -0.1, 1.1)


def manhattan(shape, unit, window=None):
    return dense_grid(shape, separable_power(1), window, unit)


@functools.cache
def solver(rule, tolerance=1e-11, max_iterations=20_000):
    """(geometry, x, w, η, τ, γ, duals) ↦ the projection."""
    return jit(
        functools.partial(
            unbalanced_sinkhorn,
            rule=RULES[rule],
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
    )


violation = jit(kkt_residual)


# (shape, pixel's length, η, τ, γ, seed): from nothing moved to a tenth of the mass.
PROBLEMS = [
    ((4, 4), 1 / 3, 0.05, 0.1, 0.5, 0),
    ((4, 4), 1 / 3, 1e-3, 1e-2, 0.5, 1),
    ((4, 4), 0.1, 0.01, 1.0, 50.0, 2),
    ((5, 6), 0.1, 0.02, 0.1, 0.5, 3),
    ((5, 6), 0.02, 1e-3, 0.1, 0.5, 4),
    ((5, 6), 0.25, 0.05, 1.0, 0.05, 5),
]


def setup(problem):
    shape, unit, eta, tau, gamma, seed = problem
    x = image(shape, seed)
    return manhattan(shape, unit), x, stepped(x, seed + 100), eta, tau, gamma


def interior_point(cost, x, w, eta, tau, gamma, squares=False):
    """Equation (6) with z free, or section IV's problem: (z, ⟨Π, C⟩/ΣΠ, share moved)."""
    x_flat, w_flat, n = x.ravel(), w.ravel(), x.size
    sources = np.flatnonzero((x_flat > 0) | squares)  # without mass, nothing can leave
    i, j = np.nonzero(np.isfinite(cost) & np.isin(np.arange(n), sources)[:, None])
    arcs = np.arange(len(i))
    plan, z = cp.Variable(len(i), nonneg=True), cp.Variable(n, nonneg=not squares)
    left, arrived = (coo_array((np.ones(len(i)), (k, arcs)), (n, len(i))).tocsr() for k in (i, j))
    if squares:
        distance = lambda a, b: cp.sum_squares(a - b)  # noqa: E731
    else:
        distance = lambda a, b: cp.sum(cp.kl_div(a, b))  # noqa: E731
    value = cost[i, j] @ plan - eta * cp.sum(cp.entr(plan)) + gamma / 2 * cp.sum_squares(z - w_flat)
    value += tau * distance(left[sources] @ plan, x_flat[sources]) + tau * distance(
        arrived @ plan, z
    )
    problem = cp.Problem(cp.Minimize(value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 1e-12 was not reached: 1e-9 is
        problem.solve("CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert problem.status in ("optimal", "optimal_inaccurate")
    mass = plan.value.sum()
    moved = plan.value[i != j].sum() / mass
    return z.value.reshape(x.shape), plan.value @ cost[i, j] / mass, moved


@pytest.mark.parametrize("rule", ["exact", "euclidean"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_agrees_with_an_interior_point(x64, problem, rule):
    geometry, *args = setup(problem)
    got = solver(rule)(geometry, *args)
    z, cost, moved = interior_point(
        np.asarray(geometry.cost_matrix), *args, squares=rule == "euclidean"
    )
    assert bool(got.converged) and (args[0] == 0).any()
    np.testing.assert_allclose(got.point, z, atol=3e-8)
    assert float(got.cost) == pytest.approx(cost, abs=1e-7)
    assert float(got.moved) == pytest.approx(moved, abs=1e-7)
    if rule == "exact":
        x, w, *penalties = args
        residual = violation(geometry, x, w, got.point, got.duals, *penalties)
        # All of the conditions, where the projection reports one.
        assert float(residual) == pytest.approx(float(got.residual), abs=1e-12)
        assert float(residual) < 1e-11


@pytest.mark.parametrize("rule", ["exact", "euclidean"])
def test_agrees_with_an_interior_point_in_float32(rule):
    for problem in PROBLEMS[3:]:
        geometry, x, w, *penalties = setup(problem)
        x, w = x.astype(np.float32), w.astype(np.float32)
        got = solver(rule, 1e-5, 2000)(geometry, x, w, *penalties)
        cost = np.asarray(geometry.cost_matrix, np.float64)
        squares = rule == "euclidean"
        z, *_ = interior_point(cost, *(a.astype(np.float64) for a in (x, w)), *penalties, squares)
        assert got.point.dtype == jnp.float32 and bool(got.converged)
        np.testing.assert_allclose(got.point, z, atol=2e-5)


def test_a_small_window_forbids_moves(x64):
    shape, unit, penalties = (5, 6), 0.05, (0.01, 1.0, 5.0)
    x = image(shape, 3)
    w = stepped(x, 4, 0.3)
    dense = manhattan(shape, unit, 3)
    z, cost, moved = interior_point(np.asarray(dense.cost_matrix), x, w, *penalties)
    far = solver("exact")(manhattan(shape, unit), x, w, *penalties)
    for geometry in (dense, local_grid(shape, separable_power(1), 3, unit)):
        got = solver("exact")(geometry, x, w, *penalties)
        np.testing.assert_allclose(got.point, z, atol=3e-8)
        assert float(got.cost) == pytest.approx(cost, abs=1e-7)
        assert float(got.moved) == pytest.approx(moved, abs=1e-7)
    assert np.abs(far.point - z).max() > 1e-3


def test_every_geometry_gives_the_same(x64):
    geometry, *args = setup(PROBLEMS[3])
    shape, unit, *_ = PROBLEMS[3]
    truth = solver("exact")(geometry, *args)
    window = local_grid(shape, separable_power(1), 2 * max(shape) - 1, unit)
    for other in (separable_grid(shape, 1.0, unit), window):
        got = solver("exact")(other, *args)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(truth), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


# The projection as published.


def algorithm_1(cost, x, w, eta, tau, gamma, floor, iterations):
    """The three lines of the paper's loop, in plain exponentials: (z, β)."""
    attenuation, power = np.exp(-cost / eta), eta * tau / (eta + tau)
    beta, z = np.zeros(x.size), w.ravel()
    for _ in range(iterations):
        left = attenuation @ np.exp(beta / eta)
        alpha = power * (np.log(np.maximum(x.ravel(), floor)) - np.log(left))
        arrived = attenuation.T @ np.exp(alpha / eta)
        beta = power * (np.log(np.maximum(z, floor)) - np.log(arrived))
        z = w.ravel() + tau / gamma * np.exp(-beta / tau)
    return z.reshape(x.shape), beta.reshape(x.shape)


PAPER_LIKE = ((4, 4), 1 / 3, 0.05, 0.1, 0.5, 0)


def test_published_is_algorithm_1(x64):
    for problem in (PAPER_LIKE, PROBLEMS[1]):
        geometry, *args = setup(problem)
        got = solver("published", 1e-11, 10)(geometry, *args)
        z, beta = algorithm_1(np.asarray(geometry.cost_matrix), *args, 1e-10, 10)
        np.testing.assert_allclose(got.point, z, rtol=1e-9)
        np.testing.assert_allclose(got.duals.beta, beta, rtol=1e-9, atol=1e-12)
        assert int(got.iterations) == 10 and not bool(got.converged)


def test_published_does_not_solve_the_problem_nor_converge(x64):
    geometry, *args = setup(PAPER_LIKE)
    truth, *_ = interior_point(np.asarray(geometry.cost_matrix), *args)
    ten, before, after = (
        solver("published", 1e-11, n)(geometry, *args) for n in (10, 200, 201)
    )  # fmt: skip
    found = solver("exact")(geometry, *args)
    assert np.abs(found.point - truth).max() < 1e-7
    bright = args[0] > 0
    for got in (ten, before):
        assert np.abs(got.point - truth).max() > 0.1
        assert np.abs(got.point - truth)[bright].max() > 0.1
        assert float(got.residual) > 0.5
    assert np.abs(after.point - before.point)[~bright].max() > 1e-3
    assert int(found.iterations) < 50


# The steps.


def beta_root(w, log_q, eta, tau, gamma):
    """(β/η, ln z) of equations (b) and (c), by bisection and interpolation."""
    ratio, k = tau / gamma, eta * tau / (eta + tau)

    def excess(beta):
        arrived = np.exp(min(beta / k + log_q, 700.0))
        return arrived - (w - ratio) - ratio * np.exp(min(-beta / tau, 700.0))

    low, high = -tau, tau
    while excess(low) > 0:
        low *= 2
    while excess(high) < 0:
        high *= 2
    beta = brentq(excess, low, high, xtol=1e-300, rtol=1e-15, maxiter=1000)
    return beta / eta, beta / k + log_q


def beta_inputs(count, seed=0):
    """(w, ln q, η, τ, γ) in float32's numbers; and how near w is to τ/γ, from 0."""
    rng = np.random.default_rng(seed)
    eta, tau, gamma = (
        np.exp(rng.uniform(*np.log(ends), count)).astype(np.float32)
        for ends in ((1e-4, 0.1), (1e-3, 1.0), (5e-3, 50.0))
    )
    ratio, kind = tau / gamma, rng.integers(0, 4, count)
    near = ratio * (1 + rng.choice([-1, 1], count) * 10 ** rng.uniform(-7, -1, count))
    w = np.choose(kind, [rng.uniform(-0.3, 1.3, count), np.zeros(count), ratio, near])
    log_q = np.where(
        rng.random(count) < 0.5, rng.uniform(-40, 3, count), -(10 ** rng.uniform(-2, 4, count))
    )
    w, log_q = w.astype(np.float32), log_q.astype(np.float32)
    return (w, log_q, eta, tau, gamma), np.abs(w / (tau.astype(float) / gamma) - 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_beta_step_finds_the_root(x64, dtype):
    args, near = beta_inputs(1200)
    args = [a.astype(dtype) for a in args]
    scaled, z = jit(kl_beta_step)(*args)
    assert scaled.dtype == z.dtype == dtype
    assert np.isfinite(scaled).all() and np.isfinite(z).all() and (np.asarray(z) >= 0).all()

    w, log_q, eta, tau, gamma = (a.astype(np.float64) for a in args)
    scaled, z = (np.asarray(a, np.float64) for a in (scaled, z))
    root, log_z = np.transpose(
        [beta_root(*row) for row in zip(w, log_q, eta, tau, gamma, strict=True)]
    )
    ratio, falls = tau / gamma, scaled * eta / tau
    fine = dtype == np.float64

    error = np.abs(z - np.exp(log_z)) / (1 + ratio)
    assert error.max() < (3e-12 if fine else 1e-6)
    # Equation (c), whatever the condition of the problem.
    misfit = np.abs(z - w + ratio * (1 - np.exp(-falls))) / (np.abs(w) + ratio + z)
    assert misfit.max() < (1e-14 if fine else 2e-6)
    # At w = τ/γ exactly, a rounding of w decides by how much β and a small z change.
    away = near > 1e-2
    assert away.sum() > 500
    error = np.abs(falls - root * eta / tau) / (1 + np.abs(root) * eta / tau)
    assert error[away].max() < (1e-13 if fine else 1e-6)
    small = away & (log_z > -80)  # above the smallest float32
    error = np.abs(np.log(z[small]) - log_z[small]) / (1 + np.abs(log_q[small]))
    assert error.max() < (1e-12 if fine else 4e-6)


def test_beta_step_where_no_mass_can_come():
    w = np.array([-0.5, 0.0, 0.02, 0.021, 1.0], np.float32)
    scaled, z = kl_beta_step(w, np.full(5, -np.inf, np.float32), 1e-3, 1e-2, 0.5)
    np.testing.assert_allclose(z, np.maximum(w - np.float32(0.02), 0.0), atol=1e-7)
    np.testing.assert_array_equal(scaled, 0.0)


def contraction(rng, n, kind):
    """How much of a sup-norm error an update leaves, as a share of τ/(τ + η)."""
    cost = rng.random((n, n)) * 10 ** rng.uniform(-2, 1)
    eta, tau = 10 ** rng.uniform(-2, 0, 2)
    log_x, log_z = np.log(rng.random((2, n)) + 1e-3)

    def alpha(beta):
        return kl_alpha_step(log_x, logsumexp(beta - cost / eta, axis=1), eta, tau)

    def beta_at(alpha):  # z fixed: the same update with ln z for ln x
        return kl_alpha_step(log_z, logsumexp(alpha - cost.T / eta, axis=1), eta, tau)

    fixed = np.zeros(n)
    for _ in range(2000):
        last, fixed = fixed, beta_at(alpha(fixed))
        if np.abs(fixed - last).max() < 1e-13:
            break
    noise = rng.normal(size=n)
    away = {"any": noise, "nearly constant": 1 + 0.01 * noise}[kind]
    left = np.abs(alpha(fixed + away) - alpha(fixed)).max() / np.abs(away).max()
    left_in_beta = np.abs(beta_at(alpha(fixed) + away) - fixed).max() / np.abs(away).max()
    return max(left, left_in_beta) * (tau + eta) / tau


@pytest.mark.parametrize(("kind", "attained"), [("any", 0.5), ("nearly constant", 0.95)])
def test_a_step_contracts_as_in_lemma_2(kind, attained):
    # In NumPy's float64: `kl_alpha_step` is plain arithmetic.
    rng = np.random.default_rng(0)
    shares = np.array([contraction(rng, rng.integers(2, 10), kind) for _ in range(20)])
    assert (shares <= 1 + 1e-9).all()
    assert shares.max() > attained and (kind == "any" or shares.min() > attained)


def test_acceleration_changes_the_count_and_not_the_result(x64):
    geometry, x, w, eta, tau, gamma = setup(PROBLEMS[4])
    assert tau / eta == pytest.approx(100)
    tolerance = 1e-10

    @jit
    def plain(alpha):
        def beta_and_point(alpha):
            return kl_beta_step(w, log_kernel(geometry, alpha - 1, 1 / eta, 0).lse, eta, tau, gamma)

        def turn(carry):
            alpha, _, count = carry
            lse = log_kernel(geometry, beta_and_point(alpha)[0], 1 / eta, 1).lse
            wanted = x * jnp.exp(jnp.where(x > 0, -alpha * eta / tau, 0.0))
            residual = jnp.abs(jnp.exp(alpha + lse - 1) - wanted).sum() / x.sum()
            return kl_alpha_step(jnp.log(x), lse, eta, tau), residual, count + 1

        alpha, _, count = jax.lax.while_loop(
            lambda carry: carry[1] > tolerance, turn, (alpha, jnp.inf, 0)
        )
        return beta_and_point(alpha)[1], count

    point, count = plain(jnp.where(x > 0, 0.0, -jnp.inf))
    fast = solver("exact")(geometry, x, w, eta, tau, gamma)
    np.testing.assert_allclose(fast.point, point, atol=1e-9)
    # 150 where it was written, of a residual ten times as small, and 890.
    assert 3 * int(fast.iterations) < int(count)


# Identities.


def test_the_penalties_unit_does_not_matter(x64):
    geometry, x, w, *penalties = setup(PROBLEMS[3])
    base = solver("exact")(geometry, x, w, *penalties)
    scaled = solver("exact")(manhattan((5, 6), 0.7), x, w, *(7 * p for p in penalties))
    np.testing.assert_allclose(scaled.point, base.point, atol=1e-12)
    np.testing.assert_allclose(scaled.duals.beta, 7 * base.duals.beta, atol=1e-12)
    assert float(scaled.cost) == pytest.approx(7 * float(base.cost), rel=1e-9)


def test_the_evidence_is_that_of_the_plan(x64):
    geometry, *args = setup(PROBLEMS[3])
    got = solver("exact")(geometry, *args)
    cost, (x, _, eta, tau, _) = np.asarray(geometry.cost_matrix), args
    alpha, beta = (np.asarray(d).ravel() for d in got.duals)
    assert np.isneginf(alpha[x.ravel() == 0]).all() and np.isfinite(alpha[x.ravel() > 0]).all()
    plan = np.exp((alpha[:, None] + beta - cost) / eta - 1)
    assert float(got.cost) == pytest.approx((plan * cost).sum() / plan.sum(), rel=1e-9)
    assert float(got.moved) == pytest.approx(1 - np.trace(plan) / plan.sum(), rel=1e-9)
    arrived = got.point.ravel() * np.exp(-beta / tau)
    np.testing.assert_allclose(plan.sum(0), arrived, rtol=1e-9)
    unmatched = np.abs(x.ravel() - plan.sum(1)).sum() + np.abs(got.point.ravel() - arrived).sum()
    assert float(got.unmatched) == pytest.approx(unmatched / x.sum(), rel=1e-9)


def test_out_of_reach_nothing_changes_before_the_price(x64):
    x = np.zeros((5, 6))
    x[0, 0] = 0.7
    w = np.linspace(-0.1, 0.3, 30).reshape(5, 6)
    eta, tau, gamma = PROBLEMS[3][2:5]
    got = solver("exact")(manhattan((5, 6), 0.1, 3), x, w, eta, tau, gamma)
    far = np.ones((5, 6), bool)
    far[:2, :2] = False
    np.testing.assert_allclose(got.point[far], np.maximum(w - tau / gamma, 0)[far], atol=1e-15)
    assert (got.point[far] == 0).any() and (got.point[far] > 0).any()
    np.testing.assert_array_equal(got.duals.beta[far], 0.0)
    assert (got.point[~far] > 0).all()


def test_a_blank_image_stays_without_a_plan(x64):
    geometry, x, w, *_ = setup(PROBLEMS[5])
    got = solver("exact")(geometry, 0 * x, w, 0.02, 0.1, 0.5)
    np.testing.assert_allclose(got.point, np.maximum(w - 0.2, 0), atol=1e-15)
    assert bool(got.converged) and float(got.cost) == 0 and float(got.moved) == 0


def test_channels_are_problems_of_their_own(x64):
    geometry, _, _, *penalties = setup(PROBLEMS[3])
    x = image((5, 6, 3), 11) * np.array([1.0, 0.0, 0.2])
    w = stepped(x, 12)
    got = solver("exact")(geometry, x, w, *penalties)
    for c in range(3):
        alone = solver("exact")(geometry, x[..., c], w[..., c], *penalties)
        np.testing.assert_allclose(got.point[..., c], alone.point, atol=1e-10)
        np.testing.assert_allclose(got.duals.beta[..., c], alone.duals.beta, atol=1e-9)


@pytest.mark.parametrize("rule", ["exact", "euclidean"])
def test_a_warm_start_is_at_its_end_at_once(x64, rule):
    geometry, *args = setup(PROBLEMS[3])
    cold = solver(rule)(geometry, *args)
    warm = solver(rule, 1e-10)(geometry, *args, cold.duals)
    assert int(warm.iterations) == 1 < int(cold.iterations)
    np.testing.assert_allclose(warm.point, cold.point, atol=1e-9)


@pytest.mark.parametrize("rule", ["exact", "euclidean"])
def test_a_warm_start_from_an_image_of_other_pixels(x64, rule):
    geometry, x, w, *penalties = setup(PROBLEMS[3])
    other = image(x.shape, 50)
    assert ((other == 0) & (x > 0)).any() and ((other > 0) & (x == 0)).any()
    duals = solver(rule)(geometry, other, w, *penalties).duals
    cold, warm = (solver(rule)(geometry, x, w, *penalties, start) for start in (None, duals))
    assert bool(warm.converged)
    np.testing.assert_allclose(warm.point, cold.point, atol=1e-9)


SIDE = 8
GRID = separable_grid((SIDE, SIDE), 1.0, unit_square(SIDE, SIDE))


def pictures(seed):
    """Sparse, dense, blank, one pixel (bright, faint), constant 1: float32."""
    rng = np.random.default_rng(seed)
    x = np.zeros((6, SIDE, SIDE))
    x[0] = image((SIDE, SIDE), seed, 0.2)
    x[1] = rng.random((SIDE, SIDE))
    x[3].flat[rng.integers(SIDE * SIDE)] = 1.0
    x[4].flat[rng.integers(SIDE * SIDE)] = 1 / 255
    x[5] = 1.0
    return x.astype(np.float32)


@functools.cache
def batched(rule, max_iterations):
    # The recursion of `GRID` takes long to compile: once will do.
    geometry = GRID if rule == "exact" else manhattan((SIDE, SIDE), unit_square(SIDE, SIDE))
    one = functools.partial(
        unbalanced_sinkhorn, geometry, rule=RULES[rule], max_iterations=max_iterations
    )
    return jit(jax.vmap(one, (0, 0, None, None, None)))


def test_a_batch_gives_what_its_images_give_alone():
    x = pictures(0)
    w = np.clip(x + 0.1 * np.random.default_rng(1).choice([-1, 1], x.shape), 0, 1)
    w, penalties = w.astype(np.float32), np.array([5e-3, 0.2, 1.5], np.float32)
    batch = batched("exact", 200)(x, w, *penalties)
    geometry = manhattan((SIDE, SIDE), unit_square(SIDE, SIDE))
    for k in range(len(x)):
        alone = solver("exact", 1e-4, 200)(geometry, x[k], w[k], *penalties)
        np.testing.assert_allclose(batch.point[k], alone.point, atol=1e-5)
        assert abs(int(batch.iterations[k]) - int(alone.iterations)) <= 2
    assert len(set(batch.iterations.tolist())) > 2


def log_uniform(low, high):
    return st.floats(np.log(low), np.log(high)).map(lambda v: np.float32(np.exp(v)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_iterations", [10, 200])
@settings(max_examples=15, derandomize=True, deadline=None)
@given(
    eta=log_uniform(1e-4, 0.1),
    tau=log_uniform(1e-3, 1.0),
    gamma=log_uniform(5e-3, 50.0),
    size=st.sampled_from([0.0, 0.02, 0.3, None]),
    seed=st.integers(0, 2**32 - 1),
)
def test_everything_is_finite_and_in_its_range(rule, max_iterations, eta, tau, gamma, size, seed):
    x, rng = pictures(seed), np.random.default_rng(seed)
    if size is None:
        w = rng.uniform(-1, 2, x.shape)
    else:
        w = np.clip(x + size * rng.choice([-1, 0, 1], x.shape), 0, 1)
    got = batched(rule, max_iterations)(x, w.astype(np.float32), eta, tau, gamma)
    for field in (got.point, got.duals.beta, got.cost, got.moved, got.residual):
        assert field.dtype == jnp.float32 and np.isfinite(field).all()
    alpha = np.asarray(got.duals.alpha)
    assert np.isfinite(alpha[x > 0]).all()
    assert (np.isfinite(alpha) | np.isneginf(alpha)).all()
    assert (got.cost >= 0).all() and (got.cost <= 2 + 1e-5).all()
    assert (got.moved >= 0).all() and (got.moved <= 1 + 1e-6).all()
    assert np.isfinite(got.unmatched).all() and (got.unmatched >= 0).all()
    assert (got.residual >= 0).all()
    # A solver that stopped of itself had converged; what it reports is the point that it returns.
    assert (got.converged | (got.iterations == max_iterations)).all()
    if rule == "exact":
        assert (got.point >= 0).all()
        blank = np.maximum(w[2] - tau / gamma, 0)
        np.testing.assert_allclose(got.point[2], blank, atol=1e-6 * (1 + tau / gamma))
        assert bool(got.converged[2])


def test_converges_in_float32_where_the_penalties_allow():
    rng = np.random.default_rng(5)
    worst = 0
    for _ in range(30):
        tau, gamma = np.exp(rng.uniform(*np.log([1e-3, 1.0]))), 5 * 10 ** rng.uniform(-3, 1)
        eta = max(1e-4, tau * 10 ** rng.uniform(-2, 1))
        x = pictures(rng.integers(2**32))
        w = np.where(rng.random() < 0.5, rng.uniform(-1, 2, x.shape), np.clip(x + 0.1, 0, 1))
        got = batched("exact", 200)(x, w.astype(np.float32), *np.float32([eta, tau, gamma]))
        usual = [0, 1, 2, 3, 5]  # the mass that is created can be far above one faint pixel's
        assert got.converged[np.array(usual)].all()
        worst = max(worst, int(got.iterations[np.array(usual)].max()))
    assert 20 < worst < 200


# Use.


def test_memory_is_that_of_some_batches():
    grid = separable_grid((64, 64), 1.0, unit_square(64, 64))
    x = jax.ShapeDtypeStruct((32, 64, 64, 3), jnp.float32)
    lowered = jit(jax.vmap(functools.partial(unbalanced_sinkhorn, grid))).lower(x, x)
    memory = lowered.compile().memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    # 89 MB where it was written; a dense cost matrix and batch would take 6 GB.
    assert used < 130e6


@pytest.mark.parametrize("argument", [0, 1, 2, 3, 4])
def test_gradients_are_refused(argument):
    def value(*args):
        return unbalanced_sinkhorn(GRID, *args).point.sum()

    x = pictures(0)[1]
    with pytest.raises(TypeError, match=r"unbalanced_sinkhorn.*stop_gradient"):
        jax.grad(value, argument)(x, x, 0.01, 0.1, 0.5)


X = np.zeros((SIDE, SIDE), np.float32)


@pytest.mark.parametrize(
    ("x", "w", "kwargs", "message"),
    [
        (X[0], X[0], {}, "x must"),
        (X[None, ..., None], X[None, ..., None], {}, "x must"),
        (X, X[:5], {}, "w must"),
        (X, X[..., None], {}, "w must"),
        (X[:5], X[:5], {}, "geometry"),
        (X.reshape(4, 16), X.reshape(4, 16), {}, "geometry"),
        (X, X, {"tolerance": 0.0}, "tolerance"),
        (X, X, {"tolerance": np.nan}, "tolerance"),
        (X, X, {"max_iterations": 0}, "max_iterations"),
    ],
)
def test_wrong_arguments_are_refused(x, w, kwargs, message):
    with pytest.raises(InputError, match=message):
        unbalanced_sinkhorn(GRID, x, w, **kwargs)


@pytest.mark.parametrize("floor", [0.0, -1e-3, np.nan])
def test_a_floor_must_be_positive(floor):
    with pytest.raises(InputError, match="floor"):
        published(floor)


def test_a_branch_of_a_batch_may_close_over_the_geometry():
    """vmap makes a batch of all that a branch closes over, the geometry too."""
    geometry = separable_grid((4, 4), 1.0, 1 / 3)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(size=(4, 4)))
    w = x + jnp.asarray(rng.normal(size=(2, 4, 4))) * 0.1

    def solve(w):
        return unbalanced_sinkhorn(geometry, x, w, 0.05, 0.1, 0.5).point

    chosen = jit(jax.vmap(lambda p, w: jax.lax.cond(p, solve, lambda w: w, w)))(
        jnp.array([True, False]), w
    )
    np.testing.assert_allclose(chosen[0], jit(solve)(w[0]), atol=1e-5)
    np.testing.assert_array_equal(chosen[1], w[1])


@pytest.mark.parametrize("where", ["x", "w"])
def test_not_a_number_is_not_hidden(where):
    images = {"x": jnp.ones((4, 4)), "w": jnp.ones((4, 4))}
    images[where] = images[where].at[1, 1].set(jnp.nan)
    geometry = separable_grid((4, 4), 1.0, 1 / 3)
    found = jit(functools.partial(unbalanced_sinkhorn, max_iterations=3))(geometry, **images)
    assert not found.converged
    assert jnp.isnan(found.point[1, 1])


@pytest.mark.parametrize("name", ["eta", "tau", "gamma"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_prices_out_of_range_are_refused(name, value):
    x = jnp.ones((4, 4))
    with pytest.raises(InputError, match=name):
        unbalanced_sinkhorn(separable_grid((4, 4)), x, x, **{name: value})
