"""Linear functions over a Wasserstein ball: their maximum, its point, and a certified bound.

The ball around an image x of mass m = Σx holds what plans Π ≥ 0 of bounded cost make of it,

    B = { Πᵀ1 :  Π ≥ 0,  Π1 = x,  ⟨Π, C⟩ ≤ εm },

where channels carry mass of their own, transport never crosses them, and one budget serves all. Its
support function is σ(y) = max over z in B of yᵀz, and by duality

    σ(y) = min over ψ ≥ 0 of  ψεm + Σ_i x_i max_j (y_j − ψC_ij):                               (D)

whatever ψ ≥ 0 is put in, the right-hand side bounds σ(y) from above.

With entropy, weighted 1/λ, this is equation (29) of Wong, Schmidt and Kolter, *Wasserstein
Adversarial Examples via Projected Sinkhorn Iterations* (2019), appendix D (up to a constant: for y,
which (14) takes with the other sign), and the regularised linear minimisation of Wu, Wang and Yu,
*Stronger and Faster Wasserstein Adversarial Attacks* (2020), with γ = 1/λ. In units of 1/λ,

    max over Π of  λyᵀz − Σ_ij Π_ij ln(Π_ij / x_i)
      = min over ψ ≥ 0 of  ψεm + Σ_i x_i ln Σ_j exp(λy_j − ψC_ij).                             (E)

It is the projected Sinkhorn iteration with β = λy held fixed. In both, the best plan at a given ψ
is known, every x_i going to its best j, or split in proportion to exp(λy_j − ψC_ij); one scalar is
left to find, and one search finds it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.checks import check_field, check_positive
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.best_destination import Choice, best_destination
from wasserstein_adv.projections.budget import dots
from wasserstein_adv.projections.kernel import (
    check_shapes,
    check_stopping,
    in_range,
    log_domain,
    refuse_gradients,
)


class LinearMaximum(NamedTuple):
    """Where a linear function is large on the ball, with the evidence for it."""

    point: Float[Array, "h w *c"]
    """z, in the unit of x: non-negative, of x's mass in every channel, and inside the ball."""
    value: Float[Array, ""]
    """yᵀz, attained: σ(y) is no less."""
    bound: Float[Array, ""]
    """(D) at `psi`, or what all mass is worth at the best pixel, if less: σ(y) is no more."""
    psi: Float[Array, ""]
    """Multiplier of the budget, ≥ 0, in units of y per cost."""
    cost: Float[Array, ""]
    """⟨Π, C⟩/m of the plan that carries x to z: at most the radius."""
    prices: Float[Array, "2"]
    """That plan mixes those that are best at these prices, in units of y per cost; at the price ∞
    nothing moves."""
    shares: Float[Array, "2"]
    """In these proportions, which add up to 1."""
    reg: Float[Array, ""]
    """The λ for which they are best: `reg`, cut if need be; ∞ without entropy."""
    converged: Bool[Array, ""]
    """Whether (D) or (E) is solved to the tolerance, or to rounding."""
    iterations: Int[Array, ""]
    """Evaluations of the dual."""


class _Vertex(NamedTuple):
    """The plan that is best at the price ψ of cost, for masses normalised to 1."""

    psi: Array
    cost: Array
    rise: Array
    """What the plan attains beyond not moving, entropy included."""


class _Search(NamedTuple):
    psi: Array
    """The price to try next."""
    over: _Vertex
    """The cheapest plan found that exceeds the budget; ψ = −1 stands for none."""
    within: _Vertex
    """The dearest plan found that does not; ψ = ∞ stands for not moving."""
    best: Array
    """The ψ of the smallest dual value."""
    bound: Array
    """That value."""
    found: Array
    iteration: Array


def linear_oracle(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w *c"],
    y: Float[Array, "h w *c"],
    radius: float | Float[Array, ""],
    reg: float | Float[Array, ""] | None = None,
    psi: float | Float[Array, ""] | None = None,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
) -> LinearMaximum:
    """The point of the Wasserstein ball around `x` that maximises yᵀz, exactly or with entropy.

    The problem is stated at the top of this module. With y the gradient of a loss, the point is the
    steepest-ascent step of the ball's size, and the linear maximisation of a Frank-Wolfe attack;
    with y a row of a linear classifier, or a dual network's, `bound` proves what no perturbation in
    the ball can exceed (`support_function`).

    Whatever the number of iterations, the point is feasible, `value` is attained and `bound` holds:
    value ≤ σ(y) ≤ bound, all to rounding. Without entropy they meet.

    A pure function of one image: `jax.vmap` it over a batch, `jax.jit` it as you like. Gradients
    are refused with a clear error (σ's gradient in y is `point`).

    Args:
      geometry: where mass may move and at what cost, for (H, W) pixels; staying in place is free.
      x: (H, W) or (H, W, C) image, non-negative, finite. A blank image is a ball of one point.
      y: same shape, finite values of any size: the answer scales with y, and a constant added to a
        channel adds to `value` and `bound` and changes nothing else.
      radius: ε > 0, in the cost's unit times the fraction of the image's mass (all channels); ∞
        for all that the geometry can reach.
      reg: λ > 0, weight of yᵀz against the entropy for masses normalised to 1, in 1 / units of y.
        None takes the maximum itself, in less time. Exponents as large as λ·(max y − min y) are
        rounded, which shifts what a split pixel sends where by up to eps times that; beyond
        2e-3/eps, 1.6e4 in float32, λ is cut.
      psi: where to start, in units of y per cost, ≥ 0: `psi` of a nearby problem, for example.
      tolerance: duality gap of (E) at which to stop, relative to the excess of its value over that
        of not moving. Without entropy the search goes on to rounding, in as few steps.
      max_iterations: evaluations of the dual at most, 1 or more.

    Returns:
      `LinearMaximum`.

    Raises:
      InputError: shapes that do not agree, or arguments out of range. What is traced cannot be
        refused: where it poses no problem, the point is x and `converged` is False.
    """
    check_shapes(geometry, x, x)
    check_field("y", y)
    if y.shape != x.shape:
        raise InputError(f"y must have x's shape {x.shape}, got {y.shape}")
    tolerance, max_iterations = check_stopping(tolerance, max_iterations)
    if reg is not None:
        check_positive("reg", reg)
    check_positive("radius", radius, infinite=True)
    dtype = jnp.result_type(x, y, jnp.float32)
    x, y, radius = (jnp.asarray(a, dtype) for a in (x, y, radius))
    reg, psi = (None if a is None else jnp.asarray(a, dtype) for a in (reg, psi))
    solve = functools.partial(_solve, tolerance=tolerance, max_iterations=max_iterations)
    shape = x.shape
    x, y = (a.reshape(*shape[:2], -1) for a in (x, y))
    found = refuse_gradients("linear_oracle", solve, geometry, x, y, radius, reg, psi)
    return found._replace(point=found.point.reshape(shape))


def support_function(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w *c"],
    y: Float[Array, "h w *c"],
    radius: float | Float[Array, ""],
) -> Float[Array, ""]:
    """σ(y), the most that yᵀz can be in the Wasserstein ball around `x`: never less, to rounding.

    For provable defences (Wong et al. 2019, equation (14)): a loss that is linear, or bounded by a
    linear one, with the gradient y rises by at most σ(y) − yᵀx inside the ball.

    Args:
      geometry, x, y, radius: as in `linear_oracle`.

    Raises:
      InputError: as `linear_oracle`.
    """
    return linear_oracle(geometry, x, y, radius).bound


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def _solve(
    geometry: ott_geometry.Geometry,
    x: Array,
    y: Array,
    radius: Array,
    reg: Array | None,
    psi: Array | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> LinearMaximum:
    """The oracle on (H, W, C) arrays of one dtype."""
    channel_mass = jnp.sum(x, axis=(0, 1))
    mass = jnp.sum(channel_mass)
    share = x / jnp.where(mass > 0, mass, 1.0)
    # Masses are fixed, so a constant in a channel of y is worth the same everywhere in the ball;
    # without it, and divided by what is largest, y is in [−1, 1].
    shift = 0.5 * jnp.max(y, axis=(0, 1)) + 0.5 * jnp.min(y, axis=(0, 1))
    scale = jnp.max(jnp.abs(y - shift))
    scale = jnp.where(scale > 0, scale, 1.0)
    unit_y = (y - shift) / scale

    limits = jnp.finfo(x.dtype)
    rounding = 100.0 * float(limits.eps)
    psi = jnp.zeros_like(radius) if psi is None else psi / scale
    exact = _exact(geometry, unit_y)
    if reg is None:
        plans, weight, used = exact, jnp.ones_like(scale), jnp.full_like(scale, jnp.inf)
        search = _search(exact, share, radius, psi, rounding, max_iterations)
        price, rise = search.best, search.bound
    else:
        # Beyond 1/(1000 eps), rounding alone would shift weight between the exponentials.
        weight = jnp.clip(reg * scale, limits.tiny, 2.0**-10 / limits.eps)
        used = weight / scale
        plans, accuracy = _entropic(geometry, weight * unit_y), max(tolerance, rounding)
        search = _search(plans, share, radius, weight * psi, accuracy, max_iterations)
        # Any ψ certifies: one that is beyond all use is cut before it overflows.
        price = jnp.minimum(search.best / weight, limits.eps**-2.0)
        _, rise = _dual(exact, share, radius, price)
        # Where entropy rules, that ψ is a poor one; all mass at the best pixel is worth no less.
        most = jnp.sum(share * (jnp.max(unit_y, axis=(0, 1)) - unit_y))
        rise = jnp.minimum(rise, most)
    prices, shares, cost = _mixture(radius, search)
    moved: Any = sum(s * _push(plans, share, p) for p, s in zip(prices, shares, strict=True))
    at_rest, attained = dots([share, moved], unit_y)
    base = jnp.sum(shift * channel_mass)
    sound = in_range(x.reshape(-1), None) & (radius > 0)
    return LinearMaximum(
        point=jnp.where(sound, moved * mass, x),
        value=base + scale * (mass * attained),
        bound=base + scale * (mass * (at_rest + rise)),
        psi=scale * price,
        cost=cost,
        prices=scale / weight * prices,
        shares=shares,
        reg=used,
        converged=sound & search.found,
        iterations=search.iteration,
    )


class _Plans(NamedTuple):
    """The best plans for a unit of y, one for every price ψ of cost."""

    respond: Callable[[Array], tuple[Array, Array]]
    """ψ ↦ (what a unit of mass at every pixel gains over staying, its transport paid; its cost)."""
    push: Callable[[Array, Array], Array]
    """(row sums, ψ) ↦ column sums of the plan."""


def _exact(geometry: ott_geometry.Geometry, y: Array) -> _Plans:
    """Plans that send a pixel's mass to its best destination, for (D)."""

    def choose(psi: Array) -> Choice:
        one = functools.partial(best_destination, geometry, psi=psi)
        return jax.vmap(one, in_axes=-1, out_axes=-1)(y)

    def respond(psi: Array) -> tuple[Array, Array]:
        choice = choose(psi)
        return choice.score - y, choice.cost

    def push(x: Array, psi: Array) -> Array:
        def gather(x: Array, destination: Array) -> Array:
            return jnp.zeros(x.size, x.dtype).at[destination.ravel()].add(x.ravel())

        moved = jax.vmap(gather, in_axes=-1, out_axes=-1)(x, choose(psi).destination)
        return moved.reshape(x.shape)

    return _Plans(respond, push)


def _entropic(geometry: ott_geometry.Geometry, beta: Array) -> _Plans:
    """Plans that split a pixel's mass in proportion to exp(β_j − ψC_ij), for (E) with β = λy."""
    kernel = log_domain(geometry)

    def respond(psi: Array) -> tuple[Array, Array]:
        row = kernel.log(beta, psi, 1)
        return row.lse - beta, row.mean

    return _Plans(respond, lambda x, psi: kernel.push(x, beta, psi))


def _dual(plans: _Plans, x: Array, radius: Array, psi: Array) -> tuple[_Vertex, Array]:
    """The plan that is best at ψ, and the dual there, both beyond the value of not moving."""
    gain, cost = dots([*plans.respond(psi)], x)
    # 0·∞, for an unlimited radius, is no price at all.
    budget = jnp.where(psi > 0, psi * radius, 0.0)
    return _Vertex(psi, cost, gain + psi * cost), gain + budget


def _search(
    plans: _Plans,
    x: Array,
    radius: Array,
    start: Array,
    accuracy: float,
    max_iterations: int,
) -> _Search:
    """Minimises the dual over ψ, between a plan that exceeds the budget and one that does not.

    V(ε), the maximum as a function of the radius, is concave. The plan that is best at ψ lies on
    V's graph, where it touches the line of slope ψ that is the dual's bound; two plans, mixed, lie
    on the chord between them, or above. So the slope of the chord that brackets ε is the next ψ:
    the plan found there lies above the chord, or else the chord is V, and its mixture at ε is the
    maximum. (Equally: the dual's tangents at both prices meet at the next.) Without entropy V has
    finitely many pieces, and the search an exact end; where V is smooth, the gap falls fourfold.
    """

    def body(s: _Search) -> _Search:
        vertex, bound = _dual(plans, x, radius, s.psi)
        inside = vertex.cost <= radius
        over = jax.tree.map(lambda old, new: jnp.where(inside, old, new), s.over, vertex)
        within = jax.tree.map(lambda old, new: jnp.where(inside, new, old), s.within, vertex)
        best = jnp.where(bound < s.bound, s.psi, s.best)
        bound = jnp.minimum(bound, s.bound)

        bracketed = over.psi >= 0
        chord = (over.rise - within.rise) / jnp.where(bracketed, over.cost - within.cost, 1.0)
        chord = jnp.where(bracketed, jnp.maximum(chord, 0.0), 0.0)
        attained = within.rise + jnp.where(bracketed, chord * (radius - within.cost), 0.0)
        tight = bound - attained <= accuracy * bound
        # Rounding has the last word where the chord leads out of the bracket.
        closed = ~((over.psi < chord) & (chord < within.psi))
        return _Search(chord, over, within, best, bound, tight | closed, s.iteration + 1)

    zero, inf = jnp.zeros_like(radius), jnp.full_like(radius, jnp.inf)
    none, rest = _Vertex(-jnp.ones_like(zero), zero, zero), _Vertex(inf, zero, zero)
    no, first = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    begin = _Search(start, none, rest, start, inf, no, first)
    return jax.lax.while_loop(lambda s: ~s.found & (s.iteration < max_iterations), body, begin)


def _mixture(radius: Array, search: _Search) -> tuple[Array, Array, Array]:
    """The search's two plans in the proportion that spends the budget: (ψ, shares, cost)."""
    over, within = search.over, search.within
    bracketed = over.psi >= 0
    span = jnp.where(bracketed, over.cost - within.cost, 1.0)
    part = jnp.where(bracketed, (radius - within.cost) / span, 0.0)
    prices = jnp.stack([jnp.where(bracketed, over.psi, within.psi), within.psi])
    cost = part * over.cost + (1.0 - part) * within.cost
    return prices, jnp.stack([part, 1.0 - part]), cost


def _push(plans: _Plans, x: Array, psi: Array) -> Array:
    """Column sums of the plan that is best at ψ; at ∞, of the one that moves nothing."""
    stays = jnp.isinf(psi)
    return jnp.where(stays, x, plans.push(x, jnp.where(stays, 0.0, psi)))
