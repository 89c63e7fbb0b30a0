"""The entropic projection under the pixels' capacity: against an interior point, and feasible."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import jit

from wasserstein_adv.geometry import dense_grid, euclidean_power, local_grid
from wasserstein_adv.metrics import exact_distance
from wasserstein_adv.projections import Duals, beta_step, dual_objective, projected_sinkhorn

COST, WINDOW = euclidean_power(1), 3


def image(shape, seed, cap=1.0, kept=0.6):
    """Random, with zero pixels, and with pixels at the cap."""
    rng = np.random.default_rng(seed)
    return np.minimum(1.5 * rng.random(shape), 1.0) * (rng.random(shape) < kept) * cap


def stepped(x, seed, size=0.6):
    return x + size * np.random.default_rng(seed).uniform(-1, 1, x.shape)


def dense(shape):
    return dense_grid(shape[:2], COST, WINDOW)


def interior_point(x, w, radius, reg, cap):
    """Equation (17) with z ≤ cap, over the moves of the window: (z in x's unit, the value)."""
    cost = np.asarray(dense(x.shape).cost_matrix, np.float64)
    mass = x.sum()
    sources, target = (a.reshape(len(cost), -1).T / mass for a in (x, w))
    value, spent, images, constraints = 0.0, 0.0, [], []
    for x_c, w_c in zip(sources, target, strict=True):
        i, j = np.nonzero(np.isfinite(cost) & (x_c > 0)[:, None])
        used = np.unique(i)
        plan = cp.Variable(len(i), nonneg=True)
        z = (j == np.arange(len(cost))[:, None]).astype(float) @ plan
        constraints += [(i == used[:, None]).astype(float) @ plan == x_c[used], z <= cap / mass]
        value += reg / 2 * cp.sum_squares(w_c - z) - cp.sum(cp.entr(plan))
        spent += cost[i, j] @ plan
        images.append(z)
    problem = cp.Problem(cp.Minimize(value), [*constraints, spent <= radius])
    problem.solve("CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return np.stack([z.value for z in images], -1).reshape(x.shape) * mass, problem.value


@functools.cache
def compiled(kind, grid_size, tolerance, max_iterations, capped):
    geometry = {"dense": dense_grid, "local": local_grid}[kind](grid_size, COST, WINDOW)
    options = {"tolerance": tolerance, "max_iterations": max_iterations}

    def project(x, w, radius, reg, cap):
        cap = cap if capped else None
        return projected_sinkhorn(geometry, x, w, radius, reg, cap=cap, **options)

    return jit(project)


def project(x, w, radius, reg, cap=1.0, *, kind="dense", max_iterations=20_000, tolerance=None):
    if tolerance is None:
        tolerance = 1e-8 if x.dtype == np.float64 else 1e-4
    solve = compiled(kind, x.shape[:2], tolerance, max_iterations, cap is not None)
    return solve(x, w, radius, reg, jnp.asarray(0.0 if cap is None else cap, x.dtype))


def assert_feasible(x, got, radius, cap, rtol):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    x, z = (np.asarray(a, np.float64).reshape(*a.shape[:2], -1) for a in (x, got.point))
    # As it stands, without a clamp: the cap is met but for the rounding of Σx times cap/Σx.
    assert z.min() >= 0 and z.max() <= cap * (1 + rtol)
    np.testing.assert_allclose(z.sum((0, 1)), x.sum((0, 1)), rtol=10 * rtol, atol=0)
    assert float(got.cost) <= radius * (1 + 100 * rtol)
    if x.any():
        exact = exact_distance(x, z, COST, WINDOW)
        assert exact.total <= float(got.cost) * (1 + 100 * rtol) + 10 * rtol


objective = jit(dual_objective)

# (shape, radius, λ, cap, seed), all of them with pixels that would be too full.
PROBLEMS = [
    ((5, 5), 0.15, 200.0, 1.0, 0),
    ((5, 5), 0.3, 50.0, 1.0, 1),
    ((5, 5), 0.1, 200.0, 255.0, 4),
    ((4, 6), 0.2, 100.0, 1.0, 7),
    ((4, 4, 3), 0.2, 200.0, 1.0, 8),
]


@pytest.mark.parametrize(
    ("kind", "shape", "radius", "reg", "cap", "seed"),
    [*(("dense", *problem) for problem in PROBLEMS), ("local", *PROBLEMS[0])],
)
def test_agrees_with_an_interior_point_in_float64(x64, kind, shape, radius, reg, cap, seed):
    x = image(shape, seed, cap)
    w = stepped(x, seed + 9, 0.6 * cap)
    got = project(x, w, radius, reg, cap, kind=kind)
    truth, value = interior_point(x, w, radius, reg, cap)
    assert bool(got.converged) and got.point.dtype == jnp.float64
    np.testing.assert_allclose(got.point, truth, atol=1e-5 * cap)
    assert_feasible(x, got, radius, cap, 1e-10)
    # The problem is one: pixels at the cap before, more of them after, too much without it.
    assert (x == cap).any() and (truth > cap * (1 - 1e-6)).any()
    free = project(x, w, radius, reg, np.inf, kind=kind)
    assert float(free.point.max()) > 1.01 * cap
    # The dual, in normalised masses, is the value at the solution and below it elsewhere.
    unit = x.sum()
    bound = functools.partial(objective, dense(shape), x / unit, w / unit, radius, reg)
    assert float(bound(got.duals, cap / unit)) == pytest.approx(value, rel=1e-5)
    assert float(bound(got.duals, cap / unit)) <= value + 1e-6 * abs(value)
    rng = np.random.default_rng(seed)
    for size in (0.1, 1.0, 10.0):
        beta = got.duals.beta + size * rng.normal(size=shape)
        other = Duals(beta, got.duals.psi * rng.uniform(0.5, 2))
        assert float(bound(other, cap / unit)) < value


@pytest.mark.parametrize(("shape", "radius", "reg", "cap", "seed"), [PROBLEMS[0], PROBLEMS[1]])
def test_agrees_with_an_interior_point_in_float32(shape, radius, reg, cap, seed):
    x = image(shape, seed, cap).astype(np.float32)
    w = stepped(x, seed + 9).astype(np.float32)
    got = project(x, w, radius, reg, cap)
    truth, _ = interior_point(*(a.astype(np.float64) for a in (x, w)), radius, reg, cap)
    assert bool(got.converged) and got.point.dtype == jnp.float32
    np.testing.assert_allclose(got.point, truth, atol=1e-3)
    assert_feasible(x, got, radius, cap, 2e-6)


SHAPE = (5, 5)


def test_no_limit_is_the_projection_without_a_cap(x64):
    x = image(SHAPE, 0)
    w = stepped(x, 9)
    plain, free, none = (project(x, w, 0.15, 200.0, cap) for cap in (None, np.inf, 1e12))
    assert float(plain.point.max()) > 1.01
    for got in (free, none):
        np.testing.assert_allclose(got.point, plain.point, atol=1e-12)
        np.testing.assert_allclose(got.duals.beta, plain.duals.beta, atol=1e-9)
        assert float(got.cost) == pytest.approx(float(plain.cost), rel=1e-9)
        assert int(got.iterations) == int(plain.iterations)


def test_a_cap_that_nothing_reaches_changes_nothing(x64):
    for seed in range(3):
        x = 0.3 * image(SHAPE, seed)
        w = stepped(x, seed + 9, 0.3)
        plain, capped = (project(x, w, 0.1, 200.0, cap) for cap in (None, 1.0))
        assert 0.3 < float(plain.point.max()) < 0.9
        np.testing.assert_allclose(capped.point, plain.point, atol=1e-12)
        assert int(capped.iterations) == int(plain.iterations)


def test_the_unit_of_the_images_does_not_matter(x64):
    x = image(SHAPE, 0)
    w = stepped(x, 9)
    base = project(x, w, 0.15, 200.0)
    for unit in (1e-3, 255.0):
        scaled = project(unit * x, unit * w, 0.15, 200.0, unit)
        np.testing.assert_allclose(scaled.point / unit, base.point, atol=1e-6)


def test_a_constant_per_channel_is_harmless(x64):
    shape = (4, 4, 3)
    x = image(shape, 8)
    w = stepped(x, 17)
    base, shifted = (project(x, w + c, 0.2, 200.0) for c in (0.0, np.array([5.0, -3.0, 0.0])))
    np.testing.assert_allclose(shifted.point, base.point, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.1, 1.0, 6.0]),
    radius=st.sampled_from([1e-6, 0.01, 0.1, 0.5, 10.0]),
    reg=st.sampled_from([10.0, 1000.0, 1e4]),
    kept=st.sampled_from([0.05, 0.6, 1.0]),
    iterations=st.sampled_from([1, 30]),
)
def test_every_answer_is_feasible(seed, size, radius, reg, kept, iterations):
    # In double precision: in single, the mass is right to the rounding of β, of λ(w − x)/Σx.
    with jax.enable_x64(True):
        x = image(SHAPE, seed, kept=kept)
        got = project(x, stepped(x, seed + 1, size), radius, reg, max_iterations=iterations)
        assert_feasible(x, got, radius, 1.0, 1e-10)


def test_one_iteration_on_crowded_images_is_feasible():
    # Nearly all pixels full, and a step that asks for much more in some of them.
    for seed in range(4):
        for x in (np.ones(SHAPE), 1 - 0.01 * image(SHAPE, seed), image(SHAPE, seed, kept=0.9)):
            x = x.astype(np.float32)
            w = stepped(x, seed, 6.0).astype(np.float32)
            got = project(x, w, 0.5, 1000.0, max_iterations=1)
            assert_feasible(x, got, 0.5, 1.0, 2e-6)


@pytest.mark.parametrize("precise", [False, True])
def test_steps_of_six_intensities(precise):
    # Hu et al. step by 0.06 of a mass of 100 at λ = 1000; here the mass is a tenth, and so is λ.
    with jax.enable_x64(precise):
        x = image(SHAPE, 0).astype(np.float64 if precise else np.float32)
        direction = np.random.default_rng(0).normal(size=SHAPE)
        w = (x + 6 * direction / abs(direction).max()).astype(x.dtype)
        for reg in (100.0, 1000.0):
            got, free = (project(x, w, 0.3, reg, cap, max_iterations=300) for cap in (1.0, np.inf))
            assert_feasible(x, got, 0.3, 1.0, 1e-11 if precise else 2e-6)
            assert (np.asarray(got.point) > 1 - 1e-3).sum() > 3
            assert float(free.point.max()) > 1.5
            assert float(((got.point - x) * direction).sum()) > 0.5


def test_pixels_without_mass():
    x = np.zeros(SHAPE, np.float32)
    got = project(x, stepped(x, 1).astype(np.float32), 0.1, 1000.0)
    np.testing.assert_array_equal(got.point, 0)
    assert bool(got.converged) and float(got.cost) == 0
    assert_feasible(x, got, 0.1, 1.0, 1e-6)
    x = image((4, 4, 3), 8).astype(np.float32)
    x[..., 1] = 0
    got = project(x, stepped(x, 2).astype(np.float32), 0.2, 200.0)
    np.testing.assert_array_equal(got.point[..., 1], 0)
    assert abs(got.point - x).max() > 0.05
    assert_feasible(x, got, 0.2, 1.0, 2e-6)


def test_a_white_image_has_nowhere_to_go(x64):
    x = np.ones(SHAPE)
    got = project(x, stepped(x, 1), 0.2, 200.0, max_iterations=300)
    np.testing.assert_allclose(got.point, x, rtol=1e-12)


def test_a_batch_gives_what_its_images_give_alone(x64):
    x = np.stack([image(SHAPE, k) * (k != 1) for k in range(4)])
    w = np.stack([stepped(a, k, 0.3 * (k + 1)) for k, a in enumerate(x)])
    radius = np.array([0.1, 0.2, 0.01, 0.5])

    def one(x, w, radius):
        return project(x, w, radius, 200.0, max_iterations=300)

    batch = jax.vmap(one)(x, w, radius)
    for k in range(4):
        alone = one(x[k], w[k], radius[k])
        # Mixing makes more of rounding than the map itself: far less than the tolerance.
        np.testing.assert_allclose(batch.point[k], alone.point, atol=1e-6)
        assert int(batch.iterations[k]) == int(alone.iterations)


@pytest.mark.parametrize("reg", [1.0, 100.0, 1e4])
def test_beta_step_stops_at_the_cap(x64, reg):
    rng = np.random.default_rng(0)
    z = 10.0 ** rng.uniform(-6, -1, 500)
    beta = rng.uniform(-10, 10, 500)
    w, log_q = z + beta / reg, np.log(z) - beta
    for cap in (1e-3, 0.03):
        found, point = (np.asarray(a) for a in beta_step(w, log_q, reg, cap))
        free, same = beta_step(w, log_q, reg)
        np.testing.assert_allclose(point, np.minimum(z, cap), rtol=1e-8)
        np.testing.assert_allclose(same, z, rtol=1e-8)
        # Either way the plan's column sum q·exp(β) is z.
        np.testing.assert_allclose(np.exp(found + log_q), point, rtol=1e-8)
        np.testing.assert_array_equal(found[z < 0.99 * cap], np.asarray(free)[z < 0.99 * cap])
        # Over the cap the point is less than w − β/λ: its multiplier is positive.
        full = z > 1.01 * cap
        assert full.sum() > 50 and (w - found / reg - point)[full].min() > 0


def test_beta_step_maximises_the_dual(x64):
    # min over z ≤ cap of λ/2 (w − z)² + βz, less q·exp(β): concave in β, by a grid search.
    reg, cap = 50.0, 0.02
    for w, log_q in ((0.1, -2.0), (0.03, -3.0), (-0.2, 1.0), (5.0, -1.0)):
        beta = np.linspace(-30, 260, 200_001)
        z = np.minimum(w - beta / reg, cap)
        dual = reg / 2 * (w - z) ** 2 + beta * z - np.exp(beta + log_q)
        found, point = beta_step(jnp.asarray(w), jnp.asarray(log_q), reg, cap)
        assert float(found) == pytest.approx(beta[dual.argmax()], abs=2e-3)
        assert float(point) == pytest.approx(min(float(jnp.exp(found + log_q)), cap), rel=1e-9)


def test_beta_steps_gradients_are_finite(x64):
    w = np.array([-0.5, 0.0, 0.02, 0.02, 1.0, 30.0])
    log_q = np.array([-np.inf, -np.inf, -3.0, -40.0, -1.0, 2.0])

    def total(w, log_q, reg, cap):
        return sum(a.sum() for a in beta_step(w, log_q, reg, cap))

    slope_of = jit(jax.grad(total, (0, 1, 2, 3)))

    for cap in (0.015, jnp.inf):
        for dtype in (np.float32, np.float64):
            args = (w.astype(dtype), log_q.astype(dtype), dtype(100.0), dtype(cap))
            slopes = slope_of(*args)[:3]
            assert all(np.isfinite(slope).all() for slope in slopes)
    # z does not move at the cap, and β moves against ln q.
    full = np.full(6, 0.5), np.full(6, -1.0)
    slope = slope_of(*full, np.float64(100.0), np.float64(0.015))
    np.testing.assert_array_equal(slope[0], 0)
    np.testing.assert_allclose(slope[1], -1)
    assert float(slope[3]) == pytest.approx(6 * (1 + 1 / 0.015))


def test_gradients_are_refused():
    x = image(SHAPE, 0).astype(np.float32)
    w = stepped(x, 9).astype(np.float32)

    def value(cap):
        return projected_sinkhorn(dense(SHAPE), x, w, 0.2, 200.0, cap=cap).point.sum()

    with pytest.raises(TypeError, match=r"projected_sinkhorn does .*stop_gradient"):
        jax.grad(value)(jnp.float32(1))
