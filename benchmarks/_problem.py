"""The projection that workloads time: its images, our answer, the right answer, and the quality."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wasserstein_adv.evidence.figures import INSIDE
from wasserstein_adv.geometry import euclidean_power, local_grid
from wasserstein_adv.metrics import exact_distances
from wasserstein_adv.projections import Duals, dual_objective, projected_sinkhorn

RADIUS, REG, WINDOW = 0.5, 1000.0, 5
_STEP = 0.1
_REFERENCE_TOLERANCE = 1e-11
_REFERENCE_ITERATIONS = 100_000
_SOON_COMPILED = {"xla_backend_optimization_level": 0}  # what is not timed
_HALVINGS = 40  # of the bracket of ψ; the dual's value is off by the square of what is left

COST = euclidean_power(1)
"""The ground cost of a displacement: its length in pixels."""


class Problem(NamedTuple):
    """Equation (17) of Wong, Schmidt and Kolter (2019) for a batch of images."""

    x: Float[np.ndarray, "n h w c"]
    w: Float[np.ndarray, "n h w c"]
    radius: float = RADIUS
    """ε, in pixels times the fraction of an image's mass."""
    reg: float = REG
    """λ."""
    window: int = WINDOW

    def __str__(self) -> str:
        count, height, width, channels = self.x.shape
        return (
            f"{count} images of {height}×{width}×{channels}, ε = {self.radius:g}, "
            f"λ = {self.reg:g}, {self.window}×{self.window}"
        )


def problem_on(x: Float[np.ndarray, "n h w c"], **settings: Any) -> Problem:
    """The problem after a sign step in random directions."""
    return Problem(x, stepped(x, _STEP), **settings)


def stepped(x: Float[np.ndarray, "n h w c"], length: float) -> Float[np.ndarray, "n h w c"]:
    """The images after a sign step in random directions, the same in every run."""
    signs = np.random.default_rng(0).choice(np.float32([-1, 1]), x.shape)
    return x + np.float32(length) * signs


# Answers ------------------------------------------------------------------------------------------


def spread(
    function: Callable[..., Any], *arrays: np.ndarray, devices: Sequence[jax.Device] | None = None
) -> Callable[[], Any]:
    """`function` of batches as a call without arguments, split over devices, by default all local.

    The arguments are on the devices before the first call; as many devices are used as divide the
    batch. The answer has leading axes (devices, images of each).
    """
    devices = jax.local_devices() if devices is None else devices
    parts = max(n for n in range(1, len(devices) + 1) if len(arrays[0]) % n == 0)
    shares = [a.reshape(parts, -1, *a.shape[1:]) for a in arrays]
    run = _mapped(function, tuple(devices[:parts]))
    there = jax.pmap(lambda *parts: parts, devices=devices[:parts])(*shares)
    return lambda: run(*there)


@functools.cache
def _mapped(function: Callable[..., Any], devices: tuple[jax.Device, ...]) -> Callable[..., Any]:
    return jax.pmap(function, devices=devices)


@functools.cache
def _projection(grid_size: tuple[int, int], window: int, **options: Any) -> Callable[..., Any]:
    """Our projection of a batch. One function per setting, so that it is compiled once."""

    def project(x: Array, w: Array, radius: Array, reg: Array) -> Any:
        geometry = local_grid(grid_size, COST, window)  # here, for the precision of the call
        return projected_sinkhorn(geometry, x, w, radius, reg, **options)

    return jax.vmap(project)


@functools.cache
def _point(*setting: Any, **options: Any) -> Callable[..., Array]:
    project = _projection(*setting, **options)
    return lambda *problem: project(*problem).point


def ours(
    problem: Problem, devices: Sequence[jax.Device] | None = None, **options: Any
) -> Callable[[], np.ndarray]:
    """Our projection of a problem; `options` are those of `projected_sinkhorn`."""
    x, w, radius, reg, window = problem
    each = [np.full(len(x), value, np.float32) for value in (radius, reg)]
    run = spread(_point(x.shape[1:3], window, **options), x, w, *each, devices=devices)
    return lambda: np.asarray(run()).reshape(x.shape)


class Reference(NamedTuple):
    """The solution in float64."""

    point: Float[np.ndarray, "n h w c"]
    psi: Float[np.ndarray, "n"]
    dual: Float[np.ndarray, "n"]
    """The dual (16)'s greatest value, in nats."""


def reference(problem: Problem) -> Reference:
    """Solve a problem in float64.

    Raises:
        RuntimeError: the iteration did not converge.
    """
    x, w, radius, reg, window = problem
    with jax.enable_x64(True):
        each = [np.full(len(x), value) for value in (radius, reg)]
        x, w = (jnp.asarray(a, jnp.float64) for a in (x, w))
        found, dual = _solver(x.shape[1:3], window)(x, w, *each)
        if not bool(found.converged.all()):
            raise RuntimeError(f"the float64 reference did not converge: {problem}")
        return Reference(*(np.asarray(a) for a in (found.point, found.duals.psi, dual)))


@functools.cache
def _solver(grid_size: tuple[int, int], window: int) -> Callable[..., Any]:
    project = _projection(
        grid_size, window, tolerance=_REFERENCE_TOLERANCE, max_iterations=_REFERENCE_ITERATIONS
    )

    def value(x: Array, w: Array, radius: Array, reg: Array, duals: Duals) -> Array:
        geometry = local_grid(grid_size, COST, window)
        return dual_objective(geometry, *_unit(x, w), radius, reg, duals)

    def solve(*problem: Array) -> tuple[Any, Array]:
        found = project(*problem)
        return found, jax.vmap(value)(*problem, found.duals)

    return jax.jit(solve, compiler_options=_SOON_COMPILED)


def _unit(x: Array, w: Array) -> tuple[Array, Array]:
    mass = jnp.sum(x)
    return x / mass, w / mass


# Quality ------------------------------------------------------------------------------------------


def errors(
    z: Float[np.ndarray, "n h w c"], exact: Float[np.ndarray, "n h w c"]
) -> dict[str, float]:
    """‖z − z*‖₂/‖z*‖₂, the median of the images ("error") and the worst."""
    axes = (1, 2, 3)
    relative = np.sqrt(np.square(z - exact).sum(axes) / np.square(exact).sum(axes))
    return {"error": float(np.median(relative)), "error_worst": float(relative.max())}


def quality(problem: Problem, z: np.ndarray, exact: Reference) -> dict[str, float]:
    """How good an answer is, by the solution, by the dual and by an independent solver.

    Args:
        problem: what was solved.
        z: the answer.
        exact: the solution.

    Returns:
        "error" and "error_worst", see `errors`; "dual_gap" and "dual_gap_worst", in nats, by how
        much the dual (16) falls short of its maximum at β = λ(w − z)/Σx with the best α and ψ: the
        bound that z itself proves, whoever computed it; "inside", the share of images whose exact
        distance from x inside the window, by network simplex, is at most the radius;
        "distance_worst", the longest in units of the radius; and "mass_change", the greatest
        relative change of an image's mass, which the simplex divides out.
    """
    gap = exact.dual - _proved(problem, z, exact.psi)
    # A mass of rounding below zero would be refused.
    distance = exact_distances(problem.x, np.maximum(z, 0.0), COST, problem.window)
    share = distance.total / problem.radius
    return {
        **errors(z, exact.point),
        "dual_gap": float(np.median(gap)),
        "dual_gap_worst": float(gap.max()),
        "inside": float((share <= 1.0 + INSIDE).mean()),
        "distance_worst": float(share.max()),
        "mass_change": float(np.abs(distance.mass_ratio - 1.0).max()),
    }


def _proved(problem: Problem, z: np.ndarray, psi: np.ndarray) -> np.ndarray:
    """The dual at β = λ(w − z)/Σx, with the best ψ up to four times the solution's and α."""
    with jax.enable_x64(True):
        x, w, z = (jnp.asarray(a, jnp.float64) for a in (problem.x, problem.w, z))
        each = [np.full(len(x), value) for value in (problem.radius, problem.reg)]
        proved = _proof(x.shape[1:3], problem.window)
        return np.asarray(proved(x, w, z, 4.0 * psi + 1.0, *each))


@functools.cache
def _proof(grid_size: tuple[int, int], window: int) -> Callable[..., Array]:
    def proved(x: Array, w: Array, z: Array, above: Array, radius: Array, reg: Array) -> Array:
        geometry = local_grid(grid_size, COST, window)
        beta = reg * (w - z) / jnp.sum(x)
        x, w = _unit(x, w)

        def dual(psi: Array) -> Array:
            return dual_objective(geometry, x, w, radius, reg, Duals(beta, psi))

        def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = 0.5 * (low + high)
            rising = jax.grad(dual)(middle) > 0  # the dual is concave in ψ
            return jnp.where(rising, middle, low), jnp.where(rising, high, middle)

        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(above), above))
        return dual(0.5 * (low + high))

    return jax.jit(jax.vmap(proved), compiler_options=_SOON_COMPILED)
