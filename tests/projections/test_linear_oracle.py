"""The linear oracle against linear and conic programming, and what makes it a support function."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import jit
from scipy.optimize import linprog
from scipy.sparse import block_diag, coo_array

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import (
    dense_grid,
    euclidean_power,
    local_grid,
    minkowski,
    separable_grid,
    separable_power,
)
from wasserstein_adv.projections import projected_sinkhorn
from wasserstein_adv.projections.linear_oracle import linear_oracle, support_function

# name ↦ (shape ↦ the geometry, shape ↦ its dense equal)
GEOMETRIES = {
    "local": (lambda s: local_grid(s, euclidean_power(1), 3),) * 2,
    "local, unit square": (lambda s: local_grid(s, euclidean_power(2), 5, 1 / 27),) * 2,
    "dense": (lambda s: dense_grid(s, minkowski(2)),) * 2,
    "dense, window": (lambda s: dense_grid(s, euclidean_power(1), 3),) * 2,
    "separable": (lambda s: separable_grid(s, 2), lambda s: dense_grid(s, separable_power(2))),
    "manhattan": (lambda s: separable_grid(s, 1), lambda s: dense_grid(s, separable_power(1))),
}


def geometry(name, shape):
    return GEOMETRIES[name][0](shape)


def cost_matrix(name, shape):
    return np.asarray(GEOMETRIES[name][1](shape).cost_matrix, np.float64)


def oracle(name, shape):
    """(x, y, ε[, λ]) ↦ the maximum, to a tolerance that the precision allows."""
    return _oracle(name, shape, jax.config.jax_enable_x64)


@functools.cache
def _oracle(name, shape, precise):
    tolerance = 1e-13 if precise else 1e-4
    return jit(functools.partial(linear_oracle, geometry(name, shape), tolerance=tolerance))


def image(shape, seed, kept=0.6):
    rng = np.random.default_rng(seed)
    return rng.random(shape) * (rng.random(shape) < kept)


def direction(shape, seed, kind="normal"):
    normal = np.random.default_rng(seed + 1000).normal(size=shape)
    return {
        "normal": normal,
        "sign": np.sign(normal),  # ties everywhere
        "coarse": np.round(2 * normal) / 2 - 3.0,
        "peak": np.where(normal == normal.max(), 50.0, normal),
    }[kind]


def arcs(cost, x):
    """Per channel the moves (i, j) that are allowed and leave a pixel with mass, and the masses."""
    n = len(cost)
    for channel in x.reshape(n, -1).T:
        i, j = np.nonzero(np.isfinite(cost) & (channel > 0)[:, None])
        sources, row = np.unique(i, return_inverse=True)
        sums = coo_array((np.ones(len(i)), (row, np.arange(len(i)))), (len(sources), len(i)))
        yield i, j, sums, channel[sources]


def linear_program(cost, x, y, radius):
    """σ(y), by the simplex method."""
    x, y, mass = x.astype(np.float64), y.reshape(len(cost), -1).astype(np.float64), x.sum()
    parts = list(arcs(cost, x / mass))
    worth = np.concatenate([y[j, c] for c, (_, j, _, _) in enumerate(parts)])
    spent = np.concatenate([cost[i, j] for i, j, _, _ in parts])
    found = linprog(
        -worth,
        spent[None],
        [radius],
        block_diag([sums for _, _, sums, _ in parts]).tocsr(),
        np.concatenate([masses for *_, masses in parts]),
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    assert found.status == 0
    return -found.fun * mass


def conic_program(cost, x, y, radius, reg):
    """Equation (29): (the z in x's unit, its value beyond Σ x ln x), by an interior point."""
    mass, shape = x.sum(), x.shape
    x, y = x / mass, y.reshape(len(cost), -1)
    value, spent, constraints, plans = 0.0, 0.0, [], []
    for c, (i, j, sums, masses) in enumerate(arcs(cost, x)):
        plan = cp.Variable(len(i), nonneg=True)
        plans.append((j, plan))
        value += reg * (y[j, c] @ plan) + cp.sum(cp.entr(plan))
        spent += cost[i, j] @ plan
        constraints.append(sums.tocsr() @ plan == masses)
    problem = cp.Problem(cp.Maximize(value), [*constraints, spent <= radius])
    problem.solve("CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    assert problem.status in ("optimal", "optimal_inaccurate")
    z = [np.bincount(j, plan.value, len(cost)) for j, plan in plans]
    return np.stack(z, -1).reshape(shape) * mass


def scale(x, y):
    return float(x.sum()) * float(np.abs(y).max())


def assert_sound(got, x, y, radius, rtol):
    """Feasible, as far as z tells, and its value is its own."""
    point, y = np.asarray(got.point, np.float64), y.astype(np.float64)
    rest = got._replace(prices=got.shares, reg=got.value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rest)) and bool(got.converged)
    assert (got.prices >= 0).all() and (got.shares >= 0).all()  # a price may be infinite
    assert float(got.shares.sum()) == pytest.approx(1.0)
    assert (point >= 0).all() and float(got.psi) >= 0
    np.testing.assert_allclose(point.sum((0, 1)), x.sum((0, 1)), rtol=rtol, atol=rtol * x.sum())
    assert 0 <= float(got.cost) <= radius * (1 + rtol)
    assert float(got.value) == pytest.approx((y * point).sum(), abs=rtol * scale(x, y))
    assert float(got.value) <= float(got.bound) + rtol * scale(x, y)


# (shape, radius in pixels, kind of y, seed)
PROBLEMS = [
    ((6, 5), 0.02, "sign", 0),
    ((6, 5), 1e-4, "normal", 1),
    ((6, 5), 0.2, "peak", 2),
    ((6, 5), 30.0, "normal", 3),
    ((3, 3, 3), 0.1, "normal", 4),
    ((3, 3, 3), 0.5, "coarse", 5),
]
UNITS = {"local, unit square": 1 / 27**2}


def problems(name, dtype):
    for shape, radius, kind, seed in PROBLEMS:
        x, y = image(shape, seed).astype(dtype), direction(shape, seed, kind).astype(dtype)
        yield x, y, radius * UNITS.get(name, 1.0)


@pytest.mark.parametrize(
    ("name", "precise"),
    [*((name, True) for name in GEOMETRIES), ("local, unit square", False), ("separable", False)],
)
def test_is_the_optimum_of_the_linear_program(name, precise):
    rtol = 1e-9 if precise else 1e-5
    with jax.enable_x64(precise):
        for x, y, radius in problems(name, np.float64 if precise else np.float32):
            truth = linear_program(cost_matrix(name, x.shape[:2]), x, y, radius)
            got = oracle(name, x.shape[:2])(x, y, radius)
            assert got.point.dtype == x.dtype
            assert_sound(got, x, y, radius, rtol)
            assert float(got.value) == pytest.approx(truth, abs=rtol * scale(x, y))
            assert float(got.bound) == pytest.approx(truth, abs=rtol * scale(x, y))
            # What can be gained, however small, is gained.
            rise, at_rest = truth - (x * y).astype(np.float64).sum(), float((x * y).sum())
            assert float(got.bound) - at_rest <= rise * (1 + 1e-5) + 2 * rtol * scale(x, y)


@pytest.mark.parametrize("name", ["local", "dense", "separable", "manhattan"])
def test_with_entropy_it_encloses_the_optimum(x64, name):
    for x, y, radius in list(problems(name, np.float64))[:4]:
        truth = linear_program(cost_matrix(name, x.shape[:2]), x, y, radius)
        for reg in (1e-3, 3.0, 100.0, 3000.0, 1e12):
            got = oracle(name, x.shape[:2])(x, y, radius, reg)
            assert_sound(got, x, y, radius, 1e-7)
            slack = 1e-7 * scale(x, y)
            assert float(got.value) <= truth + slack and truth <= float(got.bound) + slack


CONIC = [("local", 0.1, 30.0), ("dense", 0.3, 5.0), ("separable", 0.02, 100.0)]


@pytest.mark.parametrize(("name", "radius", "reg"), [*CONIC, ("local", 50.0, 10.0)])
@pytest.mark.parametrize("shape", [(6, 5), (3, 3, 3)], ids=["gray", "colour"])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # than 1e-12
def test_agrees_with_an_interior_point(x64, name, radius, reg, shape):
    x, y = image(shape, 7), direction(shape, 7)
    z = conic_program(cost_matrix(name, shape[:2]), x, y, radius, reg)
    got = oracle(name, shape[:2])(x, y, radius, reg)
    assert_sound(got, x, y, radius, 1e-9)
    np.testing.assert_allclose(got.point / x.sum(), z / x.sum(), atol=1e-6)
    assert float(got.value) == pytest.approx((y * z).sum(), abs=1e-6 * scale(x, y))
    assert (float(got.psi) > 0) == (radius < 1)


@pytest.mark.parametrize("name", ["local", "manhattan"])
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_agrees_with_an_interior_point_in_float32(name):
    shape = (6, 5)
    x, y = image(shape, 7).astype(np.float32), direction(shape, 7).astype(np.float32)
    z = conic_program(cost_matrix(name, shape), x.astype(float), y.astype(float), 0.1, 30.0)
    got = oracle(name, shape)(x, y, 0.1, 30.0)
    np.testing.assert_allclose(got.point / x.sum(), z / x.sum(), atol=1e-3)
    assert float(got.value) == pytest.approx((y * z).sum(), abs=1e-4 * scale(x, y))


def test_entropy_fades_as_its_weight_falls(x64):
    x, y = image((6, 5), 8), direction((6, 5), 8)
    exact = oracle("local", (6, 5))(x, y, 0.2)
    regs = [1.0, 10.0, 100.0, 1e3, 1e5, 1e7]
    got = [oracle("local", (6, 5))(x, y, 0.2, reg) for reg in regs]
    values = [float(g.value) for g in got]
    assert (np.diff(values) >= -1e-12).all()
    np.testing.assert_array_less(values, float(exact.value) + 1e-9)
    # The entropy of a split among 9 destinations is at most ln 9.
    lost = float(exact.value) - np.array(values)
    assert (lost <= x.sum() * np.log(9) / np.array(regs) + 1e-9).all()
    np.testing.assert_allclose(got[-1].point, exact.point, atol=1e-5)
    assert float(got[-1].bound) == pytest.approx(float(exact.bound), abs=1e-6)


def test_is_the_projection_of_a_far_point(x64):
    # ‖w' − z'‖² with w' = sy is −2s yᵀz' and what does not matter to a distant point: (17) at λ/s
    # is (29) at λ.
    shape, reg, far = (6, 5), 50.0, 1e6
    x, y = image(shape, 9), direction(shape, 9)
    got = oracle("local", shape)(x, y, 0.1, reg)
    project = jit(functools.partial(projected_sinkhorn, geometry("local", shape), tolerance=1e-9))
    projection = project(x, far * y * x.sum(), 0.1, reg / far)
    # The projection's last ψ meets its budget to 1e-3.
    np.testing.assert_allclose(got.point, projection.point, atol=1e-3)
    assert float(got.psi) * reg == pytest.approx(float(projection.duals.psi), rel=1e-2)


# The support function of a set.


SHAPE = (4, 4, 2)
X = image(SHAPE, 20)
values = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).normal(size=SHAPE))


@functools.cache
def support():
    grid = geometry("local", SHAPE[:2])
    return jit(lambda x, y, radius: support_function(grid, x, y, radius))


def sigma(y, x=X, radius=0.2):
    with jax.enable_x64(True):
        return float(support()(x, y, radius))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(y=values, other=values, log_factor=st.floats(-12, 12), shift=st.floats(-100, 100))
def test_support_function_is_sublinear(y, other, log_factor, shift):
    base, factor = sigma(y), 10**log_factor
    assert sigma(factor * y) == pytest.approx(factor * base, rel=1e-9, abs=1e-10 * factor)
    assert sigma(y + other) <= base + sigma(other) + 1e-10
    constant = np.array([shift, -2 * shift])
    expected = base + (X * constant).sum()
    assert sigma(y + constant) == pytest.approx(expected, abs=1e-9 * (1 + abs(shift)))
    # The ball is not empty, and grows with its radius, ever more slowly.
    assert (X * y).sum() <= base + 1e-10
    smaller, larger = sigma(y, radius=0.1), sigma(y, radius=0.3)
    assert smaller <= base + 1e-10 and base <= larger + 1e-10
    assert smaller + larger <= 2 * base + 1e-10


@settings(max_examples=15, derandomize=True, deadline=None)
@given(y=values, other=values)
def test_point_is_a_subgradient(y, other):
    with jax.enable_x64(True):
        got = oracle("local", SHAPE[:2])(X, y, 0.2)
    # σ(y') ≥ y'ᵀz for every z in the ball, with equality at y.
    assert sigma(other) >= (other * np.asarray(got.point)).sum() - 1e-10
    assert sigma(y) == pytest.approx(float(got.value), abs=1e-10)
    assert sigma(y) == float(got.bound)


def test_the_mass_scales_the_ball(x64):
    y = direction(SHAPE, 21)
    assert sigma(y, 255 * X) == pytest.approx(255 * sigma(y), rel=1e-9)


# Extremes.


EXTREMES = {
    "blank": lambda x, y: (0 * x, y, 0.3),
    "zero": lambda x, y: (x, 0 * y, 0.3),
    "constant": lambda x, y: (x, 0 * y + np.float32(3.7), 0.3),
    "huge y": lambda x, y: (x, np.float32(1e36) * y, 0.3),
    "tiny y": lambda x, y: (x, np.float32(1e-30) * y, 0.3),
    "faint": lambda x, y: (np.float32(1e-20) * x, y, 0.3),
    "bright": lambda x, y: (np.float32(1e20) * x, y, 0.3),
    "one pixel": lambda x, y: (x * (x == x.max()), y, 0.3),
    "huge radius": lambda x, y: (x, y, 1e6),
    "no limit": lambda x, y: (x, y, np.inf),
    "tiny radius": lambda x, y: (x, y, 1e-30),
}


@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("name", ["local", "separable"])
@pytest.mark.parametrize("reg", [None, 300.0])
def test_extremes_are_harmless(name, case, reg):
    x, y = image((6, 5), 30).astype(np.float32), direction((6, 5), 30).astype(np.float32)
    size = scale(x, y)
    x, y, radius = EXTREMES[case](x, y)
    args = (x, y, np.float32(radius))
    got = oracle(name, (6, 5))(*args, reg)
    assert_sound(got, x, y, radius, 2e-4 if reg and case == "huge y" else 1e-5)
    at_rest = float((x.astype(np.float64) * y).sum())
    if case in ("blank", "zero", "constant"):
        for end in (got.value, got.bound):
            assert float(end) == pytest.approx(at_rest, rel=1e-6)
    if case == "blank":
        np.testing.assert_array_equal(got.point, x)
    if case in ("huge radius", "no limit"):
        assert float(got.psi) == 0
    if case in ("no limit", "huge radius") and reg is None and name != "local":
        assert float(got.value) == pytest.approx(x.sum() * y.max(), rel=1e-5)
    if case == "tiny radius":
        np.testing.assert_allclose(got.point, x, atol=1e-6)
        assert float(got.bound) == pytest.approx(at_rest, abs=1e-6 * size)


@pytest.mark.parametrize("reg", [None, 300.0])
@pytest.mark.parametrize("factor", [2.0**60, 2.0**-60, 3e-5])
def test_the_unit_of_y_does_not_matter(reg, factor):
    x, y = image((6, 5), 31).astype(np.float32), direction((6, 5), 31).astype(np.float32)
    scaled = None if reg is None else np.float32(reg / factor)
    solve = oracle("local", (6, 5))
    base, other = solve(x, y, 0.2, reg), solve(x, np.float32(factor) * y, 0.2, scaled)
    np.testing.assert_allclose(other.point, base.point, atol=1e-5)
    for a, b in ((other.value, base.value), (other.bound, base.bound), (other.psi, base.psi)):
        assert float(a) == pytest.approx(factor * float(b), rel=1e-4)


def test_ties_go_to_the_nearest():
    # Both neighbours are worth as much; one more step is not worth its cost.
    x, y = np.zeros((1, 5), np.float32), np.zeros((1, 5), np.float32)
    x[0, 2], y[0, [0, 1, 3, 4]] = 1.0, 1.0
    solve = jit(functools.partial(linear_oracle, local_grid((1, 5), euclidean_power(1), 5)))
    got, half = solve(x, y, 1.0), solve(x, y, 0.5)
    assert float(got.value) == float(got.bound) == 1.0 and float(got.cost) == 1.0
    assert float(half.value) == float(half.bound) == 0.5 == float(half.point[0, 2])


# As a function.


@pytest.mark.parametrize("reg", [None, 300.0])
def test_a_batch_gives_what_its_images_give_alone(reg):
    x = np.stack([image((6, 5), s) for s in range(4)]).astype(np.float32)
    x[1] = 0
    y = np.stack([direction((6, 5), s) for s in range(4)]).astype(np.float32)
    radius = np.array([0.1, 0.2, 5.0, 0.01], np.float32)
    alone = oracle("local", (6, 5))
    batch = jax.vmap(alone, (0, 0, 0, None))(x, y, radius, reg)
    for k in range(4):
        # The shares are a quotient of small differences: only what they make is compared.
        one = alone(x[k], y[k], radius[k], reg)._replace(shares=batch.shares[k])
        for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-4, atol=1e-5)
    if reg is None:
        deep = alone(x[0][..., None], y[0][..., None], radius[0], reg)
        np.testing.assert_array_equal(deep.point[..., 0], alone(x[0], y[0], radius[0], reg).point)


@pytest.mark.parametrize("reg", [None, 300.0])
def test_a_start_changes_the_way_and_not_the_end(x64, reg):
    x, y = image((6, 5), 32), direction((6, 5), 32)
    solve = oracle("dense", (6, 5))
    cold = solve(x, y, 0.2, reg)
    for start in (cold.psi, 0.9 * cold.psi, jnp.asarray(1e6), jnp.asarray(0.0)):
        warm = solve(x, y, 0.2, reg, start)
        assert bool(warm.converged) and int(warm.iterations) <= int(cold.iterations) + 4
        assert float(warm.value) == pytest.approx(float(cold.value), abs=1e-3)
        assert float(warm.cost) <= 0.2 * (1 + 1e-12)


@pytest.mark.parametrize("reg", [None, 300.0])
def test_stopped_early_it_still_encloses(x64, reg):
    x, y = image((6, 5), 33), direction((6, 5), 33)
    truth = linear_program(cost_matrix("dense", (6, 5)), x, y, 0.2)
    solve = functools.partial(linear_oracle, geometry("dense", (6, 5)), max_iterations=2)
    got = jit(solve)(x, y, 0.2, reg)
    assert not bool(got.converged) and int(got.iterations) == 2
    assert float(got.value) <= truth + 1e-9 and truth <= float(got.bound) + 1e-9
    assert float(got.cost) <= 0.2 * (1 + 1e-12)
    np.testing.assert_allclose(got.point.sum(), x.sum(), rtol=1e-12)


@pytest.mark.parametrize("argument", [0, 1, 2])
@pytest.mark.parametrize("function", ["oracle", "support"])
def test_gradients_are_refused(function, argument):
    x, y = image((3, 3), 34), direction((3, 3), 34)
    grid = geometry("local", (3, 3))

    def value(*args):
        if function == "support":
            return support_function(grid, *args)
        return linear_oracle(grid, *args).value

    with pytest.raises(TypeError, match="stop_gradient"):
        jax.grad(value, argument)(jnp.asarray(x), jnp.asarray(y), 0.2)


A = np.ones((6, 6), np.float32)


@pytest.mark.parametrize(
    ("x", "y", "kwargs", "message"),
    [
        (A[0], A[0], {}, "x must"),
        (A[None, ..., None], A[None, ..., None], {}, "x must"),
        (A, A[:5], {}, "y must"),
        (A, A[..., None], {}, "y must"),
        (A[:5], A[:5], {}, "geometry"),
        (A.reshape(4, 9), A.reshape(4, 9), {}, "geometry"),
        (A, A, {"reg": 0.0}, "reg"),
        (A, A, {"reg": -1}, "reg"),
        (A, A, {"reg": np.inf}, "reg"),
        (A, A, {"tolerance": 0.0}, "tolerance"),
        (A, A, {"max_iterations": 0}, "max_iterations"),
    ],
)
def test_wrong_arguments_are_refused(x, y, kwargs, message):
    with pytest.raises(InputError, match=message):
        linear_oracle(geometry("local", (6, 6)), x, y, 0.2, **kwargs)
