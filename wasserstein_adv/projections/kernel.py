"""A geometry's kernel over the channels of an image, and checks that projections share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.checks import check_field, check_positive
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.log_kernel import LogKernel, log_kernel, push_forward
from wasserstein_adv.geometry.strips import (
    Rows,
    channel_totals,
    exp_kernel,
    exp_push_forward,
    exp_rows,
    from_strip,
    to_strip,
)
from wasserstein_adv.projections.budget import plan_cost


class Kernel(NamedTuple):
    """A geometry's kernel over the channels of an image, in one numerical domain.

    Fields are of the layout that suits the domain, which only `pack`, `unpack` and `totals` know.
    Padding, where there is any, stays inert if potentials are −∞ there and masses 0.
    """

    log: Callable[[Array, Array, int], LogKernel]
    """(potential, ψ, axis) ↦ `LogKernel`."""
    push: Callable[[Array, Array, Array], Array]
    """(row sums, potential, ψ) ↦ column sums of the plan with these row sums."""
    eliminate: Callable[[Array, Array, Array], Rows]
    """(row sums, potential, ψ) ↦ `Rows`."""
    pack: Callable[[Array, float], Array]
    """(an image of shape (h, w, c), what to pad with) ↦ a field."""
    unpack: Callable[[Array], Array]
    """A field ↦ an image of shape (h, w, c)."""
    totals: Callable[[Array], Array]
    """A field ↦ its sum over each channel, which broadcasts against a field."""


def log_domain(geometry: ott_geometry.Geometry) -> Kernel:
    """The kernel in log domain: right for all exponents. Fields are images."""

    def totals(image: Array) -> Array:
        return jnp.sum(image, axis=(0, 1))

    def log(h: Array, psi: Array, axis: int) -> LogKernel:
        apply = functools.partial(log_kernel, geometry, psi=psi, axis=axis)
        return jax.vmap(apply, in_axes=-1, out_axes=LogKernel(-1, -1, -1, 0))(h)  # type: ignore[arg-type]  # numbers of axes

    def push(x: Array, h: Array, psi: Array) -> Array:
        apply = functools.partial(push_forward, geometry, psi=psi)
        return jax.vmap(apply, in_axes=-1, out_axes=-1)(x, h)

    def eliminate(x: Array, beta: Array, psi: Array) -> Rows:
        row = log(beta, psi, 1)
        column = log(alpha_step(jnp.log(x), row.lse) - 1.0, psi, 0)
        return Rows(column.lse, *plan_cost(x, row), column.floor, rows_fit(x, row))

    return Kernel(log, push, eliminate, lambda image, fill: image, lambda image: image, totals)


def exp_domain(geometry: LocalGrid) -> Kernel:
    """The kernel by sums of exponentials: fast, right where its `floor` says so. Fields are strips,
    see `geometry.strips`."""
    return Kernel(
        log=lambda h, psi, axis: exp_kernel(geometry, h, psi, axis),
        push=functools.partial(exp_push_forward, geometry),
        eliminate=functools.partial(exp_rows, geometry),
        pack=functools.partial(to_strip, geometry),
        unpack=functools.partial(from_strip, geometry),
        totals=functools.partial(channel_totals, geometry),
    )


def alpha_step(log_x: Float[Array, "..."], row_lse: Float[Array, "..."]) -> Float[Array, "..."]:
    """Equation (9): argmax over α, given ln Σ_j exp(β_j − ψC_ij). −∞ where x = 0."""
    return jnp.where(log_x == -jnp.inf, -jnp.inf, log_x - row_lse + 1.0)


def in_range(
    x: Float[Array, "pixels *b"], cap: Any, *positive: Float[Array, "*b"]
) -> Bool[Array, "*b"]:
    """Whether arguments that were traced, and so could not be refused, pose the problem: every
    pixel of x in [0, cap], numbers that must be positive positive and finite."""
    sound = jnp.all((x >= 0) & (x <= (jnp.inf if cap is None else cap)), axis=0)
    for number in positive:
        sound &= (number > 0) & (number < jnp.inf)
    return sound


def rows_fit(x: Array, row: LogKernel) -> Bool[Array, ""]:
    """Whether every sum that counts is inside the kernel's range."""
    return jnp.all((x == 0) | (row.lse >= row.floor))


def check_shapes(geometry: ott_geometry.Geometry, x: Array, w: Array) -> None:
    """Raise InputError unless x and w are images of one shape, over the geometry's pixels, and x
    is non-negative, both finite, as far as they are not traced."""
    check_field("x", x, signed=False)
    check_field("w", w)
    if x.ndim not in (2, 3):
        raise InputError(f"x must have shape (H, W) or (H, W, C), got {x.shape}")
    if w.shape != x.shape:
        raise InputError(f"w must have x's shape {x.shape}, got {w.shape}")
    pixels = x.shape[0] * x.shape[1]
    if tuple(geometry.shape) != (pixels, pixels) or (
        hasattr(geometry, "grid_size") and tuple(geometry.grid_size) != x.shape[:2]
    ):
        over = "×".join(str(int(n)) for n in getattr(geometry, "grid_size", geometry.shape[:1]))
        raise InputError(f"geometry has shape {over} pixels, x has {x.shape[0]}×{x.shape[1]}")


def check_stopping(tolerance: float, max_iterations: int) -> tuple[float, int]:
    """Both, as what a program is compiled for; InputError unless the tolerance is positive and
    there is an iteration."""
    check_positive("tolerance", tolerance)
    whole = isinstance(max_iterations, (int, np.integer)) and not isinstance(max_iterations, bool)
    if not (whole and 1 <= max_iterations < 2**31):
        raise InputError(
            f"max_iterations must be 1 or more, whole and below 2^31, got {max_iterations!r}"
        )
    return float(tolerance), int(max_iterations)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def refuse_gradients(name: str, solve: Callable[..., Any], *args: Any) -> Any:
    """`solve(*args)`, an error with `name` where its derivative is asked for."""
    del name
    return solve(*args)


@refuse_gradients.defjvp
def _(name, solve, primals, tangents):
    raise TypeError(f"{name} does not pass gradients: wrap its arguments in jax.lax.stop_gradient")
