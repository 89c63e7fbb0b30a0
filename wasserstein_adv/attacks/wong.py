"""The projected Sinkhorn attack of Wong, Schmidt and Kolter (2019), with its protocols."""

from typing import Literal, NamedTuple, Unpack

from wasserstein_adv.attacks.first_order import FirstOrderAttack, FirstOrderOptions, first_order
from wasserstein_adv.attacks.methods import pgd, sign
from wasserstein_adv.attacks.schedules import growing
from wasserstein_adv.attacks.sets import wasserstein_ball
from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.costs import euclidean_power
from wasserstein_adv.geometry.grids import local_grid


class WongProtocol(NamedTuple):
    """Settings of the attack. Units: pixels for the window, fractions of the image's mass times
    pixels^p for radii, [0, 1] intensities for the step."""

    start_radius: float = 0.3
    """Radius ε of the first step."""
    growth: float = 1.1
    """Factor by which the radius grows,"""
    grow_every: int = 10
    """once in so many steps."""
    steps: int = 200
    """Gradient steps at most."""
    step_size: float = 0.1
    """Length of the ℓ∞ sign step."""
    reg: float = 1000.0
    """λ, the projection's weight on the distance against the plan's entropy."""
    window: int = 5
    """Side of the window in which mass may move, in pixels, odd."""
    p: float = 1.0
    """Exponent of the Euclidean ground cost."""
    white: Literal["capped", "clamped"] = "capped"
    """How pixels are kept below white: capped in the projection, so that images are inside the ball
    as they are, or clamped after it, as published, which can lead out."""


MNIST = WongProtocol()
"""Evaluation on MNIST: section 5, but inside the ball."""
MNIST_SCRIPT = WongProtocol(start_radius=0.7, window=7, p=2.0, white="clamped")
"""Evaluation on MNIST as the published script has it."""
MNIST_TRAINING = WongProtocol(start_radius=0.1, growth=1.4, grow_every=5, steps=50, white="clamped")
"""Adversarial training on MNIST: appendix B.1."""
CIFAR10 = WongProtocol(start_radius=0.001, growth=1.17, steps=400, reg=3000.0)
"""Evaluation on CIFAR-10: section 5, but inside the ball."""
CIFAR10_TRAINING = WongProtocol(
    start_radius=0.01, growth=1.5, grow_every=5, steps=50, reg=3000.0, white="clamped"
)
"""Adversarial training on CIFAR-10: appendix B.2."""


def wong(
    grid_size: tuple[int, int],
    protocol: WongProtocol = MNIST,
    *,
    max_iterations: int = 300,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Signed gradient steps projected on a Wasserstein ball that grows until the image is fooled.

    Algorithm 1 with the projection of Algorithm 2, under an evaluation protocol of section 5. An
    image's radius is that of the ball in which it was first misclassified.

    Args:
      grid_size: (H, W) of the images.
      protocol: the settings, `MNIST` by default.
      max_iterations: of one projection. Its point is in the ball after any number, and it starts
        from the duals of the one before, so that training gets by with few.
      **first_order_options: `objective`, `keep`, `targeted`, `random_start`, `restarts` as for
        `first_order`.

    Raises:
      InputError: an even window, numbers out of range, no steps, another `white`.
    """
    if protocol.white not in ("capped", "clamped"):
        raise InputError(f"white must be capped or clamped, got {protocol.white!r}")
    for name in ("start_radius", "growth", "step_size"):
        check_positive(name, getattr(protocol, name))
    if protocol.grow_every < 1:
        raise InputError(f"grow_every must be 1 or more, got {protocol.grow_every}")
    geometry = local_grid(grid_size, euclidean_power(protocol.p), protocol.window)
    cap = 1.0 if protocol.white == "capped" else None
    return first_order(
        wasserstein_ball(geometry, protocol.reg, cap=cap, max_iterations=max_iterations),
        pgd(sign(protocol.step_size)),
        radius=growing(protocol.start_radius, protocol.growth, protocol.grow_every),
        steps=protocol.steps,
        **first_order_options,
    )
