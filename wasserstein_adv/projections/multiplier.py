"""The multiplier of a budget: one scalar equation that every ball's projection ends in."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Spending = Callable[[Array], tuple[Array, Array, Any]]
"""λ ↦ (cost, minus its derivative in λ, whatever else is wanted of the answer)."""


class Multiplier(NamedTuple):
    """Solution of a budget equation."""

    value: Float[Array, ""]
    """The multiplier λ, ≥ 0."""
    cost: Float[Array, ""]
    """What is spent at λ, at most the radius when `converged`."""
    extra: Any
    """What else `spending` returned at λ."""
    below: Float[Array, ""]
    """The largest multiplier tried that spends too much, −1 if none was tried."""
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]
    """Evaluations of `spending`."""


class _Search(NamedTuple):
    proposal: Float[Array, ""]
    value: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    cost: Float[Array, ""]
    extra: Any
    found: Bool[Array, ""]
    iteration: Int[Array, ""]


def solve_multiplier(
    spending: Spending,
    radius: Float[Array, ""],
    start: Float[Array, ""],
    unit: float | Float[Array, ""] = 1.0,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Multiplier:
    """The smallest λ ≥ 0 with cost(λ) ≤ radius, to a relative `tolerance` of the radius.

    Newton's iteration on ln cost(λ) = ln radius, inside a bracket that halves or doubles where
    Newton leaves it. The answer lies on the feasible side: (1 − tolerance)·radius ≤ cost ≤ radius,
    or λ = 0 and cost ≤ radius, or the cost jumps across the radius at λ, to rounding.

    Args:
      spending: λ ↦ (cost, −dcost/dλ, extra). The cost falls as λ grows, to below the radius.
      radius: the budget, positive.
      start: where to start, ≥ 0.
      unit: a λ that is neither small nor large, positive: where brackets open.
      tolerance: how far below the radius the cost may lie.
      max_iterations: evaluations at most.
    """
    slack = 1e-6 if start.dtype == jnp.float32 else 1e-13  # rounding of the sum that gives the cost
    ulps = 4.0 * jnp.finfo(start.dtype).eps
    # Newton aims at the middle of the accepted interval.
    aim = jnp.log(radius) + jnp.log1p(-0.5 * tolerance)

    def propose(value, lower, upper, cost, slope):
        newton = value + (jnp.log(cost) - aim) * cost / slope
        newton = jnp.where(newton > 0.0, newton, 0.0)
        low = jnp.maximum(lower, 0.0)
        middle = jnp.where(
            upper > 4.0 * (low + unit),
            jnp.sqrt((low + unit) * (upper + unit)) - unit,
            0.5 * (low + upper),
        )
        fallback = jnp.where(jnp.isinf(upper), 4.0 * (value + unit), middle)
        # Far from the root Newton may see rounding only: never more than a factor of 16.
        trusted = (newton > lower) & (newton < upper) & (newton <= 16.0 * (value + unit))
        return jnp.where(trusted, newton, fallback)

    def body(s: _Search) -> _Search:
        value = s.proposal
        cost, slope, extra = spending(value)
        inside = cost <= radius * (1.0 + slack)
        lower = jnp.where(inside, s.lower, value)
        upper = jnp.where(inside, value, s.upper)
        # Where rounding closes the bracket first, its upper end is the answer.
        closed = jnp.isfinite(upper) & (upper - lower <= ulps * upper)
        tight = (cost >= radius * (1.0 - tolerance)) | (value == 0.0)
        proposal = jnp.where(closed, upper, propose(value, lower, upper, cost, slope))
        found = inside & (tight | closed)
        # Not a number: nothing to go on from.
        count = jnp.where(jnp.isnan(cost), max_iterations, s.iteration + 1)
        return _Search(proposal, value, lower, upper, cost, extra, found, count)

    inf = jnp.full((), jnp.inf, start.dtype)
    blank = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: spending(start)[2])
    )
    # lower = −1 stands for "0 has not been tried yet".
    no, first = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    begin = _Search(start, start, -jnp.ones_like(inf), inf, inf, blank, no, first)
    search = jax.lax.while_loop(lambda s: ~s.found & (s.iteration < max_iterations), body, begin)
    value = jnp.where(jnp.isfinite(search.value), search.value, start)
    return Multiplier(
        value, search.cost, search.extra, search.lower, search.found, search.iteration
    )
