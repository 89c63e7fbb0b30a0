"""The projection of couplings against an interior-point solver, its conditions and invariances."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import jit

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import dense_grid, euclidean_power, local_grid
from wasserstein_adv.projections.dual_projection import (
    CouplingDuals,
    column_sums,
    coupling_cost,
    diagonal_plan,
    dual_projection,
)

COST = euclidean_power(1)


def grid(shape, window):
    return local_grid(shape[:2], COST, window)


def image(shape, seed, kept=0.6):
    """Random, with zero pixels, and with pixels at 1."""
    rng = np.random.default_rng(seed)
    return np.minimum(1.5 * rng.random(shape), 1.0) * (rng.random(shape) < kept)


def arcs(geometry, shape):
    """(taps, *shape) of: cost, flat index of the destination and whether it is in the image."""
    moves = [(cost, *move) for cost, moves in geometry.taps(1) for move in moves]
    rows, cols, *channel = np.indices(shape)
    cost = np.array([m[0] for m in moves]).reshape(-1, *[1] * len(shape)) + np.zeros(shape)
    row = np.stack([rows + m[1] for m in moves])
    col = np.stack([cols + m[2] for m in moves])
    inside = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
    at = (np.where(inside, row, 0), np.where(inside, col, 0), *channel)
    return cost, np.ravel_multi_index(np.broadcast_arrays(*at), shape), inside


def stepped(geometry, x, seed, size=0.3):
    """A coupling as an attack makes it: mass in place, and a step along the pixels' gradients."""
    rng = np.random.default_rng(seed)
    _, to, inside = arcs(geometry, x.shape)
    step = rng.uniform(-1, 1, x.size)[to] + 0.2 * rng.uniform(-1, 1, to.shape)
    return (np.asarray(diagonal_plan(geometry, x)) + inside * size * step).astype(x.dtype)


def interior_point(geometry, x, plan, radius, cap=None):
    """The problem at the top of the module, over the arcs of positive pixels: (plan, point)."""
    cost, to, inside = arcs(geometry, x.shape)
    x, plan = x.astype(np.float64), plan.astype(np.float64)
    used = inside & (x > 0)
    source = np.broadcast_to(np.arange(x.size).reshape(x.shape), to.shape)[used]
    flow = cp.Variable(used.sum(), nonneg=True)
    sources = np.unique(source)
    rows = (source == sources[:, None]).astype(float)
    columns = (to[used] == np.arange(x.size)[:, None]).astype(float)
    constraints = [rows @ flow == x.reshape(-1)[sources], cost[used] @ flow <= radius * x.sum()]
    if cap is not None:
        constraints.append(columns @ flow <= cap)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(flow - plan[used]) / 2), constraints)
    problem.solve("CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    assert problem.status in ("optimal", "optimal_inaccurate")
    found = np.zeros(to.shape)
    found[used] = flow.value
    return found, (columns @ flow.value).reshape(x.shape)


@functools.cache
def compiled(shape, window, cap, tolerance, max_iterations):
    options = {"cap": cap, "tolerance": tolerance, "max_iterations": max_iterations}
    return jit(functools.partial(dual_projection, grid(shape, window), **options))


def solver(shape, window, cap=None, max_iterations=2000):
    """(x, plan, radius, duals) ↦ the projection, to 1e-5, or to 1e-9 in double precision."""

    def project(x, plan, radius, duals=None):
        tolerance = 1e-9 if x.dtype == np.float64 else 1e-5
        # Zeros are the default, so that there is one function to compile.
        start = CouplingDuals(np.zeros((), x.dtype), np.zeros(x.shape, x.dtype))
        solve = compiled(shape, window, cap, tolerance, max_iterations)
        return solve(x, plan, radius, start if duals is None else duals)

    return project


def assert_feasible(geometry, x, got, radius, cap, rtol):
    plan, x = np.asarray(got.plan, np.float64), np.asarray(x, np.float64)
    cost, to, inside = arcs(geometry, x.shape)
    assert (plan >= 0).all() and (plan[~inside] == 0).all()
    np.testing.assert_allclose(plan.sum(0), x, rtol=rtol, atol=0)
    assert (cost * plan).sum() <= radius * x.sum() * (1 + 10 * rtol)
    point = np.bincount(to.ravel(), plan.ravel(), x.size).reshape(x.shape)
    np.testing.assert_allclose(got.point, point, rtol=10 * rtol, atol=rtol)
    assert cap is None or (point <= cap * (1 + 10 * rtol)).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))


# (shape, window, radius, seed): binding budgets and slack ones.
PROBLEMS = [
    ((5, 6), 3, 0.1, 0),
    ((4, 4, 3), 5, 0.05, 2),
    ((5, 6), 3, 5.0, 1),
    ((4, 4, 3), 5, 0.2, 3),
]


@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize(("shape", "window", "radius", "seed"), PROBLEMS)
def test_agrees_with_an_interior_point_in_float64(x64, shape, window, radius, seed, cap):
    geometry = grid(shape, window)
    x = image(shape, seed)
    plan = stepped(geometry, x, seed + 100)
    got = solver(shape, window, cap)(x, plan, radius)
    truth, point = interior_point(geometry, x, plan, radius, cap)
    assert bool(got.converged) and got.plan.dtype == jnp.float64
    np.testing.assert_allclose(got.plan, truth, atol=1e-5)
    np.testing.assert_allclose(got.point, point, atol=1e-5)
    assert_feasible(geometry, x, got, radius, cap, 1e-13)
    assert (float(got.duals.budget) > 0) == (radius < 1)
    if cap is not None:
        # The problem is one: pixels at the cap, and mass that would overfill others.
        uncapped = solver(shape, window)(x, plan, radius)
        assert (x == cap).any() and float(uncapped.point.max()) > 1.05 * cap
        assert float(got.duals.prices.max()) > 0.01


@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize(("shape", "window", "radius", "seed"), PROBLEMS[:3:2])
def test_agrees_with_an_interior_point_in_float32(shape, window, radius, seed, cap):
    geometry = grid(shape, window)
    x = image(shape, seed).astype(np.float32)
    plan = stepped(geometry, x, seed + 100)
    got = solver(shape, window, cap)(x, plan, radius)
    truth, point = interior_point(geometry, x, plan, radius, cap)
    assert got.plan.dtype == jnp.float32
    np.testing.assert_allclose(got.plan, truth, atol=1e-4)
    np.testing.assert_allclose(got.point, point, atol=1e-4)
    assert_feasible(geometry, x, got, radius, cap, 1e-6)


SHAPE = (5, 6)
GEOMETRY = grid(SHAPE, 3)
X = image(SHAPE, 20).astype(np.float32)
PLAN = stepped(GEOMETRY, X, 21)


def optimality(geometry, x, plan, radius, got, cap):
    """The largest violation of the problem's optimality conditions, all of them."""
    cost, to, inside = arcs(geometry, x.shape)
    found, point, (budget, prices) = np.asarray(got.plan), got.point, got.duals
    scores = np.where(inside, plan - budget * cost - np.ravel(prices)[to], -1e30)
    positive = found > 1e-6  # below, traces of mass that was left at its source
    # θ by complementary slackness: the same for a row's positive entries, too large for the others.
    excess = scores - found
    theta = np.max(np.where(positive, excess, -1e30), axis=0)
    active = np.where(positive & (x > 0), theta - excess, 0.0)
    idle = np.where(~positive & (x > 0), np.maximum(scores - theta, 0.0), 0.0)
    spent = (cost * found).sum() - radius * x.sum()
    worst = [active.max(), idle.max(), float(budget * np.abs(spent))]
    if cap is not None:
        worst.append(np.abs(np.minimum(prices, cap - point)).max())
    return max(worst)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
    radius=st.sampled_from([1e-3, 0.05, 0.3, 100.0]),
    scale=st.sampled_from([1e-2, 1.0, 255.0]),
    kept=st.sampled_from([0.1, 0.6, 1.0]),
    capped=st.booleans(),
)
def test_optimality_conditions_hold(seed, size, radius, scale, kept, capped):
    with jax.enable_x64(True):
        x = image(SHAPE, seed, kept)
        plan = stepped(GEOMETRY, x, seed + 1, size)
        cap = 1.0 if capped else None
        base = solver(SHAPE, 3, cap)(x, plan, radius)
        assert bool(base.converged)
        assert optimality(GEOMETRY, x, plan, radius, base, cap) <= 1e-5
        assert_feasible(GEOMETRY, x, base, radius, cap, 1e-12)
        if not capped:  # the unit does not matter
            scaled = solver(SHAPE, 3)(scale * x, scale * plan, radius)
            np.testing.assert_allclose(scaled.plan, scale * base.plan, atol=1e-7 * scale)


@pytest.mark.parametrize("cap", [None, 1.0])
@pytest.mark.parametrize("size", [0.1, 1.0, 1e4])
@pytest.mark.parametrize("radius", [1e-12, 1e-4, 0.2, 1e6])
def test_one_iteration_is_feasible(radius, size, cap):
    for seed in range(3):
        x = image(SHAPE, seed).astype(np.float32)
        plan = stepped(GEOMETRY, x, seed, size)
        got = solver(SHAPE, 3, cap, max_iterations=1)(x, plan, radius)
        assert_feasible(GEOMETRY, x, got, radius, cap, 1e-6)


def test_sending_home_ends_where_all_pixels_are_full():
    # Nothing can arrive but where as much leaves: cycles of full pixels, far from the solution.
    for x in (np.ones(SHAPE, np.float32), 1 - 1e-3 * image(SHAPE, 1).astype(np.float32)):
        plan = stepped(GEOMETRY, x, 3, 2.0)
        got = solver(SHAPE, 3, 1.0, max_iterations=1)(x, plan, 10.0)
        assert not bool(got.converged)
        assert_feasible(GEOMETRY, x, got, 10.0, 1.0, 1e-6)


@pytest.mark.parametrize("cap", [None, 1.0])
def test_a_feasible_coupling_is_its_own_projection(cap):
    x = image(SHAPE, 5).astype(np.float32)
    inner = solver(SHAPE, 3, cap)(x, stepped(GEOMETRY, x, 6), 0.2)
    for plan in (inner.plan, diagonal_plan(GEOMETRY, x)):
        got = solver(SHAPE, 3, cap)(x, plan, 0.21)
        np.testing.assert_allclose(got.plan, plan, atol=2e-6)
        assert int(got.iterations) == 1 and float(got.residual) < 1e-6
        assert float(got.duals.budget) == 0 and float(got.duals.prices.max()) == 0


def test_a_huge_radius_costs_nothing():
    x = image(SHAPE, 7).astype(np.float32)
    plan = stepped(GEOMETRY, x, 8)
    got, beyond = (solver(SHAPE, 3)(x, plan, radius) for radius in (1.5, 1e8))
    assert float(got.duals.budget) == 0 and float(got.cost) < 1.5 and bool(got.converged)
    np.testing.assert_array_equal(got.plan, beyond.plan)


@pytest.mark.parametrize("cap", [None, 1.0])
def test_pixels_without_mass(cap):
    x = np.zeros(SHAPE, np.float32)
    plan = stepped(GEOMETRY, x, 1)
    duals = CouplingDuals(jnp.float32(0.3), jnp.full(SHAPE, 0.1, jnp.float32))
    for start in (None, duals):
        blank = solver(SHAPE, 3, cap)(x, plan, 0.1, start)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(blank))
        np.testing.assert_array_equal(blank.plan, 0.0)
        assert bool(blank.converged) and float(blank.cost) == 0
    x[2, 2] = 0.5
    got = solver(SHAPE, 3, cap)(x, stepped(GEOMETRY, x, 1, 1.0), 0.1)
    assert bool(got.converged)
    np.testing.assert_array_equal(np.asarray(got.plan).sum(0)[x == 0], 0.0)
    assert float(got.point[2, 2]) < 0.5


def test_a_single_pixel_has_nowhere_to_go():
    x = np.full((1, 1), 0.5, np.float32)
    got = solver((1, 1), 3, 1.0)(x, np.full((1, 1, 1), 7.0, np.float32), 0.1)
    np.testing.assert_array_equal(got.plan, [[[0.5]]])
    assert bool(got.converged)


def test_channels_share_one_budget_and_no_mass(x64):
    shape = (4, 4, 3)
    geometry = grid(shape, 5)
    x = image(shape, 2) * np.array([1.0, 0.2, 0.5])
    x[..., 1] = 0
    got = solver(shape, 5)(x, stepped(geometry, x, 3), 0.05)
    np.testing.assert_allclose(got.point.sum((0, 1)), x.sum((0, 1)), rtol=1e-12, atol=0)
    assert float(got.cost) == pytest.approx(0.05, rel=1e-8)


def test_a_channel_is_the_same_with_and_without_its_axis():
    flat = solver(SHAPE, 3)(X, PLAN, 0.05)
    one = solver((*SHAPE, 1), 3)(X[..., None], PLAN[..., None], 0.05)
    np.testing.assert_array_equal(one.plan[..., 0], flat.plan)
    np.testing.assert_array_equal(one.point[..., 0], flat.point)
    assert flat.duals.prices.shape == SHAPE


def test_a_warm_start_is_faster_and_ends_in_the_same_place():
    x = image(SHAPE, 9).astype(np.float32)
    plan = stepped(GEOMETRY, x, 10, 1.0)
    project = solver(SHAPE, 3, 1.0)
    cold = project(x, plan, 0.2)
    warm = project(x, plan, 0.2, cold.duals)
    near = project(x, plan + stepped(GEOMETRY, 0 * x, 11, 1e-3), 0.2, cold.duals)
    assert int(warm.iterations) == 1 and int(near.iterations) < int(cold.iterations)
    np.testing.assert_allclose(warm.plan, cold.plan, atol=1e-3)


IMAGES = np.stack([image(SHAPE, k) * (k != 1) for k in range(4)]).astype(np.float32)
PLANS = np.stack([stepped(GEOMETRY, x, k, 0.2 * (1 + k)) for k, x in enumerate(IMAGES)])
RADII = np.array([0.1, 0.2, 1e-3, 5.0], np.float32)


def test_a_batch_gives_what_its_images_give_alone():
    project = solver(SHAPE, 3)
    batch = jax.vmap(project)(IMAGES, PLANS, RADII)
    for k in range(4):
        alone = project(IMAGES[k], PLANS[k], RADII[k])
        np.testing.assert_allclose(batch.plan[k], alone.plan, atol=1e-5)
        assert bool(alone.converged) == bool(batch.converged[k])


def test_a_batch_of_batches_gives_what_its_images_give_alone():
    # Steps from the same images, as restarts of an attack make them.
    project = solver(SHAPE, 3, 1.0)
    inner = jax.vmap(project, (0, 0, None))
    batch = jax.vmap(inner, (None, 0, 0))(
        IMAGES[:2], PLANS.reshape(2, 2, *PLANS.shape[1:]), RADII[:2]
    )
    for a in range(2):
        for b in range(2):
            alone = project(IMAGES[b], PLANS[2 * a + b], RADII[a])
            np.testing.assert_allclose(batch.plan[a, b], alone.plan, atol=1e-5)
            assert bool(alone.converged) == bool(batch.converged[a, b])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3)])
def test_linear_maps_of_couplings(shape):
    geometry = grid(shape, 5)
    cost, to, inside = arcs(geometry, shape)
    rng = np.random.default_rng(0)
    x = image(shape, 1).astype(np.float32)
    plan = (rng.random(to.shape) * inside).astype(np.float32)
    truth = np.bincount(to.ravel(), plan.ravel(), x.size).reshape(shape)
    np.testing.assert_allclose(column_sums(geometry, plan), truth, rtol=1e-6)
    assert float(coupling_cost(geometry, plan)) == pytest.approx((cost * plan).sum(), rel=1e-6)
    home = diagonal_plan(geometry, x)
    np.testing.assert_array_equal(column_sums(geometry, home), x)
    np.testing.assert_array_equal(home.sum(0), x)
    assert float(coupling_cost(geometry, home)) == 0
    # Its transpose brings a gradient in z back to the arcs.
    g = rng.normal(size=shape).astype(np.float32)
    back = jax.grad(lambda plan: (column_sums(geometry, plan) * g).sum())(plan)
    np.testing.assert_array_equal(back, np.where(inside, g.reshape(-1)[to], 0))


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_gradients_are_refused(argument):
    def value(*args):
        return solver(SHAPE, 3)(*args).point.sum()

    with pytest.raises(TypeError, match=r"dual_projection does .*stop_gradient"):
        jax.grad(value, argument)(X, PLAN, 0.2)


@pytest.mark.parametrize(
    ("geometry", "x", "plan", "kwargs", "message"),
    [
        (dense_grid(SHAPE, COST, 3), X, PLAN, {}, "geometry must be a LocalGrid, got"),
        (GEOMETRY, X, PLAN[:8], {}, "plan must have shape 9×5×6"),
        (GEOMETRY, X, PLAN[..., :4], {}, "plan must have shape 9×5×6"),
        (GEOMETRY, X, PLAN[..., None], {}, "must have x's shape"),
        (GEOMETRY, X[:4], PLAN, {}, "must have x's shape"),
        (GEOMETRY, X[0], PLAN, {}, "x must have shape"),
        (grid((5, 5), 3), X, PLAN, {}, "plan must have shape 9×5×5"),
        (GEOMETRY, X, PLAN, {"cap": 0.0}, "cap must be positive"),
        (GEOMETRY, X, PLAN, {"cap": np.nan}, "cap must be positive"),
        (GEOMETRY, X, PLAN, {"tolerance": 0.0}, "tolerance"),
        (GEOMETRY, X, PLAN, {"max_iterations": 0}, "max_iterations"),
        (GEOMETRY, X, PLAN, {"duals": CouplingDuals(0.0, X[0])}, "prices must have x's shape"),
    ],
)
def test_wrong_arguments_are_refused(geometry, x, plan, kwargs, message):
    with pytest.raises(InputError, match=message) as refusal:
        dual_projection(geometry, x, plan, 0.2, **kwargs)
    assert "\n" not in str(refusal.value)


def test_other_functions_refuse_too():
    for call in (column_sums, coupling_cost):
        with pytest.raises(InputError, match="plan must have shape"):
            call(GEOMETRY, PLAN[:8])
    with pytest.raises(InputError, match="LocalGrid"):
        diagonal_plan(dense_grid(SHAPE, COST, 3), X)
    with pytest.raises(InputError, match="geometry has shape"):
        diagonal_plan(GEOMETRY, X[:4])


@pytest.mark.parametrize("cap", [None, 1.0])
def test_faint_images_under_large_steps_are_ended_in_double_precision(cap):
    # λC is a thousand times as large as the mass that it moves: single precision has three digits.
    x = np.stack([1e-4 * image((5, 6), k) for k in range(4)]).astype(np.float32)
    plan = np.stack([stepped(GEOMETRY, a, k, 0.5) for k, a in enumerate(x)]).astype(np.float32)
    radius = np.array([0.003, 0.01, 0.1, 1.0], np.float32)
    project = functools.partial(dual_projection, GEOMETRY, cap=cap)
    got = jax.jit(jax.vmap(project))(x, plan, radius)
    assert got.plan.dtype == jnp.float32 and bool(got.converged.all())
    for k in range(4):
        mass = x[k].astype(np.float64).sum()
        truth, _ = interior_point(
            GEOMETRY, x[k] / mass, plan[k] / mass, radius[k], cap and cap / mass
        )
        np.testing.assert_allclose(got.plan[k] / mass, truth, atol=1e-3)
        assert_feasible(
            GEOMETRY, x[k], jax.tree.map(lambda a, k=k: a[k], got), radius[k], cap, 1e-6
        )
