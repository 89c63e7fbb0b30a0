"""The unbalanced-transport attack: gradient steps, each drawn back by `unbalanced_sinkhorn`."""

import math
from typing import Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from ott.geometry import geometry as ott_geometry

from wasserstein_adv.attacks.first_order import FirstOrderAttack, FirstOrderOptions, first_order
from wasserstein_adv.attacks.keep import last
from wasserstein_adv.attacks.methods import l2_unit, pgd, sign
from wasserstein_adv.attacks.schedules import constant
from wasserstein_adv.attacks.sets import FeasibleSet
from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.costs import minkowski, unit_square
from wasserstein_adv.geometry.grids import dense_grid, separable_grid
from wasserstein_adv.projections.unbalanced_sinkhorn import (
    Rule,
    exact,
    published,
    unbalanced_sinkhorn,
)


class UnbalancedEvidence(NamedTuple):
    """What an unbalanced projection leaves behind."""

    point: Float[Array, "h w c"]
    """The projection, before it was clamped to [0, 1]."""
    cost: Float[Array, ""]
    """⟨Π, C⟩/ΣΠ: what the paper compares with ε."""
    moved: Float[Array, ""]
    """Share of the plan's mass that leaves its pixel."""
    unmatched: Float[Array, ""]
    """Mass deleted and created, as a share of the clean image's."""
    residual: Float[Array, ""]
    converged: Bool[Array, ""]
    iterations: Int[Array, ""]


def unbalanced_neighbourhood(
    geometry: ott_geometry.Geometry,
    eta: float = 1e-3,
    tau: float = 1e-2,
    gamma: float = 0.5,
    *,
    rule: Rule = exact,
    tolerance: float = 1e-3,
    max_iterations: int = 10,
    noise: float = 0.02,
) -> FeasibleSet:
    """Where unbalanced transport draws a step back to; then in [0, 1].

    Not a ball: η, τ and γ say how strongly a step is drawn back, and nothing bounds the distance.
    The paper stops its iterations once ⟨Π, C⟩/ΣΠ is below the radius, which at its settings already
    holds after one; so the number of iterations is fixed, the radius is not used, and `distance` is
    that quantity, to be compared with the radius afterwards.

    Args:
      geometry: where mass may move, and at what cost.
      eta, tau, gamma, rule, tolerance, max_iterations: as for `unbalanced_sinkhorn`.
      noise: a random start is drawn back from uniform noise of this amplitude: there is no ball
        that it could be uniform on.

    Raises:
      InputError: η, τ or γ is not positive and finite.
    """
    for name, value in (("eta", eta), ("tau", tau), ("gamma", gamma)):
        check_positive(name, value)

    def init(x: Array) -> tuple[Array, UnbalancedEvidence]:
        nothing = jnp.zeros((), x.dtype)
        yes, none = jnp.ones((), bool), jnp.zeros((), jnp.int32)
        return x, UnbalancedEvidence(x, nothing, nothing, nothing, nothing, yes, none)

    def project(
        x: Array, u: Array, stepped: Array, radius: Array, memory: UnbalancedEvidence
    ) -> tuple[Array, UnbalancedEvidence]:
        found = unbalanced_sinkhorn(
            geometry, x, stepped, eta, tau, gamma,
            rule=rule, tolerance=tolerance, max_iterations=max_iterations,
        )  # fmt: skip
        evidence = UnbalancedEvidence(
            found.point, found.cost, found.moved, found.unmatched, found.residual, found.converged,
            found.iterations,
        )  # fmt: skip
        return jnp.clip(found.point, 0.0, 1.0), evidence

    def random(key: PRNGKeyArray, x: Array, radius: Array) -> tuple[Array, UnbalancedEvidence]:
        u, memory = init(x)
        away = jax.random.uniform(key, x.shape, x.dtype, -noise, noise)
        return project(x, u, x + away, radius, memory)

    return FeasibleSet(init, random, lambda x, u: u, project, lambda x, u, memory: memory.cost)


class UnbalancedProtocol(NamedTuple):
    """Settings of the attack; units of cost are those of distances in [0, `scale`]²."""

    steps: int = 10
    """Gradient steps; each image gets all of them unless the first success is kept."""
    step_size: float = 0.02
    """Length of a step: of every pixel for "linf", of the whole image for "l2"."""
    norm: Literal["linf", "l2"] = "linf"
    """Sign steps, or steps along the gradient."""
    iterations: int = 10
    """Sinkhorn iterations at most after each step."""
    eta: float = 1e-3
    """η, weight of the plan's entropy."""
    tau: float = 1e-2
    """τ, price of mass that appears or disappears."""
    gamma: float = 0.5
    """γ, weight of the distance to the stepped image."""
    p: float = 1.0
    """Exponent of the ground cost (|Δrow|^p + |Δcol|^p)^(1/p)."""
    scale: float = 1.0
    """Length of the image's side in units of cost."""
    radius: float = 0.2
    """ε: what ⟨Π, C⟩/ΣΠ is compared with."""
    variant: Literal["exact", "published"] = "exact"
    """exact solves the stated problem; published is the paper's iteration."""
    floor: float = 1e-10
    """What stands for a zero pixel under the logarithm, in the published variant only."""


PAPER = UnbalancedProtocol()
"""Section V of the paper: no mass is transported at these settings."""
TRAINING = PAPER._replace(steps=20)
"""Adversarial training: section V.A."""
TRANSPORT = UnbalancedProtocol(step_size=0.05, iterations=100, tau=0.3, scale=0.2)
"""Settings at which most of what the attack changes has been moved, not deleted and created."""


def unbalanced(
    grid_size: tuple[int, int],
    protocol: UnbalancedProtocol = PAPER,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Gradient steps drawn back by unbalanced transport, under a protocol of the paper.

    Args:
      grid_size: (H, W) of the images.
      protocol: the settings, `PAPER` by default. p = 1 is the Manhattan distance, in O(H·W);
        other exponents need a dense (H·W)² matrix.
      **first_order_options: `objective`, `keep`, `targeted`, `random_start`, `restarts` as for
        `first_order`; the paper gives every image all steps, so `keep` is `last()` by default.

    Raises:
      InputError: an unknown norm or variant, or numbers out of range.
    """
    rules = {"exact": lambda: exact, "published": lambda: published(protocol.floor)}
    methods = {"linf": sign, "l2": l2_unit}
    if protocol.variant not in rules:
        raise InputError(f"variant must be exact or published, got {protocol.variant!r}")
    if protocol.norm not in methods:
        raise InputError(f"norm must be linf or l2, got {protocol.norm!r}")
    for name in ("step_size", "p", "scale", "radius", "floor"):
        check_positive(name, getattr(protocol, name))
    if protocol.variant == "exact" and protocol.floor != PAPER.floor:
        raise InputError("floor is for the variant published")
    if protocol.iterations < 1:
        raise InputError(f"iterations must be 1 or more, got {protocol.iterations}")
    row, col = unit_square(*grid_size)
    unit = (protocol.scale * row, protocol.scale * col)
    geometry: ott_geometry.Geometry
    if protocol.p == 1:
        geometry = separable_grid(grid_size, 1.0, unit)
    else:
        geometry = dense_grid(grid_size, minkowski(protocol.p), unit=unit)
    # Random starts are about a step away: of every pixel, or of the image.
    spread = 1.0 if protocol.norm == "linf" else math.prod(grid_size) ** -0.5
    neighbourhood = unbalanced_neighbourhood(
        geometry, protocol.eta, protocol.tau, protocol.gamma,
        rule=rules[protocol.variant](), max_iterations=protocol.iterations,
        noise=protocol.step_size * spread,
    )  # fmt: skip
    options: FirstOrderOptions = {"keep": last(), **first_order_options}
    return first_order(
        neighbourhood,
        pgd(methods[protocol.norm](protocol.step_size)),
        radius=constant(protocol.radius),
        steps=protocol.steps,
        **options,
    )
