"""The projection of mass as a flow against interior points, for both statements of the problem."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import OPTIONS, jit
from scipy.optimize import brentq

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import local_grid, minkowski
from wasserstein_adv.metrics import exact_distance
from wasserstein_adv.projections import (
    FlowState,
    descent,
    divergence,
    dual_projection,
    flow_projection,
)
from wasserstein_adv.projections.flow_interior import weighted_laplacian


def image(shape, seed, cap=1.0, kept=0.6):
    """Random, with zero pixels, and with pixels at the cap (at 1 if there is none)."""
    rng = np.random.default_rng(seed)
    grey = np.minimum(1.5 * rng.random(shape), 1.0) * (rng.random(shape) < kept)
    return grey * (cap if np.isfinite(cap) else 1.0)


def stepped(x, seed, size=0.5):
    return x + size * np.random.default_rng(seed).uniform(-1, 1, x.shape)


def columns(x):
    """(pixels, channels)."""
    return np.asarray(x, np.float64).reshape(x.shape[0] * x.shape[1], -1)


def manhattan(height, width):
    """(pixels, pixels): |Δrow| + |Δcol|."""
    row, col = np.divmod(np.arange(height * width), width)
    return abs(row[:, None] - row) + abs(col[:, None] - col)


def solved(distance, constraints):
    problem = cp.Problem(cp.Minimize(distance / 2), constraints)
    problem.solve("CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13)
    assert problem.status in ("optimal", "optimal_inaccurate")


def by_flows(x, w, radius, cap):
    """z of the problem in the module's text: flows between neighbours."""
    mass, target = columns(x), columns(w)
    start, end = np.nonzero(np.triu(manhattan(*x.shape[:2]) == 1))
    pixel = np.arange(len(mass))[:, None]
    flow = cp.Variable((len(start), mass.shape[1]))
    z = mass - ((pixel == start).astype(float) - (pixel == end)) @ flow
    constraints = [cp.sum(cp.abs(flow)) <= radius * mass.sum(), z >= 0]
    constraints += [z <= cap] if np.isfinite(cap) else []
    solved(cp.sum_squares(z - target), constraints)
    return z.value.reshape(x.shape)


def by_plans(x, w, radius, cap):
    """z of the Wasserstein ball by its definition: a plan from any pixel to any other."""
    mass, target = columns(x), columns(w)
    cost = manhattan(*x.shape[:2])
    plans = [cp.Variable(cost.shape, nonneg=True) for _ in mass.T]
    sums = [cp.sum(plan, axis=0) for plan in plans]
    constraints = [cp.sum(p, axis=1) == m for p, m in zip(plans, mass.T, strict=True)]
    constraints += [sum(cp.sum(cp.multiply(cost, p)) for p in plans) <= radius * mass.sum()]
    constraints += [z <= cap for z in sums] if np.isfinite(cap) else []
    solved(sum(cp.sum_squares(z - t) for z, t in zip(sums, target.T, strict=True)), constraints)
    return np.stack([z.value for z in sums], -1).reshape(x.shape)


def without_budget(x, w, cap):
    """The nearest image of x's mass, channel by channel."""

    def one(mass, w):
        def excess(c):
            return np.clip(w - c, 0, cap).sum() - mass

        if mass == 0:
            return np.zeros_like(w)
        if mass >= cap * w.size * (1 - 1e-12):
            return np.full_like(w, cap)
        top = min(cap, mass)
        return np.clip(w - brentq(excess, w.min() - top, w.max(), xtol=1e-14), 0, cap)

    found = [one(m.sum(), t) for m, t in zip(columns(x).T, columns(w).T, strict=True)]
    return np.stack(found, -1).reshape(x.shape)


@functools.cache
def compiled(tolerance, max_iterations):
    options = {"tolerance": tolerance, "max_iterations": max_iterations}
    return jit(functools.partial(flow_projection, **options))


def project(x, w, radius, cap=1.0, start=None, *, max_iterations=400):
    """To 1e-5 in double precision, to 1e-4 in single: bounds on the error, many times it."""
    dtype = x.dtype
    if start is None:  # the default, so that there is one function to compile
        zero = np.zeros((2, *x.shape), dtype)
        start = FlowState(zero, zero[0], np.ones((), dtype))
    solve = compiled(1e-5 if dtype == np.float64 else 1e-4, max_iterations)
    return solve(x, w, jnp.asarray(radius, dtype), start, cap=jnp.asarray(cap, dtype))


def assert_feasible(x, got, radius, cap, rtol):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
    x, z, m = (np.asarray(a, np.float64) for a in (x, got.point, got.state.flow))
    assert z.min() >= 0 and z.max() <= cap
    np.testing.assert_allclose(columns(z).sum(0), columns(x).sum(0), rtol=rtol, atol=0)
    assert (m[0, -1] == 0).all() and (m[1, :, -1] == 0).all()  # nothing crosses the border
    arrived = x.copy()
    arrived[:-1] -= m[0, :-1]
    arrived[1:] += m[0, :-1]
    arrived[:, :-1] -= m[1, :, :-1]
    arrived[:, 1:] += m[1, :, :-1]
    np.testing.assert_allclose(z, arrived, rtol=0, atol=rtol)
    mass = x.sum() if x.any() else 1.0
    assert abs(m).sum() <= radius * mass * (1 + 10 * rtol)
    np.testing.assert_allclose(got.cost, abs(m).sum() / mass, rtol=10 * rtol)
    if x.any():
        pair = (a.reshape(*x.shape[:2], -1) for a in (x, z))
        exact = exact_distance(*pair, lambda drow, dcol: abs(drow) + abs(dcol))
        # The exact distance has a rounding of its own, of a mass that went once across the image.
        assert exact.total <= min(radius, float(got.cost)) * (1 + 1e-6) + sum(x.shape[:2]) * rtol


# (shape, radius, cap, seed): binding budgets, and the last one slack.
PROBLEMS = [
    ((4, 4), 0.1, 1.0, 0),
    ((4, 4), 0.02, 0.7, 1),
    ((6, 5), 0.3, np.inf, 2),
    ((6, 5), 0.01, 1.0, 3),
    ((7, 7), 0.05, 1.0, 4),
    ((7, 7), 1e-3, 0.3, 5),
    ((5, 4, 3), 0.1, 1.0, 6),
    ((5, 4, 3), 0.02, np.inf, 7),
    ((6, 5), 3.0, 1.0, 8),
]


@pytest.mark.parametrize(("shape", "radius", "cap", "seed"), PROBLEMS)
def test_agrees_with_interior_points_in_float64(x64, shape, radius, cap, seed):
    x = image(shape, seed, cap)
    w = stepped(x, seed + 100)
    got = project(x, w, radius, cap)
    flows, plans = by_flows(x, w, radius, cap), by_plans(x, w, radius, cap)
    np.testing.assert_allclose(flows, plans, atol=1e-8)  # Beckmann's equivalence
    assert bool(got.converged) and got.point.dtype == jnp.float64
    np.testing.assert_allclose(got.point, plans, atol=1e-6)
    assert_feasible(x, got, radius, cap, 1e-12)
    # The problem is one: the budget binds, and so does the box, on both sides.
    far = np.asarray(without_budget(x, w, cap))
    assert (abs(far - plans).max() > 1e-3) == (radius < 1)
    assert float(got.cost) == pytest.approx(radius, rel=1e-6) or radius > 1
    assert (x == 0).any() and (x == x.max()).sum() > 1
    assert (plans < 1e-9).any() and (np.isinf(cap) or (plans > cap - 1e-9).any())


@pytest.mark.parametrize(("shape", "radius", "cap", "seed"), [*PROBLEMS[2:4], *PROBLEMS[6:]])
def test_agrees_with_an_interior_point_in_float32(shape, radius, cap, seed):
    x = image(shape, seed, cap).astype(np.float32)
    w = stepped(x, seed + 100).astype(np.float32)
    got = project(x, w, radius, cap)
    assert bool(got.converged) and got.point.dtype == jnp.float32
    np.testing.assert_allclose(got.point, by_flows(x, w, radius, cap), atol=2e-4)
    assert_feasible(x, got, radius, cap, 1e-6)


SHAPE = (5, 6)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-2, 0.3, 2.0]),
    radius=st.sampled_from([1e-3, 0.01, 0.1, 0.5, 1e6]),
    cap=st.sampled_from([0.4, 1.0, np.inf]),
    kept=st.sampled_from([0.1, 0.6, 1.0]),
)
def test_any_problem_is_solved(seed, size, radius, cap, kept):
    with jax.enable_x64(True):
        x = image(SHAPE, seed, cap, kept)
        w = stepped(x, seed + 1, size)
        truth = by_flows(x, w, radius, cap)  # of the two the better conditioned
        rough, fine = (project(x, w, radius, cap, max_iterations=n) for n in (10, 400))
        reach = np.linalg.norm(without_budget(x, w, cap) - x)
        for got in (rough, fine):
            assert_feasible(x, got, radius, cap, 1e-12)
            error = np.linalg.norm(got.point - truth)
            assert error <= float(got.residual) * reach + 1e-8
        assert bool(fine.converged)
        np.testing.assert_allclose(fine.point, truth, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_holds_at_every_iteration_and_falls(x64, seed):
    x = image(SHAPE, seed)
    w = stepped(x, seed + 50)
    truth = by_plans(x, w, 0.1, 1.0)
    reach = np.linalg.norm(without_budget(x, w, 1.0) - x)
    residuals = []
    for count in (10, 20, 60, 400):
        got = project(x, w, 0.1, max_iterations=count)
        error = np.linalg.norm(got.point - truth)
        assert error <= float(got.residual) * reach + 1e-10
        assert int(got.iterations) == count + count // 10 or bool(got.converged)
        assert bool(got.converged) == (float(got.residual) <= 1e-5)
        residuals.append(float(got.residual))
    assert residuals[-1] <= 1e-5 < residuals[-2] < 0.5 * residuals[0]


def test_the_iteration_works_at_every_size_of_the_radius(x64):
    # A ball so small that its image is x but for one or two pixels.
    for seed in range(4):
        x = image(SHAPE, seed)
        w = stepped(x, seed + 1, 0.3)
        for radius in (1e-6, 1e-5, 1e-4, 1e-3, 3e-3):
            got = project(x, w, radius)
            truth = by_flows(x, w, radius, 1.0)
            assert bool(got.converged) and int(got.iterations) <= 430
            np.testing.assert_allclose(got.point, truth, atol=1e-3 * abs(truth - x).max())


@pytest.mark.parametrize("size", [0.1, 1.0, 1e4])
@pytest.mark.parametrize("radius", [0.0, 1e-6, 1e-3, 0.2, 1e6])
def test_ten_iterations_are_feasible(radius, size):
    for seed in range(3):
        x = image(SHAPE, seed).astype(np.float32)
        w = stepped(x, seed + 1, size).astype(np.float32)
        got = project(x, w, radius, max_iterations=10)
        assert int(got.iterations) <= 11
        assert_feasible(x, got, radius, 1.0, 2e-6)


def test_the_iterations_are_done_in_tens_with_a_tenth_of_steps():
    x = image(SHAPE, 0).astype(np.float32)
    w = stepped(x, 1).astype(np.float32)
    for count, done in ((1, 10), (11, 21)):
        assert int(project(x, w, 0.1, max_iterations=count).iterations) == done


def test_a_budget_that_does_not_bind_takes_no_iteration(x64):
    x = image(SHAPE, 3)
    w = stepped(x, 4, 0.3)
    free = project(x, w, 1e6)
    assert int(free.iterations) == 0 and bool(free.converged)
    np.testing.assert_allclose(free.point, without_budget(x, w, 1.0), atol=1e-8)
    for radius in (10.0, float(free.cost) * 1.001):
        np.testing.assert_array_equal(project(x, w, radius).point, free.point)
    # That flow is not the shortest one: below its length, the shorter ones are found.
    pair = (np.asarray(a)[..., None] for a in (x, free.point))
    needed = float(exact_distance(*pair, lambda drow, dcol: abs(drow) + abs(dcol)).total)
    assert needed < 0.99 * float(free.cost)
    close = project(x, w, 0.5 * (needed + float(free.cost)))
    assert int(close.iterations) > 0 and bool(close.converged)
    np.testing.assert_allclose(close.point, free.point, atol=1e-6)
    assert abs(np.asarray(project(x, w, 0.9 * needed).point) - free.point).max() > 1e-3


def test_an_image_is_its_own_projection():
    x = image(SHAPE, 3).astype(np.float32)
    got = project(x, x, 0.1)
    np.testing.assert_allclose(got.point, x, atol=1e-6)
    assert int(got.iterations) == 0 and bool(got.converged) and float(got.cost) < 1e-6
    assert_feasible(x, got, 0.1, 1.0, 1e-6)


def test_a_point_of_the_ball_is_its_own_projection(x64):
    x = image(SHAPE, 5)
    inner = project(x, stepped(x, 6), 0.1)
    for radius in (0.101, 0.11, 0.15):
        again = project(x, inner.point, radius)
        # The flow of least squares is too long for the smaller radii: what remains is slow.
        assert float(again.residual) <= 1e-3
        np.testing.assert_allclose(again.point, inner.point, atol=1e-4)


def test_pixels_without_mass():
    x = np.zeros(SHAPE, np.float32)
    for w in (x + np.float32(0.3), stepped(x, 1).astype(np.float32)):
        blank = project(x, w, 0.1)
        np.testing.assert_array_equal(blank.point, 0)
        assert bool(blank.converged) and float(blank.cost) == 0 and int(blank.iterations) == 0
        assert_feasible(x, blank, 0.1, 1.0, 1e-6)
    shape = (5, 4, 3)
    x = image(shape, 2).astype(np.float32)
    x[..., 1] = 0
    got = project(x, stepped(x, 3).astype(np.float32), 0.1)
    np.testing.assert_array_equal(got.point[..., 1], 0)
    assert abs(got.point - x).max() > 0.05
    assert_feasible(x, got, 0.1, 1.0, 1e-6)


def test_a_white_image_has_nowhere_to_go():
    x = np.ones(SHAPE, np.float32)
    got = project(x, stepped(x, 1).astype(np.float32), 0.1, max_iterations=10)
    np.testing.assert_allclose(got.point, x, atol=1e-6)
    assert_feasible(x, got, 0.1, 1.0, 1e-6)
    room = project(x, stepped(x, 1).astype(np.float32), 0.1, 1.5)
    assert float(room.point.max()) > 1.05


def test_a_single_pixel_has_nowhere_to_go():
    x = np.full((1, 1), 0.5, np.float32)
    got = project(x, x + np.float32(0.2), 0.1, max_iterations=10)
    np.testing.assert_allclose(got.point, x, rtol=1e-6)
    assert_feasible(x, got, 0.1, 1.0, 1e-6)


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 2)])
def test_a_line_of_pixels(x64, shape):
    x = np.array([0.6, 0.0, 1.0, 0.2, 0.0, 0.9, 0.3])[: max(shape)].reshape(shape)
    w = stepped(x, 1) + (x == 0)
    got = project(x, w, 0.05)
    truth = by_plans(x, w, 0.05, 1.0)
    assert bool(got.converged) and abs(truth - x).max() > 0.01
    np.testing.assert_allclose(got.point, truth, atol=1e-6)
    assert_feasible(x, got, 0.05, 1.0, 1e-12)


def test_two_pixels_in_closed_form(x64):
    # All that the ball allows is t = min(ε Σx, what w asks for) from the first to the second.
    for radius in (0.02, 0.1, 0.5):
        x, w = np.array([[0.8, 0.1]]), np.array([[0.3, 0.6]])
        t = min(radius * 0.9, 0.5)
        got = project(x, w, radius)
        np.testing.assert_allclose(got.point, [[0.8 - t, 0.1 + t]], atol=1e-8)
        assert float(got.state.flow[1, 0, 0]) == pytest.approx(t, abs=1e-8)


def test_mass_from_one_pixel_is_a_coupling(x64):
    # From one pixel a plan is its image: the projections of couplings and of images are one.
    shape, window = (3, 4), 7
    geometry = local_grid(shape, minkowski(1), window)
    moves = [move for _, moves in geometry.taps(1) for move in moves]
    by_couplings = {
        cap: jit(functools.partial(dual_projection, geometry, cap=cap, tolerance=1e-10))
        for cap in (None, 0.5)
    }
    for source, cap in (((1, 2), 0.5), ((0, 0), 0.5), ((2, 3), None)):
        x = np.zeros(shape)
        x[source] = 0.5
        w = stepped(x, 5) + 0.2
        plan = np.zeros((len(moves), *shape))
        for tap, (drow, dcol) in enumerate(moves):
            row, col = source[0] + drow, source[1] + dcol
            if 0 <= row < shape[0] and 0 <= col < shape[1]:
                plan[tap, source[0], source[1]] = w[row, col]
        coupling = by_couplings[cap](x, plan, 0.3)
        got = project(x, w, 0.3, cap or np.inf)
        assert bool(coupling.converged) and bool(got.converged) and float(got.cost) > 0.29
        np.testing.assert_allclose(got.point, coupling.point, atol=1e-6)


def test_the_unit_of_the_images_does_not_matter(x64):
    x = image(SHAPE, 9)
    w = stepped(x, 10)
    base = project(x, w, 0.1)
    for unit in (1e-3, 255.0):
        scaled = project(unit * x, unit * w, 0.1, unit)
        assert bool(scaled.converged)
        np.testing.assert_allclose(scaled.point, unit * base.point, atol=1e-6 * unit)


def test_a_constant_per_channel_changes_nothing(x64):
    shape = (5, 4, 3)
    x = image(shape, 11)
    w = stepped(x, 12)
    base, shifted = (project(x, w + c, 0.05) for c in (0.0, np.array([0.5, -3.0, 0.0])))
    np.testing.assert_allclose(shifted.point, base.point, atol=1e-6)


def test_a_channel_is_the_same_with_and_without_its_axis():
    x = image(SHAPE, 13).astype(np.float32)
    w = stepped(x, 14).astype(np.float32)
    # Equal to the bit only as XLA writes its loops for users.
    options = {"cap": np.float32(1), "tolerance": 1e-4, "max_iterations": 400}
    solve = jax.jit(functools.partial(flow_projection, **options), compiler_options=OPTIONS)
    flat, one = solve(x, w, 0.05), solve(x[..., None], w[..., None], 0.05)
    assert flat.state.flow.shape == (2, *SHAPE) and flat.state.potential.shape == SHAPE
    dropped = one._replace(
        point=one.point[..., 0],
        state=FlowState(one.state.flow[..., 0], one.state.potential[..., 0], one.state.penalty),
    )
    jax.tree.map(np.testing.assert_array_equal, dropped, flat)


def test_a_warm_start_is_faster_and_ends_in_the_same_place(x64):
    x = image(SHAPE, 15)
    w = stepped(x, 16)
    cold = project(x, w, 0.1)
    again = project(x, w, 0.1, start=cold.state)
    assert int(again.iterations) < 0.5 * int(cold.iterations)
    np.testing.assert_allclose(again.point, cold.point, atol=1e-6)
    near = stepped(w, 17, 1e-3), 0.1005
    fresh, warm = project(x, *near), project(x, *near, start=cold.state)
    assert bool(warm.converged) and int(warm.iterations) < int(fresh.iterations)
    np.testing.assert_allclose(warm.point, fresh.point, atol=1e-6)
    # And from anywhere it ends there too.
    rng = np.random.default_rng(0)
    odd = FlowState(rng.normal(size=(2, *SHAPE)), rng.normal(size=SHAPE), np.float64(3.0))
    found = project(x, w, 0.1, start=odd)
    assert bool(found.converged)
    np.testing.assert_allclose(found.point, cold.point, atol=1e-6)


def test_no_start_is_the_default_start(x64):
    x = image(SHAPE, 15)
    w = stepped(x, 16)
    found = compiled(1e-5, 400)(x, w, 0.1)
    np.testing.assert_allclose(found.point, project(x, w, 0.1).point, atol=1e-12)


def batch():
    x = np.stack([image(SHAPE, k) * (k != 1) for k in range(4)])
    w = np.stack([stepped(a, k, 0.2 * (1 + k)) for k, a in enumerate(x)])
    return x, w, np.array([0.02, 0.2, 1e-3, 5.0])


def test_a_batch_gives_what_its_images_give_alone(x64):
    x, w, radius = batch()
    together = jax.vmap(project)(x, w, radius)
    pair = jax.vmap(project)(x[::2], w[::2], radius[::2])
    for k in range(4):
        alone = project(x[k], w[k], radius[k])
        here = jax.tree.map(lambda leaf, k=k: leaf[k], together)
        # ρ follows a quotient of residuals, which has the fewest digits of all.
        np.testing.assert_allclose(here.state.penalty, alone.state.penalty, rtol=1e-3)
        here = here._replace(state=here.state._replace(penalty=alone.state.penalty))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), here, alone)
        assert int(here.iterations) == int(alone.iterations)
    assert len(set(together.iterations.tolist())) > 2  # images end when they are done
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[::2], b, atol=1e-6), together, pair)


def test_a_batch_of_batches_gives_what_its_images_give_alone(x64):
    # Steps from the same images, as restarts of an attack make them, with starts of their own.
    x, w, radius = batch()
    w = w.reshape(2, 2, *SHAPE)
    starts = jax.vmap(jax.vmap(project, (0, 0, None)), (None, 0, 0))(x[:2], w, radius[:2])
    found = jax.vmap(jax.vmap(project, (0, 0, None, None, 0)), (None, 0, 0, None, 0))(
        x[:2], w + 0.01, radius[:2], 1.0, starts.state
    )
    for a in range(2):
        for b in range(2):
            start = jax.tree.map(lambda leaf, a=a, b=b: leaf[a, b], starts.state)
            alone = project(x[b], w[a, b] + 0.01, radius[a], 1.0, start)
            np.testing.assert_allclose(found.point[a, b], alone.point, atol=1e-6)
            assert int(found.iterations[a, b]) == int(alone.iterations)


@pytest.mark.parametrize("shape", [(4, 5), (1, 6), (3, 4, 3)])
def test_descent_is_the_transpose_of_divergence(x64, shape):
    rng = np.random.default_rng(0)
    m, phi = rng.normal(size=(2, *shape)), rng.normal(size=shape)
    m[0, -1], m[1, :, -1] = 0, 0
    assert np.vdot(divergence(m), phi) == pytest.approx(np.vdot(m, descent(phi)), abs=1e-12)
    outflow = np.zeros(shape)
    for row, col in np.ndindex(shape[:2]):
        for axis, to in enumerate([(row + 1, col), (row, col + 1)]):
            if to[axis] < shape[axis]:
                outflow[row, col] += m[axis, row, col]
                outflow[to] -= m[axis, row, col]
                fall = phi[row, col] - phi[to]
                np.testing.assert_array_equal(descent(phi)[axis, row, col], fall)
            else:
                np.testing.assert_array_equal(descent(phi)[axis, row, col], 0)
    np.testing.assert_allclose(divergence(m), outflow, atol=1e-12)
    np.testing.assert_allclose(divergence(m).sum((0, 1)), 0, atol=1e-12)


X = image(SHAPE, 20).astype(np.float32)
W = stepped(X, 21).astype(np.float32)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_gradients_are_refused(argument):
    with pytest.raises(TypeError, match=r"flow_projection does .*stop_gradient"):
        jax.grad(lambda *args: flow_projection(*args).point.sum(), argument)(X, W, 0.2)


def test_a_stopped_projection_stands_in_a_differentiated_function():
    def value(w):
        return (project(X, jax.lax.stop_gradient(w), 0.2).point * w).sum()

    point = project(X, W, 0.2).point
    np.testing.assert_allclose(jax.grad(value)(W), point, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "w", "options", "message"),
    [
        (X[0], W[0], {}, "x must have shape"),
        (X[None, ..., None], W[None, ..., None], {}, "x must have shape"),
        (X, W[:4], {}, "w must have x's shape"),
        (X, W[..., None], {}, "w must have x's shape"),
        (X, W, {"tolerance": 0.0}, "tolerance must be positive"),
        (X, W, {"tolerance": np.nan}, "tolerance must be positive"),
        (X, W, {"max_iterations": 0}, "max_iterations must be 1"),
    ],
)
def test_wrong_arguments_are_refused(x, w, options, message):
    with pytest.raises(InputError, match=message) as refusal:
        flow_projection(x, w, 0.2, **options)
    assert "\n" not in str(refusal.value)


def test_the_hard_few_are_finished_by_the_interior_point():
    # Steps up to three hundred times as large as the images: close to linear programs.
    rng = np.random.default_rng(0)
    x = (rng.random((12, *SHAPE)) * (rng.random((12, *SHAPE)) < 0.5)).astype(np.float32)
    w = (x + 10.0 ** rng.uniform(1, 2.5, (12, 1, 1)) * rng.normal(size=x.shape)).astype(np.float32)
    radius = np.exp(rng.uniform(np.log(1e-2), 0, 12)).astype(np.float32)
    solve = jit(jax.vmap(functools.partial(flow_projection, cap=np.inf)))
    got = solve(x, w, radius)
    assert got.point.dtype == jnp.float32 and bool(got.converged.all())
    assert (np.asarray(got.iterations) > 400).any()  # splitting alone does not
    for k in range(12):
        truth = by_flows(x[k], w[k], radius[k], np.inf)
        np.testing.assert_allclose(got.point[k], truth, atol=2e-3)
        assert_feasible(x[k], jax.tree.map(lambda a, k=k: a[k], got), radius[k], np.inf, 2e-6)


@pytest.mark.parametrize("shape", [(4, 5, 2, 3), (1, 6, 1, 1), (5, 1, 1, 2)])
def test_elimination_by_rows_solves_the_dense_system(x64, shape):
    rng = np.random.default_rng(0)
    weight, diagonal = 10.0 ** rng.uniform(-6, 2, (2, *shape)), 10.0 ** rng.uniform(-6, 0, shape)
    weight[0, -1], weight[1, :, -1] = 0, 0
    right = rng.normal(size=shape)
    found = np.asarray(weighted_laplacian(weight, diagonal)(right))
    pixel = np.arange(shape[0] * shape[1]).reshape(shape[:2])
    for channel, image_ in np.ndindex(shape[2:]):
        here = (..., channel, image_)
        dense = np.diag(diagonal[here].ravel())
        for axis, a, b in ((0, pixel[:-1], pixel[1:]), (1, pixel[:, :-1], pixel[:, 1:])):
            for i, j in zip(a.flat, b.flat, strict=True):
                rows = np.unravel_index(i, shape[:2])
                edge = weight[(axis, *rows, channel, image_)]
                dense[[i, j], [i, j]] += edge
                dense[[i, j], [j, i]] -= edge
        truth = np.linalg.solve(dense, right[here].ravel()).reshape(shape[:2])
        np.testing.assert_allclose(found[here], truth, rtol=1e-8, atol=1e-10)
