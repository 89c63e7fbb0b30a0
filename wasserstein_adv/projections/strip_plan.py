"""The plan of a potential, entry by entry: what Newton's steps and exact bookkeeping need.

With α eliminated, the plan with row sums x at (β, ψ) and temperature 1/τ is

    Π_ij = x_i P_ij,  P_ij = exp(τ(β_j − ψC_ij)) / Σ_k exp(τ(β_k − ψC_ik)).

P is kept as one strip (see `geometry.strips`) for each displacement of the window. Exponents are
differences of pairs: in single precision right to 1e-5 where β is 1e5.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.strips import arriving, displaced, displacements
from wasserstein_adv.projections.capacity import turn_away
from wasserstein_adv.projections.pairs import Pair, carry

_ENOUGH = 60  # evaluations for one ψ


class Costs(NamedTuple):
    """A window's costs, one for each displacement, and their halves: `high` on a grid."""

    whole: Float[Array, "taps 1"]
    high: Float[Array, "taps 1"]
    low: Float[Array, "taps 1"]
    resolution: float
    """The step of the grid of `high`, a power of two."""
    least: float
    """The smallest cost of going anywhere."""


class Shares(NamedTuple):
    """Where each pixel's mass goes, and what that costs."""

    share: Float[Array, "taps p"]
    """P: what part of a pixel's mass takes each displacement."""
    mean: Float[Array, "p"]
    """Σ_j P_ij C_ij."""
    cost: Float[Array, ""]
    """⟨Π, C⟩."""
    variance: Float[Array, ""]
    """Σ_i x_i Var_i(C); −d⟨Π, C⟩/dψ is τ times that."""


class Spent(NamedTuple):
    """The plan whose cost is the radius, or smaller at ψ = 0."""

    psi: Pair
    plan: Shares
    evaluations: Int[Array, ""]


def costs_of(geometry: LocalGrid, dtype: jnp.dtype) -> Costs:
    """The costs of the window, in the order of `displacements`."""
    cost = np.array([cost for cost, _ in displacements(geometry)])[:, None]
    positive = cost[cost > 0] if (cost > 0).any() else np.ones(1)
    digits = int(jnp.finfo(dtype).nmant) // 2 - 1
    resolution = float(2.0 ** (np.ceil(np.log2(positive.max())) - digits))
    high = np.round(cost / resolution) * resolution
    whole, rounded, rest = (jnp.asarray(part, dtype) for part in (cost, high, cost - high))
    return Costs(whole, rounded, rest, resolution, float(positive.min()))


def rises(geometry: LocalGrid, inside: Float[Array, "p"], potential: Pair) -> Pair:
    """β_j − β_i for every displacement i → j, −∞ where it leads out of the image.

    Args:
      inside: 1 in the image, 0 in the strip's margins.
    """
    # Staying is always possible, in the margins too.
    stays = jnp.asarray([[move == (0, 0)] for _, move in displacements(geometry)])
    allowed = ((displaced(geometry, inside) > 0) & (inside > 0)) | stays
    high, low = (displaced(geometry, part) - part for part in potential)
    return Pair(jnp.where(allowed, high, -jnp.inf), jnp.where(allowed, low, 0.0))


def shares(
    costs: Costs, x: Float[Array, "p"], rise: Pair, psi: Pair, sharpness: Float[Array, ""]
) -> Shares:
    """The plan at ψ; `sharpness` is τ."""
    high = rise.high - psi.high * costs.high
    low = rise.low - psi.high * costs.low - psi.low * costs.whole
    exponent = sharpness * ((high - jnp.max(high, axis=0)) + low)
    weight = jnp.exp(exponent - jnp.max(exponent, axis=0))
    share = weight / jnp.sum(weight, axis=0)
    mean = jnp.sum(costs.whole * share, axis=0)
    variance = jnp.sum((costs.whole - mean) ** 2 * share, axis=0)
    return Shares(share, mean, jnp.sum(x * mean), jnp.sum(x * variance))


class _Search(NamedTuple):
    psi: Pair
    below: Array
    """Distance to the largest ψ that is known to spend too much, or to 0."""
    above: Array
    """Distance to the smallest that does not, ∞ if none is known."""
    move: Array
    """What to try next, as a change of ψ; −∞ for ψ = 0."""
    plan: Shares
    found: Array
    evaluations: Array


def spend(
    evaluate: Callable[[Pair], Shares],
    radius: Float[Array, ""],
    psi: Pair,
    step: Float[Array, ""],
    sharpness: Float[Array, ""],
    unit: Float[Array, ""],
    accuracy: float,
) -> Spent:
    """The ψ ≥ 0 at which the plan costs `radius`, to a relative `accuracy`; 0 if it costs less.

    Newton's iteration on ln cost in a bracket, as in `solve_multiplier`, for a ψ of more digits
    than a float has.

    Args:
      evaluate: ψ ↦ the plan.
      psi: where to start.
      step: of the grid of ψ.
      unit: a ψ that is neither small nor large.
    """

    def body(s: _Search) -> _Search:
        to_zero = s.move == -jnp.inf
        moved = carry(step, s.psi.high, s.psi.low + jnp.where(to_zero, 0.0, s.move))
        psi = Pair(*(jnp.where(to_zero | (moved.value < 0), 0.0, part) for part in moved))
        change = jnp.where(psi.value == 0, -s.psi.value, s.move)
        plan = evaluate(psi)
        affordable = plan.cost <= radius
        below = jnp.where(affordable, jnp.maximum(s.below + change, 0.0), 0.0)
        above = jnp.where(affordable, 0.0, jnp.maximum(s.above - change, 0.0))
        value = psi.value
        newton = (jnp.log(plan.cost) - jnp.log(radius)) * plan.cost / (sharpness * plan.variance)
        low = value - below
        middle = jnp.where(
            value + above > 4.0 * (low + unit),
            jnp.sqrt((low + unit) * (value + above + unit)) - unit - value,
            0.5 * (above - below),
        )
        fallback = jnp.where(jnp.isinf(above), 3.0 * (value + unit), middle)
        trusted = (newton > -below) & (newton < above) & (newton <= 15.0 * (value + unit))
        move = jnp.where(trusted, newton, fallback)
        # Nothing between here and 0 was too much: is 0?
        move = jnp.where(affordable & (low <= 0) & ~(newton > -below), -jnp.inf, move)
        near = jnp.abs(plan.cost - radius) <= accuracy * radius
        closed = (below + above) <= 1e-3 * jnp.finfo(value.dtype).eps * value
        found = near | (affordable & ((value == 0) | closed))
        count = jnp.where(jnp.isnan(plan.cost), _ENOUGH, s.evaluations + 1)
        return _Search(psi, below, above, move, plan, found, count)

    zero, no, first = jnp.zeros_like(radius), jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    blank = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: evaluate(psi))
    )
    start = _Search(psi, psi.value, jnp.full_like(zero, jnp.inf), zero, blank, no, first)
    end = jax.lax.while_loop(lambda s: ~s.found & (s.evaluations < _ENOUGH), body, start)
    return Spent(end.psi, end.plan, end.evaluations)


def settle(
    geometry: LocalGrid,
    costs: Costs,
    x: Float[Array, "p"],
    plan: Shares,
    radius: Float[Array, ""],
    cap: float | Float[Array, ""],
) -> tuple[Float[Array, "p"], Float[Array, ""]]:
    """(z, cost) of the plan made feasible: to rounding, z has the mass of x, no pixel holds more
    than `cap`, and the cost is at most `radius`.

    All of it by scaling down what moves, which no rounding of an exponent can upset: a share
    radius/cost of a plan that costs too much moves, and what does not fit stays at its source.
    """
    home = [move for _, move in displacements(geometry)].index((0, 0))
    moving = (x * plan.share).at[home].set(0.0)
    cost = jnp.sum(costs.whole * moving)
    moving = moving * jnp.where(cost > radius, radius / jnp.where(cost > 0, cost, 1.0), 1.0)

    def accepted(theta: Array) -> Array:
        return moving * displaced(geometry, theta)

    theta, point = turn_away(
        x, arriving(geometry, moving), lambda theta: jnp.sum(accepted(theta), axis=0), cap
    )
    return point, jnp.sum(costs.whole * accepted(theta))
