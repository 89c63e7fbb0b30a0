"""An attack by exact projections onto the Wasserstein ball: mass that flows on the pixel grid."""

from typing import NamedTuple, Unpack

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wasserstein_adv.attacks.first_order import FirstOrderAttack, FirstOrderOptions, first_order
from wasserstein_adv.attacks.methods import linf_unit, pgd
from wasserstein_adv.attacks.schedules import growing
from wasserstein_adv.attacks.sets import FeasibleSet, noise
from wasserstein_adv.checks import check_positive
from wasserstein_adv.projections.flow_projection import FlowState, flow_projection


class FlowEvidence(NamedTuple):
    """What a flow projection leaves behind."""

    state: FlowState
    """Where the next projection starts; its flow carries the clean image to `point`."""
    point: Float[Array, "h w c"]
    """The projection, which is the image."""
    cost: Float[Array, ""]
    """Length of that flow over the clean image's mass, at most the radius."""
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


def flow_ball(*, tolerance: float = 0.1, max_iterations: int = 200) -> FeasibleSet:
    """Images in [0, 1] within a Wasserstein distance of x, at the cost |Δrow| + |Δcol| in pixels.

    The exact ball, to anywhere, and the exact projection on it (`flow_projection`): no entropy, no
    window and no clamp. Projections start from the flow and the potential of the one before.

    Args:
      tolerance, max_iterations: as for `flow_projection`; every point is feasible whatever they
        are. The tolerance is on a bound that holds for certain, many times the error itself.
    """

    def init(x: Array) -> tuple[Array, FlowEvidence]:
        nothing = jnp.zeros((), x.dtype)
        state = FlowState(jnp.zeros((2, *x.shape), x.dtype), jnp.zeros_like(x), nothing + 1.0)
        yes, none = jnp.ones((), bool), jnp.zeros((), jnp.int32)
        return x, FlowEvidence(state, x, nothing, nothing, yes, none)

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: FlowEvidence
    ) -> tuple[Array, FlowEvidence]:
        found = flow_projection(
            x, stepped, radius, memory.state, tolerance=tolerance, max_iterations=max_iterations
        )
        evidence = FlowEvidence(
            found.state, found.point, found.cost, found.residual, found.converged, found.iterations
        )
        return found.point, evidence

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, FlowEvidence]:
        u, memory = init(x)
        return project(x, u, x + noise(key, x), radius, memory)

    return FeasibleSet(init, random, lambda x, u: u, project, lambda x, u, memory: memory.cost)


class FlowProtocol(NamedTuple):
    """Settings of the attack. Units: pixels times fractions of the image's mass for radii."""

    start_radius: float = 0.001
    """Radius ε of the first step."""
    growth: float = 1.03
    """Factor by which the radius grows in every step."""
    steps: int = 285
    """Gradient steps at most."""
    step_size: float = 0.7
    """Length of the step along the gradient at radius 1, in the intensity of the pixel that changes
    most. It goes with √ε: one length for all is too short for large balls or too long for small
    ones, and one in proportion to ε too short for small ones."""


MNIST = FlowProtocol()
"""Evaluation on MNIST."""


def flow(
    grid_size: tuple[int, int],
    protocol: FlowProtocol = MNIST,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Gradient steps projected on the flow ball, which grows until the image is fooled.

    Args:
      grid_size: (H, W) of the images; the ball is the same on all.
      protocol: the settings, `MNIST` by default.
      **first_order_options: `objective`, `keep`, `targeted`, `random_start`, `restarts` as for
        `first_order`.

    Raises:
      InputError: numbers out of range, no steps.
    """
    del grid_size  # here so that every attack is built alike
    for name in ("start_radius", "growth", "step_size"):
        check_positive(name, getattr(protocol, name))
    radius = growing(protocol.start_radius, protocol.growth, 1)
    step = optax.chain(
        linf_unit(protocol.step_size),
        optax.scale_by_schedule(lambda count: jnp.sqrt(radius(count))),
    )
    return first_order(
        flow_ball(),
        pgd(step),
        radius=radius,
        steps=protocol.steps,
        **first_order_options,
    )
