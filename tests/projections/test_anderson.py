"""Anderson's mixing on maps whose fixed points are known, and inside the projection."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit

from wasserstein_adv.geometry import euclidean_power, local_grid
from wasserstein_adv.projections import Duals, projected_sinkhorn
from wasserstein_adv.projections.anderson import extrapolate, no_memory


def iterate(step, start, size, iterations, norm=1.0):
    """The errors ‖g(u) − u‖/norm along the accelerated iteration, and its last point."""

    def dot(a, b):
        return jnp.vdot(a["u"], b["u"])

    def body(carry, _):
        point, memory = carry
        image = {"u": step(point["u"])}
        error = jnp.linalg.norm(image["u"] - point["u"]) / norm
        point, memory = extrapolate(memory, point, image, error, dot)
        return (point, memory), error

    point = {"u": jnp.asarray(start)}
    carry = (point, no_memory(point, size, point["u"].dtype))
    (point, _), errors = jit(lambda c: jax.lax.scan(body, c, None, length=iterations))(carry)
    return np.asarray(errors), np.asarray(point["u"])


def linear_map(n, slowest, seed=0):
    """(u ↦ Au + b, its fixed point), A symmetric with eigenvalues from 0 to `slowest`."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = basis @ np.diag(np.linspace(0, slowest, n)) @ basis.T
    shift = rng.normal(size=n)
    return lambda u: matrix @ u + shift, np.linalg.solve(np.eye(n) - matrix, shift)


def test_a_linear_map_of_few_unknowns_ends_as_gmres_does(x64):
    step, fixed = linear_map(3, 0.99)
    errors, point = iterate(step, np.zeros(3), 3, 12, norm=1e3)
    np.testing.assert_allclose(point, fixed, rtol=1e-6)
    # GMRES has the solution after as many products as there are unknowns, up to the ridge.
    assert errors[5] < 1e-5 * errors[0]


def test_it_needs_far_fewer_steps_than_the_map_alone(x64):
    step, fixed = linear_map(200, 0.99)
    _, alone = iterate(step, np.zeros(200), 1, 0)
    for _ in range(60):
        alone = step(alone)
    _, point = iterate(step, np.zeros(200), 5, 60, norm=1e3)
    assert np.linalg.norm(point - fixed) < 0.03 * np.linalg.norm(alone - fixed)


def test_a_map_that_runs_away_at_first_is_not_turned_back(x64):
    # Below 50 the step doubles: extrapolation alone would go for its other fixed point, -1.
    def step(u):
        return jnp.where(u < 50, 2 * u + 1, 60 + 0.9 * (u - 60))

    errors, point = iterate(step, np.zeros(1), 3, 60, norm=60.0)
    assert point == pytest.approx(60, rel=1e-6)
    assert errors[-1] < 1e-6


def test_nothing_left_to_do_is_no_division_by_zero():
    _, fixed = linear_map(4, 0.5)
    errors, point = iterate(lambda u: u, np.float32(fixed), 3, 5)
    np.testing.assert_array_equal(point, np.float32(fixed))
    assert (errors == 0).all()


@functools.cache
def solver(unit, memory):
    geometry = local_grid((7, 6), euclidean_power(1), 5, unit)
    options = {"tolerance": 1e-10, "max_iterations": 5000, "memory": memory}
    return jit(functools.partial(projected_sinkhorn, geometry, **options))


@pytest.mark.parametrize(("psi", "unit"), [(0.0, 1.0), (1.0, 1 / 27), (30.0, 1.0)])
def test_the_projection_is_the_same_with_and_without_from_any_start(x64, psi, unit):
    rng = np.random.default_rng(0)
    x = rng.random((7, 6)) * (rng.random((7, 6)) < 0.5)
    w = x + 0.3 * rng.choice([-1, 1], x.shape)
    start = Duals(jnp.zeros(x.shape), jnp.asarray(psi))
    plain, mixed = (solver(unit, memory)(x, w, 0.4 * unit, 300.0, start) for memory in (0, 3))
    assert bool(plain.converged) and bool(mixed.converged)
    np.testing.assert_allclose(mixed.point, plain.point, atol=1e-9)
    assert int(mixed.iterations) < 0.6 * int(plain.iterations)
