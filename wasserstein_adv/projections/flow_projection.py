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

Most problems are solved by splitting (`flow_splitting`), whose iterations are cheap and may be any
number. What they leave goes to an interior point (`flow_interior`), in double precision.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wasserstein_adv.checks import check_cap, check_field, check_positive, check_room
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.batching import batch_last
from wasserstein_adv.projections.double import double
from wasserstein_adv.projections.flow_interior import (
    Interior,
    from_units,
    in_units,
    interior_start,
    interior_step,
)
from wasserstein_adv.projections.flow_problem import (
    Posed,
    duality_gap,
    feasible_flow,
    posed,
    without_budget,
)
from wasserstein_adv.projections.flow_splitting import (
    ROUND,
    Iterate,
    balanced,
    splitting_round,
    splitting_start,
)
from wasserstein_adv.projections.grid_flow import cosines, over_edges, over_pixels
from wasserstein_adv.projections.kernel import check_stopping, refuse_gradients

_BALANCED = 200  # iterations in which ρ is adapted
_STEPS = 50  # of the interior point at most
_TOGETHER = 2**26  # bytes of the interior point's matrices


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


def flow_projection(
    x: Float[Array, "h w *c"],
    w: Float[Array, "h w *c"],
    radius: float | Float[Array, ""],
    start: FlowState | None = None,
    *,
    cap: float | Float[Array, ""] = 1.0,
    tolerance: float = 1e-3,
    max_iterations: int = 400,
) -> FlowProjection:
    """The Euclidean projection of `w` onto the W₁ ball around `x`, within [0, cap].

    The problem is stated at the top of this module. Whatever the number of iterations, the returned
    point is *feasible*: the box's iterate is brought to x's mass inside the box, the flow that
    leads there is mended by a Poisson equation, and both go back towards x as far as the budget
    asks.

    The residual is √(2(P − D))/‖z₀ − x‖₂, P and D the values of problem and dual at the returned
    point and potential, z₀ the projection without a budget. The problem is strongly convex, so that
    ‖z − z*‖₂ ≤ residual·‖z₀ − x‖₂ holds for certain (what is below the rounding of x counts as
    nothing). P − D is summed from terms that are each
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
      max_iterations: iterations of splitting at most, 1 or more, done in tens; then a tenth as many
        steps of the interior point, which takes 10 to 30.

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
    solve = functools.partial(_project, tolerance=tolerance, max_iterations=max_iterations)
    found = refuse_gradients("flow_projection", solve, x_, w_, radius, cap, start)
    state = found.state
    state = FlowState(state.flow.reshape(2, *x.shape), state.potential.reshape(x.shape), state[2])
    return found._replace(point=found.point.reshape(x.shape), state=state)


@functools.partial(jax.jit, static_argnames=("tolerance", "max_iterations"))
def _project(
    x: Array, w: Array, radius: Array, cap: Array, start: FlowState | None, **stopping: Any
) -> FlowProjection:
    solve = batch_last(lambda _, *args: _solve(*args, **stopping))
    return solve((), x, w, radius, cap, start)


def _solve(
    x: Array,
    w: Array,
    radius: Array,
    cap: Array,
    start: FlowState | None,
    *,
    tolerance: float,
    max_iterations: int,
) -> FlowProjection:
    """The projections of a batch, axes last: by splitting, the hard few by an interior point."""
    found = _by_splitting(x, w, radius, cap, start, tolerance, max_iterations)
    steps = min(max_iterations // ROUND, _STEPS)
    return _rest_by_interior_point(x, w, radius, cap, found, tolerance, steps) if steps else found


class _Look(NamedTuple):
    """What it takes to judge an iterate of one problem."""

    given: Posed
    transforms: tuple[Array, Array]
    scale: Float[Array, "*b"]
    """‖z₀ − x‖₂, or where that is more what makes the tolerance the rounding of x."""
    unlimited: Float[Array, "h w c *b"]
    offset: Float[Array, "1 1 c *b"]


def _prepared(x: Array, w: Array, radius: Array, cap: Array, rounding: float) -> _Look:
    given = posed(x, w, radius, cap)
    unlimited, offset = without_budget(given.problem)
    reach = jnp.sqrt(over_pixels(jnp.square(unlimited)))
    least = rounding * jnp.sqrt(over_pixels(jnp.square(given.problem.low)))
    scale = jnp.where(reach > 0, jnp.maximum(reach, least), 1.0)
    transforms = jnp.asarray(cosines(len(x)), x.dtype), jnp.asarray(cosines(x.shape[1]), x.dtype)
    return _Look(given, transforms, scale, unlimited, offset)


def _seen(
    look: _Look, boxed: Array, m: Array, phi: Array, rho: Array, iterations: Array
) -> FlowProjection:
    """The feasible point near an iterate with its evidence, in units of the problem. Whether it has
    converged is for `_in_images` to say."""
    point, flow = feasible_flow(look.transforms, look.given.problem, boxed, m)
    apart = jnp.sqrt(2.0 * duality_gap(look.given.problem, point, flow, phi))
    residual = (apart + look.given.rounding) / look.scale
    cost = over_edges(jnp.abs(flow))
    state, unknown = FlowState(flow, phi, rho), jnp.zeros(residual.shape, bool)
    return FlowProjection(point, state, cost, iterations, residual, converged=unknown)


def _in_images(
    look: _Look, x: Array, cap: Array, found: FlowProjection, tolerance: float
) -> FlowProjection:
    """What was found, in the unit of x."""
    given, (flow, phi, rho) = look.given, found.state
    return found._replace(
        point=jnp.where(given.moves, jnp.clip(x + found.point * given.mass, 0.0, cap), x),
        state=FlowState(flow * given.mass, phi * given.mass, rho),
        cost=found.cost / given.share,
        converged=given.solvable & (~given.moves | (found.residual <= tolerance)),
    )


def _by_splitting(
    x: Array,
    w: Array,
    radius: Array,
    cap: Array,
    start: FlowState | None,
    tolerance: float,
    max_iterations: int,
) -> FlowProjection:
    look = _prepared(x, w, radius, cap, float(jnp.finfo(x.dtype).eps) / tolerance)
    problem, mass = look.given.problem, look.given.mass

    def unfinished(found: FlowProjection) -> Array:
        return ~(found.residual <= tolerance) & (found.iterations < max_iterations)

    def body(carry: tuple[Iterate, FlowProjection]) -> tuple[Iterate, FlowProjection]:
        iterate, found = carry
        new, flow, boxed = splitting_round(look.transforms, problem, iterate)
        seen = _seen(look, boxed, flow, new.eta * new.rho, new.rho, found.iterations + ROUND)
        # Finitely often: convergence is proved for a ρ that comes to rest.
        early = found.iterations < _BALANCED
        adapted = balanced(new, iterate, flow, boxed)
        new = jax.tree.map(lambda a, b: jnp.where(early, a, b), adapted, new)
        go = unfinished(found)
        return jax.tree.map(lambda a, b: jnp.where(go, a, b), (new, seen), carry)

    one, none = jnp.ones_like(mass), jnp.zeros(mass.shape, jnp.int32)
    zero = jnp.zeros((2, *x.shape), x.dtype)
    # If the budget leaves room for the flow that Poisson's equation finds, this is the answer.
    level = jnp.broadcast_to(look.offset, x.shape)
    free = _seen(look, look.unlimited, zero, level, one, none)
    if start is None:
        first = splitting_start(zero, level, one)
    else:
        first = splitting_start(start.flow / mass, start.potential / mass, start.penalty)
    _, found = jax.lax.while_loop(lambda carry: jnp.any(unfinished(carry[1])), body, (first, free))
    return _in_images(look, x, cap, found, tolerance)


def _rest_by_interior_point(
    x: Array,
    w: Array,
    radius: Array,
    cap: Array,
    found: FlowProjection,
    tolerance: float,
    steps: int,
) -> FlowProjection:
    """What splitting left, a few problems at a time, in double precision."""
    shape, axes = x.shape[:3], x.shape[3:]
    count = math.prod(axes)
    together = max(1, min(count, _TOGETHER // (8 * math.prod(shape) * shape[1])))
    rounding = float(jnp.finfo(x.dtype).eps) / tolerance

    def flat(a: Array) -> Array:
        return a.reshape(*a.shape[: a.ndim - len(axes)], count)

    def step(carry: tuple[Array, FlowProjection]) -> tuple[Array, FlowProjection]:
        todo, found = carry
        chosen = jnp.argsort(~todo)[:together]
        few, before = jax.tree.map(lambda a: double(a[..., chosen]), (problems, found))
        after = _by_interior_point(few, before, todo[chosen], rounding, tolerance, steps)
        found = jax.tree.map(lambda a, b: a.at[..., chosen].set(b.astype(a.dtype)), found, after)
        return todo.at[chosen].set(False), found

    with jax.enable_x64(True):
        problems = jax.tree.map(flat, (x, w, radius, cap))
        todo = flat(posed(x, w, radius, cap).solvable & ~found.converged)
        found = jax.tree.map(flat, found)
        _, found = jax.lax.while_loop(lambda carry: jnp.any(carry[0]), step, (todo, found))
        return jax.tree.map(lambda a: a.reshape(*a.shape[:-1], *axes), found)


def _by_interior_point(
    images: tuple[Array, Array, Array, Array],
    found: FlowProjection,
    todo: Array,
    rounding: float,
    tolerance: float,
    steps: int,
) -> FlowProjection:
    """`found`, or what is better of as many steps; all in the dtype of x."""
    x, w, radius, cap = images
    look = _prepared(x, w, radius, cap, rounding)
    problem, units = in_units(look.given.problem, look.offset)

    def unfinished(found: FlowProjection, taken: Array) -> Array:
        return todo & ~(found.residual <= tolerance) & (taken < steps)

    def body(carry: tuple[Interior, FlowProjection, Array]) -> tuple[Any, ...]:
        at, found, taken = carry
        go = unfinished(found, taken)
        new = interior_step(problem, at)
        seen = _seen(look, *from_units(units, new), found.state.penalty, found.iterations + 1)
        better = go & ~(seen.residual >= found.residual)
        best = jax.tree.map(
            lambda a, b: jnp.where(better, a, b), _in_images(look, x, cap, seen, tolerance), found
        )
        best = best._replace(iterations=jnp.where(go, seen.iterations, found.iterations))
        return jax.tree.map(lambda a, b: jnp.where(go, a, b), new, at), best, taken + 1

    begin = interior_start(problem), found, jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda carry: jnp.any(unfinished(*carry[1:])), body, begin)[1]
