"""Flows on the pixel grid by splitting: the alternating direction method in graph form.

Parikh and Boyd, *Block splitting for distributed optimization* (2014): in turn m onto the ℓ₁ ball
and d onto the box, then both onto {d = −div m}, which takes the inverse of I + div divᵀ, the grid's
Laplacian, diagonal under the cosine transform. Arrays have the axes of every vmap last.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wasserstein_adv.projections.flow_problem import FlowProblem
from wasserstein_adv.projections.grid_flow import (
    descent,
    divergence,
    laplacian_filter,
    over_edges,
    over_pixels,
)

ROUND = 10
"""Iterations between two looks at the duality gap."""
_RELAXATION = 1.7
_LEAN = 0.1  # of what a ρ would be that balances: MNIST's digits take the fewest iterations


class Iterate(NamedTuple):
    """A point of the graph, with the multipliers ρ of leaving it: (ρ∇η, ρη)."""

    m: Array
    d: Array
    eta: Array
    rho: Array
    threshold: Array
    """Of the ℓ₁ ball's projection, where its next search starts."""


def splitting_start(flow: Array, potential: Array, rho: Array) -> Iterate:
    """The iterate of a flow, a potential and a ρ."""
    return Iterate(flow, -divergence(flow), potential / rho, rho, jnp.zeros_like(rho))


def splitting_round(
    transforms: tuple[Array, Array], problem: FlowProblem, iterate: Iterate
) -> tuple[Iterate, Array, Array]:
    """Ten iterations: the iterate, and the flow and the change in their sets on the way."""

    def body(_, carry):
        return _step(transforms, problem, carry[0])

    return jax.lax.fori_loop(0, ROUND, body, (iterate, iterate.m, iterate.d))


def balanced(new: Iterate, old: Iterate, flow: Array, boxed: Array) -> Iterate:
    """The iterate with a ρ that lets both constraints and optimality make the same progress.

    He, Yang and Wang (2000), with residuals relative to what they are differences of.
    """
    apart = over_edges(jnp.square(new.m - flow)) + over_pixels(jnp.square(new.d - boxed))
    size = over_edges(jnp.square(flow)) + over_pixels(jnp.square(boxed))
    moved = (
        over_edges(jnp.square(new.m - old.m)) + over_pixels(jnp.square(new.d - old.d))
    ) / ROUND**2
    pull = over_edges(jnp.square(descent(new.eta))) + over_pixels(jnp.square(new.eta))
    ratio = _LEAN * (apart * pull) / (moved * size)
    ratio = jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, 1.0) ** 0.25
    ratio = jnp.where((ratio > 1.2) | (ratio < 1.0 / 1.2), jnp.clip(ratio, 0.1, 10.0), 1.0)
    return new._replace(eta=new.eta / ratio, rho=new.rho * ratio)


def _step(
    transforms: tuple[Array, Array], problem: FlowProblem, iterate: Iterate
) -> tuple[Iterate, Array, Array]:
    """One iteration, with the flow of the ℓ₁ ball and the change in the box on the way."""
    v, low, high, budget = problem
    m, d, eta, rho, threshold = iterate
    pull = descent(eta)
    flow, threshold = _onto_l1_ball(m - pull, budget, threshold)
    boxed = jnp.clip((v + rho * (d - eta)) / (1.0 + rho), low, high)
    ahead = _RELAXATION * flow + (1.0 - _RELAXATION) * m
    change = _RELAXATION * boxed + (1.0 - _RELAXATION) * d
    # Onto the graph, from where η has no part in it: what is to be filtered falls to zero.
    rise = laplacian_filter(transforms, change + divergence(ahead), 1.0)
    return Iterate(ahead - descent(rise), change - rise, eta + rise, rho, threshold), flow, boxed


def _onto_l1_ball(v: Array, budget: Array, threshold: Array) -> tuple[Array, Array]:
    """v drawn to 0 by the threshold at which ‖·‖₁ = budget, and that threshold.

    Newton's iteration on a convex, falling, piecewise linear function: from anywhere it comes down
    on the near side of the root and then only rises, a few steps to the end when it is warm. What
    it leaves of the excess is mended with the rest of the flow.
    """
    size = jnp.abs(v)
    # The largest entry alone keeps no more than the budget.
    least = jnp.maximum(jnp.max(size, axis=(0, 1, 2, 3)) - budget, 0.0)

    def newton(_, threshold):
        above = size > threshold
        total = over_edges(jnp.where(above, size, 0.0))
        count = over_edges(above.astype(v.dtype))
        return jnp.maximum((total - budget) / jnp.maximum(count, 1.0), least)

    threshold = jax.lax.fori_loop(0, 4, newton, threshold)
    return jnp.sign(v) * jnp.maximum(size - threshold, 0.0), threshold
