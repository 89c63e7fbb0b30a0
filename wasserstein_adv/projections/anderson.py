"""Anderson acceleration of a fixed-point iteration u ← g(u), with a safeguard.

Anderson (1965), type II as in Walker and Ni, *Anderson acceleration for fixed-point iterations*
(2011): with the residuals f = g(u) − u of the last m + 1 points, the next point is

    g(u) − Σ_k γ_k Δg_k,  γ = argmin ‖f − Σ_k γ_k Δf_k‖,

Δ the differences between successive iterations. Near the solution, where g is linear, this is GMRES
without its products: one evaluation of g a step, and the square root of its condition number.

It can fail where g is far from linear. So only from a point better than all before is there an
extrapolation, and one that turns out worse than where it came from is taken back: the iteration
goes on from g(u) there, as it would have without. At worst every second iteration is lost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Point = Any
"""A pytree of arrays."""


_RIDGE = 1e-4  # relative to the columns' squares


class Memory(NamedTuple):
    """What the mixing of points needs of the iterations before."""

    residual: Point
    """f of the last iteration that counts."""
    image: Point
    """g(u) of that iteration."""
    error: Float[Array, ""]
    """Its error, ∞ before the first."""
    residuals: tuple[Point, ...]
    """Δf, newest first; zero where there are none yet."""
    images: tuple[Point, ...]
    """Δg in the same order."""
    least: Float[Array, ""]
    """The smallest error so far."""
    mixed: Bool[Array, ""]
    """Whether the point that was returned last is an extrapolation."""
    taken_back: Bool[Array, ""]
    """Whether the point before it was an extrapolation that failed, and it is g(u) of the one
    before that."""


def no_memory(point: Point, size: int, dtype: jnp.dtype) -> Memory:
    """A memory of `size` differences, 1 or more, all of them still to come.

    Args:
      point: an array or pytree of arrays like the points.
      size: m; 3 to 5 is usual.
      dtype: of the error.
    """
    zero = jax.tree.map(jnp.zeros_like, point)
    inf, no = jnp.full((), jnp.inf, dtype), jnp.zeros((), bool)
    return Memory(zero, zero, inf, (zero,) * size, (zero,) * size, inf, no, no)


def extrapolate(
    memory: Memory,
    point: Point,
    image: Point,
    error: Float[Array, ""],
    dot: Callable[[Point, Point], Float[Array, ""]],
) -> tuple[Point, Memory]:
    """The next point of the accelerated iteration, and the memory with this one in it.

    Args:
      memory: of the iterations before.
      point: u.
      image: g(u).
      error: how far u is from the solution, by whatever the caller stops at; relative, so that 1
        is nowhere near. ∞ or not a number where g could not be evaluated.
      dot: the inner product that residuals are small in.
    """
    failed = memory.mixed & ~(error <= memory.error)
    trusted = error < jnp.minimum(memory.least, 1.0)
    first = memory.error == jnp.inf
    residual = jax.tree.map(jnp.subtract, image, point)

    def pick(condition: Array, a: Point, b: Point) -> Point:
        return jax.tree.map(lambda s, t: jnp.where(condition, s, t), a, b)

    def newest(now: Point, before: Point, kept: tuple[Point, ...]) -> tuple[Point, ...]:
        change = jax.tree.map(lambda s, t: jnp.where(first, 0.0, s - t), now, before)
        return pick(failed, kept, (change, *kept[:-1]))

    residuals = newest(residual, memory.residual, memory.residuals)
    images = newest(image, memory.image, memory.images)
    weights = [
        jnp.where(trusted, weight, 0.0) for weight in _least_squares(residuals, residual, dot)
    ]
    memory = Memory(
        residual=pick(failed, memory.residual, residual),
        image=pick(failed, memory.image, image),
        error=jnp.where(failed, memory.error, error),
        residuals=residuals,
        images=images,
        least=jnp.fmin(memory.least, error),
        mixed=trusted,
        taken_back=failed,
    )

    def mix(leaf: Array, *changes: Array) -> Array:
        return leaf - sum(weight * change for weight, change in zip(weights, changes, strict=True))

    # A failure is not trusted, and so leaves the image as it is: that of the iteration before.
    return jax.tree.map(mix, memory.image, *images), memory


def _least_squares(
    columns: tuple[Point, ...], target: Point, dot: Callable[[Point, Point], Array]
) -> list[Array]:
    """argmin over γ of ‖target − Σ_k γ_k columns_k‖; γ_k = 0 where a column is zero.

    By Cholesky's factorisation of the normal equations of the normalised columns, written out:
    systems of three unknowns are no work for LAPACK. The ridge keeps it positive definite, and γ
    small where columns are nearly dependent, so that rounding is not amplified.
    """
    size = len(columns)
    squares = [dot(column, column) for column in columns]
    scales = [jnp.where(s > 0, jax.lax.rsqrt(jnp.where(s > 0, s, 1.0)), 0.0) for s in squares]
    factor: list[list[Array]] = []
    solved: list[Array] = []
    for i in range(size):
        row: list[Array] = []
        for j in range(i):
            entry = scales[i] * scales[j] * dot(columns[i], columns[j])
            row.append((entry - _inner(row, factor[j])) / factor[j][j])
        # No less than the ridge even where a column is zero, or rounding has the last word.
        row.append(jnp.sqrt(jnp.maximum(1.0 + _RIDGE - _inner(row, row), _RIDGE)))
        factor.append(row)
        solved.append((scales[i] * dot(columns[i], target) - _inner(row, solved)) / row[i])
    weights: list[Array] = []
    for i in reversed(range(size)):
        below = [factor[k][i] for k in reversed(range(i + 1, size))]
        weights.append((solved[i] - _inner(below, weights)) / factor[i][i])
    return [weight * scale for weight, scale in zip(reversed(weights), scales, strict=True)]


def _inner(a: list[Array], b: list[Array]) -> Array | float:
    """Σ a_k b_k over what both have."""
    return sum(s * t for s, t in zip(a, b, strict=False))
