"""The image nearest to a stepped one at a small unbalanced transport cost from the clean one.

A. V. Subramanyam, *Sinkhorn Adversarial Attack and Defense*, section III. With the
generalised divergence KL(a|b) = Σ a ln(a/b) − a + b the problem is

    min over Π ≥ 0, z ≥ 0 of  ⟨Π, C⟩ + η⟨Π, ln Π⟩ + τ KL(Π1|x) + τ KL(Πᵀ1|z) + γ/2 ‖z − w‖²,

equation (6) with z free and drawn to w. Mass may be moved at the price C, or deleted in one place
and created in another at about τ each. With Π_ij = exp((α_i + β_j − C_ij)/η − 1), k = ητ/(η + τ)
and ln q_j = ln Σ_i exp((α_i − C_ij)/η − 1), a point is optimal where

    α = k (ln x − ln Σ_j exp((β_j − C_ij)/η − 1)),                                             (a)
    β = k (ln z − ln q),                                                                       (b)
    z = w + (τ/γ)(exp(−β/τ) − 1).                                                              (c)

`exact`, the default, climbs the dual by blocks: α by (a), then β and z *together* by (b) and (c),
one monotone scalar equation per pixel. `published` is the paper's Algorithm 1, which takes (a), (b)
and its equation (15) in turn; (15) lacks the "−1" of (c), so that its fixed points, where it has
any, do not solve the problem. `euclidean` replaces both divergences by squares, section IV.

Channels are problems of their own: mass never crosses them, and nothing couples them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.geometry.log_kernel import LogKernel
from wasserstein_adv.projections.kernel import (
    check_shapes,
    check_stopping,
    in_range,
    log_domain,
    refuse_gradients,
)
from wasserstein_adv.projections.unbalanced_rules import (
    Marginals,
    PixelKernel,
    Rule,
    UnbalancedDuals,
    UnbalancedPlan,
    UnbalancedProblem,
    accelerated_ascent,
    euclidean,
    exact,
    kl,
    kl_alpha_step,
    kl_beta_step,
    pixel_sum,
    published,
    relative_misfit,
    squares,
    stated_residual,
)

__all__ = [
    "Marginals",
    "PixelKernel",
    "Rule",
    "UnbalancedDuals",
    "UnbalancedPlan",
    "UnbalancedProblem",
    "UnbalancedProjection",
    "accelerated_ascent",
    "euclidean",
    "exact",
    "kkt_residual",
    "kl",
    "kl_alpha_step",
    "kl_beta_step",
    "published",
    "squares",
    "unbalanced_sinkhorn",
]


class UnbalancedProjection(NamedTuple):
    """A projected image with the evidence for it."""

    point: Float[Array, "h w *c"]
    """z, in the unit of x."""
    duals: UnbalancedDuals
    cost: Float[Array, ""]
    """⟨Π, C⟩/ΣΠ over all channels: what the paper compares with ε. 0 for a plan without mass."""
    moved: Float[Array, ""]
    """Share of the plan's mass that leaves its pixel, 1 − Σ_i Π_ii/ΣΠ."""
    unmatched: Float[Array, ""]
    """Mass deleted and created, (Σ|x − Π1| + Σ|z − Πᵀ1|)/Σx: what the plan does not explain."""
    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    """Violation of the optimality conditions, see `unbalanced_sinkhorn`."""
    converged: Bool[Array, ""]
    """Whether `residual` fell to the tolerance."""


def kkt_residual(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w *c"],
    w: Float[Array, "h w *c"],
    z: Float[Array, "h w *c"],
    duals: UnbalancedDuals,
    eta: float,
    tau: float,
    gamma: float,
) -> Float[Array, ""]:
    """How far (z, α, β) is from optimal in the stated problem, by all of its conditions:

    Σ|Π1 − x exp(−α/τ)| + Σ|Πᵀ1 − z exp(−β/τ)| + Σ|z − max(0, w + (τ/γ)(exp(−β/τ) − 1))|,

    divided by max(Σx, ΣΠ).

    Args:
      geometry, x, w, eta, tau, gamma: as for `unbalanced_sinkhorn`.
      z: the point.
      duals: its potentials.
    """
    problem = _problem(x, w, eta, tau, gamma)
    kernel = _kernel(geometry, problem.eta, x.shape)
    alpha, beta = (d.reshape(-1) / problem.eta for d in duals)
    # Πᵀ1 plays no part: it is computed anew.
    plan = UnbalancedPlan(alpha, beta, z.reshape(-1), jnp.zeros_like(beta), 1.0)
    return stated_residual(kernel, problem, plan, kernel(beta, 1).lse, jnp.zeros(()))


def unbalanced_sinkhorn(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w *c"],
    w: Float[Array, "h w *c"],
    eta: float | Float[Array, ""] = 1e-3,
    tau: float | Float[Array, ""] = 1e-2,
    gamma: float | Float[Array, ""] = 0.5,
    duals: UnbalancedDuals | None = None,
    *,
    rule: Rule = exact,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> UnbalancedProjection:
    """The unbalanced-transport projection of `w` towards `x`; the problem stands above this module.

    The residual is, relative to max(Σx, ΣΠ), how much the row sums of the plan differ from what (a)
    asks for at the returned potentials; (b) and (c) hold exactly. For `published` it is all of
    `kkt_residual`, of its own plan. In float32 the floor is about 1e-7·τ/η. By `exact`, a blank
    image has a blank plan, and z = max(w − τ/γ, 0).

    A pure function of one image: `jax.vmap` it over a batch, `jax.jit` it as you like. Gradients
    are refused with a clear error, as by `projected_sinkhorn`; the steps (`kl_alpha_step`,
    `kl_beta_step`) are plain functions.

    Args:
      geometry: where mass may move and at what cost, for (H, W) pixels. With `separable_grid` an
        iteration takes O(H·W) time and memory.
      x: (H, W) or (H, W, C) clean image, non-negative, finite. Masses are not normalised.
      w: same shape, the point to project, any finite values.
      eta: η > 0, weight of the entropy, in units of cost.
      tau: τ > 0, price of mass that appears or disappears, in units of cost.
      gamma: γ > 0, weight of the distance to w, cost per unit of intensity. The exact point leaves
        alone a pixel without mass until w exceeds τ/γ there.
      duals: where to start. By default where the potentials would be if nothing moved.
      rule: `exact`, `euclidean` or `published(floor)`.
      tolerance: residual at which to stop.
      max_iterations: iterations at most, 1 or more.

    Returns:
      `UnbalancedProjection`, all fields without the batch axis.

    Raises:
      InputError: shapes that do not agree, or arguments out of range. What is traced cannot be
        refused: where it poses no problem, the point is x and `converged` is False.
    """
    check_shapes(geometry, x, w)
    tolerance, max_iterations = check_stopping(tolerance, max_iterations)
    for name, value in (("eta", eta), ("tau", tau), ("gamma", gamma)):
        check_positive(name, value)
    problem = _problem(x, w, eta, tau, gamma)
    if duals is not None:
        for name, dual in zip(duals._fields, duals, strict=True):
            if dual.shape != x.shape:
                raise InputError(f"duals.{name} must have x's shape {x.shape}, got {dual.shape}")
        duals = UnbalancedDuals(*(jnp.asarray(d, problem.x.dtype).reshape(-1) for d in duals))
    solve = functools.partial(
        _batched, shape=x.shape, rule=rule, tolerance=tolerance, max_iterations=max_iterations
    )
    found = refuse_gradients("unbalanced_sinkhorn", solve, geometry, problem, duals)
    alpha, beta = (d.reshape(x.shape) for d in found.duals)
    return found._replace(point=found.point.reshape(x.shape), duals=UnbalancedDuals(alpha, beta))


def _problem(
    x: Array, w: Array, eta: ArrayLike, tau: ArrayLike, gamma: ArrayLike
) -> UnbalancedProblem:
    dtype = jnp.result_type(x, w, jnp.float32)
    x, w, eta, tau, gamma = (jnp.asarray(a, dtype) for a in (x, w, eta, tau, gamma))
    x, w = x.reshape(-1), w.reshape(-1)
    return UnbalancedProblem(x, jnp.log(x), w, eta, tau, gamma)


def _kernel(geometry: ott_geometry.Geometry, eta: Array, shape: tuple[int, ...]) -> PixelKernel:
    kernel = log_domain(geometry)
    image = shape if len(shape) == 3 else (*shape, 1)

    def one(h: Array, eta: Array, axis: int) -> LogKernel:
        found = kernel.log(h.reshape(image), 1.0 / eta, axis)
        return found._replace(**{f: getattr(found, f).reshape(-1) for f in ("lse", "mean", "var")})

    def apply(h: Array, axis: int) -> LogKernel:
        mapped = functools.partial(one, axis=axis)
        for _ in eta.shape:
            mapped = jax.vmap(mapped, in_axes=-1, out_axes=-1)
        return mapped(h, eta)

    return apply


@functools.partial(jax.jit, static_argnames=("shape", "rule", "tolerance", "max_iterations"))
def _batched(
    geometry: ott_geometry.Geometry,
    problem: UnbalancedProblem,
    duals: UnbalancedDuals | None,
    **static: Any,
) -> UnbalancedProjection:
    """`_solve` with the axes of vmap last."""
    return batch_last(functools.partial(_solve, **static))(geometry, problem, duals)


def _solve(
    geometry: ott_geometry.Geometry,
    problem: UnbalancedProblem,
    duals: UnbalancedDuals | None,
    *,
    shape: tuple[int, ...],
    rule: Rule,
    tolerance: float,
    max_iterations: int,
) -> UnbalancedProjection:
    kernel = _kernel(geometry, problem.eta, shape)

    def unfinished(residual: Array, iteration: Array) -> Array:
        return ~(residual <= tolerance) & (iteration < max_iterations)

    def body(carry):
        state, residual, iteration = carry
        new_state, new_residual = rule.step(kernel, problem, state)
        go = unfinished(residual, iteration)
        state, residual = jax.tree.map(
            lambda new, old: jnp.where(go, new, old),
            (new_state, new_residual),
            (state, residual),
        )
        return state, residual, iteration + go

    inf = jnp.full_like(problem.eta, jnp.inf)
    state, last, iterations = jax.lax.while_loop(
        lambda carry: jnp.any(unfinished(*carry[1:])),
        body,
        (rule.start(problem, duals), inf, jnp.zeros(inf.shape, jnp.int32)),
    )
    plan = rule.finish(kernel, problem, state)
    row = kernel(plan.beta, 1)
    residual = rule.residual(kernel, problem, plan, row.lse, last)
    duals = UnbalancedDuals(plan.alpha * problem.eta, plan.beta * problem.eta)
    sound = in_range(problem.x, None, problem.eta, problem.tau, problem.gamma)
    converged = sound & (residual <= tolerance)
    point = jnp.where(sound, plan.z, problem.x)
    return UnbalancedProjection(
        point, duals, *_shares(problem, plan, row), iterations, residual, converged
    )


def _shares(
    problem: UnbalancedProblem, plan: UnbalancedPlan, row: LogKernel
) -> tuple[Array, Array, Array]:
    """⟨Π, C⟩ and the mass off the diagonal as shares of ΣΠ, and `unmatched`."""
    log_left = plan.alpha + row.lse - plan.shift
    # Scaled, so that the shares are right whatever the mass.
    top = jnp.max(log_left, axis=0)
    sums = jnp.exp(log_left - jnp.where(jnp.isfinite(top), top, 0.0))
    # Mass stays in place at no cost: Π_ii = Π1_i exp(β_i − lse_i).
    leaves = -jnp.expm1(jnp.minimum(plan.beta - row.lse, 0.0))
    total = pixel_sum(sums)
    total = jnp.where(total > 0, total, 1.0)
    misfit = jnp.abs(problem.x - jnp.exp(log_left)) + jnp.abs(plan.z - plan.arrived)
    cost, moved = pixel_sum(sums * row.mean) / total, pixel_sum(sums * leaves) / total
    return cost, moved, relative_misfit(misfit, problem.x)
