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

    def evaluate(psi, lower, upper, iteration):
        row = kernel(beta, psi)
        cost, slope = plan_cost(x, row)
        inside = cost <= radius * (1.0 + slack)
        lower = jnp.where(inside, lower, psi)
        upper = jnp.where(inside, psi, upper)
        return _Search(psi, lower, upper, row, cost, iteration + 1), slope, inside

    def found(s: _Search):
        inside = s.cost <= radius * (1.0 + slack)
        tight = (s.cost >= radius * (1.0 - tolerance)) | (s.psi == 0.0)
        # Where rounding closes the bracket first, its upper end is the answer.
        closed = s.upper - s.lower <= 4.0 * jnp.finfo(x.dtype).eps * s.upper
        return inside & (tight | closed)

    def body(carry):
        s, slope = carry
        # Aim at the middle of the accepted interval.
        aim = jnp.log(radius) + jnp.log1p(-0.5 * tolerance)
        newton = s.psi + (jnp.log(s.cost) - aim) * s.cost / slope
        widened = jnp.where(jnp.isinf(s.upper), 2.0 * s.psi + 1.0, 0.5 * (s.lower + s.upper))
        # A long way up Newton sees only noise: never more than quadruple.
        ok = (newton > s.lower) & (newton < s.upper) & (newton <= 4.0 * s.psi + 4.0)
        down = (newton <= 0.0) & (s.lower < 0.0)
        proposal = jnp.where(ok, newton, jnp.where(down, 0.0, jnp.maximum(widened, 0.0)))
        s, slope, _ = evaluate(proposal, s.lower, s.upper, s.iteration)
        return s, slope

    # lower = −1 stands for "0 has not been tried yet".
    inf = jnp.full((), jnp.inf, x.dtype)
    start, slope, _ = evaluate(jnp.asarray(psi, x.dtype), -jnp.ones_like(inf), inf, 0)
    search, _ = jax.lax.while_loop(
        lambda carry: ~found(carry[0]) & (carry[0].iteration < max_iterations), body, (start, slope)
    )
    return Budget(search.psi, search.row, search.cost, found(search))
