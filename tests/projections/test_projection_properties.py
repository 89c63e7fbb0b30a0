"""What holds of every projection, converged or not: feasible, finite, of the image's mass."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import jit

from wasserstein_adv.geometry import dense_grid, euclidean_power, local_grid, window_cost
from wasserstein_adv.metrics import exact_distance
from wasserstein_adv.projections import projected_sinkhorn

SIDE = 12


def images():
    """Digit-like, blank, one faint pixel, saturated, two far corners."""
    rows, cols = np.mgrid[:SIDE, :SIDE]
    ring = np.exp(-((np.hypot(rows - 5.5, cols - 5.5) - 3) ** 2))
    x = np.zeros((5, SIDE, SIDE), np.float32)
    x[0] = np.where(ring > 0.3, ring, 0.0)
    x[2, 5, 6] = 1 / 255
    x[3] = 1.0
    x[4, 0, 0] = x[4, -1, -1] = 1.0
    return x


IMAGES = images()

# (geometry, window, p, iterations): each compiles once.
SETTINGS = [
    (local_grid, 3, 1.0, 300),
    (local_grid, 3, 5.0, 1),
    (local_grid, 5, 2.0, 10),
    (dense_grid, 5, 5.0, 100),
    (dense_grid, 7, 3.0, 1),
    (dense_grid, 7, 1.0, 10),
    (dense_grid, 9, 2.0, 10),
]


@functools.cache
def solver(make, window, p, iterations):
    geometry = make((SIDE, SIDE), euclidean_power(p), window)
    project = functools.partial(projected_sinkhorn, geometry, max_iterations=iterations)
    batched = jax.vmap(project, (0, 0, None, None))
    return jit(batched)


def check(got, window, p, radius, pairs=()):
    point, cost = np.asarray(got.point), np.asarray(got.cost)
    assert np.isfinite(point).all() and (point >= 0).all()
    assert np.isfinite(got.duals.beta).all() and np.isfinite(got.duals.psi).all()
    assert (got.duals.psi >= 0).all()
    assert (cost <= radius * (1 + 1e-3)).all() and (cost >= 0).all()
    np.testing.assert_allclose(point.sum((1, 2)), IMAGES.sum((1, 2)), rtol=1e-5)
    for k in pairs:
        costs = window_cost(euclidean_power(p), window)
        certificate = exact_distance(IMAGES[k][..., None], point[k][..., None], costs)
        assert certificate.total <= radius * (1 + 1e-3) + 1e-6 * costs.max()
        assert certificate.mass_ratio == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("setting", SETTINGS)
@settings(max_examples=8, derandomize=True, deadline=None)
@given(
    log_reg=st.floats(0, 5),
    log_radius=st.floats(-4, 0.7),
    log_size=st.floats(-2, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_point_is_feasible(setting, log_reg, log_radius, log_size, seed):
    _, window, p, _ = setting
    noise = np.random.default_rng(seed).uniform(-1, 1, IMAGES.shape)
    w = (IMAGES + 10**log_size * noise).astype(np.float32)
    radius = np.float32(10**log_radius)
    got = solver(*setting)(IMAGES, w, radius, np.float32(10**log_reg))
    check(got, window, p, radius)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("reg", "radius", "size"), [(1.0, 5.0, 1000.0), (1e5, 1e-4, 1000.0), (1e3, 0.5, 0.1)]
)
def test_an_independent_solver_confirms_the_ball(setting, reg, radius, size):
    _, window, p, _ = setting
    noise = np.random.default_rng(1).choice([-1.0, 1.0], IMAGES.shape)
    w = (IMAGES + size * noise).astype(np.float32)
    got = solver(*setting)(IMAGES, w, np.float32(radius), np.float32(reg))
    check(got, window, p, radius, pairs=(0, 2, 4))


def test_an_ordinary_step_converges_and_moves_the_image():
    setting = SETTINGS[0]
    noise = np.random.default_rng(1).choice([-0.1, 0.1], IMAGES.shape)
    got = solver(*setting)(IMAGES, (IMAGES + noise).astype(np.float32), 0.5, np.float32(1e3))
    assert np.asarray(got.converged)[[0, 1, 3]].all()
    assert (np.abs(got.point - IMAGES).max((1, 2))[[0, 2, 3, 4]] > 1e-4).all()
