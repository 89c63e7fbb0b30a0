"""The log-kernel without temperature: where a pixel's mass is worth the most.

best_destination(geometry, y, ψ) = max over j of y_j − ψ C_ij, with the j and its cost.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ott.geometry import geometry as ott_geometry
from ott.geometry import grid as ott_grid

from wasserstein_adv.geometry.local_grid import LocalGrid


class Choice(NamedTuple):
    """Where every pixel's mass goes, each field of the image's shape."""

    score: Float[Array, "h w"]
    """max over j of y_j − ψC_ij."""
    cost: Float[Array, "h w"]
    """C_ij of the j chosen."""
    destination: Int[Array, "h w"]
    """That j, a pixel in row-major order."""


@functools.singledispatch
def best_destination(
    geometry: ott_geometry.Geometry, y: Float[Array, "h w"], psi: Float[Array, ""]
) -> Choice:
    """A maximiser of y_j − ψC_ij for every pixel i: `log_kernel` without temperature.

    Dispatches on the geometry's type, as `log_kernel` does.

    Args:
      geometry: an OTT geometry over the H·W pixels in row-major order; C_ii = 0.
      y: (H, W) values, finite.
      psi: scalar ψ ≥ 0.
    """
    cost = geometry.cost_matrix.astype(y.dtype)
    score = _score(y.reshape(1, -1), cost, psi)
    best = jnp.argmax(score, axis=1)
    picked = (_at(score, best), _at(cost, best), best)
    return Choice(*(field.reshape(y.shape) for field in picked))


@best_destination.register
def _(geometry: ott_grid.Grid, y: Array, psi: Array) -> Choice:
    rows, cols = (g.cost_matrix.astype(y.dtype) for g in geometry.geometries)
    # Within each row the best column, [j_row, i_col], then over rows, [i_row, i_col].
    inner = _score(y[:, None, :], cols, psi)
    column = jnp.argmax(inner, axis=2)
    outer = _score(_at(inner, column).T, rows[:, None, :], psi)
    row = jnp.argmax(outer, axis=2)
    i_row, i_col = jnp.indices(y.shape, sparse=True)
    column = column[row, i_col]
    cost = rows[i_row, row] + cols[i_col, column]
    return Choice(_at(outer, row), cost, row * y.shape[1] + column)


@best_destination.register
def _(geometry: LocalGrid, y: Array, psi: Array) -> Choice:
    here = jnp.arange(y.size).reshape(y.shape)
    best = Choice(y, jnp.zeros_like(y), here)
    # From cheap to dear, so that of equal scores the cheapest stays.
    groups = zip(geometry.taps(), geometry.neighbours(y, -jnp.inf), strict=True)
    for (cost, moves), (_, shifts) in groups:
        for (drow, dcol), shifted in zip(moves, shifts, strict=True):
            score = shifted - psi * cost
            better = score > best.score
            there = Choice(score, jnp.full_like(y, cost), here + (drow * y.shape[1] + dcol))
            best = jax.tree.map(functools.partial(jnp.where, better), there, best)
    return best


def _score(y: Array, cost: Array, psi: Array) -> Array:
    """y − ψC, −∞ where C = ∞ at ψ = 0 too."""
    forbidden = jnp.isinf(cost)
    return jnp.where(forbidden, -jnp.inf, y - psi * jnp.where(forbidden, 0.0, cost))


def _at(values: Array, index: Array) -> Array:
    """`values` at one index of the last axis each."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]
