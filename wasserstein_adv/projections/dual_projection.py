"""Euclidean projection of a coupling onto the couplings that a Wasserstein budget allows.

Wu, Wang and Yu, *Stronger and Faster Wasserstein Adversarial Attacks* (2020), section 4, where an
attack moves the coupling Π of the clean image x and its perturbation z = Πᵀ1 instead of z itself:

    min over Π ≥ 0 of  ½‖Π − G‖²
    subject to  Π1 = x,  ⟨Π, C⟩ ≤ ε Σx,  and, with a cap,  Πᵀ1 ≤ cap.

With θ for the rows, λ ≥ 0 for the budget and prices μ ≥ 0 for the capacities, the solution is

    Π_ij = (G_ij − λC_ij − μ_j − θ_i)₊,

and each multiplier is found by what suits its equation: θ_i by Newton's iteration on a convex,
piecewise linear function, exactly; λ by a safeguarded Newton iteration with θ eliminated; μ by
Nesterov's accelerated ascent with restarts, on the dual with θ and λ eliminated.

Couplings are local: a plan holds, per tap of the geometry's window and per source pixel, the mass
that the pixel sends by that displacement. Channels carry mass of their own, transport never crosses
them, and one λ serves all.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.checks import check_cap, check_field, check_positive, check_room
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.projections.coupling import (
    CouplingDuals,
    CouplingProblem,
    check_geometry,
    check_plan,
    coupling_rows,
    feasible_coupling,
    multiplier_unit,
    sum_columns,
    window_of,
)
from wasserstein_adv.projections.double import again_in_double, double
from wasserstein_adv.projections.kernel import (
    check_shapes,
    check_stopping,
    in_range,
    refuse_gradients,
)
from wasserstein_adv.projections.multiplier import solve_multiplier

__all__ = [
    "CouplingDuals",
    "CouplingProjection",
    "column_sums",
    "coupling_cost",
    "diagonal_plan",
    "dual_projection",
]


class CouplingProjection(NamedTuple):
    """A projected coupling with the evidence for it."""

    plan: Float[Array, "taps h w *c"]
    """Π, in the unit of x: non-negative, with row sums x, inside the budget and under the cap."""
    point: Float[Array, "h w *c"]
    """z, the plan's column sums."""
    duals: CouplingDuals
    cost: Float[Array, ""]
    """⟨Π, C⟩/Σx: at most the radius."""
    iterations: Int[Array, ""]
    """Evaluations of the budget without a cap, steps of the prices with one."""
    residual: Float[Array, ""]
    """Violation of the optimality conditions, see `dual_projection`."""
    converged: Bool[Array, ""]
    """Whether `residual` fell to the tolerance (and `plan` is feasible)."""


class _Spent(NamedTuple):
    """A plan that meets the budget, at fixed μ: what the ascent in μ sees of it."""

    multiplier: Float[Array, ""]
    columns: Float[Array, "h w c"]
    degree: Float[Array, "h w c"]
    gap: Float[Array, ""]
    """Relative violation of the budget's optimality condition."""
    met: Bool[Array, ""]
    iterations: Int[Array, ""]


class _Ascent(NamedTuple):
    """An iterate of the ascent in μ. `duals`, `misfit`, `gap` and `met` speak of one point."""

    prices: Float[Array, "h w c"]
    ahead: Float[Array, "h w c"]
    """The extrapolated μ, from which the next step starts."""
    momentum: Float[Array, ""]
    duals: CouplingDuals
    misfit: Float[Array, ""]
    """Violation of the capacities' optimality conditions."""
    gap: Float[Array, ""]
    met: Bool[Array, ""]
    iteration: Int[Array, ""]


def column_sums(geometry: LocalGrid, plan: Float[Array, "taps h w *c"]) -> Float[Array, "h w *c"]:
    """Πᵀ1, the image that a plan makes: what arrives at every pixel.

    Linear, differentiable.

    Args:
      geometry: the window that the plan's taps belong to.
      plan: (taps, H, W) or (taps, H, W, C), in the unit of the image. Entries that lead out of the
        image do not count.

    Raises:
      InputError: the geometry is not a `LocalGrid`, or the plan's shape is not its own.
    """
    check_plan(geometry, plan)
    return sum_columns(window_of(geometry), plan)


def coupling_cost(geometry: LocalGrid, plan: Float[Array, "taps h w *c"]) -> Float[Array, ""]:
    """⟨Π, C⟩, in the cost's unit times the image's. Linear, differentiable.

    Args:
      geometry, plan: as in `column_sums`.

    Raises:
      InputError: as `column_sums`.
    """
    check_plan(geometry, plan)
    cost = jnp.asarray(window_of(geometry).cost, jnp.result_type(plan, jnp.float32))
    return jnp.sum(cost * jnp.sum(plan.reshape(len(cost), -1), axis=1))


def diagonal_plan(geometry: LocalGrid, x: Float[Array, "h w *c"]) -> Float[Array, "taps h w *c"]:
    """The plan that leaves every pixel's mass in place, at no cost.

    Args:
      geometry: the window that the plan's taps belong to.
      x: (H, W) or (H, W, C) image.

    Raises:
      InputError: the geometry is not a `LocalGrid`, or the image's shape is not its own.
    """
    check_geometry(geometry)
    check_shapes(geometry, x, x)
    window = window_of(geometry)
    home = jnp.arange(len(window.cost)) == window.home
    return jnp.where(jnp.expand_dims(home, range(1, x.ndim + 1)), x, jnp.zeros_like(x))


def dual_projection(
    geometry: LocalGrid,
    x: Float[Array, "h w *c"],
    plan: Float[Array, "taps h w *c"],
    radius: float | Float[Array, ""],
    duals: CouplingDuals | None = None,
    *,
    cap: float | Float[Array, ""] | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 500,
) -> CouplingProjection:
    """The nearest coupling to `plan` that carries x inside the budget, and under the cap.

    The problem is stated at the top of this module. Whatever the number of iterations, the returned
    plan is *feasible* to rounding: θ and λ are exact for whatever μ, and mass that still arrives
    above the cap is left at its source, which costs nothing.

    The residual is |⟨Π, C⟩/Σx − ε|/ε, where λ = 0 only the excess, plus with a cap

        Σ_j |min(μ_j, cap − z_j)| / Σx,

    which is 0 if and only if z ≤ cap, μ ≥ 0 and μ_j (cap − z_j) = 0, all before what is above the
    cap is left at its source. All other optimality conditions hold exactly.

    What single precision does not end is gone on with in double precision, for a batch if any of it
    is not ended; the answer is in x's own.

    A pure function of one image: `jax.vmap` it over a batch, `jax.jit` it as you like. Gradients
    are refused with a clear error: wrap the arguments in `jax.lax.stop_gradient` where the
    projection stands inside a differentiated function.

    Args:
      geometry: where mass may move and at what cost, for (H, W) pixels.
      x: (H, W) or (H, W, C) clean image, non-negative, finite. A blank image has the zero plan.
      plan: G, (taps, *x.shape), the coupling to project, in the unit of x: [t, i] is what pixel i
        sends by displacement t of the window, in the order of `geometry.taps(1)`. Finite; entries
        that lead out of the image are ignored.
      radius: ε > 0, in the cost's unit times the fraction of the image's mass (all channels): with
        costs in pixels, 0.5 moves half of the mass by one pixel.
      duals: where to start; by default 0.
      cap: what a pixel of a channel can hold, in the unit of x, at least max x; None for no limit.
      tolerance: residual at which to stop.
      max_iterations: steps of μ at most, 1 or more, in each precision.

    Returns:
      `CouplingProjection`, all fields without the batch axis.

    Raises:
      InputError: shapes that do not agree, or arguments out of range. What is traced cannot be
        refused: where it poses no problem, the point is x and `converged` is False.
    """
    check_plan(geometry, plan)
    check_shapes(geometry, x, plan[0])
    check_field("plan", plan)
    tolerance, max_iterations = check_stopping(tolerance, max_iterations)
    check_positive("radius", radius)
    check_cap(cap)
    check_room(x, cap)
    if duals is not None and jnp.shape(duals.prices) != x.shape:
        raise InputError(f"prices must have x's shape {x.shape}, got {jnp.shape(duals.prices)}")
    dtype = jnp.result_type(x, plan, jnp.float32)
    x, plan, radius = (jnp.asarray(a, dtype) for a in (x, plan, radius))
    cap = None if cap is None else jnp.asarray(cap, dtype)
    if duals is None:
        duals = CouplingDuals(jnp.zeros((), dtype), jnp.zeros_like(x))
    duals = CouplingDuals(*(jnp.maximum(jnp.asarray(dual, dtype), 0.0) for dual in duals))
    flat = x.ndim == 2
    if flat:
        x, plan = x[..., None], plan[..., None]
        duals = duals._replace(prices=duals.prices[..., None])
    solve = functools.partial(_project, tolerance=tolerance, max_iterations=max_iterations)
    found = refuse_gradients("dual_projection", solve, geometry, x, plan, radius, duals, cap)
    if flat:
        duals = found.duals._replace(prices=found.duals.prices[..., 0])
        found = found._replace(plan=found.plan[..., 0], point=found.point[..., 0], duals=duals)
    return found


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def _project(
    geometry: LocalGrid,
    x: Array,
    plan: Array,
    radius: Array,
    duals: CouplingDuals,
    cap: Array | None,
    **stopping: Any,
) -> CouplingProjection:
    """The projection on (taps, H, W, C) arrays of one dtype."""
    given = (x, plan, radius, cap)

    def go_on(found: CouplingProjection) -> CouplingProjection:
        duals = jax.tree.map(lambda a: jnp.where(jnp.isfinite(a), a, 0.0), found.duals)
        again = _solve(geometry, double(given), duals, **stopping)
        return again._replace(iterations=found.iterations + again.iterations)

    found = _solve(geometry, given, duals, **stopping)
    sound = in_range(x.reshape(-1), cap, radius)
    return again_in_double(go_on, found, sound & ~found.converged)


def _solve(
    geometry: LocalGrid,
    given: tuple[Array, Array, Array, Array | None],
    duals: CouplingDuals,
    *,
    tolerance: float,
    max_iterations: int,
) -> CouplingProjection:
    """The projection in the arrays' own precision."""
    x, plan, radius, cap = given
    window = window_of(geometry)
    mass = jnp.sum(x)
    mass = jnp.where(mass > 0, mass, 1.0)
    problem = CouplingProblem(x, jnp.where(window.inside[..., None], plan, -jnp.inf))
    # Half of the tolerance for the budget, half for the capacities.
    accuracy = max(min(0.5 * tolerance, 1e-3), 20.0 * float(jnp.finfo(x.dtype).eps))
    rows = batch_last(lambda _, *args: coupling_rows(window, *args))
    unit = batch_last(lambda _, problem: multiplier_unit(window, problem))((), problem)

    def spend(duals: CouplingDuals) -> _Spent:
        def spending(multiplier: Array) -> tuple[Array, Array, tuple[Array, Array]]:
            row = rows((), problem, CouplingDuals(multiplier, duals.prices))
            return row.cost / mass, row.slope / mass, (row.columns, row.degree)

        found = solve_multiplier(spending, radius, duals.budget, unit, tolerance=accuracy)
        excess = (found.cost - radius) / radius
        gap = jnp.where(found.value > 0, jnp.abs(excess), jnp.maximum(excess, 0.0))
        columns, degree = found.extra
        return _Spent(found.value, columns, degree, gap, found.converged, found.iterations)

    if cap is None:
        spent = spend(CouplingDuals(duals.budget, jnp.zeros_like(x)))
        duals = CouplingDuals(spent.multiplier, jnp.zeros_like(x))
        residual, met, iterations = spent.gap, spent.met, spent.iterations
    else:
        top = _ascend(spend, duals, cap, mass, 0.5 * tolerance, max_iterations)
        duals, residual, met, iterations = top.duals, top.misfit + top.gap, top.met, top.iteration

    def finish(
        _: tuple[()],
        problem: CouplingProblem,
        duals: CouplingDuals,
        met: Array,
        cap: Array | None,
    ) -> tuple[Array, ...]:
        return feasible_coupling(window, problem, duals, met, cap)

    plan, point, cost = batch_last(finish)((), problem, duals, met, cap)
    sound = in_range(x.reshape(-1), cap, radius)
    at_home = jnp.arange(len(plan)) == window.home
    plan = jnp.where(sound, plan, jnp.where(at_home[:, None, None, None], x, 0.0))
    point, cost = jnp.where(sound, point, x), jnp.where(sound, cost, 0.0)
    converged = sound & met & (residual <= tolerance)
    return CouplingProjection(plan, point, duals, cost / mass, iterations, residual, converged)


def _ascend(
    spend: Callable[[CouplingDuals], _Spent],
    duals: CouplingDuals,
    cap: Array,
    mass: Array,
    tolerance: float,
    max_iterations: int,
) -> _Ascent:
    """Maximises the dual over μ ≥ 0, with θ and λ eliminated: its gradient is Πᵀ1 − cap.

    Where d_j entries of column j are positive, the dual's curvature is at most diag(d): θ and λ
    only take away from it. The step (Πᵀ1 − cap)/d is Newton's for each column alone. Nesterov's
    extrapolation is begun anew where it points downhill.
    """

    def step(state: _Ascent) -> _Ascent:
        here = state.ahead
        spent = spend(CouplingDuals(state.duals.budget, here))
        room = cap - spent.columns
        metric = jnp.maximum(spent.degree, 1.0)
        prices = jnp.maximum(here - room / metric, 0.0)
        change = prices - state.prices
        downhill = jnp.sum(metric * (prices - here) * change) < 0
        momentum = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * state.momentum**2))
        pull = jnp.where(downhill, 0.0, (state.momentum - 1.0) / momentum)
        return _Ascent(
            prices=prices,
            ahead=jnp.maximum(prices + pull * change, 0.0),
            momentum=jnp.where(downhill, 1.0, momentum),
            duals=CouplingDuals(spent.multiplier, here),
            misfit=jnp.sum(jnp.abs(jnp.minimum(here, room))) / mass,
            gap=spent.gap,
            met=spent.met,
            iteration=state.iteration + 1,
        )

    def unfinished(state: _Ascent) -> Array:
        return (state.misfit > tolerance) & (state.iteration < max_iterations)

    one, inf = jnp.ones_like(mass), jnp.full_like(mass, jnp.inf)
    no, first = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    start = _Ascent(duals.prices, duals.prices, one, duals, inf, inf, no, first)
    return jax.lax.while_loop(unfinished, step, start)
