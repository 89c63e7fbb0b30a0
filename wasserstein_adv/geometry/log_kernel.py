"""The one thing that solvers ask of a geometry: its kernel in log domain, with the cost's moments.

    log_kernel(geometry, h, ψ) = ln Σ_j exp(h_j − ψ C_ij),

together with the mean and the variance of C_ij under the weights exp(h_j − ψ C_ij), which are minus
the first and plus the second derivative of the log-kernel in ψ.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
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
    block = _block(h.reshape(1, -1), cost, psi, over=1)
    return _unfloored(*(field.reshape(h.shape) for field in _moments(block, over=1)))


@functools.singledispatch
def push_forward(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w"],
    h: Float[Array, "h w"],
    psi: Float[Array, ""],
) -> Float[Array, "h w"]:
    """Column sums Σ_i x_i p_ij of the plan that splits x_i in proportion to exp(h_j − ψ C_ij).

    The split is normalised before it is applied, so that the result has the mass of `x` to rounding
    even where `h` is too large for exp(h + α) to be formed from a rounded α.

    Args:
      geometry, h, psi: as in `log_kernel`, `h` finite somewhere in reach of every pixel with mass.
      x: (H, W) row sums.
    """
    block = _block(h.reshape(1, -1), geometry.cost_matrix, psi, over=1)
    return (x.reshape(-1) @ block.split(over=1)).reshape(h.shape)


@log_kernel.register
def _(
    geometry: ott_grid.Grid, h: Float[Array, "h w"], psi: Float[Array, ""], axis: int = 1
) -> LogKernel:
    inner, outer = _grid_blocks(geometry, h, psi, axis)
    # The cost is the sum of both axes' parts: means add, and the variance of the whole is the mean
    # of the inner variances plus the variance of the inner means.
    _, inner_mean, inner_var = _moments(inner, over=2)
    outer = outer._replace(cost=outer.cost + inner_mean.T[None], var=inner_var.T[None])
    return _unfloored(*_moments(outer, over=2))


@push_forward.register
def _(geometry: ott_grid.Grid, x: Array, h: Array, psi: Array) -> Array:
    inner, outer = _grid_blocks(geometry, h, psi, axis=1)
    moved_rows = jnp.einsum("ij,ijk->kj", x, outer.split(over=2))
    return jnp.einsum("kj,kjl->kl", moved_rows, inner.split(over=2))


@log_kernel.register
def _(
    geometry: LocalGrid, h: Float[Array, "h w"], psi: Float[Array, ""], axis: int = 1
) -> LogKernel:
    top, weight_of = _tap_weights(geometry, h, psi, axis)
    total, first = _sum_taps(geometry, lambda tap: _weighted(weight_of(tap), tap.cost), h, axis)
    mean = first * safe_inverse(total)
    _, second = _sum_taps(
        geometry, lambda tap: _weighted(weight_of(tap), (tap.cost - mean) ** 2), h, axis
    )
    return _unfloored(safe_log(total) + top, mean, second * safe_inverse(total))


@push_forward.register
def _(geometry: LocalGrid, x: Array, h: Array, psi: Array) -> Array:
    _, weight_of = _tap_weights(geometry, h, psi, axis=1)
    (total,) = _sum_taps(geometry, lambda tap: (weight_of(tap),), h, axis=1)
    share = x * safe_inverse(total)
    radius = geometry.window.shape[0] // 2

    def scatter(moved: Array, tap: Tap) -> tuple[Array, None]:
        at = (tap.drow + radius, tap.dcol + radius)
        here = jax.lax.dynamic_slice(moved, at, h.shape)
        return jax.lax.dynamic_update_slice(moved, here + share * weight_of(tap), at), None

    moved, _ = jax.lax.scan(scatter, jnp.pad(jnp.zeros_like(h), radius), _taps(geometry, h, 1))
    return jax.lax.slice_in_dim(
        jax.lax.slice_in_dim(moved, radius, radius + h.shape[0], axis=0),
        radius, radius + h.shape[1], axis=1,
    )  # fmt: skip


class Tap(NamedTuple):
    """Displacements of a window and their costs: scanned over, one at a time."""

    cost: Float[Array, "taps"]
    drow: Int[Array, "taps"]
    dcol: Int[Array, "taps"]


def _taps(geometry: LocalGrid, h: Array, axis: int) -> Tap:
    every = [(cost, *move) for cost, moves in geometry.taps(axis) for move in moves]
    cost, drow, dcol = zip(*every, strict=True)
    return Tap(jnp.asarray(cost, h.dtype), jnp.asarray(drow), jnp.asarray(dcol))


def _tap_weights(
    geometry: LocalGrid, h: Array, psi: Array, axis: int
) -> tuple[Array, Callable[[Tap], Array]]:
    """The largest score h_j − ψC_ij per pixel i, and tap ↦ exp(score − largest) of one neighbour.

    Scans, not unrolled sums: memory stays O(H·W), and the rarely used log domain compiles fast.
    """
    radius = geometry.window.shape[0] // 2
    padded = jnp.pad(h, radius, constant_values=-jnp.inf)

    def score(tap: Tap) -> Array:
        at = (tap.drow + radius, tap.dcol + radius)
        return jax.lax.dynamic_slice(padded, at, h.shape) - psi * tap.cost

    top, _ = jax.lax.scan(
        lambda best, tap: (jnp.maximum(best, score(tap)), None),
        jnp.full_like(h, -jnp.inf),
        _taps(geometry, jax.lax.stop_gradient(h), axis),
    )
    top = finite_or_zero(top)
    return top, lambda tap: _exp_below(score(tap), top)


def _weighted(weight: Array, value: Array) -> tuple[Array, Array]:
    return weight, weight * value


def _sum_taps(
    geometry: LocalGrid, terms: Callable[[Tap], tuple[Array, ...]], h: Array, axis: int
) -> tuple[Array, ...]:
    """Σ over the window's taps of each of `terms(tap)`."""
    taps = _taps(geometry, h, axis)
    shapes = jax.eval_shape(lambda: terms(jax.tree.map(lambda a: a[0], taps)))
    zero = tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)
    return jax.lax.scan(
        lambda sums, tap: (jax.tree.map(jnp.add, sums, terms(tap)), None), zero, taps
    )[0]


def finite_or_zero(a: Array) -> Array:
    """The finite entries, 0 in place of the others; without a gradient."""
    return jax.lax.stop_gradient(jnp.where(jnp.isfinite(a), a, 0.0))


def _exp(a: Array) -> Array:
    """exp with exp(−inf) = 0 and a zero, not NaN, derivative there."""
    empty = a == -jnp.inf
    return jnp.where(empty, 0.0, jnp.exp(jnp.where(empty, 0.0, a)))


def _exp_below(score: Array, top: Array) -> Array:
    """exp(score − top) for a score that is at most top, and so at most 1.

    At huge scores XLA may round the two computations of one score differently; the excess is cut.
    """
    gap = score - top
    return _exp(gap - jax.lax.stop_gradient(jnp.maximum(gap, 0.0)))


def safe_log(a: Array) -> Array:
    """ln with ln 0 = −inf and a zero, not infinite, derivative there."""
    empty = a <= 0
    return jnp.where(empty, -jnp.inf, jnp.log(jnp.where(empty, 1.0, a)))


def safe_inverse(a: Array) -> Array:
    """1 / a, and 0 where a = 0: an empty sum has no share to give."""
    empty = a <= 0
    return jnp.where(empty, 0.0, 1.0 / jnp.where(empty, 1.0, a))


class _Block(NamedTuple):
    """Dense weights exp(h − ψC − top) with the cost they belong to."""

    weights: Array
    top: Array
    cost: Array
    var: Array | float = 0.0

    def split(self, over: int) -> Array:
        """The weights, normalised to sum 1."""
        return self.weights * safe_inverse(jnp.sum(self.weights, axis=over, keepdims=True))


def _block(h: Array, cost: Array, psi: Array, over: int) -> _Block:
    cost = cost.astype(h.dtype)
    forbidden = jnp.isinf(cost)
    cost = jnp.where(forbidden, 0.0, cost)
    scores = jnp.where(forbidden, -jnp.inf, h - psi * cost)
    top = finite_or_zero(jnp.max(scores, axis=over, keepdims=True))
    return _Block(_exp_below(scores, top), top, cost)


def _moments(block: _Block, over: int) -> tuple[Array, Array, Array]:
    """(lse, mean, var) of a block summed over one axis."""
    weights, top, cost, inner_var = block
    total = jnp.sum(weights, axis=over)
    inverse = safe_inverse(total)
    mean = jnp.sum(weights * cost, axis=over) * inverse
    spread = (cost - jnp.expand_dims(mean, over)) ** 2 + inner_var
    var = jnp.sum(weights * spread, axis=over) * inverse
    return safe_log(total) + jnp.squeeze(top, over), mean, var


def _grid_blocks(geometry: ott_grid.Grid, h: Array, psi: Array, axis: int) -> tuple[_Block, _Block]:
    """Weights within each row over columns, [j_row, i_col, j_col], then [i_row, i_col, j_row]."""
    rows, cols = (g.cost_matrix if axis == 1 else g.cost_matrix.T for g in geometry.geometries)
    inner = _block(h[:, None, :], cols[None, :, :], psi, over=2)
    lse = safe_log(jnp.sum(inner.weights, axis=2)) + inner.top[..., 0]
    return inner, _block(lse.T[None], rows[:, None, :], psi, over=2)


def _unfloored(lse: Array, mean: Array, var: Array) -> LogKernel:
    return LogKernel(lse, mean, var, jnp.asarray(-jnp.inf, lse.dtype))
