"""Unbalanced Sinkhorn iterations with our Manhattan kernel and with OTT-JAX's kernels.

One solver runs the same number of iterations on the same images and differs in the geometry alone,
so that the ratio is that of the kernels and of what surrounds them. Beside each time stands the
error against a float64 solution.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import geometry as ott_geometry
from ott.geometry import grid as ott_grid
from rich.table import Table

from benchmarks._measure import (
    Record,
    Setup,
    call_together,
    interleaved,
    lay_out,
    number,
    ratio_cell,
    records_of,
    text,
)
from benchmarks._problem import spread, stepped
from wasserstein_adv.geometry import (
    LogKernel,
    dense_grid,
    log_kernel,
    minkowski,
    separable_grid,
    unit_square,
)
from wasserstein_adv.projections import unbalanced_sinkhorn

_ETA, _TAU, _GAMMA, _STEP = 1e-3, 1e-2, 0.5, 0.05
_EXACT = 1e-30  # a tolerance that is never met: every method takes all iterations
_ITERATIONS, _QUICK_ITERATIONS = 30, 10


@jax.tree_util.register_pytree_node_class
class OttDense(ott_geometry.Geometry):
    """A dense geometry whose log-kernel is OTT's own."""


@jax.tree_util.register_pytree_node_class
class OttGrid(ott_grid.Grid):
    """A separable geometry whose log-kernel is OTT's own."""


@log_kernel.register(OttDense)
@log_kernel.register(OttGrid)
def _(geometry, h: jax.Array, psi: jax.Array, axis: int = 1) -> LogKernel:
    """OTT's `apply_lse_kernel`; the mean and the variance, which it does not have, are left 0."""
    eps, zero = 1.0 / psi, jnp.zeros(h.size, h.dtype)
    potentials = (zero, h.reshape(-1) * eps) if axis == 1 else (h.reshape(-1) * eps, zero)
    lse, _ = geometry.apply_lse_kernel(*potentials, eps, axis=axis)
    none = jnp.zeros_like(h)
    return LogKernel(lse.reshape(h.shape) / eps, none, none, jnp.full((), -jnp.inf, h.dtype))


def measure(setup: Setup) -> list[Record]:
    """Time the same iterations in every geometry."""
    x = setup.subject.x[: setup.batch]
    w = stepped(x, _STEP)
    iterations = _QUICK_ITERATIONS if setup.quick else _ITERATIONS
    runs = {
        name: _run(geometry, iterations, x, w) for name, geometry in _methods(x.shape[1:3]).items()
    }
    setup.tell("compiling, and a reference in float64")
    *_, exact = call_together([*runs.values(), functools.partial(_reference, x, w)])
    answers, seconds = interleaved(runs, setup.repeats, setup.tell)
    more = {name: {"error": float(np.abs(z - exact).max())} for name, z in answers.items()}
    setting = f"{setup.subject.data}, {len(x)} images, {iterations} iterations"
    return [
        {**r, "microseconds_per_image_iteration": 1e6 * r["seconds"] / len(x) / iterations}
        for r in records_of("unbalanced", seconds, more, setting=setting)
    ]


def _methods(grid_size: tuple[int, int]) -> dict[str, Any]:
    unit = unit_square(*grid_size)
    ours = separable_grid(grid_size, 1.0, unit)
    dense = dense_grid(grid_size, minkowski(1), unit=unit)
    return {
        "ours, Manhattan recursion": ours,
        "OTT separable, log domain": OttGrid(x=ours.x, cost_fns=ours.cost_fns, epsilon=_ETA),
        "OTT dense, log domain": OttDense(cost_matrix=dense.cost_matrix, epsilon=_ETA),
    }


def _run(
    geometry: ott_geometry.Geometry, iterations: int, x: np.ndarray, w: np.ndarray
) -> Callable[[], np.ndarray]:
    def point(x: jax.Array, w: jax.Array) -> jax.Array:
        return unbalanced_sinkhorn(
            geometry, x, w, _ETA, _TAU, _GAMMA, tolerance=_EXACT, max_iterations=iterations
        ).point

    run = spread(jax.vmap(point), x, w)
    return lambda: np.asarray(run()).reshape(x.shape)


def _reference(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The converged point in float64."""
    with jax.enable_x64(True):
        geometry = separable_grid(x.shape[1:3], 1.0, unit_square(*x.shape[1:3]))

        def solve(x: jax.Array, w: jax.Array):
            return unbalanced_sinkhorn(geometry, x, w, _ETA, _TAU, _GAMMA, tolerance=1e-12)

        found = jax.jit(jax.vmap(solve))(*(jnp.asarray(a, jnp.float64) for a in (x, w)))
        if not bool(found.converged.all()):
            raise RuntimeError("the float64 reference did not converge")
        return np.asarray(found.point)


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        f"unbalanced: {records[0]['setting']}",
        records,
        {
            "method": text("method"),
            "µs / image · iteration": number("microseconds_per_image_iteration", ".1f"),
            "ratio": ratio_cell,
            "error in z": number("error", ".0e"),
        },
    )
