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
from wasserstein_adv.projections.multiplier import solve_multiplier

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


def dots(values: Sequence[Array], weights: Array) -> list[Array]:
    """Σ v·weights over all axes, for every v of `values`, as one matrix product.

    XLA's CPU backend turns a plain sum into a scalar loop with the computation of the summands
    fused into it, many times slower than the summands themselves; products of matrices it does not.
    """
    rows = jnp.stack([v.reshape(-1) for v in values])
    columns = jnp.stack([weights.reshape(-1)] * 2, axis=-1)  # one column would be a plain sum again
    product = jnp.matmul(rows, columns, precision=jax.lax.Precision.HIGHEST)
    return list(product[:, 0])


def plan_cost(x: Float[Array, "..."], row: LogKernel) -> tuple[Array, Array]:
    """⟨Π, C⟩ of the plan with row sums `x` and minus its derivative in ψ, Σ_i x_i Var_i(C)."""
    return jnp.sum(x * row.mean), jnp.sum(x * row.var)


def solve_psi(
    kernel: RowKernel,
    x: Float[Array, "..."],
    beta: Float[Array, "..."],
    radius: Float[Array, ""],
    psi: Float[Array, ""],
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Budget:
    """The smallest ψ ≥ 0 with ⟨Π(ψ), C⟩ ≤ radius, to a relative `tolerance` of the radius.

    The answer lies on the feasible side, see `solve_multiplier`.

    Args:
      kernel: the row kernel.
      x: row sums of the plan.
      beta: potential of the destination, finite.
      radius: budget on ⟨Π, C⟩, positive.
      psi: where to start.
      tolerance: how far below the radius the cost may lie.
      max_iterations: evaluations of the kernel at most.
    """

    def spending(psi: Array) -> tuple[Array, Array, LogKernel]:
        row = kernel(beta, psi)
        return *plan_cost(x, row), row

    found = solve_multiplier(
        spending, radius, psi, tolerance=tolerance, max_iterations=max_iterations
    )
    return Budget(found.value, found.extra, found.cost, found.converged, found.iterations)
