"""Projection onto a Wasserstein ball with entropic regularisation: projected Sinkhorn iterations.

Wong, Schmidt and Kolter, *Wasserstein Adversarial Examples via Projected Sinkhorn Iterations*
(2019), Algorithm 2. With m = Σx the mass of the image, x' = x/m, w' = w/m, the problem is their
equation (17),

    min over z', Π ≥ 0 of  λ/2 ‖w' − z'‖² + Σ_ij Π_ij ln Π_ij
    subject to  Π1 = x',  Πᵀ1 = z',  ⟨Π, C⟩ ≤ ε,

and its dual, equation (16), is

    max over α, β, ψ ≥ 0 of
    −‖β‖²/(2λ) − ψε + αᵀx' + βᵀw' − Σ_ij exp(α_i + β_j − ψC_ij − 1).

The dual is climbed by blocks: α (9), β (10), ψ (11), and the iteration is accelerated by Anderson's
mixing. Channels carry mass of their own, transport never crosses them, and one ψ serves all.

Hu, Swaminathan, Salman and Yang, *Improved Image Wasserstein Attacks and Defenses* (2020), add that
no pixel may hold more than white, z'_j ≤ cap = 1/m, so that the projection is an image without a
clamp that would take it out of the ball. Only the β step changes: where its z' exceeds the cap,
z' = cap and β = ln cap − ln q.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.checks import check_cap, check_positive, check_room
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.log_kernel import LogKernel, safe_log
from wasserstein_adv.projections.anderson import Memory, extrapolate, no_memory
from wasserstein_adv.projections.block_ascent import (
    Problem,
    State,
    Step,
    beta_step,
    block_ascent,
    psi_step,
)
from wasserstein_adv.projections.budget import solve_psi
from wasserstein_adv.projections.capacity import turn_away
from wasserstein_adv.projections.kernel import (
    Kernel,
    alpha_step,
    check_shapes,
    check_stopping,
    exp_domain,
    in_range,
    log_domain,
    refuse_gradients,
    rows_fit,
)
from wasserstein_adv.projections.semidual_newton import feasible_point, newton_projection

__all__ = [
    "Duals",
    "Problem",
    "Projection",
    "State",
    "Step",
    "beta_step",
    "block_ascent",
    "dual_objective",
    "projected_sinkhorn",
    "psi_step",
]


_BLOCKS = 100  # iterations of block ascent, if they converge at all
_NEAR = 1e-1  # the residual from which Newton's method goes on


class Duals(NamedTuple):
    """Dual variables that start the iteration: those of a nearby problem, for example."""

    beta: Float[Array, "h w c"]
    """Potential of the projected image, λ(w' − z') at the solution."""
    psi: Float[Array, ""]
    """Multiplier of the budget, ≥ 0."""


class Projection(NamedTuple):
    """A projected image with the evidence for it."""

    point: Float[Array, "h w c"]
    """z, in the unit of x: non-negative, of x's mass, and inside the ball."""
    duals: Duals
    cost: Float[Array, ""]
    """⟨Π, C⟩ of the plan that carries x/m to z/m: at most the radius."""
    iterations: Int[Array, ""]
    residual: Float[Array, ""]
    """Violation of the optimality conditions, see `projected_sinkhorn`."""
    converged: Bool[Array, ""]
    """Whether `residual` fell to the tolerance (and `point` is feasible)."""


def _accelerate(problem: Problem, memory: Memory, state: State, new: State) -> tuple[State, Memory]:
    """Anderson's point after the iteration `state` ↦ `new`, and its memory.

    Points are (z, ψ), their inner product the dual's curvature λ|Δz|² + slope·Δψ² where nothing
    else bends it. β is affine in z.
    """
    slope = jnp.where(new.slope > 0, new.slope, 1.0)

    def dot(a: tuple[Array, Array], b: tuple[Array, Array]) -> Array:
        return problem.reg * jnp.sum(a[0] * b[0]) + slope * a[1] * b[1]

    point, image = (state.z, state.psi), (new.z, new.psi)
    error = jnp.where(new.fits, new.residual, jnp.inf)
    (z, psi), memory = extrapolate(memory, point, image, error, dot)
    beta = new.beta - problem.reg * (z - new.z)
    fits = jnp.where(memory.taken_back, state.fits, new.fits)
    return new._replace(beta=beta, z=z, psi=jnp.maximum(psi, 0.0), fits=fits), memory


def dual_objective(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w *c"],
    w: Float[Array, "h w *c"],
    radius: float | Float[Array, ""],
    reg: float | Float[Array, ""],
    duals: Duals,
    cap: float | Float[Array, ""] = jnp.inf,
) -> Float[Array, ""]:
    """The dual (16) at (β, ψ) with α eliminated: a lower bound of (17)'s value.

    Args:
      geometry, radius, reg: as in `projected_sinkhorn`.
      x, w, cap: as there, but already divided by Σx; ∞ for no cap.
      duals: (β, ψ), β of x's shape.
    """
    if x.ndim == 2:
        x, w, beta = x[..., None], w[..., None], duals.beta[..., None]
    else:
        beta = duals.beta
    row = log_domain(geometry).log(beta, duals.psi, 1)
    positive = x > 0
    alpha = alpha_step(jnp.log(jnp.where(positive, x, 1.0)), row.lse)
    linear = jnp.sum(jnp.where(positive, x * alpha, 0.0))
    z = jnp.minimum(w - beta / reg, cap)  # minimises λ/2 (w − z)² + βz
    return linear + jnp.sum(reg / 2.0 * (w - z) ** 2 + beta * z) - duals.psi * radius - jnp.sum(x)


def projected_sinkhorn(
    geometry: ott_geometry.Geometry,
    x: Float[Array, "h w *c"],
    w: Float[Array, "h w *c"],
    radius: float | Float[Array, ""],
    reg: float | Float[Array, ""] = 1000.0,
    duals: Duals | None = None,
    *,
    cap: float | Float[Array, ""] | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    step: Step = block_ascent,
    memory: int = 3,
) -> Projection:
    """The entropic projection of `w` onto the Wasserstein ball around `x`, equation (17).

    The problem is stated at the top of this module. Whatever the number of iterations, the returned
    point is *feasible*: with β fixed, α is eliminated, which makes the masses right, and the scalar
    ψ solved for the budget; the point is that plan's column sum. With a cap, what does not fit into
    a pixel then stays where it came from (`capacity.turn_away`), so that the point needs no clamp.

    The residual is Σ_j |Σ_i Π_ij − z_j| + |⟨Π, C⟩ − ε|/ε at (α(β, ψ), β, ψ), with the z that β
    stands for, where the second term counts only excess when ψ = 0. All other optimality conditions
    hold exactly.

    A pure function of one image: `jax.vmap` it over a batch, `jax.jit` it as you like. Gradients
    are refused with a clear error: wrap the arguments in `jax.lax.stop_gradient` where the
    projection stands inside a differentiated function (attacks and adversarial training never need
    its gradient). The steps (`alpha_step`, `beta_step`, `psi_step`) are differentiable.

    Args:
      geometry: where mass may move and at what cost, for (H, W) pixels; float32 stays right for
        costs and λ over many orders of magnitude (the fast domain of plain exponentials is left,
        image by image, where it would not be).
      x: (H, W) or (H, W, C) clean image, non-negative, finite. A blank image is its own projection.
      w: same shape, the point to project, any finite values.
      radius: ε > 0, in the cost's unit times the fraction of the image's mass (all channels): with
        costs in pixels, 0.5 moves half of the mass by one pixel.
      reg: λ > 0, weight of the distance against the entropy, for masses normalised to 1.
      duals: where to start; by default β = λ(w' − x') and a ψ of the size of 1 / cost.
      cap: what a pixel may hold, in the unit of x and at least max x; 1 for images. None for no
        limit.
      tolerance: residual at which to stop.
      max_iterations: iterations at most, 1 or more.
      step: one iteration; `block_ascent` is the paper's.
      memory: iterations before that Anderson's mixing looks back upon, see `anderson`; 0 leaves
        `step` by itself.

    Returns:
      `Projection`, all fields without the batch axis.

    Raises:
      InputError: shapes that do not agree, or arguments out of range. What is traced cannot be
        refused: where it poses no problem, the point is x and `converged` is False.
    """
    check_shapes(geometry, x, w)
    tolerance, max_iterations = check_stopping(tolerance, max_iterations)
    if memory < 0:
        raise InputError(f"memory must be 0 or more, got {memory}")
    check_positive("radius", radius)
    check_positive("reg", reg)
    check_cap(cap)
    check_room(x, cap)
    dtype = jnp.result_type(x, w, jnp.float32)
    x, w, radius, reg = (jnp.asarray(a, dtype) for a in (x, w, radius, reg))
    cap = None if cap is None else jnp.asarray(cap, dtype)
    flat = x.ndim == 2
    if flat:
        x, w = x[..., None], w[..., None]
        duals = None if duals is None else Duals(duals.beta.reshape(x.shape), duals.psi)
    solve = functools.partial(
        _solve, step=step, memory=memory, tolerance=tolerance, max_iterations=max_iterations
    )
    projection = refuse_gradients(
        "projected_sinkhorn", solve, geometry, x, w, radius, reg, duals, cap
    )
    if flat:
        beta = projection.duals.beta[..., 0]
        projection = projection._replace(
            point=projection.point[..., 0], duals=projection.duals._replace(beta=beta)
        )
    return projection


@functools.partial(jax.jit, static_argnames=("step", "memory", "tolerance", "max_iterations"))
def _solve(
    geometry: ott_geometry.Geometry,
    x: Array,
    w: Array,
    radius: Array,
    reg: Array,
    duals: Duals | None,
    cap: Array | None,
    *,
    step: Step,
    memory: int,
    tolerance: float,
    max_iterations: int,
) -> Projection:
    """The projection on (H, W, C) arrays of one dtype."""
    mass = jnp.sum(x)
    unit = jnp.where(mass > 0, mass, 1.0)
    x_unit, w_unit = x / unit, w / unit
    # Masses are fixed, so a constant added to a channel of w changes β and nothing else; taking it
    # out keeps β small, and float32 exact.
    channel_mass = jnp.sum(x_unit, axis=(0, 1))
    shift = jnp.sum(x_unit * (w_unit - x_unit), axis=(0, 1))
    shift = shift / jnp.where(channel_mass > 0, channel_mass, 1.0)
    unlimited = jnp.full_like(reg, jnp.inf)
    problem = Problem(x_unit, w_unit - shift, radius, reg, unlimited if cap is None else cap / unit)
    if duals is None:
        beta, psi = reg * (problem.w - problem.x), _first_psi(geometry, jnp.ones_like(reg))
    else:
        beta, psi = duals.beta.astype(x.dtype) - reg * shift, duals.psi.astype(x.dtype)

    one, inf = jnp.ones_like(reg), jnp.full_like(reg, jnp.inf)

    def run(kernel: Kernel, at_most: int) -> tuple[Projection, Array]:
        z = problem.w - beta / reg
        state = State(
            kernel.pack(beta, -jnp.inf), kernel.pack(z, 0.0), psi, one, inf, jnp.ones((), bool)
        )
        packed = problem._replace(x=kernel.pack(problem.x, 0.0), w=kernel.pack(problem.w, -jnp.inf))
        found, fits = _run(kernel, packed, state, step, memory, tolerance, at_most)
        if cap is not None and not isinstance(geometry, LocalGrid):
            found = _fit(kernel, packed, found)
        duals = found.duals._replace(beta=kernel.unpack(found.duals.beta))
        return found._replace(point=kernel.unpack(found.point), duals=duals), fits

    if isinstance(geometry, LocalGrid):
        fast, fits = run(exp_domain(geometry), min(max_iterations, _BLOCKS))
        if cap is not None:
            point, cost = feasible_point(geometry, problem, fast.duals.beta, fast.duals.psi)
            fast = fast._replace(point=point, cost=cost)

        def finish(carry: tuple[Projection, Array]) -> tuple[Projection, Array]:
            duals, near = carry[0].duals, fits & (carry[0].residual < _NEAR)
            left = jnp.where(fits, max_iterations - carry[0].iterations, max_iterations)
            found = newton_projection(geometry, problem, *duals, near, tolerance, left)
            duals = Duals(found.beta, found.psi)
            steps = jnp.minimum(carry[0].iterations + found.iterations, max_iterations)
            converged = found.residual <= tolerance
            more = (duals, found.cost, steps, found.residual, converged)
            return Projection(found.point, *more), jnp.zeros((), bool)

        # A loop of at most one turn: a conditional that stays one under vmap, so that a batch pays
        # for Newton's method only if one of its images needs it.
        unfinished = ~fits | (~fast.converged & (fast.iterations < max_iterations))
        solution, _ = jax.lax.while_loop(lambda carry: carry[1], finish, (fast, unfinished))
    else:
        solution, _ = run(log_domain(geometry), max_iterations)
    # A blank image has nothing to move, and a full one no room.
    room = jnp.sum(jnp.maximum(problem.cap - x_unit, 0.0))
    only = (mass <= 0) | (room <= 10.0 * jnp.finfo(x.dtype).eps)
    sound = in_range(x.reshape(-1), cap, radius, reg)
    stays = only | ~sound
    beta = solution.duals.beta + reg * shift
    return solution._replace(
        point=jnp.where(stays, x, solution.point * unit),
        duals=solution.duals._replace(beta=beta),
        cost=jnp.where(stays, 0.0, solution.cost),
        residual=jnp.where(sound, jnp.where(only, 0.0, solution.residual), jnp.inf),
        converged=sound & (only | solution.converged),
    )


def _first_psi(geometry: ott_geometry.Geometry, one: Array) -> Array:
    """A ψ of the right size, so that the first iterations need not look for it: moving by a pixel
    costs an exponent of 1. Only a window says at sight what that is."""
    if not isinstance(geometry, LocalGrid):
        return one
    positive = geometry.window[np.isfinite(geometry.window) & (geometry.window > 0)]
    return one / float(positive.min()) if positive.size else one


def _run(
    kernel: Kernel,
    problem: Problem,
    state: State,
    step: Step,
    memory: int,
    tolerance: float,
    max_iterations: int,
) -> tuple[Projection, Array]:
    """Iterates to the tolerance and finishes feasibly; says whether the kernel's range sufficed."""
    x, radius = problem.x, problem.radius

    def row_kernel(beta: Array, psi: Array) -> LogKernel:
        return kernel.log(beta, psi, 1)

    def unfinished(state: State, iteration: Array) -> Array:
        return (state.residual > tolerance) & state.fits & (iteration < max_iterations)

    def body(carry: tuple[State, Memory | None, Array]) -> tuple[State, Memory | None, Array]:
        state, past, iteration = carry
        new = step(kernel, problem, state)
        if past is not None:
            mixed, past = _accelerate(problem, past, state, new)
            # At the end g's own point: an extrapolation would go unchecked.
            goes_on = unfinished(mixed, iteration + 1) | past.taken_back
            new = jax.tree.map(lambda a, b: jnp.where(goes_on, a, b), mixed, new)
        return new, past, iteration + 1

    past = no_memory((state.z, state.psi), memory, x.dtype) if memory else None
    state, _, iterations = jax.lax.while_loop(
        lambda carry: unfinished(carry[0], carry[2]), body, (state, past, jnp.zeros((), jnp.int32))
    )

    accuracy = max(min(tolerance, 1e-3), 100.0 * float(jnp.finfo(x.dtype).eps))
    budget = solve_psi(row_kernel, x, state.beta, radius, state.psi, accuracy)
    # x itself is feasible, should the budget's equation ever resist.
    point = jnp.where(budget.converged, kernel.push(x, state.beta, budget.psi), x)
    fits = state.fits & rows_fit(x, budget.row)
    converged = (state.residual <= tolerance) & budget.converged
    cost = jnp.where(budget.converged, budget.cost, 0.0)
    duals = Duals(state.beta, budget.psi)
    return Projection(point, duals, cost, iterations, state.residual, converged), fits


def _fit(kernel: Kernel, problem: Problem, found: Projection) -> Projection:
    """A projection whose plan leaves at home what its pixels cannot hold."""
    x, beta, psi = problem.x, *found.duals
    row = kernel.log(beta, psi, 1)

    def part(lse: Array) -> Array:
        # A pixel without mass may have no sum in the kernel's range: −∞ − −∞.
        return x * jnp.exp(jnp.where(x > 0, lse - row.lse, 0.0))

    staying = part(beta)

    def kept(theta: Array) -> LogKernel:
        return kernel.log(beta + safe_log(theta), psi, 1)

    def at_most(parts: Array, other: Array) -> Array:
        """`parts`, scaled down to the total of `other` where their own is more: the two are one
        mass, which the rounding of large exponents may not create."""
        total, bound = kernel.totals(parts), kernel.totals(other)
        return parts * jnp.where(total > bound, bound / jnp.where(total > 0, total, 1.0), 1.0)

    def leaving(theta: Array) -> Array:
        left = jnp.maximum(part(kept(theta).lse) - theta * staying, 0.0)
        return at_most(left, theta * arriving)

    arriving = jnp.maximum(found.point - staying, 0.0)
    theta, _ = turn_away(x, arriving, leaving, problem.cap)
    left, shares = leaving(theta), kept(theta)
    point = jnp.maximum(x - left + at_most(theta * arriving, left), 0.0)
    cost = jnp.sum(part(shares.lse) * shares.mean)
    # Where nothing moved, x itself.
    point = jnp.where(found.cost > 0, jnp.minimum(point, problem.cap), found.point)
    return found._replace(point=point, cost=jnp.where(found.cost > 0, cost, 0.0))
