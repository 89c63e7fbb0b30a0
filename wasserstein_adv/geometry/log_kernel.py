"""The one thing that solvers ask of a geometry: its kernel in log domain, with the cost's moments.

    log_kernel(geometry, h, ψ) = ln Σ_j exp(h_j − ψ C_ij),

together with the mean and the variance of C_ij under the weights exp(h_j − ψ C_ij), which are minus
the first and plus the second derivative of the log-kernel in ψ.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ott.geometry import geometry as ott_geometry
from ott.geometry import grid as ott_grid

from wasserstein_adv.geometry.local_grid import LocalGrid


class LogKernel(NamedTuple):
    """Value and moments of a log-kernel, each of the shape of the image it was applied to."""

    lse: Float[Array, "h w"]
    """ln Σ_j exp(h_j − ψ C_ij); −inf where no finite h_j is in reach."""
    mean: Float[Array, "h w"]
    """Σ_j p_j C_ij, p_j the normalised weights; 0 where `lse` is −inf."""
    var: Float[Array, "h w"]
    """Σ_j p_j (C_ij − mean)²; 0 where `lse` is −inf."""
    floor: Float[Array, ""]
    """`lse` is exact at or above `floor`; of an `lse` below it only "under `floor`" is known."""


@functools.singledispatch
def log_kernel(
    geometry: ott_geometry.Geometry,
    h: Float[Array, "h w"],
    psi: Float[Array, ""],
    axis: int = 1,
) -> LogKernel:
    """ln Σ_j exp(h_j − ψ C_ij) for every pixel i, with the mean and variance of C_ij.

    Right for every finite or −inf `h` and every ψ ≥ 0, 0 included, and differentiable in `h` and
    `psi`. Costs of +inf forbid a move. Dispatches on the geometry's type; register an
    implementation for your own with `log_kernel.register`.

    Args:
      geometry: an OTT geometry over the H·W pixels in row-major order.
      h: (H, W) exponents.
      psi: scalar ψ ≥ 0, in 1 / cost units.
      axis: 1 sums over destinations j as written; 0 over sources, with C_ji in place of C_ij.

    Returns:
      `LogKernel` with floor −inf.
    """
    cost = geometry.cost_matrix if axis == 1 else geometry.cost_matrix.T
    value = _moments_of(h.reshape(1, -1), cost, psi, over=1)
    return _finish(*(field.reshape(h.shape) for field in value))


@log_kernel.register
def _(geometry: ott_grid.Grid, h: Float[Array, "h w"], psi: Float[Array, ""], axis: int = 1):
    rows, cols = (g.cost_matrix if axis == 1 else g.cost_matrix.T for g in geometry.geometries)
    # First within each row over columns, then over rows: the cost is the sum of both parts, so the
    # means add and the variances follow the law of total variance.
    inner = _moments_of(h[:, None, :], cols[None, :, :], psi, over=2)
    outer = _moments_of(inner[0].T[None], rows[:, None, :], psi, over=2, inner=inner)
    return _finish(*outer)


@log_kernel.register
def _(geometry: LocalGrid, h: Float[Array, "h w"], psi: Float[Array, ""], axis: int = 1):
    groups = [(cost, jnp.stack(shifts)) for cost, shifts in geometry.neighbours(h, -jnp.inf, axis)]
    tops = [jnp.max(shifts, axis=0) - psi * cost for cost, shifts in groups]
    top = _finite_or_zero(functools.reduce(jnp.maximum, tops))
    sums = [(c, jnp.sum(_exp(shifts - (psi * c + top)), axis=0)) for c, shifts in groups]
    return _from_sums(sums, top, jnp.asarray(-jnp.inf, h.dtype))


def exp_kernel(
    geometry: LocalGrid, h: Float[Array, "h w"], psi: Float[Array, ""], axis: int = 1
) -> LogKernel:
    """`log_kernel` by plain sums of exponentials, one per pixel: several times faster.

    exp(h − max h) is formed once per pixel and neighbours of equal cost are summed before they are
    multiplied. Where a sum comes near the smallest float, the result says so through its `floor`
    instead of being wrong silently: float32 reaches 60 below max h.

    Args:
      geometry, h, psi, axis: as in `log_kernel`.

    Returns:
      `LogKernel`, exact (to rounding) where `lse` ≥ `floor`; −inf or too small below.
    """
    # A sum at the floor still holds every term down to e^-27 (e^-100) of it: float32 becomes
    # subnormal at e^-87, float64 at e^-708.
    reach = 60.0 if h.dtype == jnp.float32 else 600.0
    top = _finite_or_zero(jnp.max(h))
    groups = geometry.neighbours(_exp(h - top), 0.0, axis)
    sums = [(cost, jnp.exp(-psi * cost) * sum(shifts)) for cost, shifts in groups]
    return _from_sums(sums, top, top - reach)


def _finite_or_zero(a: Array) -> Array:
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(a), a, 0.0))


def _exp(a: Array) -> Array:
    """exp with exp(−inf) = 0 and a zero, not NaN, derivative there."""
    empty = a == -jnp.inf
    return jnp.where(empty, 0.0, jnp.exp(jnp.where(empty, 0.0, a)))


def _log(a: Array) -> Array:
    """ln with ln 0 = −inf and a zero, not infinite, derivative there."""
    empty = a <= 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, a)))


def _from_sums(sums: list[tuple[float, Array]], top: Array, floor: Array) -> LogKernel:
    """Log-kernel and moments from Σ exp(h − top − ψc) over the neighbours of each cost c."""
    total = sum(value for _, value in sums)
    inverse = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
    mean = sum(cost * value for cost, value in sums) * inverse
    # Centred: E[C²] − E[C]² would lose float32's digits.
    var = sum((cost - mean) ** 2 * value for cost, value in sums) * inverse
    return LogKernel(_log(total) + top, mean, var, floor)


def _moments_of(
    h: Array,
    cost: Array,
    psi: Array,
    over: int,
    inner: tuple[Array, Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """(lse, mean, var) over one axis of a dense block; `inner` carries moments already summed."""
    forbidden = jnp.isinf(cost)
    cost = jnp.where(forbidden, 0.0, cost)
    scores = jnp.where(forbidden, -jnp.inf, h - psi * cost)
    top = _finite_or_zero(jnp.max(scores, axis=over, keepdims=True))
    weights = _exp(scores - top)
    total = jnp.sum(weights, axis=over)
    inverse = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
    if inner is not None:
        cost = cost + inner[1].T[None]
    mean = jnp.sum(weights * cost, axis=over) * inverse
    spread = (cost - jnp.expand_dims(mean, over)) ** 2
    if inner is not None:
        spread = spread + inner[2].T[None]
    var = jnp.sum(weights * spread, axis=over) * inverse
    return _log(total) + jnp.squeeze(top, over), mean, var


def _finish(lse: Array, mean: Array, var: Array) -> LogKernel:
    return LogKernel(lse, mean, var, jnp.asarray(-jnp.inf, lse.dtype))
