"""Flows on the pixel grid under a budget by an interior point: Newton's method on the central path.

The problem, of a change d and a flow m = p − q, in units in which all of it is of size one:

    min over d, p, q ≥ 0 of  ½δ‖d‖² − ⟨v, d⟩
    subject to  d = −div(p − q),  Σ(p + q) ≤ 1,  low ≤ d ≤ high.

With potentials φ, a steepest slope s for the budget, and a, b ≥ 0 for the two bounds, optimal is

    δd − v + φ = a − b,  p(s + ∇φ) = q(s − ∇φ) = s(1 − Σ(p + q)) = a(d − low) = b(high − d) = 0,

∇φ the descent along an edge. Along the central path the products are equal to one another, and each
step is Mehrotra's (1992): a predictor to the end of the path, and a corrector. A step's one linear
system, of the potentials, is a weighted Laplacian of the grid: row by row of the image, a matrix of
one row's pixels at a time. A few dozen steps end it whatever the problem, where a first-order
method may take any number; each costs h·w³ for an image of h×w. Needs double precision: where the
path ends the weights differ by twenty orders of magnitude.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wasserstein_adv.projections.flow_problem import FlowProblem
from wasserstein_adv.projections.grid_flow import descent, divergence, over_edges, over_pixels

_SOLVES = 2  # of a linear system, the second for what the first leaves
_SHORT = 0.995  # of the way to the boundary


class BudgetedFlow(NamedTuple):
    """The problem, with the axes of every vmap last."""

    v: Float[Array, "h w c *b"]
    low: Float[Array, "h w c *b"]
    high: Float[Array, "h w c *b"]
    """Above `low` everywhere; a d between the two must be possible."""
    curvature: Float[Array, "*b"]
    """δ."""


class Units(NamedTuple):
    """What it takes to go back."""

    given: FlowProblem
    flow: Float[Array, "*b"]
    slope: Float[Array, "*b"]
    fixed: Bool[Array, "1 1 c *b"]
    """Channels without mass or without room, in which nothing moves."""
    level: Float[Array, "1 1 c *b"]
    """φ there."""


class Positive(NamedTuple):
    """One quantity for every inequality: a multiplier, or what its constraint leaves."""

    down: Float[Array, "2 h w c *b"]
    """p, or s + ∇φ; 0 across the border."""
    up: Float[Array, "2 h w c *b"]
    """q, or s − ∇φ; 0 across the border."""
    budget: Float[Array, "*b"]
    """s, or 1 − Σ(p + q)."""
    low: Float[Array, "h w c *b"]
    """a, or d − low."""
    high: Float[Array, "h w c *b"]
    """b, or high − d."""


class Interior(NamedTuple):
    """A point inside all bounds, or a change of it."""

    d: Float[Array, "h w c *b"]
    phi: Float[Array, "h w c *b"]
    first: Positive
    """(p, q, s, a, b)."""
    slack: Positive
    """What is multiplied with them. Numbers of their own: where they are small, the differences
    that they are have lost their digits."""


def in_units(problem: FlowProblem, level: Array) -> tuple[BudgetedFlow, Units]:
    """The problem with all that matters of size one.

    Args:
      level: potentials at which channels in which nothing can move do not, see `without_budget`.
    """
    v, low, high, budget = problem
    # Nothing goes farther than across the image, and no change is larger than the budget.
    mass = -over_pixels(low)
    flow = jnp.minimum(budget, mass * sum(v.shape[:2]))
    flow = jnp.where(flow > 0, flow, 1.0)
    slope = jnp.maximum(jnp.max(jnp.abs(v), axis=(0, 1, 2)), flow)
    full, empty = (jnp.sum(a, axis=(0, 1), keepdims=True) for a in (high, -low))
    fixed = (full <= 0) | (empty <= 0)
    scaled = BudgetedFlow(
        jnp.where(fixed, 0.0, v / slope),
        jnp.where(fixed, -1.0, jnp.maximum(low / flow, -2.0)),
        jnp.where(fixed, 1.0, jnp.minimum(high / flow, 2.0)),
        flow / slope,
    )
    return scaled, Units(problem, flow, slope, fixed, level)


def from_units(units: Units, at: Interior) -> tuple[Array, Array, Array]:
    """(d, m, φ) of the problem as it was given."""
    given, flow, slope, fixed, level = units
    d = jnp.clip(jnp.where(fixed, 0.0, at.d * flow), given.low, given.high)
    m = (at.first.down - at.first.up) * flow
    return d, m, jnp.where(fixed, level, at.phi * slope)


def interior_start(problem: BudgetedFlow) -> Interior:
    """Half of the budget spent evenly, to no effect, and changes in the middle of their bounds."""
    v, low, high, curvature = problem
    edges = _edges(v)
    d = 0.5 * (low + high)
    even = 0.25 * edges / over_edges(edges)
    wanted = curvature * d - v
    one = jnp.ones_like(curvature)
    first = Positive(
        even, even, one, 1.0 + jnp.maximum(wanted, 0.0), 1.0 + jnp.maximum(-wanted, 0.0)
    )
    return Interior(
        d, jnp.zeros_like(v), first, Positive(edges, edges, 0.5 * one, d - low, high - d)
    )


def interior_step(problem: BudgetedFlow, at: Interior) -> Interior:
    """One step along the central path: of Mehrotra's predictor and corrector."""
    edges = _edges(at.d)
    solve = _newton(problem, at, edges)
    count = 2.0 * over_edges(edges) + 2.0 * over_pixels(jnp.ones_like(at.d)) + 1.0
    products = _times(at.first, at.slack)

    def improve(turn: Array, change: Interior) -> Interior:
        # First all the way, then as far along the path as that way was open, and what the products
        # of the first changes did undone.
        room = jnp.minimum(1.0, _room(at, change))
        reached = jax.tree.map(lambda a, da: a + room * da, at, change)
        now, then = _total(products), _total(_times(reached.first, reached.slack))
        aim = jnp.where(turn == 0, 0.0, now / count * (then / now) ** 3)
        more = _times(change.first, change.slack)
        return solve(jax.tree.map(lambda now, more: aim - now - more, products, more))

    change = jax.lax.fori_loop(0, 2, improve, jax.tree.map(jnp.zeros_like, at))
    step = jnp.minimum(1.0, _SHORT * _room(at, change))
    return jax.tree.map(lambda a, da: a + step * da, at, change)


def _edges(image: Array) -> Array:
    """1 at the edges of the grid, 0 where one would cross the border."""
    height, width = image.shape[:2]
    down = jnp.ones_like(image).at[height - 1].set(0.0)
    right = jnp.ones_like(image).at[:, width - 1].set(0.0)
    return jnp.stack([down, right])


def _times(a: Positive, b: Positive) -> Positive:
    return jax.tree.map(jnp.multiply, a, b)


def _total(values: Positive) -> Array:
    return (
        over_edges(values.down + values.up) + values.budget + over_pixels(values.low + values.high)
    )


def _room(at: Interior, change: Interior) -> Array:
    """The largest step at which nothing positive becomes negative."""

    def limit(value: Array, change: Array) -> Array:
        most = jnp.where(change < 0, -value / jnp.where(change < 0, change, 1.0), jnp.inf)
        return jnp.min(most, axis=tuple(range(most.ndim - at.first.budget.ndim)))

    limits = jax.tree.map(limit, (at.first, at.slack), (change.first, change.slack))
    return functools.reduce(jnp.minimum, jax.tree.leaves(limits))


def _newton(problem: BudgetedFlow, at: Interior, edges: Array) -> Callable[[Positive], Interior]:
    """Wanted changes of the products ↦ the change of the point that makes them, to first order."""
    d, phi, (p, q, s, a, b), slack = at
    # Δp = (wanted_p − p(Δs + ∇Δφ))/(s + ∇φ), and so on: all but Δφ and Δs is eliminated.
    beyond = 1.0 - edges
    over_down, over_up = edges / (slack.down + beyond), edges / (slack.up + beyond)
    ease_down, ease_up = p * over_down, q * over_up
    tilt = divergence(ease_down - ease_up)
    stiff = problem.curvature + a / slack.low + b / slack.high
    laplacian = weighted_laplacian(ease_down + ease_up, 1.0 / stiff)
    stationary = problem.curvature * d - problem.v + phi - a + b
    balance = d + divergence(p - q)
    unspent = 1.0 - over_edges(p + q) - slack.budget

    def solve(wanted: Positive) -> Interior:
        down, up = wanted.down * over_down, wanted.up * over_up
        force = -stationary + wanted.low / slack.low - wanted.high / slack.high
        right = balance + force / stiff + divergence(down - up)
        there, pull = jax.lax.map(laplacian, jnp.stack([right, tilt]))
        slope = descent(pull)
        # The Schur complement of s, as a sum of squares.
        energy = (
            slack.budget / s
            + over_pixels(pull**2 / stiff)
            + over_edges(ease_down * (1.0 - slope) ** 2 + ease_up * (1.0 + slope) ** 2)
        )
        needed = wanted.budget / s + over_edges(down + up) - unspent
        ds = (needed - over_pixels(tilt * there)) / energy
        dphi = there - pull * ds
        slopes = descent(dphi)
        dp = down - ease_down * (ds + slopes)
        dq = up - ease_up * (ds - slopes)
        dd = (force - dphi) / stiff
        da = (wanted.low - a * dd) / slack.low
        db = (wanted.high + b * dd) / slack.high
        opened = Positive(
            edges * (ds + slopes), edges * (ds - slopes), unspent - over_edges(dp + dq), dd, -dd
        )
        return Interior(dd, dphi, Positive(dp, dq, ds, da, db), opened)

    return solve


def weighted_laplacian(weight: Array, diagonal: Array) -> Callable[[Array], Array]:
    """r ↦ (diag + div weight ∇)⁻¹ r: Gauss's elimination, an image row at a time."""
    link, along = weight
    above = jnp.concatenate([jnp.zeros_like(link[:1]), link[:-1]])
    left = jnp.concatenate([jnp.zeros_like(along[:, :1]), along[:, :-1]], axis=1)
    total = diagonal + link + above + along + left
    width = diagonal.shape[1]
    # Of one row: (w, w, c, *b).
    on, beside = (
        jnp.expand_dims(jnp.eye(width, k=k, dtype=weight.dtype), range(2, diagonal.ndim))
        for k in (0, 1)
    )

    def eliminate(before: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        total, along, above = row
        matrix = on * total[:, None] - beside * along[:, None]
        matrix -= jnp.swapaxes(beside, 0, 1) * along[None, :]
        found = _inverse(matrix - above[:, None] * before * above[None, :])
        return found, found

    blank = jnp.zeros((width, *total.shape[1:]), weight.dtype)
    _, inverses = jax.lax.scan(eliminate, blank, (total, along, above))

    def once(right: Array) -> Array:
        def forth(before: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
            right, above, inverse = row
            here = jnp.sum(inverse * (right + above * before), axis=1)
            return here, here

        def back(after: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
            there, link, inverse = row
            here = there + jnp.sum(inverse * (link * after), axis=1)
            return here, here

        zero = jnp.zeros_like(right[0])
        _, there = jax.lax.scan(forth, zero, (right, above, inverses))
        return jax.lax.scan(back, zero, (there, link, inverses), reverse=True)[1]

    def solve(right: Array) -> Array:
        def refine(_: Array, found: Array) -> Array:
            return found + once(right - diagonal * found - divergence(weight * descent(found)))

        return jax.lax.fori_loop(0, _SOLVES, refine, jnp.zeros_like(right))

    return solve


def _inverse(matrix: Array) -> Array:
    """The inverse of a diagonally dominant (n, n, ...), Gauss's and Jordan's, in place."""

    def pivot(k: Array, matrix: Array) -> Array:
        column = jax.lax.dynamic_index_in_dim(matrix, k, axis=1)
        row = jax.lax.dynamic_index_in_dim(matrix, k, axis=0)
        corner = jax.lax.dynamic_index_in_dim(row, k, axis=1)
        row = jax.lax.dynamic_update_index_in_dim(row, jnp.ones_like(corner), k, axis=1) / corner
        rest = jax.lax.dynamic_update_index_in_dim(matrix, jnp.zeros_like(column), k, axis=1)
        return jax.lax.dynamic_update_index_in_dim(rest - column * row, row, k, axis=0)

    return jax.lax.fori_loop(0, len(matrix), pivot, matrix)
