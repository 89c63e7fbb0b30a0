"""What an attacker may do: feasible sets, each in a variable of its own.

A set is a tuple of pure functions of *one* image; attacks vmap them. The attacker's variable `u` is
any pytree (here the image itself), and `memory` is what the set keeps from one projection to the
next: where to start, and the evidence that the point is feasible.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.checks import check_positive
from wasserstein_adv.projections.projected_sinkhorn import Duals, projected_sinkhorn

Variable = Any
Memory = Any


class FeasibleSet(NamedTuple):
    """A family of sets around a clean image x, one for each radius."""

    init: Callable[[Array], tuple[Variable, Memory]]
    """x ↦ (u, memory) at the clean image."""
    random: Callable[[PRNGKeyArray, Array, Array], tuple[Variable, Memory]]
    """(key, x, radius) ↦ a random feasible start."""
    decode: Callable[[Array, Variable], Array]
    """(x, u) ↦ the image that u stands for; differentiable in u."""
    project: Callable[[Array, Variable, Variable, Array, Memory], tuple[Variable, Memory]]
    """(x, u, stepped u, radius, memory) ↦ the feasible point nearest to the stepped one."""
    distance: Callable[[Array, Variable, Memory], Array]
    """(x, u, memory) ↦ the radius that u makes use of."""
    lmo: Callable[[Array, Variable, Variable, Array, Memory], tuple[Variable, Memory]] | None = None
    """(x, u, gradient, radius, memory) ↦ the feasible point with the least inner product with the
    gradient; None for a set without this oracle."""
    finish: Callable[[Array, Variable, Array, Memory], tuple[Array, Memory]] | None = None
    """(x, u, radius, memory) ↦ the image that u is judged as and returned as; None where `decode`
    already returns one that the set allows."""


class BallEvidence(NamedTuple):
    """What a projected Sinkhorn projection leaves behind, capped or not.

    The duals change little from one step of an attack to the next: started from all of them a
    projection takes a sixth fewer iterations than from the step's own β = λ(w − z)/m, and the
    slowest image of a batch a third fewer.
    """

    duals: Duals
    """Where the next projection starts."""
    point: Float[Array, "h w c"]
    """The projection, before it was clamped to [0, 1]."""
    cost: Float[Array, ""]
    """Cost of the plan that carries x to `point`, at most the radius."""
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


def wasserstein_ball(
    geometry: ott_geometry.Geometry,
    reg: float = 1000.0,
    *,
    cap: float | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
) -> FeasibleSet:
    """Images within a Wasserstein distance of x, by projected Sinkhorn iterations, then in [0, 1].

    Wong et al. (2019). As published, the projected image is clamped to [0, 1] afterwards; what the
    clamp cuts off can take the image out of the ball, so the point before it is kept as evidence.
    With a cap of 1 nothing is left to clamp.

    Args:
      geometry: where mass may move, and at what cost.
      reg: λ, weight of the distance against the plan's entropy.
      cap: what a pixel may hold in the projection; None for no limit.
      tolerance, max_iterations: as for `projected_sinkhorn`; every point is feasible whatever they
        are.

    Raises:
      InputError: `reg` is not positive and finite.
    """
    nearest = _sinkhorn(geometry, reg, cap, tolerance, max_iterations)

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: BallEvidence
    ) -> tuple[Array, BallEvidence]:
        evidence = nearest(x, stepped, radius, memory)
        return jnp.clip(evidence.point, 0.0, 1.0), evidence

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, BallEvidence]:
        return project(x, x, x + noise(key, x), radius, _unmoved(x))

    return FeasibleSet(
        lambda x: (x, _unmoved(x)), random, lambda x, u: u, project,
        lambda x, u, memory: memory.cost,
    )  # fmt: skip


def capped_ball(
    geometry: ott_geometry.Geometry,
    reg: float = 1000.0,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
) -> FeasibleSet:
    """Images in [0, 1] within a Wasserstein distance of x, by capped projected Sinkhorn iterations.

    Hu et al. (2020). The cap at white is part of the projection, so that the image is inside the
    ball as it stands. The variable is the image divided by the clean image's mass, the unit in
    which that paper gives the length of a step.

    Args:
      geometry, reg, tolerance, max_iterations: as for `wasserstein_ball`.

    Raises:
      InputError: `reg` is not positive and finite.
    """
    nearest = _sinkhorn(geometry, reg, 1.0, tolerance, max_iterations)

    def decode(x: Array, u: Array) -> Array:
        image = u * _mass(x)
        # What rounding puts above white, taken off without an effect on the gradient.
        return image + jax.lax.stop_gradient(jnp.minimum(image, 1.0) - image)

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: BallEvidence
    ) -> tuple[Array, BallEvidence]:
        evidence = nearest(x, stepped * _mass(x), radius, memory)
        return evidence.point / _mass(x), evidence

    def init(x: Array) -> tuple[Array, BallEvidence]:
        return x / _mass(x), _unmoved(x)

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, BallEvidence]:
        u, memory = init(x)
        return project(x, u, u + noise(key, x) / _mass(x), radius, memory)

    return FeasibleSet(init, random, decode, project, lambda x, u, memory: memory.cost)


def _sinkhorn(
    geometry: ott_geometry.Geometry,
    reg: float,
    cap: float | None,
    tolerance: float,
    max_iterations: int,
) -> Callable[[Array, Array, Array, BallEvidence], BallEvidence]:
    """(x, w, radius, memory) ↦ the projection of w, started from the duals of the one before."""
    check_positive("reg", reg)

    def nearest(x: Array, w: Array, radius: Array, memory: BallEvidence) -> BallEvidence:
        found = projected_sinkhorn(
            geometry, x, w, radius, reg, memory.duals,
            cap=cap, tolerance=tolerance, max_iterations=max_iterations,
        )  # fmt: skip
        return BallEvidence(found.duals, found.point, found.cost, found.converged, found.iterations)

    return nearest


def _mass(x: Array) -> Array:
    """Σx, and 1 for a blank image."""
    mass = jnp.sum(x)
    return jnp.where(mass > 0, mass, 1.0)


def noise(key: PRNGKeyArray, x: Array) -> Array:
    """Independent pixels, uniform on [−1, 1], of x's shape."""
    return jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)


def _unmoved(x: Array) -> BallEvidence:
    nothing = jnp.zeros((), x.dtype)
    duals = Duals(jnp.zeros_like(x), nothing)
    return BallEvidence(duals, x, nothing, jnp.ones((), bool), jnp.zeros((), jnp.int32))


def linf_ball() -> FeasibleSet:
    """Images within max|z − x| ≤ radius, in [0, 1]: the classical set, for comparison."""

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        return jnp.clip(jnp.clip(stepped, x - radius, x + radius), 0.0, 1.0), memory

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, Memory]:
        return jnp.clip(x + radius * noise(key, x), 0.0, 1.0), ()

    return FeasibleSet(
        lambda x: (x, ()), random, lambda x, u: u, project,
        lambda x, u, memory: jnp.max(jnp.abs(u - x)),
    )  # fmt: skip


def l2_ball() -> FeasibleSet:
    """Images within ‖z − x‖₂ ≤ radius, in [0, 1]: the classical set, for comparison.

    A step is drawn back to the sphere first, then clipped to [0, 1], as everybody does: inside
    both, and not the nearest such image.
    """

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: Memory
    ) -> tuple[Array, Memory]:
        change = stepped - x
        norm = euclidean_norm(change)
        share = jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1.0), 1.0)
        return jnp.clip(x + share * change, 0.0, 1.0), memory

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, Memory]:
        way, length = jax.random.split(key)
        change = jax.random.normal(way, x.shape, x.dtype)
        # Uniform in the ball: the volume within r grows with the number of pixels as its power.
        share = jax.random.uniform(length, (), x.dtype) ** (1.0 / x.size)
        return project(x, x, x + radius * share * change / euclidean_norm(change), radius, ())

    return FeasibleSet(
        lambda x: (x, ()),
        random,
        lambda x, u: u,
        project,
        lambda x, u, memory: euclidean_norm(u - x),
    )


def euclidean_norm(a: Array) -> Array:
    """‖a‖₂, whose squares neither overflow nor vanish."""
    largest = jnp.max(jnp.abs(a))
    scaled = a / jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt(jnp.sum(jnp.square(scaled)))
