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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.checks import check_cap, check_positive
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.projections.capacity import turn_away
from wasserstein_adv.projections.kernel import check_shapes, check_stopping, refuse_gradients
from wasserstein_adv.projections.multiplier import solve_multiplier


class CouplingDuals(NamedTuple):
    """Dual variables that start the iteration: those of a nearby problem, for example."""

    budget: Float[Array, ""]
    """λ, multiplier of the budget, ≥ 0."""
    prices: Float[Array, "h w *c"]
    """μ, multipliers of the capacities, ≥ 0; zero without a cap."""


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


class _Window(NamedTuple):
    """The taps of a geometry's window, all static, in the order of a plan's first axis."""

    cost: np.ndarray
    move: np.ndarray
    """(taps, 2) displacements, (Δrow, Δcol)."""
    home: int
    """Which tap leaves the mass in place."""
    inside: np.ndarray
    """(taps, H, W): whether a pixel's destination lies inside the image."""


class _Problem(NamedTuple):
    """What is projected."""

    x: Float[Array, "h w c ..."]
    target: Float[Array, "taps h w c ..."]
    """G, −∞ where a move would leave the image."""


class _Rows(NamedTuple):
    """The plan with θ eliminated, at fixed λ and μ."""

    plan: Float[Array, "taps h w c ..."]
    columns: Float[Array, "h w c ..."]
    """Πᵀ1."""
    degree: Float[Array, "h w c ..."]
    """How many entries of a column are positive."""
    cost: Float[Array, "..."]
    """⟨Π, C⟩."""
    slope: Float[Array, "..."]
    """−d⟨Π, C⟩/dλ."""


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
    _check_plan(geometry, plan)
    return _column_sums(_window(geometry), plan)


def coupling_cost(geometry: LocalGrid, plan: Float[Array, "taps h w *c"]) -> Float[Array, ""]:
    """⟨Π, C⟩, in the cost's unit times the image's. Linear, differentiable.

    Args:
      geometry, plan: as in `column_sums`.

    Raises:
      InputError: as `column_sums`.
    """
    _check_plan(geometry, plan)
    cost = jnp.asarray(_window(geometry).cost, jnp.result_type(plan, jnp.float32))
    return jnp.sum(cost * jnp.sum(plan.reshape(len(cost), -1), axis=1))


def diagonal_plan(geometry: LocalGrid, x: Float[Array, "h w *c"]) -> Float[Array, "taps h w *c"]:
    """The plan that leaves every pixel's mass in place, at no cost.

    Args:
      geometry: the window that the plan's taps belong to.
      x: (H, W) or (H, W, C) image.

    Raises:
      InputError: the geometry is not a `LocalGrid`, or the image's shape is not its own.
    """
    _check_geometry(geometry)
    check_shapes(geometry, x, x)
    window = _window(geometry)
    home = jnp.arange(len(window.cost)) == window.home
    return jnp.where(jnp.expand_dims(home, range(1, x.ndim + 1)), x, jnp.zeros_like(x))


def dual_projection(
    geometry: LocalGrid,
    x: Float[Array, "h w *c"],
    plan: Float[Array, "taps h w *c"],
    radius: float | Float[Array, ""],
    duals: CouplingDuals | None = None,
    *,
    cap: float | None = None,
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
      max_iterations: steps of μ at most, 1 or more.

    Returns:
      `CouplingProjection`, all fields without the batch axis.

    Raises:
      InputError: shapes that do not agree, or static arguments out of range. Values are not checked
        (the function is traceable).
    """
    _check_plan(geometry, plan)
    check_shapes(geometry, x, plan[0])
    check_stopping(tolerance, max_iterations)
    check_positive("radius", radius)
    check_cap(cap)
    if duals is not None and jnp.shape(duals.prices) != x.shape:
        raise InputError(f"prices must have x's shape {x.shape}, got {jnp.shape(duals.prices)}")
    dtype = jnp.result_type(x, plan, jnp.float32)
    x, plan, radius = (jnp.asarray(a, dtype) for a in (x, plan, radius))
    if duals is None:
        duals = CouplingDuals(jnp.zeros((), dtype), jnp.zeros_like(x))
    duals = CouplingDuals(*(jnp.maximum(jnp.asarray(dual, dtype), 0.0) for dual in duals))
    flat = x.ndim == 2
    if flat:
        x, plan = x[..., None], plan[..., None]
        duals = duals._replace(prices=duals.prices[..., None])
    solve = functools.partial(
        _solve, _window(geometry), cap=cap, tolerance=tolerance, max_iterations=max_iterations
    )
    found = refuse_gradients("dual_projection", solve, x, plan, radius, duals)
    if flat:
        duals = found.duals._replace(prices=found.duals.prices[..., 0])
        found = found._replace(plan=found.plan[..., 0], point=found.point[..., 0], duals=duals)
    return found


def _solve(
    window: _Window,
    x: Array,
    plan: Array,
    radius: Array,
    duals: CouplingDuals,
    *,
    cap: float | None,
    tolerance: float,
    max_iterations: int,
) -> CouplingProjection:
    """The projection on (taps, H, W, C) arrays of one dtype."""
    mass = jnp.sum(x)
    mass = jnp.where(mass > 0, mass, 1.0)
    problem = _Problem(x, jnp.where(window.inside[..., None], plan, -jnp.inf))
    # Half of the tolerance for the budget, half for the capacities.
    accuracy = max(min(0.5 * tolerance, 1e-3), 20.0 * float(jnp.finfo(x.dtype).eps))
    rows = batch_last(lambda _, *args: _rows(window, *args))
    unit = batch_last(lambda _, problem: _multiplier_unit(window, problem))((), problem)

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
        _: tuple[()], problem: _Problem, duals: CouplingDuals, met: Array
    ) -> tuple[Array, ...]:
        return _feasible(window, problem, duals, met, cap)

    plan, point, cost = batch_last(finish)((), problem, duals, met)
    converged = met & (residual <= tolerance)
    return CouplingProjection(plan, point, duals, cost / mass, iterations, residual, converged)


def _ascend(
    spend: Callable[[CouplingDuals], _Spent],
    duals: CouplingDuals,
    cap: float,
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


# Below, arrays may have batch axes, last: see `batch_last`. Loops over the taps are scans, which
# compile fast, and run several times faster than sums over a stacked axis.


def _window(geometry: LocalGrid) -> _Window:
    taps = [(cost, *move) for cost, moves in geometry.taps(axis=1) for move in moves]
    move = np.array([tap[1:] for tap in taps])
    pixels = np.stack([*np.indices(geometry.grid_size)], -1)
    to = pixels + move[:, None, None, :]
    inside = ((to >= 0) & (to < geometry.grid_size)).all(-1)
    home = int(np.flatnonzero((move == 0).all(1))[0])
    return _Window(np.array([tap[0] for tap in taps]), move, home, inside)


def _margin(window: _Window) -> tuple[int, int]:
    """How many rows and columns a displacement can lead beyond the image."""
    rows, cols = np.abs(window.move).max(axis=0)
    return int(rows), int(cols)


def _pad(window: _Window, image: Array) -> Array:
    """The image with zeros around it, for `_at` to read from."""
    return jnp.pad(image, [(m, m) for m in _margin(window)] + [(0, 0)] * (image.ndim - 2))


def _at(window: _Window, padded: Array, move: Array) -> Array:
    """The image behind `padded`, shifted: [i] holds the pixel that `move` leads to from i."""
    height, width = window.inside.shape[1:]
    start = (*(move + np.array(_margin(window))), *[0] * (padded.ndim - 2))
    return jax.lax.dynamic_slice(padded, start, (height, width, *padded.shape[2:]))


def _add_at(window: _Window, padded: Array, move: Array, sent: Array) -> Array:
    """`padded` with what every pixel sends by `move` added where it arrives."""
    start = (*(move + np.array(_margin(window))), *[0] * (padded.ndim - 2))
    here = jax.lax.dynamic_slice(padded, start, sent.shape)
    return jax.lax.dynamic_update_slice(padded, here + sent, start)


def _crop(window: _Window, padded: Array) -> Array:
    """The image inside `padded`."""
    return _at(window, padded, jnp.zeros(2, jnp.int32))


def _column_sums(window: _Window, plan: Array) -> Array:
    def add(sums: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        return _add_at(window, sums, *tap), None

    zero = _pad(window, jnp.zeros_like(plan[0]))
    sums, _ = jax.lax.scan(add, zero, (jnp.asarray(window.move), plan))
    return _crop(window, sums)


def _row_sums(plan: Array) -> Array:
    def add(sums: Array, row: Array) -> tuple[Array, None]:
        return sums + row, None

    return jax.lax.scan(add, jnp.zeros_like(plan[0]), plan)[0]


def _multiplier_unit(window: _Window, problem: _Problem) -> Float[Array, "..."]:
    """A λ of the size that matters: the most that a pixel gains by a move, or sends, per unit of
    cost."""
    x, target = problem
    home = target[window.home]

    def larger(best: Array, row: Array) -> tuple[Array, None]:
        return jnp.maximum(best, row - home), None

    gain, _ = jax.lax.scan(larger, x, target)
    gain = jnp.max(jnp.where(x > 0, gain, 0.0), axis=(0, 1, 2))
    mean_cost = window.cost.mean()
    unit = gain / (mean_cost if mean_cost > 0 else 1.0)
    return jnp.where(unit > 0, unit, 1.0)


def _rows(window: _Window, problem: _Problem, duals: CouplingDuals) -> _Rows:
    """Π_ij = (G_ij − λC_ij − μ_j − θ_i)₊ with the θ that makes the row sums x.

    Scores are taken relative to the largest of their row: rounding is then relative to the scores'
    differences, however far from its simplex a row of G lies.
    """
    x, target = problem
    padded = _pad(window, duals.prices)
    cost, move = jnp.asarray(window.cost, x.dtype), jnp.asarray(window.move)

    def score(best: Array, tap: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        row, cost, move = tap
        found = row - duals.budget * cost - _at(window, padded, move)
        return jnp.maximum(best, found), found

    best, scores = jax.lax.scan(score, jnp.full_like(x, -jnp.inf), (target, cost, move))
    theta = _thresholds(x, scores, best)
    wide = jnp.zeros_like(padded)

    Sums = tuple[Array, Array, Array, Array, Array, Array]

    def collect(sums: Sums, tap: tuple[Array, Array, Array]) -> tuple[Sums, Array]:
        spent, count, first, second, columns, degree = sums
        score, cost, move = tap
        sent = jnp.maximum(score - best - theta, 0.0)
        active = (sent > 0).astype(x.dtype)
        sums = (
            spent + sent * cost,
            count + active,
            first + active * cost,
            second + active * cost**2,
            _add_at(window, columns, move, sent),
            _add_at(window, degree, move, active),
        )
        return sums, sent

    zero = jnp.zeros_like(x)
    sums, plan = jax.lax.scan(collect, (zero, zero, zero, zero, wide, wide), (scores, cost, move))
    spent, count, first, second, columns, degree = sums
    # Σ_j (C_ij − mean)² over a row's positive entries.
    spread = jnp.maximum(second - first**2 / jnp.maximum(count, 1.0), 0.0)
    spent, spread = (jnp.sum(a, axis=(0, 1, 2)) for a in (spent, spread))
    return _Rows(plan, _crop(window, columns), _crop(window, degree), spent, spread)


def _thresholds(x: Array, scores: Array, best: Array) -> Array:
    """θ relative to `best`, with Σ_j (score_j − best − θ)₊ = x: −x ≤ θ < 0 where x > 0.

    Newton's iteration on a convex, piecewise linear function, which is Michelot's: from below the
    root θ climbs, the active set shrinks, and where it repeats θ is the root.
    """

    def newton(theta: Array) -> Array:
        def add(sums: tuple[Array, Array], score: Array) -> tuple[tuple[Array, Array], None]:
            count, total = sums
            excess = score - best
            active = excess > theta
            return (count + active, total + jnp.where(active, excess, 0.0)), None

        zero = jnp.zeros_like(x)
        (count, total), _ = jax.lax.scan(add, (zero, zero), scores)
        return jnp.maximum(theta, (total - x) / jnp.maximum(count, 1.0))

    def climbs(state: tuple[Array, Array]) -> Array:
        before, theta = state
        return jnp.any(theta > before)

    def climb(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[1], newton(state[1])

    # At −x, a row's best entry alone would hold all of its mass.
    return jax.lax.while_loop(climbs, climb, (-x, newton(-x)))[1]


def _feasible(
    window: _Window, problem: _Problem, duals: CouplingDuals, met: Array, cap: float | None
) -> tuple[Array, Array, Array]:
    """(plan, its column sums, its cost), feasible to rounding, from the plan at `duals`.

    Args:
      met: whether that plan meets the budget; if not, all mass stays in place.
    """
    x, _ = problem
    plan = _rows(window, problem, duals).plan
    sums = _row_sums(plan)
    plan = plan * jnp.where(met & (sums > 0), x / jnp.where(sums > 0, sums, 1.0), 0.0)
    plan = plan.at[window.home].add(jnp.where(met, 0.0, x))
    if cap is not None:
        plan = _send_home(window, x, plan, cap)
    cost = jnp.asarray(window.cost, x.dtype)

    def add(sums: tuple[Array, Array], tap: tuple[Array, ...]) -> tuple[tuple[Array, Array], None]:
        sent, cost, move = tap
        spent, columns = sums
        return (spent + sent * cost, _add_at(window, columns, move, sent)), None

    start = jnp.zeros_like(x), _pad(window, jnp.zeros_like(x))
    (spent, columns), _ = jax.lax.scan(add, start, (plan, cost, jnp.asarray(window.move)))
    return plan, _crop(window, columns), jnp.sum(spent, axis=(0, 1, 2))


def _send_home(window: _Window, x: Array, plan: Array, cap: float) -> Array:
    """The plan that leaves at its source what would overfill a pixel."""
    foreign = plan.at[window.home].set(0.0)
    move = jnp.asarray(window.move)

    def leaving(share: Array) -> Array:
        padded = _pad(window, share)

        def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
            sent, move = tap
            return total + sent * _at(window, padded, move), None

        return jax.lax.scan(add, jnp.zeros_like(x), (foreign, move))[0]

    share, _ = turn_away(x, _column_sums(window, foreign), leaving, cap)
    padded = _pad(window, share)

    def accept(back: Array, tap: tuple[Array, Array]) -> tuple[Array, Array]:
        sent, move = tap
        accepted = sent * _at(window, padded, move)
        return back + (sent - accepted), accepted

    home, accepted = jax.lax.scan(accept, plan[window.home], (foreign, move))
    return accepted.at[window.home].set(home)


def _check_geometry(geometry: LocalGrid) -> None:
    """Raise InputError unless the geometry has a window."""
    if not isinstance(geometry, LocalGrid):
        raise InputError(f"geometry must be a LocalGrid, got {type(geometry).__name__}")


def _check_plan(geometry: LocalGrid, plan: Array) -> None:
    """Raise InputError unless the plan's axes are the geometry's taps, rows and columns."""
    _check_geometry(geometry)
    shape = _window(geometry).inside.shape
    if plan.ndim not in (3, 4) or plan.shape[:3] != shape:
        over = "×".join(map(str, shape))
        raise InputError(f"plan must have shape {over} or {over}×C, got {plan.shape}")
