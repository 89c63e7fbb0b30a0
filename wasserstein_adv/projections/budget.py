"""The multiplier of the transport budget, for a fixed potential of the destination.

With β fixed and α eliminated, the plan with row sums x is

    Π_ij(ψ) = x_i exp(β_j − ψ C_ij) / Σ_k exp(β_k − ψ C_ik),

and its cost ⟨Π(ψ), C⟩ falls as ψ grows, to 0 as ψ → ∞ where mass may stay in place for free. So
every β gives a feasible plan, and one scalar equation finds the best ψ.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.geometry.log_kernel import LogKernel

RowKernel = Callable[[Array, Array], LogKernel]
"""(β, ψ) ↦ ln Σ_j exp(β_j − ψ C_ij) with the moments of C, over the channels of an image."""


class Budget(NamedTuple):
    """Solution of the budget equation."""

    psi: Float[Array, ""]
    row: LogKernel
    """The row kernel at `psi`; α = ln x − `row.lse` (up to the kernel's constant factor)."""
    cost: Float[Array, ""]
    """⟨Π(ψ), C⟩, at most the radius when `converged`."""
    converged: Bool[Array, ""]


class _Search(NamedTuple):
    psi: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    row: LogKernel
    cost: Float[Array, ""]
    slope: Float[Array, ""]
    iteration: Int[Array, ""]


def plan_cost(x: Float[Array, "h w c"], row: LogKernel) -> tuple[Array, Array]:
    """⟨Π, C⟩ of the plan with row sums `x` and minus its derivative in ψ, Σ_i x_i Var_i(C)."""
    return jnp.sum(x * row.mean), jnp.sum(x * row.var)


def solve_psi(
    kernel: RowKernel,
    x: Float[Array, "h w c"],
    beta: Float[Array, "h w c"],
    radius: Float[Array, ""],
    psi: Float[Array, ""],
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Budget:
    """The smallest ψ ≥ 0 with ⟨Π(ψ), C⟩ ≤ radius, to a relative `tolerance` of the radius.

    Newton's iteration on ln⟨Π(ψ), C⟩ = ln radius, inside a bracket that halves or doubles where
    Newton leaves it. The answer lies on the feasible side: (1 − tolerance)·radius ≤ cost ≤ radius,
    or ψ = 0 and cost ≤ radius.

    Args:
      kernel: the row kernel.
      x: row sums of the plan.
      beta: potential of the destination, finite.
      radius: budget on ⟨Π, C⟩, positive.
      psi: where to start.
      tolerance: how far below the radius the cost may lie.
      max_iterations: evaluations of the kernel at most.
    """
    slack = 1e-6 if x.dtype == jnp.float32 else 1e-13  # rounding of the sum that gives the cost
    ulps = 4.0 * jnp.finfo(x.dtype).eps

    def is_inside(cost):
        return cost <= radius * (1.0 + slack)

    def evaluate(psi, lower, upper, iteration):
        row = kernel(beta, psi)
        cost, slope = plan_cost(x, row)
        lower = jnp.where(is_inside(cost), lower, psi)
        upper = jnp.where(is_inside(cost), psi, upper)
        return _Search(psi, lower, upper, row, cost, slope, iteration + 1)

    def is_closed(s: _Search):
        return jnp.isfinite(s.upper) & (s.upper - s.lower <= ulps * s.upper)

    def found(s: _Search):
        tight = (s.cost >= radius * (1.0 - tolerance)) | (s.psi == 0.0)
        return is_inside(s.cost) & (tight | is_closed(s))

    def body(s: _Search):
        # Aim at the middle of the accepted interval.
        aim = jnp.log(radius) + jnp.log1p(-0.5 * tolerance)
        newton = s.psi + (jnp.log(s.cost) - aim) * s.cost / s.slope
        newton = jnp.where(newton > 0.0, newton, 0.0)
        middle = jnp.where(
            s.upper > 4.0 * s.lower + 4.0,
            jnp.sqrt((s.lower + 1.0) * (s.upper + 1.0)) - 1.0,
            0.5 * (s.lower + s.upper),
        )
        outside = jnp.where(jnp.isinf(s.upper), 4.0 * s.psi + 4.0, jnp.maximum(middle, 0.0))
        # Far from the root Newton may see rounding only: never more than a factor of 16.
        trusted = (newton > s.lower) & (newton < s.upper) & (newton <= 16.0 * s.psi + 16.0)
        proposal = jnp.where(trusted, newton, outside)
        # Where rounding has closed the bracket, its upper end is the answer.
        proposal = jnp.where(is_closed(s), s.upper, proposal)
        return evaluate(proposal, s.lower, s.upper, s.iteration)

    # lower = −1 stands for "0 has not been tried yet".
    inf = jnp.full((), jnp.inf, x.dtype)
    start = evaluate(jnp.asarray(psi, x.dtype), -jnp.ones_like(inf), inf, jnp.zeros((), jnp.int32))
    search = jax.lax.while_loop(lambda s: ~found(s) & (s.iteration < max_iterations), body, start)
    return Budget(search.psi, search.row, search.cost, found(search))
