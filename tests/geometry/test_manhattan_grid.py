"""The recursion over a Manhattan grid against the dense kernel that it stands for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from plainly import jit

from wasserstein_adv.geometry import (
    ManhattanGrid,
    dense_grid,
    log_kernel,
    separable_grid,
    separable_power,
    unit_square,
)

CASES = [((5, 7), 1.0), ((6, 4), (1 / 27, 0.3)), ((1, 6), 0.5), ((6, 1), 0.5), ((1, 1), 1.0)]
PSIS = np.array([0.0, 0.3, 10.0, 1e3, 1e4])


def both(shape, unit=1.0, **kwargs):
    """(the recursion, the dense matrix) of one cost."""
    grid = separable_grid(shape, 1.0, unit, **kwargs)
    assert isinstance(grid, ManhattanGrid)
    return grid, dense_grid(shape, separable_power(1), unit=unit, **kwargs)


def exponents(shape, seed=0):
    """Tame, with holes, spread over 1e3 and 1e4 with holes, one pixel only, nothing."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(6, *shape)) * np.array([1, 5, 1e3, 1e4, 1, 1])[:, None, None]
    h[1:4][rng.random((3, *shape)) < 0.5] = -np.inf
    h[3, -1] = -np.inf
    h[4:] = -np.inf
    h[4].flat[rng.integers(h[4].size)] = 3.0
    return h


@jit
def moments(geometry, h, psi):
    """(lse, mean, var) over the images, then over the values of ψ."""
    kernel = functools.partial(log_kernel, geometry)
    return jax.vmap(jax.vmap(lambda *args: kernel(*args)[:3], (0, None)), (None, 0))(h, psi)


def in_numpy(cost, h, psi):
    """(lse, mean, var) of one image, by their definitions."""
    scores = h.reshape(1, -1) - psi * cost
    top = scores.max(1, keepdims=True)
    if np.isneginf(top).any():
        return np.stack([np.full(h.shape, value) for value in (-np.inf, 0.0, 0.0)])
    p = np.exp(scores - top)
    total = p.sum(1)
    p /= total[:, None]
    mean = (p * cost).sum(1)
    var = (p * (cost - mean[:, None]) ** 2).sum(1)
    return np.stack([a.reshape(h.shape) for a in (np.log(total) + top[:, 0], mean, var)])


def all_in_numpy(cost, h, psi):
    """As `moments`."""
    fields = np.array([[in_numpy(cost, image, value) for image in h] for value in psi])
    return fields.transpose(2, 0, 1, 3, 4)


def relative_error(got, truth):
    """Per image, against the largest value in it or 1; −inf must be where it is in truth."""
    assert not np.isnan(got).any()
    np.testing.assert_array_equal(np.isneginf(got), np.isneginf(truth))
    finite = np.isfinite(truth)
    got, truth = (np.where(finite, a, 0.0).astype(np.float64) for a in (got, truth))
    return (np.abs(got - truth) / np.maximum(np.abs(truth).max((-1, -2), keepdims=True), 1)).max()


@pytest.mark.parametrize(("shape", "unit"), CASES)
def test_is_the_dense_kernel_in_float64(x64, shape, unit):
    grid, dense = both(shape, unit)
    h = exponents(shape)
    got = moments(grid, h, PSIS)
    for field, truth in zip(got, all_in_numpy(np.asarray(dense.cost_matrix), h, PSIS), strict=True):
        assert relative_error(field, truth) < 1e-12
    blank = [np.asarray(field[:, -1]) for field in got]
    assert np.isneginf(blank[0]).all() and not blank[1].any() and not blank[2].any()


@pytest.mark.parametrize(("shape", "unit"), CASES[1:3])
def test_is_the_dense_kernel_in_float32(shape, unit):
    grid, dense = both(shape, unit)
    h = exponents(shape).astype(np.float32)
    got = moments(grid, h, PSIS.astype(np.float32))
    assert all(field.dtype == jnp.float32 for field in got)
    cost = np.asarray(dense.cost_matrix, np.float64)
    truth = all_in_numpy(cost, h.astype(np.float64), PSIS.astype(np.float32).astype(np.float64))
    for field, expected, bound in zip(got, truth, (1e-6, 3e-6, 1e-5), strict=True):
        assert relative_error(field, expected) < bound


def test_every_nesting_of_vmap_gives_what_a_loop_gives(x64):
    grid, dense = both((4, 3), 0.4)
    cost, rng = np.asarray(dense.cost_matrix), np.random.default_rng(3)
    h, psi = 5 * rng.normal(size=(2, 4, 3, 3)), np.array([0.5, 1.5, 4.0])

    def kernel(h, psi):
        return jnp.stack(log_kernel(grid, h, psi)[:3])

    @jit
    def nested(h, psi):
        images = h[..., 0]
        channels = jax.vmap(kernel, (-1, None))
        return (
            jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))(images, psi),
            jax.vmap(channels, (0, 0))(h, psi[:2]),
            jax.vmap(jax.vmap(kernel, (-1, 0)), (0, None))(h, psi),
        )

    one = functools.partial(in_numpy, cost)
    expected = (
        [[one(image[..., 0], p) for p in psi] for image in h],
        [[one(image[..., c], p) for c in range(3)] for image, p in zip(h, psi[:2], strict=True)],
        [[one(image[..., c], psi[c]) for c in range(3)] for image in h],
    )
    for got, truth in zip(nested(h, psi), expected, strict=True):
        np.testing.assert_allclose(got, truth, rtol=1e-11, atol=1e-12)


def test_gradients_are_those_of_the_dense_kernel(x64):
    shape = (5, 4)
    h, psis = exponents(shape)[[0, 1, 4, 5]], np.array([0.0, 0.8, 300.0])
    seeds = np.random.default_rng(10).normal(size=(3, *shape))

    @jit
    def slopes(geometry, h, psi, which):
        def value(h, psi, which):
            fields = jnp.stack(log_kernel(geometry, h, psi)[:3])
            fields = jnp.where(jnp.isfinite(fields), fields, 0.0)
            return jnp.sum(fields * seeds * which[:, None, None])

        slope = jax.vmap(jax.grad(value, (0, 1)), (0, None, None))
        return jax.vmap(jax.vmap(slope, (None, 0, None)), (None, None, 0))(h, psi, which)

    grid, dense = (slopes(geometry, h, psis, np.eye(3)) for geometry in both(shape, 0.3))
    for got, truth in zip(grid, dense, strict=True):
        assert np.isfinite(got).all() and (np.abs(got) > 1e-3).any()
        np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-10)


def test_ott_solves_on_it_as_on_the_dense_geometry(x64):
    a, b = np.random.default_rng(0).random((2, 20))

    @jit
    def solve(geometry):
        problem = linear_problem.LinearProblem(geometry, a / a.sum(), b / b.sum())
        found = sinkhorn.Sinkhorn(threshold=1e-10)(problem)
        return found.f, found.g, found.reg_ot_cost, found.primal_cost, found.converged

    grid, dense = (solve(g) for g in both((5, 4), (0.3, 0.2), epsilon=0.05))
    assert bool(grid[-1])
    for got, truth in zip(grid[:4], dense[:4], strict=True):
        np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-11)


def test_memory_is_that_of_some_images():
    shape = (64, 64)
    grid = separable_grid(shape, 1.0, unit_square(*shape))
    h, psi = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    lowered = jit(lambda h, psi: log_kernel(grid, h, psi)).lower(h, psi)
    image = 4 * 64 * 64
    # Some 30 images; the dense matrix is 4096.
    assert lowered.compile().memory_analysis().temp_size_in_bytes < 40 * image
