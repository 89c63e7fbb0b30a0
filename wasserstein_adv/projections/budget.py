"""The multiplier of the transport budget, for a fixed potential of the destination.

With β fixed and α eliminated, the plan with row sums x is

    Π_ij(ψ) = x_i exp(β_j − ψ C_ij) / Σ_k exp(β_k − ψ C_ik),

and its cost ⟨Π(ψ), C⟩ falls as ψ grows, to 0 as ψ → ∞ where mass may stay in place for free. So
every β gives a feasible plan, and one scalar equation finds the best ψ.
"""

from collections.abc import Callable, Sequence
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
    iterations: Int[Array, ""]
    """Evaluations of the kernel."""


class _Search(NamedTuple):
    proposal: Float[Array, ""]
    psi: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    row: LogKernel
    cost: Float[Array, ""]
    found: Bool[Array, ""]
    iteration: Int[Array, ""]


def dots(values: Sequence[Array], weights: Array) -> list[Array]:
    """Σ v·weights over all axes, for every v of `values`, as one matrix product.

    XLA's CPU backend turns a plain sum into a scalar loop with the computation of the summands
    fused into it, many times slower than the summands themselves; products of matrices it does not.
    """
    rows = jnp.stack([v.reshape(-1) for v in values])
    columns = jnp.stack([weights.reshape(-1)] * 2, axis=-1)  # one column would be a plain sum again
    product = jnp.matmul(rows, columns, precision=jax.lax.Precision.HIGHEST)
    return list(product[:, 0])


def plan_cost(x: Float[Array, "h w c"], row: LogKernel) -> tuple[Array, Array]:
    """⟨Π, C⟩ of the plan with row sums `x` and minus its derivative in ψ, Σ_i x_i Var_i(C)."""
    cost, slope = dots([row.mean, row.var], x)
    return cost, slope


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
    # Newton aims at the middle of the accepted interval.
    aim = jnp.log(radius) + jnp.log1p(-0.5 * tolerance)

    def propose(psi, lower, upper, cost, slope):
        newton = psi + (jnp.log(cost) - aim) * cost / slope
        newton = jnp.where(newton > 0.0, newton, 0.0)
        middle = jnp.where(
            upper > 4.0 * lower + 4.0,
            jnp.sqrt((lower + 1.0) * (upper + 1.0)) - 1.0,
            0.5 * (lower + upper),
        )
        fallback = jnp.where(jnp.isinf(upper), 4.0 * psi + 4.0, jnp.maximum(middle, 0.0))
        # Far from the root Newton may see rounding only: never more than a factor of 16.
        trusted = (newton > lower) & (newton < upper) & (newton <= 16.0 * psi + 16.0)
        return jnp.where(trusted, newton, fallback)

    def body(s: _Search) -> _Search:
        psi = s.proposal
        row = kernel(beta, psi)
        cost, slope = plan_cost(x, row)
        inside = cost <= radius * (1.0 + slack)
        lower = jnp.where(inside, s.lower, psi)
        upper = jnp.where(inside, psi, s.upper)
        # Where rounding closes the bracket first, its upper end is the answer.
        closed = jnp.isfinite(upper) & (upper - lower <= ulps * upper)
        tight = (cost >= radius * (1.0 - tolerance)) | (psi == 0.0)
        proposal = jnp.where(closed, upper, propose(psi, lower, upper, cost, slope))
        found = inside & (tight | closed)
        # Not a number: nothing to go on from.
        count = jnp.where(jnp.isnan(cost), max_iterations, s.iteration + 1)
        return _Search(proposal, psi, lower, upper, row, cost, found, count)

    inf = jnp.full((), jnp.inf, x.dtype)
    blank = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: kernel(beta, psi))
    )
    # lower = −1 stands for "0 has not been tried yet".
    no, first = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    start = _Search(psi, psi, -jnp.ones_like(inf), inf, blank, inf, no, first)
    search = jax.lax.while_loop(lambda s: ~s.found & (s.iteration < max_iterations), body, start)
    safe = jnp.where(jnp.isfinite(search.psi), search.psi, psi)
    return Budget(safe, search.row, search.cost, search.found, search.iteration)
