"""Couplings on a window: their sums, and the one that `dual_projection` makes of given multipliers.

The problem and its multipliers θ, λ and μ are stated there. A plan holds, per tap of the geometry's
window and per source pixel, the mass that the pixel sends by that displacement.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.projections.capacity import turn_away


class CouplingDuals(NamedTuple):
    """Dual variables that start the iteration: those of a nearby problem, for example."""

    budget: Float[Array, ""]
    """λ, multiplier of the budget, ≥ 0."""
    prices: Float[Array, "h w *c"]
    """μ, multipliers of the capacities, ≥ 0; zero without a cap."""


class Window(NamedTuple):
    """The taps of a geometry's window, all static, in the order of a plan's first axis."""

    cost: np.ndarray
    move: np.ndarray
    """(taps, 2) displacements, (Δrow, Δcol)."""
    home: int
    """Which tap leaves the mass in place."""
    inside: np.ndarray
    """(taps, H, W): whether a pixel's destination lies inside the image."""


class CouplingProblem(NamedTuple):
    """What is projected."""

    x: Float[Array, "h w c ..."]
    target: Float[Array, "taps h w c ..."]
    """G, −∞ where a move would leave the image."""


class CouplingRows(NamedTuple):
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


def check_geometry(geometry: LocalGrid) -> None:
    """Raise InputError unless the geometry has a window."""
    if not isinstance(geometry, LocalGrid):
        raise InputError(f"geometry must be a LocalGrid, got {type(geometry).__name__}")


def check_plan(geometry: LocalGrid, plan: Array) -> None:
    """Raise InputError unless the plan's axes are the geometry's taps, rows and columns."""
    check_geometry(geometry)
    shape = window_of(geometry).inside.shape
    if plan.ndim not in (3, 4) or plan.shape[:3] != shape:
        over = "×".join(map(str, shape))
        raise InputError(f"plan must have shape {over} or {over}×C, got {plan.shape}")


# Below, arrays may have batch axes, last: see `batch_last`. Loops over the taps are scans, which
# compile fast, and run several times faster than sums over a stacked axis.


def window_of(geometry: LocalGrid) -> Window:
    """The taps of a geometry's window."""
    taps = [(cost, *move) for cost, moves in geometry.taps(axis=1) for move in moves]
    move = np.array([tap[1:] for tap in taps])
    pixels = np.stack([*np.indices(geometry.grid_size)], -1)
    to = pixels + move[:, None, None, :]
    inside = ((to >= 0) & (to < geometry.grid_size)).all(-1)
    home = int(np.flatnonzero((move == 0).all(1))[0])
    return Window(np.array([tap[0] for tap in taps]), move, home, inside)


def _margin(window: Window) -> tuple[int, int]:
    """How many rows and columns a displacement can lead beyond the image."""
    rows, cols = np.abs(window.move).max(axis=0)
    return int(rows), int(cols)


def _pad(window: Window, image: Array) -> Array:
    """The image with zeros around it, for `_at` to read from."""
    return jnp.pad(image, [(m, m) for m in _margin(window)] + [(0, 0)] * (image.ndim - 2))


def _at(window: Window, padded: Array, move: Array) -> Array:
    """The image behind `padded`, shifted: [i] holds the pixel that `move` leads to from i."""
    height, width = window.inside.shape[1:]
    start = (*(move + np.array(_margin(window))), *[0] * (padded.ndim - 2))
    return jax.lax.dynamic_slice(padded, start, (height, width, *padded.shape[2:]))


def _add_at(window: Window, padded: Array, move: Array, sent: Array) -> Array:
    """`padded` with what every pixel sends by `move` added where it arrives."""
    start = (*(move + np.array(_margin(window))), *[0] * (padded.ndim - 2))
    here = jax.lax.dynamic_slice(padded, start, sent.shape)
    return jax.lax.dynamic_update_slice(padded, here + sent, start)


def _crop(window: Window, padded: Array) -> Array:
    """The image inside `padded`."""
    return _at(window, padded, jnp.zeros(2, jnp.int32))


def sum_columns(window: Window, plan: Array) -> Array:
    """Πᵀ1."""

    def add(sums: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        return _add_at(window, sums, *tap), None

    zero = _pad(window, jnp.zeros_like(plan[0]))
    sums, _ = jax.lax.scan(add, zero, (jnp.asarray(window.move), plan))
    return _crop(window, sums)


def _row_sums(plan: Array) -> Array:
    def add(sums: Array, row: Array) -> tuple[Array, None]:
        return sums + row, None

    return jax.lax.scan(add, jnp.zeros_like(plan[0]), plan)[0]


def multiplier_unit(window: Window, problem: CouplingProblem) -> Float[Array, "..."]:
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


def coupling_rows(window: Window, problem: CouplingProblem, duals: CouplingDuals) -> CouplingRows:
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
    return CouplingRows(plan, _crop(window, columns), _crop(window, degree), spent, spread)


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


def feasible_coupling(
    window: Window, problem: CouplingProblem, duals: CouplingDuals, met: Array, cap: Array | None
) -> tuple[Array, Array, Array]:
    """(plan, its column sums, its cost), feasible to rounding, from the plan at `duals`.

    Args:
      met: whether that plan meets the budget; if not, all mass stays in place.
    """
    x, _ = problem
    plan = coupling_rows(window, problem, duals).plan
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


def _send_home(window: Window, x: Array, plan: Array, cap: Array) -> Array:
    """The plan that leaves at its source what would overfill a pixel."""
    foreign = plan.at[window.home].set(0.0)
    move = jnp.asarray(window.move)

    def leaving(share: Array) -> Array:
        padded = _pad(window, share)

        def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
            sent, move = tap
            return total + sent * _at(window, padded, move), None

        return jax.lax.scan(add, jnp.zeros_like(x), (foreign, move))[0]

    share, _ = turn_away(x, sum_columns(window, foreign), leaving, cap)
    padded = _pad(window, share)

    def accept(back: Array, tap: tuple[Array, Array]) -> tuple[Array, Array]:
        sent, move = tap
        accepted = sent * _at(window, padded, move)
        return back + (sent - accepted), accepted

    home, accepted = jax.lax.scan(accept, plan[window.home], (foreign, move))
    return accepted.at[window.home].set(home)
