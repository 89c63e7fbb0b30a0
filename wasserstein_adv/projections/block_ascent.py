"""One iteration of projected Sinkhorn: the α, β and ψ steps that climb its dual, block by block.

The equations are those of Wong, Schmidt and Kolter (2019), numbered as in `projected_sinkhorn`,
where the problem is stated. The α step is `kernel.alpha_step`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wasserstein_adv.projections.kernel import Kernel
from wasserstein_adv.projections.wright_omega import log_wright_omega, wright_omega


class Problem(NamedTuple):
    """Equation (17) in normalised masses: what a step works on. Fields are in the kernel's layout,
    in whose padding x and z are 0, w and β −∞."""

    x: Float[Array, "..."]
    w: Float[Array, "..."]
    radius: Float[Array, ""]
    reg: Float[Array, ""]
    cap: float | Float[Array, ""] = jnp.inf
    """What a pixel holds at most."""


class State(NamedTuple):
    """One iterate. `slope`, `residual` and `fits` speak of the point that the last step started
    from."""

    beta: Float[Array, "..."]
    z: Float[Array, "..."]
    """w' − β/λ, kept because the subtraction would lose float32's digits. Above the cap, the
    projected image is the cap."""
    psi: Float[Array, ""]
    slope: Float[Array, ""]
    """Minus the derivative of the cost in ψ."""
    residual: Float[Array, ""]
    fits: Bool[Array, ""]
    """Whether the exponentials have stayed inside the floating-point range."""


Step = Callable[[Kernel, Problem, State], State]
"""One iteration of a solver of (16)."""


def beta_step(
    w: Float[Array, "..."],
    log_q: Float[Array, "..."],
    reg: Float[Array, ""],
    cap: float | Float[Array, ""] = jnp.inf,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Equation (10): argmax over β, and the z = min(w − β/λ, cap) that it stands for.

    With t = ln λ + λw + ln q and Wright's omega ω, the equation's Lambert W is ω(t): z = ω(t)/λ and
    β = ln ω(t) − ln λ − ln q, which for t < 1 is λw − ω(t). Nothing is exponentiated, z is
    never negative, and q = 0 (no mass in reach) gives z = 0, β = λw. Where ω(t)/λ > cap, z = cap
    and β = ln cap − ln q. Differentiable.

    Args:
      w: the stepped image, normalised.
      log_q: ln Σ_i exp(α_i − ψC_ij − 1), −∞ allowed.
      reg: λ.
      cap: what a pixel holds at most, normalised; ∞ is equation (10) as it stands.

    Returns:
      (β, z).
    """
    log_reg = jnp.log(reg)
    t = log_reg + reg * w + log_q
    omega = wright_omega(t)
    low = t < 1.0
    finite_log_q = jnp.where(low, 0.0, log_q)
    beta = jnp.where(low, reg * w - omega, log_wright_omega(t) - log_reg - finite_log_q)
    full = omega > reg * cap
    log_cap = jnp.log(jnp.where(jnp.isinf(cap), 1.0, cap))
    beta = jnp.where(full, log_cap - jnp.where(full, log_q, 0.0), beta)
    return beta, jnp.minimum(omega / reg, cap)


def psi_step(
    psi: Float[Array, ""], cost: Float[Array, ""], slope: Float[Array, ""], radius: Float[Array, ""]
) -> Float[Array, ""]:
    """Equation (11): a Newton step on ψ, kept at ψ ≥ 0 by max(0, ·) where the paper halves it.

    Args:
      psi: ψ.
      cost: ⟨Π, C⟩ at ψ.
      slope: minus its derivative in ψ, positive unless nothing can move.
      radius: ε.
    """
    movable = slope > 0
    newton = psi + (cost - radius) / jnp.where(movable, slope, 1.0)
    # Beyond the reach of Newton's parabola the step is kept to a factor of two.
    newton = jnp.clip(newton, 0.5 * psi - 1.0, 2.0 * psi + 1.0)
    return jnp.where(movable, jnp.maximum(newton, 0.0), jnp.where(cost > radius, psi, 0.0))


def block_ascent(kernel: Kernel, problem: Problem, state: State) -> State:
    """One iteration of Algorithm 2: α, β and ψ in turn, two kernel applications.

    α is eliminated exactly at (β, ψ); ψ takes a Newton step on the dual with α eliminated, whose
    second derivative is −Σ_i x_i Var_i(C) in place of (12)'s −⟨Π, C²⟩, and which needs no kernel
    application of its own.
    """
    x, w, radius, reg, cap = problem
    rows = kernel.eliminate(x, state.beta, state.psi)
    beta, z = beta_step(w, rows.log_q, reg, cap)
    z = jnp.where(z < cap, z, w - beta / reg)
    psi = psi_step(state.psi, rows.cost, rows.slope, radius)

    moved = jnp.exp(state.beta + rows.log_q)
    violation = jnp.sum(jnp.abs(moved - jnp.minimum(state.z, cap)))
    excess = (rows.cost - radius) / radius
    gap = jnp.where(state.psi > 0, jnp.abs(excess), jnp.maximum(excess, 0.0))
    # A sum below the floor does no harm where even the floor itself would give no mass: ω(t) < e^t.
    at_floor = jnp.log(reg) + reg * w + rows.floor
    fits = jnp.all((rows.log_q >= rows.floor) | (at_floor < -16.0))
    return State(beta, z, psi, rows.slope, violation + gap, state.fits & rows.fits & fits)
