"""Log-kernels of every geometry against plain NumPy over all pairs of pixels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit
from scipy.special import logsumexp
from windows import skewed

from wasserstein_adv.geometry import (
    LocalGrid,
    LogKernel,
    dense_grid,
    euclidean_power,
    exp_kernel,
    exp_push_forward,
    from_strip,
    log_kernel,
    push_forward,
    separable_grid,
    separable_power,
    to_strip,
    unit_square,
    window_cost,
)

PSIS = np.array([0.0, 0.3, 5.0, 1e4])


CASES = [
    ((5, 7), window_cost(euclidean_power(1), 3)),
    ((7, 4), skewed(5, 1)),
    ((4, 4), window_cost(euclidean_power(2), 9)),  # the window is larger than the image
    ((9, 6), skewed(7, 2)),
    ((1, 6), skewed(5, 3)),
    ((1, 1), window_cost(euclidean_power(1), 3)),
]


def dense_costs(shape, window):
    """C_ij by its definition, pair by pair."""
    radius = len(window) // 2
    pixels = list(np.ndindex(*shape))
    cost = np.full((len(pixels), len(pixels)), np.inf)
    for i, (row, col) in enumerate(pixels):
        for j, (to_row, to_col) in enumerate(pixels):
            drow, dcol = to_row - row, to_col - col
            if max(abs(drow), abs(dcol)) <= radius:
                cost[i, j] = window[radius + drow, radius + dcol]
    return cost


def exponents(shape, seed=0):
    """Random images: tame, with −inf, very large, and with nothing in it."""
    rng = np.random.default_rng(seed)
    tame = rng.normal(size=shape)
    holes = np.where(rng.random(shape) < 0.6, -np.inf, 5 * tame)
    return np.stack([tame, holes, 1e3 * tame, np.full(shape, -np.inf)])


def weights(cost, h, psi):
    """(ln Σ, normalised weights) over the last axis."""
    with np.errstate(invalid="ignore", divide="ignore"):
        scores = np.where(np.isinf(cost), -np.inf, h.reshape(1, -1) - psi * cost)
        lse = logsumexp(scores, axis=1)
        p = np.where(np.isneginf(lse)[:, None], 0.0, np.exp(scores - lse[:, None]))
    return lse, p


def expected_kernel(cost, h, psi, axis):
    cost = cost if axis == 1 else cost.T
    lse, p = weights(cost, h, psi)
    finite = np.where(np.isinf(cost), 0.0, cost)
    mean = (p * finite).sum(1)
    var = (p * (finite - mean[:, None]) ** 2).sum(1)
    return [a.reshape(h.shape) for a in (lse, mean, var)]


def expected_push(cost, x, h, psi):
    return (x.reshape(-1) @ weights(cost, h, psi)[1]).reshape(h.shape)


def over_all(f):
    """Over the images, then over the values of ψ."""
    return jit(jax.vmap(jax.vmap(f, (0, None)), (None, 0)))


def check(kernel, push, cost, shape, rtol, axes=(0, 1)):
    images = exponents(shape)
    x = np.random.default_rng(5).random(shape)
    got = over_all(lambda h, psi: [kernel(h, psi, axis)[:3] for axis in axes])(images, PSIS)
    pushed = over_all(lambda h, psi: push(jnp.asarray(x), h, psi))(images, PSIS)
    for a, psi in enumerate(PSIS):
        for b, h in enumerate(images):
            h = np.asarray(jnp.asarray(h), np.float64)  # as rounded
            for axis, fields in zip(axes, got, strict=True):
                expected = expected_kernel(cost, h, psi, axis)
                for field, truth in zip(fields, expected, strict=True):
                    scale = np.abs(truth[np.isfinite(truth)]).max(initial=1.0)
                    np.testing.assert_allclose(field[a, b], truth, rtol=rtol, atol=rtol * scale)
            if np.isfinite(h).all():
                truth = expected_push(cost, x, h, psi)
                np.testing.assert_allclose(pushed[a, b], truth, rtol=rtol, atol=10 * rtol)
                np.testing.assert_allclose(pushed[a, b].sum(), x.sum(), rtol=max(rtol, 1e-6))


@pytest.mark.parametrize(("shape", "window"), CASES)
def test_local_grid_agrees_with_its_definition(x64, shape, window):
    geometry = LocalGrid(shape, window)
    cost = dense_costs(shape, window)
    np.testing.assert_array_equal(geometry.cost_matrix, cost)
    kernel, push = (
        functools.partial(log_kernel, geometry),
        functools.partial(push_forward, geometry),
    )
    check(kernel, push, cost, shape, 1e-10)


def test_local_grid_in_float32():
    shape, window = CASES[1]
    geometry = LocalGrid(shape, window)
    kernel, push = (
        functools.partial(log_kernel, geometry),
        functools.partial(push_forward, geometry),
    )
    check(kernel, push, dense_costs(shape, window), shape, 3e-6)


def test_a_window_of_9_on_a_larger_image(x64):
    shape, window = (10, 11), window_cost(euclidean_power(1), 9)
    geometry, cost = LocalGrid(shape, window), dense_costs((10, 11), window)
    h, x = exponents(shape)[2], np.random.default_rng(6).random(shape)
    got = jit(lambda h, psi: log_kernel(geometry, h, psi, 0))(h, 0.3)
    for field, truth in zip(got[:3], expected_kernel(cost, h, 0.3, 0), strict=True):
        np.testing.assert_allclose(field, truth, rtol=1e-10, atol=1e-10)
    fast = jit(functools.partial(over_strips_push, geometry))(x, h / 10, 0.3)
    np.testing.assert_allclose(fast, expected_push(cost, x, h / 10, 0.3), rtol=1e-10)


def test_dense_grid_agrees_with_its_definition(x64):
    shape, window = (5, 7), window_cost(euclidean_power(1.5), 5, unit_square(5, 7))
    geometry = dense_grid(shape, euclidean_power(1.5), 5, unit_square(5, 7))
    cost = dense_costs(shape, window)
    kernel, push = (
        functools.partial(log_kernel, geometry),
        functools.partial(push_forward, geometry),
    )
    check(kernel, push, cost, shape, 1e-10)


@pytest.mark.parametrize(("p", "unit"), [(1.0, 1.0), (2.0, unit_square(5, 7)), (3.5, (0.5, 2.0))])
def test_separable_grid_agrees_with_the_dense_cost(x64, p, unit):
    shape = (5, 7)
    cost = np.asarray(dense_grid(shape, separable_power(p), unit=unit).cost_matrix)
    assert cost[0, 1] == pytest.approx(np.broadcast_to(unit, 2)[1] ** p)
    geometry = separable_grid(shape, p, unit)
    kernel, push = (
        functools.partial(log_kernel, geometry),
        functools.partial(push_forward, geometry),
    )
    check(kernel, push, cost, shape, 1e-10)


def over_strips(geometry, h, psi, axis):
    found = exp_kernel(geometry, to_strip(geometry, h[..., None], -jnp.inf), psi, axis)
    image = functools.partial(from_strip, geometry)
    return LogKernel(*(image(field)[..., 0] for field in found[:3]), found.floor)


def over_strips_push(geometry, x, h, psi):
    x, h = to_strip(geometry, x[..., None], 0.0), to_strip(geometry, h[..., None], -jnp.inf)
    return from_strip(geometry, exp_push_forward(geometry, x, h, psi))[..., 0]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
def test_exp_kernel_is_exact_above_its_floor_and_honest_below(axis, spread):
    shape, window = (8, 6), skewed(5, 4)
    geometry, cost = LocalGrid(shape, window), dense_costs(shape, window)
    rng = np.random.default_rng(7)
    h = np.stack([-spread * rng.random(shape) + 500.0, exponents(shape)[1]]).astype(np.float32)
    got = over_all(lambda h, psi: over_strips(geometry, h, psi, axis))(h, np.float32(PSIS))
    seen_below = False
    for a, psi in enumerate(PSIS):
        for b in range(2):
            lse, mean, var = expected_kernel(cost, h[b].astype(np.float64), psi, axis)
            fit = np.asarray(got.lse[a, b] >= got.floor[a, b])
            top = h[b].max()
            assert top - 87 < got.floor[a, b] <= top
            # Below the floor nothing is promised but that the truth lies below it too.
            assert (lse[~fit] < got.floor[a, b] + 1e-3).all()
            assert (lse[fit] > got.floor[a, b] - 1e-3).all()
            np.testing.assert_allclose(got.lse[a, b][fit], lse[fit], rtol=2e-6, atol=2e-5)
            np.testing.assert_allclose(got.mean[a, b][fit], mean[fit], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(got.var[a, b][fit], var[fit], rtol=1e-5, atol=1e-5)
            assert all(np.isfinite(field[a, b]).all() for field in (got.mean, got.var))
            seen_below |= not fit.all()
    assert seen_below or spread < 300


def test_exp_push_forward_agrees_where_the_kernel_fits():
    shape, window = (8, 6), skewed(5, 4)
    geometry, cost = LocalGrid(shape, window), dense_costs(shape, window)
    rng = np.random.default_rng(8)
    x, h = rng.random(shape).astype(np.float32), (20 * rng.random(shape)).astype(np.float32)
    got = jit(functools.partial(over_strips_push, geometry))(x, h, 0.7)
    np.testing.assert_allclose(got, expected_push(cost, x, h, 0.7), rtol=2e-5, atol=1e-6)
    assert float(got.sum()) == pytest.approx(float(x.sum()), rel=1e-6)


GEOMETRIES = {
    "local": lambda: LocalGrid((4, 5), skewed(3, 9)),
    "dense": lambda: dense_grid((4, 5), euclidean_power(1), 5),
    "separable": lambda: separable_grid((4, 5), 1.5),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_moments_are_the_derivatives_in_psi(x64, name):
    geometry = GEOMETRIES[name]()
    h = jnp.asarray(exponents((4, 5))[:2])

    def moments(psi):
        return jax.vmap(lambda h: log_kernel(geometry, h, psi))(h)

    for psi in (0.0, 0.8):
        value, slope = jit(lambda psi: jax.jvp(moments, (psi,), (1.0,)))(psi)
        alive = np.isfinite(value.lse)
        np.testing.assert_allclose(-slope.lse[alive], value.mean[alive], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(-slope.mean[alive], value.var[alive], rtol=1e-9, atol=1e-12)
        assert (value.var[0] > 0).any()


@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_are_the_weights_and_finite_with_empty_pixels(x64, name):
    geometry = GEOMETRIES[name]()
    dense = dense_grid((4, 5), separable_power(1.5)) if name == "separable" else geometry
    cost = np.asarray(dense.cost_matrix)
    h = exponents((4, 5))
    seed = np.random.default_rng(10).normal(size=h.shape[1:])

    def value(h, psi):
        lse = log_kernel(geometry, h, psi).lse
        return jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0.0) * seed)

    slopes = jit(jax.vmap(jax.grad(value, (0, 1)), (0, None)))
    for psi in (0.0, 0.8):
        in_h, in_psi = slopes(h, psi)
        for b in range(len(h)):
            _, p = weights(cost, h[b], psi)
            finite = np.where(np.isinf(cost), 0.0, cost)
            np.testing.assert_allclose(in_h[b], (seed.reshape(-1) @ p).reshape(4, 5), atol=1e-9)
            assert float(in_psi[b]) == pytest.approx(
                -seed.reshape(-1) @ (p * finite).sum(1), abs=1e-9
            )
