"""The attacks of Wu, Wang and Yu, *Stronger and Faster Wasserstein Adversarial Attacks* (2020).

What is moved is the coupling of the clean image and the adversarial one, either along its gradient
with the exact Euclidean projection, or by Frank-Wolfe steps. While it moves, its image may be
brighter than white, and the classifier is shown a clamped one; the image that counts is that of the
nearest coupling under which no pixel is.
"""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wasserstein_adv.attacks.first_order import FirstOrderAttack, FirstOrderOptions, first_order
from wasserstein_adv.attacks.methods import Method, frank_wolfe, linf_unit, pgd
from wasserstein_adv.attacks.schedules import constant
from wasserstein_adv.attacks.sets import FeasibleSet
from wasserstein_adv.checks import check_positive
from wasserstein_adv.geometry.costs import euclidean_power
from wasserstein_adv.geometry.grids import local_grid
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.projections.dual_projection import (
    CouplingDuals,
    column_sums,
    diagonal_plan,
    dual_projection,
)
from wasserstein_adv.projections.linear_oracle import linear_oracle


class CouplingEvidence(NamedTuple):
    """What a projection, or an oracle, and the last step leave behind."""

    psi: Float[Array, ""]
    """Multiplier of the budget: where the next projection, or oracle, starts."""
    duals: CouplingDuals
    """Where the next capacity-constrained projection starts."""
    point: Float[Array, "h w c"]
    """The image of the coupling; after the last step, the one that is returned."""
    cost: Float[Array, ""]
    """Cost of the coupling, at most the radius."""
    converged: Bool[Array, ""]
    """Whether the last step's projection, or oracle, and the final projection did."""
    iterations: Int[Array, ""]
    """Of the final projection."""


def couplings(
    geometry: LocalGrid, reg: float = 1000.0, *, tolerance: float = 1e-3, max_iterations: int = 200
) -> FeasibleSet:
    """Couplings of x inside a Wasserstein budget; in the end, those whose image is in [0, 1].

    The variable is the coupling, (taps, H, W, C) in intensities, see `dual_projection`. `project`
    is its exact Euclidean projection, `lmo` the entropic linear minimisation oracle, and `finish`
    the Euclidean projection with a capacity of 1 for every pixel.

    Args:
      geometry: where mass may move, and at what cost.
      reg: 1/γ, weight of the oracle's linear function, its largest slope scaled to 1, against the
        coupling's entropy.
      tolerance, max_iterations: as for `dual_projection`; every coupling is feasible whatever they
        are.

    Raises:
      InputError: `reg` is not positive and finite.
    """
    check_positive("reg", reg)

    def init(x: Array) -> tuple[Array, CouplingEvidence]:
        nothing = jnp.zeros((), x.dtype)
        duals = CouplingDuals(nothing, jnp.zeros_like(x))
        yes, none = jnp.ones((), bool), jnp.zeros((), jnp.int32)
        evidence = CouplingEvidence(nothing, duals, x, nothing, yes, none)
        return diagonal_plan(geometry, x), evidence

    def decode(x: Array, u: Array) -> Array:
        image = column_sums(geometry, u)
        # `minimum` would halve the gradient of a pixel that is just white.
        return jnp.where(image > 1.0, 1.0, image)

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: CouplingEvidence
    ) -> tuple[Array, CouplingEvidence]:
        start = CouplingDuals(memory.psi, jnp.zeros_like(x))
        found = dual_projection(geometry, x, stepped, radius, start, tolerance=tolerance)
        return found.plan, memory._replace(
            psi=found.duals.budget, point=found.point, cost=found.cost,
            converged=found.converged, iterations=found.iterations,
        )  # fmt: skip

    def lmo(
        x: Array, u: Array, gradient: Array, radius: Array, memory: CouplingEvidence
    ) -> tuple[Array, CouplingEvidence]:
        # A pixel that stays in place arrives where it was: its tap has the image's gradient.
        home = diagonal_plan(geometry, jnp.ones_like(x))
        y = -jnp.sum(home * gradient, axis=0)
        steepest = jnp.max(jnp.abs(y))
        y = y / jnp.where(steepest > 0, steepest, 1.0)
        found = linear_oracle(geometry, x, y, radius, reg, memory.psi, tolerance=tolerance)
        plan: Any = sum(
            share * _split(geometry, x, found.reg * y, found.reg * price)
            for price, share in zip(found.prices, found.shares, strict=True)
        )
        return plan, memory._replace(
            psi=found.psi, converged=found.converged, iterations=found.iterations
        )

    def finish(
        x: Array, u: Array, radius: Array, memory: CouplingEvidence
    ) -> tuple[Array, CouplingEvidence]:
        # The clean image's radius is 0, and nothing has moved yet.
        moved = radius > 0
        found = dual_projection(
            geometry, x, u, jnp.where(moved, radius, 1.0), memory.duals,
            cap=1.0, tolerance=tolerance, max_iterations=max_iterations,
        )  # fmt: skip
        image = jnp.where(moved, jnp.clip(found.point, 0.0, 1.0), x)
        return image, memory._replace(
            duals=found.duals, point=image, cost=jnp.where(moved, found.cost, 0.0),
            converged=memory.converged & (found.converged | ~moved), iterations=found.iterations,
        )  # fmt: skip

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, CouplingEvidence]:
        u, memory = init(x)
        return project(x, u, u + jax.random.uniform(key, u.shape, u.dtype), radius, memory)

    return FeasibleSet(init, random, decode, project, lambda x, u, memory: memory.cost, lmo, finish)


def _split(geometry: LocalGrid, x: Array, beta: Array, psi: Array) -> Array:
    """The coupling that splits x_i in proportion to exp(β_j − ψC_ij); at ψ = ∞, x_i stays."""

    def scores(beta: Array) -> Array:
        groups = geometry.neighbours(beta, -jnp.inf)
        # Staying is free, at any price.
        dues = [(psi * cost if cost else 0.0, shifts) for cost, shifts in groups]
        return jnp.stack([there - due for due, shifts in dues for there in shifts])

    return x * jax.nn.softmax(jax.vmap(scores, in_axes=-1, out_axes=-1)(beta), axis=0)


class ProjectionProtocol(NamedTuple):
    """Settings of the attack by projected gradients. Units: pixels for the window, fractions of the
    image's mass times pixels^p for the radius, intensities for the step."""

    radius: float = 0.5
    """ε, the same in every step."""
    steps: int = 300
    """Gradient steps at most."""
    step_size: float = 0.1
    """Length of the step along the gradient, in the entry of the coupling that changes most."""
    window: int = 5
    """Side of the window in which mass may move, in pixels, odd."""
    p: float = 1.0
    """Exponent of the Euclidean ground cost."""


class FrankWolfeProtocol(NamedTuple):
    """Settings of the attack by Frank-Wolfe steps, in the same units."""

    radius: float = 0.5
    """ε, the same in every step."""
    steps: int = 300
    """Gradient steps at most."""
    reg: float = 1000.0
    """1/γ, weight of the gradient, its largest entry scaled to 1, against the entropy."""
    window: int = 5
    """Side of the window in which mass may move, in pixels, odd."""
    p: float = 1.0
    """Exponent of the Euclidean ground cost."""


PROJECTION_MNIST = ProjectionProtocol()
"""Evaluation on MNIST, as the published script has it."""
PROJECTION_CIFAR10 = ProjectionProtocol(radius=0.005, step_size=0.01)
"""Evaluation on CIFAR-10, as the published script has it."""
FRANK_WOLFE_MNIST = FrankWolfeProtocol()
"""Evaluation on MNIST, as the published script has it."""
FRANK_WOLFE_CIFAR10 = FrankWolfeProtocol(radius=0.005)
"""Evaluation on CIFAR-10, as the published script has it."""


def wu_projection(
    grid_size: tuple[int, int],
    protocol: ProjectionProtocol = PROJECTION_MNIST,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Gradient steps of the coupling with its Euclidean projection, "PGD with dual projection".

    Args:
      grid_size: (H, W) of the images.
      protocol: the settings, `PROJECTION_MNIST` by default.
      **first_order_options: `objective`, `keep`, `targeted`, `random_start`, `restarts` as for
        `first_order`.

    Raises:
      InputError: an even window, numbers out of range, no steps.
    """
    check_positive("step_size", protocol.step_size)
    feasible = couplings(_window(grid_size, protocol))
    return _within(feasible, pgd(linf_unit(protocol.step_size)), protocol, first_order_options)


def wu_frank_wolfe(
    grid_size: tuple[int, int],
    protocol: FrankWolfeProtocol = FRANK_WOLFE_MNIST,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Frank-Wolfe steps of the coupling with the entropic oracle, "Frank-Wolfe with dual LMO".

    Args:
      grid_size, protocol, **first_order_options: as for `wu_projection`.

    Raises:
      InputError: as `wu_projection`.
    """
    feasible = couplings(_window(grid_size, protocol), protocol.reg)
    return _within(feasible, frank_wolfe(), protocol, first_order_options)


def _window(
    grid_size: tuple[int, int], protocol: ProjectionProtocol | FrankWolfeProtocol
) -> LocalGrid:
    return local_grid(grid_size, euclidean_power(protocol.p), protocol.window)


def _within(
    feasible: FeasibleSet,
    method: Method,
    protocol: ProjectionProtocol | FrankWolfeProtocol,
    options: FirstOrderOptions,
) -> FirstOrderAttack:
    check_positive("radius", protocol.radius)
    radius = constant(protocol.radius)
    return first_order(feasible, method, radius=radius, steps=protocol.steps, **options)
