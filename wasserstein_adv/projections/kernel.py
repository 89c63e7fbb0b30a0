"""A geometry's kernel over the channels of an image, and checks that projections share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.log_kernel import (
    LogKernel,
    exp_kernel,
    exp_push_forward,
    log_kernel,
    push_forward,
)


class Kernel(NamedTuple):
    """A geometry's kernel over the channels of an image, in one numerical domain."""

    log: Callable[[Array, Array, int], LogKernel]
    """(potential of shape (h, w, c), ψ, axis) ↦ `LogKernel`."""
    push: Callable[[Array, Array, Array], Array]
    """(row sums, potential, ψ) ↦ column sums of the plan with these row sums."""


def log_domain(geometry: ott_geometry.Geometry) -> Kernel:
    """The kernel in log domain: right for all exponents."""
    return _over_channels(geometry, log_kernel, push_forward)


def exp_domain(geometry: LocalGrid) -> Kernel:
    """The kernel by sums of exponentials: fast, right where its `floor` says so."""
    return _over_channels(geometry, exp_kernel, exp_push_forward)


def _over_channels(geometry: ott_geometry.Geometry, log: Callable, push: Callable) -> Kernel:
    def log_channels(h: Array, psi: Array, axis: int) -> LogKernel:
        apply = functools.partial(log, geometry, psi=psi, axis=axis)
        return jax.vmap(apply, in_axes=-1, out_axes=LogKernel(-1, -1, -1, 0))(h)

    def push_channels(x: Array, h: Array, psi: Array) -> Array:
        apply = functools.partial(push, geometry, psi=psi)
        return jax.vmap(apply, in_axes=-1, out_axes=-1)(x, h)

    return Kernel(log_channels, push_channels)


def check_shapes(geometry: ott_geometry.Geometry, x: Array, w: Array) -> None:
    """Raise InputError unless x and w are images of one shape, over the geometry's pixels."""
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


def check_stopping(tolerance: float, max_iterations: int) -> None:
    """Raise InputError unless the tolerance is positive and there is an iteration."""
    if not tolerance > 0:
        raise InputError(f"tolerance must be positive, got {tolerance}")
    if not 1 <= max_iterations < 2**31:
        raise InputError(f"max_iterations must be 1 or more, below 2^31, got {max_iterations}")


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def refuse_gradients(name: str, solve: Callable, *args: Any) -> Any:
    """`solve(*args)`, an error with `name` where its derivative is asked for."""
    del name
    return solve(*args)


@refuse_gradients.defjvp
def _(name, solve, primals, tangents):
    raise TypeError(f"{name} does not pass gradients: wrap its arguments in jax.lax.stop_gradient")
