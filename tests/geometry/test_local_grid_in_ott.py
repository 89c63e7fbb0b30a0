"""LocalGrid as a geometry of OTT's own: its Sinkhorn, pytrees, compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ott.geometry import geometry as ott_geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn
from plainly import jit

from wasserstein_adv.geometry import LocalGrid, euclidean_power, local_grid, window_cost


def pairs(cost, count=2):
    """Marginals (a, b) that plans over the finite costs connect."""
    rng = np.random.default_rng(0)
    plans = rng.random((count, *cost.shape)) * np.isfinite(cost)
    plans /= plans.sum((1, 2), keepdims=True)
    return jnp.asarray(plans.sum(2)), jnp.asarray(plans.sum(1))


@pytest.mark.parametrize("lse_mode", [True, False])
@pytest.mark.parametrize("kind", ["all pixels", "some moves"])
def test_otts_sinkhorn_takes_it_for_the_dense_cost(x64, lse_mode, kind):
    window = window_cost(euclidean_power(1), 5)
    if kind == "some moves":
        window = window_cost(lambda drow, dcol: drow**2 + abs(dcol) + 0.5 * (dcol > 0), 3)
        window[0, 2] = np.inf
    local = LocalGrid((3, 3), window, epsilon=0.4)
    cost = np.asarray(local.cost_matrix)
    dense = ott_geometry.Geometry(np.where(np.isinf(cost), 1e4, cost), epsilon=0.4)
    solver = sinkhorn.Sinkhorn(lse_mode=lse_mode, threshold=1e-9, max_iterations=4000)

    def solve(geometry):
        def one(a, b):
            out = solver(linear_problem.LinearProblem(geometry, a, b))
            return out.matrix, out.reg_ot_cost, out.converged, out.apply(b, axis=1)

        return jit(jax.vmap(one))(*pairs(cost))

    got, truth = solve(local), solve(dense)
    assert got[2].all() and truth[2].all()
    for mine, theirs in zip(got, truth, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_kernel_and_cost_products_match_the_dense_matrices(x64):
    window = window_cost(euclidean_power(1.5), 5)
    window[0, 1:3] = np.inf, 7.0
    local = LocalGrid((4, 6), window, epsilon=0.7)
    cost = np.asarray(local.cost_matrix)
    vec = jnp.asarray(np.random.default_rng(1).normal(size=24))
    kernel, finite = np.exp(-cost / 0.7), np.where(np.isinf(cost), 0.0, cost)
    for axis, k, c in [(1, kernel, finite), (0, kernel.T, finite.T)]:
        np.testing.assert_allclose(local.apply_kernel(vec, axis=axis), k @ vec, atol=1e-12)
        np.testing.assert_allclose(local.apply_cost(vec, axis=axis), c @ vec, atol=1e-12)
    assert not local.is_symmetric
    assert local_grid((4, 6), euclidean_power(1), 5).is_symmetric


def test_it_is_a_pytree_whose_grid_is_static():
    local = LocalGrid((4, 6), window_cost(euclidean_power(1), 3), epsilon=0.25)
    leaves, tree = jax.tree.flatten(local)
    assert leaves == [0.25]
    back = jax.tree.unflatten(tree, leaves)
    assert back.grid_size == (4, 6) and back.epsilon == 0.25 and back.shape == (24, 24)
    np.testing.assert_array_equal(back.window, local.window)


def test_equal_grids_share_a_compilation():
    traces = []

    @jax.jit
    def total(geometry):
        traces.append(1)
        return geometry.apply_kernel(jnp.ones(16)).sum()

    first = total(local_grid((4, 4), euclidean_power(1), 3, epsilon=1.0))
    assert total(local_grid((4, 4), euclidean_power(1), 3, epsilon=1.0)) == first
    assert total(local_grid((4, 4), euclidean_power(1), 3, epsilon=2.0)) > first
    assert len(traces) == 1
    total(local_grid((4, 4), euclidean_power(2), 3, epsilon=1.0))
    assert len(traces) == 2
