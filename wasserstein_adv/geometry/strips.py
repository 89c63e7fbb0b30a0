"""The fast kernel of a window: plain sums of exponentials over an image laid out as a strip.

A strip is the image channel by channel and row by row, with a margin as wide as the window reaches
after every row and, between channels, after the last. Every displacement of the window is then one
shift of one vector, and a product with the kernel is a handful of vector additions, several times
as fast as over rows, columns and channels.

Exponents are −∞ in the margins, where nothing may go, and masses 0, so that no mask is needed.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.log_kernel import LogKernel, finite_or_zero, safe_inverse


def to_strip(geometry: LocalGrid, image: Float[Array, "h w c"], fill: float) -> Float[Array, "p"]:
    """The image as a strip.

    Args:
      geometry: the window.
      image: (H, W, C) values.
      fill: what stands in the margins.
    """
    reach, channels = _reach(geometry), image.shape[2]
    margins = ((0, 0), (0, reach if channels > 1 else 0), (0, 2 * reach))
    padded = jnp.pad(jnp.moveaxis(image, 2, 0), margins, constant_values=fill)
    return padded.reshape(-1)


def from_strip(geometry: LocalGrid, strip: Float[Array, "p"]) -> Float[Array, "h w c"]:
    """The image of a strip, whatever stands in its margins."""
    height, width = geometry.grid_size
    return jnp.moveaxis(_channels(geometry, strip)[:, :height, :width], 0, 2)


def channel_totals(geometry: LocalGrid, strip: Float[Array, "p"]) -> Float[Array, "p"]:
    """A strip that holds, all over each channel, that channel's sum."""
    parts = _channels(geometry, strip)
    return jnp.broadcast_to(jnp.sum(parts, axis=(1, 2), keepdims=True), parts.shape).reshape(-1)


def displacements(geometry: LocalGrid) -> list[tuple[float, tuple[int, int]]]:
    """The finite costs of the window, each with one (Δrow, Δcol): the first axis of a plan."""
    return [(cost, move) for cost, moves in geometry.taps(axis=1) for move in moves]


def displaced(
    geometry: LocalGrid, strip: Float[Array, "p"], sign: int = 1
) -> Float[Array, "taps p"]:
    """What stands at i ± (Δrow, Δcol), for every displacement and every i; 0 beyond the strip."""
    shifted = _shifts(geometry, strip)
    return jnp.stack([shifted(sign * i, sign * j) for _, (i, j) in displacements(geometry)])


def weigh(
    geometry: LocalGrid, weights: Float[Array, "taps p"], strip: Float[Array, "p"], sign: int = 1
) -> Float[Array, "p"]:
    """Σ over the displacements of a weight times what stands at i ± (Δrow, Δcol)."""
    shifted = _shifts(geometry, strip)
    return sum(
        weight * shifted(sign * i, sign * j)
        for weight, (_, (i, j)) in zip(weights, displacements(geometry), strict=True)
    )


def received(geometry: LocalGrid, sent: Float[Array, "taps p"]) -> Float[Array, "taps p"]:
    """What a plan sends from i to i + (Δrow, Δcol), by where it goes to."""
    stride = geometry.grid_size[1] + 2 * _reach(geometry)
    most, size = _reach(geometry) * (stride + 1), sent.shape[1]
    padded = jnp.pad(sent, ((0, 0), (most, most)))
    starts = [most - (i * stride + j) for _, (i, j) in displacements(geometry)]
    return jnp.concatenate(
        [jax.lax.slice(padded, (tap, at), (tap + 1, at + size)) for tap, at in enumerate(starts)]
    )


def arriving(geometry: LocalGrid, sent: Float[Array, "taps p"]) -> Float[Array, "p"]:
    """What a plan brings to every pixel: Σ over the displacements of `received`."""
    reach = _reach(geometry)
    stride = geometry.grid_size[1] + 2 * reach
    most = reach * (stride + 1)
    starts = [most - (i * stride + j) for _, (i, j) in displacements(geometry)]

    def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        row, at = tap
        return total + jax.lax.dynamic_slice_in_dim(jnp.pad(row, most), at, row.size), None

    return jax.lax.scan(add, jnp.zeros_like(sent[0]), (sent, jnp.asarray(starts)))[0]


def _channels(geometry: LocalGrid, strip: Array) -> Array:
    """The strip by channel, row and column, margins included."""
    (height, width), reach = geometry.grid_size, _reach(geometry)
    stride = width + 2 * reach
    rows = height if strip.size == height * stride else height + reach
    return strip.reshape(-1, rows, stride)


class Rows(NamedTuple):
    """The plan with row sums x at (h, ψ), Π_ij = u_i exp(h_j − ψC_ij): its columns and its cost."""

    log_q: Float[Array, "..."]
    """ln Σ_i u_i exp(−ψC_ij): h plus this is the logarithm of the plan's column sums."""
    cost: Float[Array, ""]
    """⟨Π, C⟩."""
    slope: Float[Array, ""]
    """−d⟨Π, C⟩/dψ = Σ_i x_i Var_i(C)."""
    floor: Float[Array, "..."]
    """`log_q` is exact at or above `floor`; of one below it only "under `floor`" is known."""
    fits: Bool[Array, ""]
    """Whether the rows that have mass are exact."""


def exp_kernel(
    geometry: LocalGrid, h: Float[Array, "p"], psi: Float[Array, ""], axis: int = 1
) -> LogKernel:
    """`log_kernel` over strips, by plain sums of exponentials, one per pixel.

    exp(h − max h) is formed once per pixel and neighbours of equal cost are summed before they are
    multiplied. Where a sum comes near the smallest float, the result says so through its `floor`
    instead of being wrong silently: float32 reaches 60 below max h. For solvers; where gradients
    are wanted, use `log_kernel`.

    Args:
      geometry, psi, axis: as in `log_kernel`.
      h: a strip of exponents, −∞ in the margins.

    Returns:
      `LogKernel` of strips, exact (to rounding) where `lse` ≥ `floor`; −∞ or too small below. What
      stands in its margins means nothing.
    """
    top = finite_or_zero(jnp.max(h))
    sums = _by_cost(geometry, jnp.exp(h - top), psi, axis)
    total = _moment(sums, 0)
    # Kept off 0 by a maximum, not by tests on `total`, in each of which XLA would repeat the sums.
    inverse = 1.0 / jnp.maximum(total, jnp.finfo(h.dtype).tiny)
    mean = _moment(sums, 1) * inverse
    # Centred: E[C²] − E[C]² would lose float32's digits.
    var = sum((cost - mean) ** 2 * (weight * value) for cost, weight, value in sums) * inverse
    return LogKernel(jnp.log(total) + top, mean, var, top - _range(h.dtype))


def exp_rows(
    geometry: LocalGrid, x: Float[Array, "p"], h: Float[Array, "p"], psi: Float[Array, ""]
) -> Rows:
    """The plan with row sums x in proportion to exp(h_j − ψC_ij), by plain sums of exponentials.

    Two products with the kernel, one exponential and one logarithm a pixel. The slope is the
    difference of moments, good for Newton's steps though not to the last digit.

    Args:
      geometry, psi: as in `log_kernel`.
      x: a strip of row sums, 0 in the margins.
      h: a strip of exponents, −∞ in the margins.
    """
    reach = _range(h.dtype)
    top = finite_or_zero(jnp.max(h))
    sums = _by_cost(geometry, jnp.exp(h - top), psi, axis=1)
    total, first, second = (_moment(sums, power) for power in (0, 1, 2))
    inverse = 1.0 / jnp.maximum(total, jnp.finfo(h.dtype).tiny)
    u = x * inverse
    mean = first * inverse
    q = _moment(_by_cost(geometry, u, psi, axis=0), 0)
    least = jnp.min(jnp.where(x > 0, total, jnp.inf))
    return Rows(
        log_q=jnp.log(q) - top,
        cost=jnp.sum(x * mean),
        slope=jnp.sum(x * (second * inverse - mean**2)),
        floor=-top - reach,
        fits=least >= jnp.exp(-reach),
    )


def exp_push_forward(
    geometry: LocalGrid, x: Float[Array, "p"], h: Float[Array, "p"], psi: Float[Array, ""]
) -> Float[Array, "p"]:
    """`push_forward` over strips by plain sums of exponentials; right where `exp_kernel` is."""
    v = jnp.exp(h - finite_or_zero(jnp.max(h)))
    total = _moment(_by_cost(geometry, v, psi, axis=1), 0)
    return v * _moment(_by_cost(geometry, x * safe_inverse(total), psi, axis=0), 0)


def _range(dtype: jnp.dtype) -> float:
    """How far below e^0 a sum of exponentials still holds every term down to e^-27 (e^-100) of it:
    float32 becomes subnormal at e^-87, float64 at e^-708."""
    return 60.0 if dtype == jnp.float32 else 600.0


def _reach(geometry: LocalGrid) -> int:
    """How many pixels the window reaches beyond its centre."""
    return geometry.window.shape[0] // 2


def _by_cost(
    geometry: LocalGrid, v: Array, psi: Array, axis: int
) -> list[tuple[float, Array, Array]]:
    """Per cost c of the window: (c, exp(−ψc), the sum of `v` over the neighbours at that cost)."""
    shifted = _shifts(geometry, v)

    def neighbours(moves: list[tuple[int, int]]) -> Array:
        return functools.reduce(operator.add, (shifted(*move) for move in moves))

    return [(cost, jnp.exp(-psi * cost), neighbours(moves)) for cost, moves in geometry.taps(axis)]


def _shifts(geometry: LocalGrid, v: Array) -> Callable[[int, int], Array]:
    """(Δrow, Δcol) ↦ what stands there in the strip `v`, 0 beyond it."""
    reach = _reach(geometry)
    stride = geometry.grid_size[1] + 2 * reach
    most = reach * (stride + 1)
    padded = jnp.pad(v, most)

    def shifted(drow: int, dcol: int) -> Array:
        start = most + drow * stride + dcol
        return jax.lax.slice(padded, (start,), (start + v.size,))

    return shifted


def _moment(sums: list[tuple[float, Array, Array]], power: int) -> Array:
    """Σ over the costs c of c^power exp(−ψc) times the neighbours' sum."""
    # Weights are multiplied first, so that XLA shares the sums and fuses the rest.
    return sum(  # type: ignore[return-value]  # there is a cost, that of staying
        (cost**power * weight) * value for cost, weight, value in sums
    )
