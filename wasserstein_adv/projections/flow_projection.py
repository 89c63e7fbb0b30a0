"""The exact Euclidean projection onto a Wasserstein ball: mass as a flow on the pixel grid.

For the ground cost |Δrow| + |Δcol| and images of one mass, moving mass anywhere is moving it from
pixel to pixel (Beckmann 1952): W₁(x, z) ≤ ε·Σx exactly where z = x − div m for a flow m on the
edges between neighbours with ‖m‖₁ ≤ ε·Σx. So with 2n unknowns for n pixels, to anywhere, without
entropy,

    min over z, m of  ½‖z − w‖²  subject to  z = x − div m,  ‖m‖₁ ≤ ε·Σx,  0 ≤ z ≤ cap

is the projection of w onto the ball, and onto images. The box is part of it: without z ≥ 0 a flow
could take from a pixel what it does not have. Since |Δrow| + |Δcol| is at least the Euclidean
distance, the ball lies inside that of the Euclidean cost and the same ε. Channels have flows of
their own and share the budget.

The dual, with a potential φ and z_φ = clip(w − φ, 0, cap), is

    max over φ of  ½‖z_φ − w‖² + φᵀ(z_φ − x) − ε·Σx·‖∇φ‖_∞.

It is solved by the alternating direction method in graph form (Parikh & Boyd 2014): in turn m onto
the ℓ₁ ball and z onto the box, then both onto {z = x − div m}, which takes the inverse of
I + div divᵀ, the grid's Laplacian, diagonal under the cosine transform.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.checks import check_cap, check_field, check_positive, check_room
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.projections.grid_flow import (
    cosines,
    descent,
    divergence,
    laplacian_filter,
    over_edges,
    over_pixels,
)
from wasserstein_adv.projections.kernel import check_stopping, in_range, refuse_gradients

_RELAXATION = 1.7
_ROUND = 10  # iterations between two looks at the duality gap
_FARTHEST = 1e15  # from x to w, in units of x's mass
_BALANCED = 200  # iterations in which ρ is adapted
_LEAN = 0.1  # of what a ρ would be that balances: MNIST's digits take the fewest iterations


class FlowState(NamedTuple):
    """Where the iteration stands: where to start that of a nearby problem."""

    flow: Float[Array, "2 h w *c"]
    """m: down from each pixel, and right from it; 0 across the border."""
    potential: Float[Array, "h w *c"]
    """φ, in intensities."""
    penalty: Float[Array, ""]
    """ρ, the weight that the method gives to its constraints."""


class FlowProjection(NamedTuple):
    """A projected image with the evidence for it."""

    point: Float[Array, "h w *c"]
    """z, in the unit of x: of x's mass, between 0 and the cap, and inside the ball."""
    state: FlowState
    """`state.flow` carries x to `point`: x − div m."""
    cost: Float[Array, ""]
    """‖m‖₁/Σx, at most the radius: an upper bound of the distance W₁ from x to `point`."""
    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    """Bound on ‖z − z*‖₂ by the duality gap, see `flow_projection`."""
    converged: Bool[Array, ""]
    """Whether `residual` fell to the tolerance."""


class _Problem(NamedTuple):
    """The problem in the change d = z − x, with the axes of every vmap last:

    min over d, m of  ½‖d − v‖²  subject to  d = −div m,  ‖m‖₁ ≤ budget,  low ≤ d ≤ high.

    Changes are small where images are not: single precision has its digits where they count.
    """

    v: Float[Array, "h w c *b"]
    """w − x, up to a constant in every channel, which mass that stays the same does not feel."""
    low: Float[Array, "h w c *b"]
    high: Float[Array, "h w c *b"]
    budget: Float[Array, "*b"]


class _Iterate(NamedTuple):
    """A point of the graph, with the multipliers ρ of leaving it: (ρ∇η, ρη)."""

    m: Array
    d: Array
    eta: Array
    rho: Array
    threshold: Array
    """Of the ℓ₁ ball's projection, where its next search starts."""


def flow_projection(
    x: Float[Array, "h w *c"],
    w: Float[Array, "h w *c"],
    radius: float | Float[Array, ""],
    start: FlowState | None = None,
    *,
    cap: float | Float[Array, ""] = 1.0,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
) -> FlowProjection:
    """The Euclidean projection of `w` onto the W₁ ball around `x`, within [0, cap].

    The problem is stated at the top of this module. Whatever the number of iterations, the returned
    point is *feasible*: the box's iterate is brought to x's mass inside the box, the flow that
    leads there is mended by a Poisson equation, and both go back towards x as far as the budget
    asks.

    The residual is √(2(P − D))/‖z₀ − x‖₂, P and D the values of problem and dual at the returned
    point and potential, z₀ the projection without a budget. The problem is strongly convex, so that
    ‖z − z*‖₂ ≤ residual·‖z₀ − x‖₂ holds for certain (where ‖z₀ − x‖₂ is below the rounding of x,
    that rounding stands for it). P − D is summed from terms that are each
    non-negative: single precision does not cancel.

    A pure function of one image: `jax.vmap` it over a batch, `jax.jit` it as you like. Gradients
    are refused with a clear error, as by `projected_sinkhorn`.

    Args:
      x: (H, W) or (H, W, C) clean image, in [0, cap], finite. A blank image is its own projection.
      w: same shape, the point to project, any finite values.
      radius: ε > 0, in pixels times the fraction of the image's mass (all channels).
      start: where to start, for example the `state` of a nearby projection.
      cap: what a pixel may hold, in the unit of x, at least max x; ∞ for no limit.
      tolerance: residual at which to stop.
      max_iterations: iterations at most, 1 or more; done in tens.

    Returns:
      `FlowProjection`, all fields without the batch axis.

    Raises:
      InputError: shapes that do not agree, or arguments out of range. What is traced cannot be
        refused: where it poses no problem, the point is x and `converged` is False.
    """
    check_field("x", x, signed=False)
    check_field("w", w)
    if x.ndim not in (2, 3):
        raise InputError(f"x must have shape (H, W) or (H, W, C), got {x.shape}")
    if w.shape != x.shape:
        raise InputError(f"w must have x's shape {x.shape}, got {w.shape}")
    tolerance, max_iterations = check_stopping(tolerance, max_iterations)
    check_positive("radius", radius)
    check_cap(cap)
    check_room(x, cap)
    if start is not None and (
        start.flow.shape != (2, *x.shape) or start.potential.shape != x.shape
    ):
        raise InputError(
            f"start must have shapes {(2, *x.shape)} and {x.shape}, "
            f"got {start.flow.shape} and {start.potential.shape}"
        )
    dtype = jnp.result_type(x, w, jnp.float32)
    image = x.shape if x.ndim == 3 else (*x.shape, 1)
    x_, w_ = (jnp.asarray(a, dtype).reshape(image) for a in (x, w))
    radius, cap = jnp.asarray(radius, dtype), jnp.asarray(cap, dtype)
    if start is not None:
        flow, potential, penalty = (jnp.asarray(a, dtype) for a in start)
        start = FlowState(flow.reshape(2, *image), potential.reshape(image), penalty)
    solve = functools.partial(_of_any_mass, tolerance=tolerance, max_iterations=max_iterations)
    found = refuse_gradients("flow_projection", solve, x_, w_, radius, cap, start)
    state = found.state
    state = FlowState(state.flow.reshape(2, *x.shape), state.potential.reshape(x.shape), state[2])
    return found._replace(point=found.point.reshape(x.shape), state=state)


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def _of_any_mass(
    x: Array, w: Array, radius: Array, cap: Array, start: FlowState | None, **stopping: Any
) -> FlowProjection:
    """The projection in units of the size of x's mass, a power of two, in which nothing is too
    small or too large to square."""
    total = jnp.sum(x)
    sound = in_range(x.reshape(-1), cap, radius)
    moves = sound & (total > 0)
    mass = jnp.ldexp(jnp.ones_like(total), jnp.frexp(jnp.where(moves, total, 1.0))[1])
    change = (w - x) / mass
    # What is farther from x than this has no digit of it left.
    reached = jnp.all(jnp.abs(change) <= _FARTHEST)
    change = jnp.clip(change, -_FARTHEST, _FARTHEST)
    change -= jnp.mean(change, axis=(0, 1))
    here = jnp.where(moves, x / mass, 0.0)
    budget = jnp.where(moves, radius * (total / mass), 0.0)
    problem = _Problem(change, -here, cap / mass - here, budget)
    if start is not None:
        start = FlowState(start.flow / mass, start.potential / mass, start.penalty)
    transforms = tuple(jnp.asarray(cosines(n), x.dtype) for n in x.shape[:2])
    found = batch_last(functools.partial(_solve, **stopping))(transforms, problem, start)
    flow, potential, penalty = found.state
    return found._replace(
        point=jnp.where(moves, jnp.clip(x + found.point * mass, 0.0, cap), x),
        state=FlowState(flow * mass, potential * mass, penalty),
        cost=found.cost / jnp.where(moves, total / mass, 1.0),
        converged=sound & ((total <= 0) | (reached & found.converged)),
    )


def _solve(
    transforms: tuple[Array, Array],
    problem: _Problem,
    start: FlowState | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> FlowProjection:
    """The projection with its point as a change, and its cost in units of the budget."""
    v, low, _, budget = problem
    unlimited, offset = _without_budget(problem)
    reach = jnp.sqrt(over_pixels(jnp.square(unlimited)))
    # Less than the rounding of x is no way to go.
    rounding = 10.0 * jnp.finfo(v.dtype).eps * jnp.sqrt(over_pixels(jnp.square(low)))
    scale = jnp.where(reach > 0, jnp.maximum(reach, rounding), 1.0)

    def look(boxed: Array, m: Array, phi: Array, rho: Array, iterations: Array) -> FlowProjection:
        point, flow = _feasible(transforms, problem, boxed, m)
        residual = jnp.sqrt(2.0 * _duality_gap(problem, point, flow, phi)) / scale
        cost = over_edges(jnp.abs(flow))
        return FlowProjection(
            point, FlowState(flow, phi, rho), cost, iterations, residual, residual <= tolerance
        )

    def unfinished(found: FlowProjection) -> Array:
        return ~(found.residual <= tolerance) & (found.iterations < max_iterations)

    def body(carry: tuple[_Iterate, FlowProjection]) -> tuple[_Iterate, FlowProjection]:
        iterate, found = carry
        new, flow, boxed = _round(transforms, problem, iterate)
        seen = look(boxed, flow, new.eta * new.rho, new.rho, found.iterations + _ROUND)
        # Finitely often: convergence is proved for a ρ that comes to rest.
        early = found.iterations < _BALANCED
        balanced = _balanced(new, iterate, flow, boxed)
        new = jax.tree.map(lambda a, b: jnp.where(early, a, b), balanced, new)
        go = unfinished(found)
        return jax.tree.map(lambda a, b: jnp.where(go, a, b), (new, seen), carry)

    one, none = jnp.ones_like(budget), jnp.zeros(budget.shape, jnp.int32)
    zero = jnp.zeros((2, *v.shape), v.dtype)
    # If the budget leaves room for the flow that Poisson's equation finds, this is the answer.
    free = look(unlimited, zero, jnp.broadcast_to(offset, v.shape), one, none)
    if start is None:
        start = FlowState(zero, jnp.broadcast_to(offset, v.shape), one)
    m, phi, rho = start
    first = _Iterate(m, -divergence(m), phi / rho, rho, jnp.zeros_like(budget))
    _, found = jax.lax.while_loop(lambda carry: jnp.any(unfinished(carry[1])), body, (first, free))
    return found


def _step(
    transforms: tuple[Array, Array], problem: _Problem, iterate: _Iterate
) -> tuple[_Iterate, Array, Array]:
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
    return _Iterate(ahead - descent(rise), change - rise, eta + rise, rho, threshold), flow, boxed


def _round(
    transforms: tuple[Array, Array], problem: _Problem, iterate: _Iterate
) -> tuple[_Iterate, Array, Array]:
    def body(_, carry):
        return _step(transforms, problem, carry[0])

    return jax.lax.fori_loop(0, _ROUND, body, (iterate, iterate.m, iterate.d))


def _balanced(new: _Iterate, old: _Iterate, flow: Array, boxed: Array) -> _Iterate:
    """The iterate with a ρ that lets both constraints and optimality make the same progress.

    He, Yang and Wang (2000), with residuals relative to what they are differences of.
    """
    apart = over_edges(jnp.square(new.m - flow)) + over_pixels(jnp.square(new.d - boxed))
    size = over_edges(jnp.square(flow)) + over_pixels(jnp.square(boxed))
    moved = (
        over_edges(jnp.square(new.m - old.m)) + over_pixels(jnp.square(new.d - old.d))
    ) / _ROUND**2
    pull = over_edges(jnp.square(descent(new.eta))) + over_pixels(jnp.square(new.eta))
    ratio = _LEAN * (apart * pull) / (moved * size)
    ratio = jnp.where(jnp.isfinite(ratio) & (ratio > 0), ratio, 1.0) ** 0.25
    ratio = jnp.where((ratio > 1.2) | (ratio < 1.0 / 1.2), jnp.clip(ratio, 0.1, 10.0), 1.0)
    return new._replace(eta=new.eta / ratio, rho=new.rho * ratio)


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


def _without_budget(problem: _Problem) -> tuple[Array, Array]:
    """clip(v − c, low, high) of sum 0 in every channel, and c: the answer for a large radius."""
    v, low, high, _ = problem
    mass = -jnp.sum(low, axis=(0, 1), keepdims=True)
    most = jnp.max(v - low, axis=(0, 1), keepdims=True)
    least = jnp.min(v - jnp.minimum(high, mass), axis=(0, 1), keepdims=True)

    def body(_, carry):
        least, most, c = carry
        shifted = v - c
        excess = jnp.sum(jnp.clip(shifted, low, high), axis=(0, 1), keepdims=True)
        free = (shifted > low) & (shifted < high)
        count = jnp.sum(free.astype(v.dtype), axis=(0, 1), keepdims=True)
        least, most = jnp.where(excess >= 0, c, least), jnp.where(excess >= 0, most, c)
        newton = c + excess / jnp.maximum(count, 1.0)
        inside = (count > 0) & (newton >= least) & (newton <= most)
        return least, most, jnp.where(inside, newton, 0.5 * (least + most))

    *_, c = jax.lax.fori_loop(0, 40, body, (least, most, 0.5 * (least + most)))
    return jnp.clip(v - c, low, high), c


def _feasible(
    transforms: tuple[Array, Array], problem: _Problem, boxed: Array, m: Array
) -> tuple[Array, Array]:
    """A feasible change near one in the box, and the flow that leads there."""
    _, low, high, budget = problem
    # Too much is taken from all in proportion, too little goes where there is room for it: first
    # by pixels that are free, as leaving a bound may cost far more.
    free = (boxed > low) & (boxed < high)
    even = _evened(problem, _evened(problem, boxed, free), jnp.ones_like(free))
    flow = m - descent(laplacian_filter(transforms, even + divergence(m), 0.0))
    spent = over_edges(jnp.abs(flow))
    share = jnp.where(spent > budget, budget / jnp.where(spent > 0, spent, 1.0), 1.0)
    return share * even, share * flow


def _evened(problem: _Problem, d: Array, allowed: Array) -> Array:
    """d with a sum nearer to 0 in every channel, by the pixels that are allowed to change."""
    excess = jnp.sum(d, axis=(0, 1), keepdims=True)
    above = jnp.where(jnp.isinf(problem.high), 1.0, problem.high - d)
    room = jnp.where(allowed, jnp.where(excess > 0, d - problem.low, above), 0.0)
    total = jnp.sum(room, axis=(0, 1), keepdims=True)
    change = room * (excess / jnp.where(total > 0, total, 1.0))
    return jnp.clip(d - change, problem.low, problem.high)


def _duality_gap(problem: _Problem, d: Array, m: Array, phi: Array) -> Array:
    """P(d) − D(φ) at a feasible d = −div m, as a sum of terms none of which is negative."""
    v, low, high, budget = problem
    wanted = v - phi
    apart = d - jnp.clip(wanted, low, high)
    beyond = jnp.maximum(low - wanted, 0.0) - jnp.maximum(wanted - high, 0.0)
    image = 0.5 * jnp.square(apart) + jnp.maximum(apart * beyond, 0.0)
    slope = descent(phi)
    steepest = jnp.max(jnp.abs(slope), axis=(0, 1, 2, 3))
    flow = jnp.maximum(steepest * jnp.abs(m) + slope * m, 0.0)
    unspent = steepest * jnp.maximum(budget - over_edges(jnp.abs(m)), 0.0)
    return over_pixels(image) + over_edges(flow) + unspent
