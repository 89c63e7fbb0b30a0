"""The projection of an image by a flow on the pixel grid, as a problem in the image's change.

    min over d, m of  ½‖d − v‖²  subject to  d = −div m,  ‖m‖₁ ≤ budget,  low ≤ d ≤ high,

in units of the size of the image's mass. Changes are small where images are not: single precision
has its digits where they count. Arrays have the axes of every vmap last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wasserstein_adv.projections.grid_flow import (
    descent,
    divergence,
    laplacian_filter,
    over_edges,
    over_pixels,
)
from wasserstein_adv.projections.kernel import in_range

_FARTHEST = 1e15  # from x to w, in units of x's mass


class FlowProblem(NamedTuple):
    """The problem at the top of this module."""

    v: Float[Array, "h w c *b"]
    """w − x, up to a constant in every channel, which mass that stays the same does not feel."""
    low: Float[Array, "h w c *b"]
    high: Float[Array, "h w c *b"]
    budget: Float[Array, "*b"]


class Posed(NamedTuple):
    """A problem and what it takes to go back to images."""

    problem: FlowProblem
    mass: Float[Array, "*b"]
    """The unit: a power of two, in which nothing is too small or too large to square."""
    share: Float[Array, "*b"]
    """Σx in that unit; 1 where nothing moves."""
    rounding: Float[Array, "*b"]
    """Bound on what rounding did to ‖v‖₂."""
    moves: Bool[Array, "*b"]
    """Whether there is anything to do: the arguments pose a problem, and x is not blank."""
    solvable: Bool[Array, "*b"]
    """Whether the arguments pose a problem and w is not so far away that x has no digit of it."""


def posed(x: Array, w: Array, radius: Array, cap: Array) -> Posed:
    """The problem of projecting images w, (h, w, c, *b), onto balls around x."""
    total = over_pixels(x)
    sound = in_range(x.reshape(-1, *x.shape[3:]), cap, radius)
    moves = sound & (total > 0)
    mass = jnp.ldexp(jnp.ones_like(total), jnp.frexp(jnp.where(moves, total, 1.0))[1])
    change = (w - x) / mass
    reached = jnp.all(jnp.abs(change) <= _FARTHEST, axis=(0, 1, 2))
    change = jnp.clip(change, -_FARTHEST, _FARTHEST)
    rounding = jnp.finfo(x.dtype).eps * jnp.sqrt(over_pixels(jnp.square(change)))
    here = jnp.where(moves, x / mass, 0.0)
    problem = FlowProblem(
        change - jnp.mean(change, axis=(0, 1), keepdims=True),
        -here,
        cap / mass - here,
        jnp.where(moves, radius * (total / mass), 0.0),
    )
    share = jnp.where(moves, total / mass, 1.0)
    return Posed(problem, mass, share, rounding, moves, sound & (reached | (total <= 0)))


def without_budget(problem: FlowProblem) -> tuple[Array, Array]:
    """clip(v − c, low, high) of sum 0 in every channel, and c: the answer for a large radius."""
    v, low, high, _ = problem
    mass = -jnp.sum(low, axis=(0, 1), keepdims=True)
    most = jnp.max(v - low, axis=(0, 1), keepdims=True)
    least = jnp.min(v - jnp.minimum(high, mass), axis=(0, 1), keepdims=True)

    def body(_, carry):
        least, most, c = carry
        shifted = v - c
        excess = jnp.sum(jnp.clip(shifted, low, high), axis=(0, 1), keepdims=True)
        free = (shifted > low) & (shifted < high)
        count = jnp.sum(free.astype(v.dtype), axis=(0, 1), keepdims=True)
        least, most = jnp.where(excess >= 0, c, least), jnp.where(excess >= 0, most, c)
        newton = c + excess / jnp.maximum(count, 1.0)
        inside = (count > 0) & (newton >= least) & (newton <= most)
        return least, most, jnp.where(inside, newton, 0.5 * (least + most))

    *_, c = jax.lax.fori_loop(0, 40, body, (least, most, 0.5 * (least + most)))
    return jnp.clip(v - c, low, high), c


def feasible_flow(
    transforms: tuple[Array, Array], problem: FlowProblem, boxed: Array, m: Array
) -> tuple[Array, Array]:
    """A feasible change near one in the box, and the flow that leads there."""
    _, low, high, budget = problem
    # Too much is taken from all in proportion, too little goes where there is room for it: first
    # by pixels that are free, as leaving a bound may cost far more.
    free = (boxed > low) & (boxed < high)
    even = _evened(problem, _evened(problem, boxed, free), jnp.ones_like(free))
    flow = m - descent(laplacian_filter(transforms, even + divergence(m), 0.0))
    spent = over_edges(jnp.abs(flow))
    share = jnp.where(spent > budget, budget / jnp.where(spent > 0, spent, 1.0), 1.0)
    return share * even, share * flow


def _evened(problem: FlowProblem, d: Array, allowed: Array) -> Array:
    """d with a sum nearer to 0 in every channel, by the pixels that are allowed to change."""
    excess = jnp.sum(d, axis=(0, 1), keepdims=True)
    above = jnp.where(jnp.isinf(problem.high), 1.0, problem.high - d)
    room = jnp.where(allowed, jnp.where(excess > 0, d - problem.low, above), 0.0)
    total = jnp.sum(room, axis=(0, 1), keepdims=True)
    change = room * (excess / jnp.where(total > 0, total, 1.0))
    return jnp.clip(d - change, problem.low, problem.high)


def duality_gap(problem: FlowProblem, d: Array, m: Array, phi: Array) -> Array:
    """P(d) − D(φ) at a feasible d = −div m, as a sum of terms none of which is negative."""
    v, low, high, budget = problem
    wanted = v - phi
    apart = d - jnp.clip(wanted, low, high)
    beyond = jnp.maximum(low - wanted, 0.0) - jnp.maximum(wanted - high, 0.0)
    image = 0.5 * jnp.square(apart) + jnp.maximum(apart * beyond, 0.0)
    slope = descent(phi)
    steepest = jnp.max(jnp.abs(slope), axis=(0, 1, 2, 3))
    flow = jnp.maximum(steepest * jnp.abs(m) + slope * m, 0.0)
    unspent = steepest * jnp.maximum(budget - over_edges(jnp.abs(m)), 0.0)
    return over_pixels(image) + over_edges(flow) + unspent
