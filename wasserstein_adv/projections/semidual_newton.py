"""Newton's method on the semi-dual of projected Sinkhorn, for what block ascent does not finish.

The problem and its dual are those of `projected_sinkhorn`. With α eliminated exactly, and with ψ
too, since for every β one ψ spends the budget, what is left to maximise is a concave function of β,

    D(β) = Σ_j (λ/2 (w_j − z_j)² + β_j z_j) − ψε − Σ_i x_i ln Σ_j exp(β_j − ψC_ij) + const,
    z = min(w − β/λ, cap),

with gradient z − Πᵀ1 and, for the normalised plan P, its mass v = Πᵀ1 and c_j = −Σ_i Π_ij (C_ij −
mean_i),

    −∇²D = diag(v) − Pᵀ diag(x) P − c cᵀ / Σ_i x_i Var_i(C) + diag(1/λ where z < cap),

without the third term where ψ = 0. Each step solves with it by conjugate gradients and goes as far
as the slope asks.

Where λ is large, the plan is nearly one that moves all or nothing, and Newton's parabola holds in a
small neighbourhood only. So the exponents are first taken at a lower sharpness τ < 1, at which the
entropy weighs 1/τ, and τ grows by factors of eight, each solution being the start of the next.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.strips import arriving, from_strip, received, to_strip, weigh
from wasserstein_adv.projections.block_ascent import Problem
from wasserstein_adv.projections.pairs import Pair, carry, grid_step, minus
from wasserstein_adv.projections.strip_plan import (
    Costs,
    Shares,
    Spent,
    costs_of,
    rises,
    settle,
    shares,
    spend,
)

_FACTOR = 8.0  # between two levels of sharpness
_GENTLE = 30.0  # an exponent that Newton's method is not afraid of
_COARSE = 1e-2  # the residual at which a lower sharpness is left
_PATIENCE = 30  # steps without progress
_TRIALS = 20  # lengths of a step
_PRODUCTS = 200  # of the Hessian, for a step


class Ascent(NamedTuple):
    """A point of the ascent, and what is known of it."""

    beta: Pair
    psi: Pair
    """The ψ that spends the budget at this β."""
    plan: Shares
    residual: Float[Array, ""]
    """That of the point before; 1 or more where the sharpness was below 1."""
    sharpness: Float[Array, ""]
    """τ."""
    least: Float[Array, ""]
    """The smallest residual at this sharpness."""
    since: Int[Array, ""]
    """Steps since it was a tenth smaller."""
    iterations: Int[Array, ""]


class Newton(NamedTuple):
    """The projection, its fields as those of `Projection`."""

    point: Float[Array, "h w c"]
    beta: Float[Array, "h w c"]
    psi: Float[Array, ""]
    cost: Float[Array, ""]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]


def newton_projection(
    geometry: LocalGrid,
    problem: Problem,
    beta: Float[Array, "h w c"],
    psi: Float[Array, ""],
    near: Bool[Array, ""],
    tolerance: float,
    max_iterations: Int[Array, ""],
) -> Newton:
    """The projection by Newton's method.

    Args:
      geometry: the window.
      problem: fields are images.
      beta, psi: where to start if `near`; else from scratch.
      near: whether they are near the solution.
      tolerance: of the residual of `projected_sinkhorn`.
      max_iterations: steps at most.
    """
    packed, inside, step = _packed(geometry, problem)
    start = _pairs(geometry, beta, psi, step)
    top = climb(geometry, packed, inside, step, start, near, tolerance, max_iterations)
    costs = costs_of(geometry, inside.dtype)
    point, cost = settle(geometry, costs, packed.x, top.plan, problem.radius, problem.cap)
    sound = jnp.isfinite(top.residual) & jnp.isfinite(cost)
    return Newton(
        point=jnp.where(sound, from_strip(geometry, point), problem.x),
        beta=from_strip(geometry, top.beta.value),
        psi=top.psi.value,
        cost=jnp.where(sound, cost, 0.0),
        residual=jnp.where(sound, top.residual, jnp.inf),
        iterations=jnp.maximum(top.iterations - 1, 0),  # the first only looks
    )


def feasible_point(
    geometry: LocalGrid, problem: Problem, beta: Float[Array, "h w c"], psi: Float[Array, ""]
) -> tuple[Float[Array, "h w c"], Float[Array, ""]]:
    """(z, cost) of the plan at (β, ψ) brought under the cap and the budget: see `settle`."""
    packed, inside, step = _packed(geometry, problem)
    potential, multiplier = _pairs(geometry, beta, psi, step)
    costs = costs_of(geometry, inside.dtype)
    rise = rises(geometry, inside, potential)
    plan = shares(costs, packed.x, rise, multiplier, jnp.ones_like(problem.reg))
    point, cost = settle(geometry, costs, packed.x, plan, problem.radius, problem.cap)
    sound = jnp.isfinite(cost)
    return jnp.where(sound, from_strip(geometry, point), problem.x), jnp.where(sound, cost, 0.0)


def _packed(geometry: LocalGrid, problem: Problem) -> tuple[Problem, Array, Array]:
    """The problem in strips, 1 in the image and 0 in the margins, and the step of β's grid."""
    x, w = (to_strip(geometry, image, 0.0) for image in (problem.x, problem.w))
    inside = to_strip(geometry, jnp.ones_like(problem.x), 0.0)
    # β lies between λ(w − 1) and λw.
    step = grid_step(problem.reg * (jnp.max(jnp.abs(w)) + 1.0))
    return problem._replace(x=x, w=w), inside, step


def _pairs(geometry: LocalGrid, beta: Array, psi: Array, step: Array) -> tuple[Pair, Pair]:
    strip = to_strip(geometry, beta, 0.0)
    step_psi = step / costs_of(geometry, beta.dtype).resolution
    return carry(step, jnp.zeros_like(strip), strip), carry(step_psi, jnp.zeros_like(psi), psi)


def climb(
    geometry: LocalGrid,
    problem: Problem,
    inside: Float[Array, "p"],
    step: Float[Array, ""],
    start: tuple[Pair, Pair],
    near: Bool[Array, ""],
    tolerance: float,
    max_iterations: Int[Array, ""],
) -> Ascent:
    """The maximum of D, to a residual of `tolerance`.

    Args:
      geometry: the window.
      problem: fields are strips, 0 in the margins.
      inside: 1 in the image, 0 in the margins.
      step: of the grid of β.
      start: (β, ψ) to start from if `near`.
      near: whether that is near the solution.
      tolerance: of the residual of `projected_sinkhorn`.
      max_iterations: steps at most.
    """
    x, w, radius, reg, cap = problem
    costs = costs_of(geometry, x.dtype)
    step_psi = step / costs.resolution
    target = carry(step, jnp.zeros_like(w), reg * w)
    accuracy = max(0.05 * min(tolerance, 1e-3), 20.0 * float(jnp.finfo(x.dtype).eps))

    def point(beta: Pair) -> tuple[Array, Array]:
        """z, and where it is free to move."""
        z = minus(target, beta) / reg
        return jnp.minimum(z, cap) * inside, (z < cap) | (inside == 0)

    def body(s: Ascent) -> Ascent:
        z, free = point(s.beta)
        sent = received(geometry, x * s.plan.share)
        gradient = z - jnp.sum(sent, axis=0)
        excess = (s.plan.cost - radius) / radius
        gap = jnp.where(s.psi.value > 0, jnp.abs(excess), jnp.maximum(excess, 0.0))
        residual = jnp.sum(jnp.abs(gradient)) + gap
        begun = s.iterations > 0
        residual = jnp.where(begun, residual, jnp.inf)
        sharp = s.sharpness >= 1.0
        since = jnp.where(residual < 0.9 * s.least, 0, s.since + 1)
        done = residual <= jnp.where(sharp, tolerance, _COARSE)
        sharpens = ~sharp & (done | (since > _PATIENCE))
        sharpness = jnp.where(sharpens, _FACTOR * s.sharpness, s.sharpness)

        # Where there is nothing to climb yet, or no longer, the step is 0.
        uphill = jnp.where(begun & ~done & ~sharpens, gradient, 0.0)
        direction = _newton_step(geometry, costs, x, s, sent, free, reg, uphill)

        def ahead(length: Array) -> tuple[Pair, Spent, Array]:
            beta = carry(step, s.beta.high, s.beta.low + length * direction)
            rise = rises(geometry, inside, beta)
            unit = 1.0 / (sharpness * costs.least)

            def evaluate(psi: Pair) -> Shares:
                return shares(costs, x, rise, psi, sharpness)

            spent = spend(evaluate, radius, s.psi, step_psi, sharpness, unit, accuracy)
            arrived = arriving(geometry, x * spent.plan.share)
            return beta, spent, jnp.sum((point(beta)[0] - arrived) * direction)

        beta, spent = _line_search(ahead, jnp.sum(uphill * direction))
        return Ascent(
            beta=beta,
            psi=spent.psi,
            plan=spent.plan,
            residual=jnp.where(sharp, residual, jnp.maximum(residual, 1.0)),
            sharpness=sharpness,
            least=jnp.where(sharpens, jnp.inf, jnp.minimum(s.least, residual)),
            since=jnp.where(sharpens, 0, since),
            iterations=s.iterations + 1,
        )

    def unfinished(s: Ascent) -> Array:
        stuck = (s.sharpness >= 1.0) & (s.since > _PATIENCE)
        broken = jnp.isnan(s.plan.cost)
        return ~(s.residual <= tolerance) & ~stuck & ~broken & (s.iterations <= max_iterations)

    inf, none = jnp.full_like(reg, jnp.inf), jnp.zeros((), jnp.int32)
    spread = reg * jnp.max(jnp.abs(w - x))
    levels = jnp.ceil(jnp.log(jnp.maximum(spread / _GENTLE, 1.0)) / jnp.log(_FACTOR))
    levels = jnp.where(near, 0, levels.astype(jnp.int32))
    sharpness = jnp.ldexp(jnp.ones_like(reg), -3 * levels)
    scratch = (
        carry(step, jnp.zeros_like(w), reg * (w - x)),
        carry(step_psi, jnp.zeros_like(reg), 1.0 / (sharpness * costs.least)),
    )
    beta, psi = jax.tree.map(lambda a, b: jnp.where(near, a, b), start, scratch)
    nowhere = jnp.zeros((len(costs.whole), *x.shape), x.dtype)
    nothing = Shares(nowhere, jnp.zeros_like(x), jnp.zeros_like(reg), jnp.zeros_like(reg))
    begin = Ascent(beta, psi, nothing, inf, sharpness, inf, none, none)
    return jax.lax.while_loop(unfinished, body, begin)


def _newton_step(
    geometry: LocalGrid,
    costs: Costs,
    x: Array,
    here: Ascent,
    sent: Array,
    free: Array,
    reg: Array,
    gradient: Array,
) -> Array:
    """(−∇²D)⁻¹ times the gradient, by conjugate gradients."""
    (share, mean, _, variance), sharpness = here.plan, here.sharpness
    column = jnp.sum(sent, axis=0)
    deviation = arriving(geometry, x * share * (mean - costs.whole))
    bound = (here.psi.value > 0) & (variance > 0)
    scale = jnp.where(bound, 1.0 / jnp.where(bound, variance, 1.0), 0.0)
    # A full pixel that nothing reaches has no curvature at all.
    ridge = jnp.where(free, 1.0, 1e-3) / reg
    squares = arriving(geometry, x * share**2)
    diagonal = sharpness * jnp.maximum(column - squares, 0.0) + ridge

    def product(d: Array) -> Array:
        means = weigh(geometry, share, d)
        back = weigh(geometry, sent, means, -1)
        along = scale * jnp.sum(deviation * d)
        return sharpness * (column * d - back - along * deviation) + ridge * d

    def body(carry):
        d, r, p, rho, count = carry
        hp = product(p)
        bent = jnp.sum(p * hp)
        ok = bent > 0
        length = jnp.where(ok, rho / jnp.where(ok, bent, 1.0), 0.0)
        d, r = d + length * p, r - length * hp
        q = r / diagonal
        new = jnp.sum(r * q)
        p = q + jnp.where(rho > 0, new / jnp.where(rho > 0, rho, 1.0), 0.0) * p
        return d, r, p, jnp.where(ok, new, 0.0), count + 1

    first = gradient / diagonal
    rho = jnp.sum(gradient * first)

    def unfinished(carry):
        return (carry[3] > 1e-2 * rho) & (carry[4] < _PRODUCTS)

    begin = jnp.zeros_like(gradient), gradient, first, rho, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(unfinished, body, begin)[0]


def _line_search(
    ahead: Callable[[Array], tuple[Pair, Spent, Array]], slope: Array
) -> tuple[Pair, Spent]:
    """As far along the direction as its slope falls to half of `slope`, or at the full step.

    Args:
      ahead: length ↦ (β there, its plan, the slope there).
      slope: at length 0.
    """

    def body(search: _Length) -> _Length:
        length = search.following
        beta, spent, there = ahead(length)
        rising = there > 0
        enough = (jnp.abs(there) <= 0.5 * slope) | (rising & jnp.isinf(search.above)) | (slope <= 0)
        below = jnp.where(rising, length, search.below)
        above = jnp.where(rising, search.above, length)
        following = jnp.where(below > 0, 0.5 * (below + above), 0.25 * length)
        return _Length(beta, spent, following, below, above, enough, search.trials + 1)

    one = jnp.ones_like(slope)
    beta, spent, _ = jax.tree.map(
        lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(lambda: ahead(one))
    )
    no, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    begin = _Length(beta, spent, one, 0.0 * one, jnp.inf * one, no, none)
    end = jax.lax.while_loop(lambda s: ~s.enough & (s.trials < _TRIALS), body, begin)
    return end.beta, end.spent


class _Length(NamedTuple):
    beta: Pair
    spent: Spent
    following: Array
    """The length to try next."""
    below: Array
    above: Array
    """Lengths between which the slope falls to zero; 0 and ∞ if not known."""
    enough: Array
    trials: Array
