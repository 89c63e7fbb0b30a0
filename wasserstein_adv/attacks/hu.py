"""The capped projected Sinkhorn attack of Hu, Swaminathan, Salman and Yang (2020)."""

from typing import NamedTuple, Unpack

from wasserstein_adv.attacks.first_order import FirstOrderAttack, FirstOrderOptions, first_order
from wasserstein_adv.attacks.methods import linf_unit, pgd
from wasserstein_adv.attacks.schedules import linear
from wasserstein_adv.attacks.sets import capped_ball
from wasserstein_adv.checks import check_positive
from wasserstein_adv.geometry.costs import euclidean_power
from wasserstein_adv.geometry.grids import local_grid


class HuProtocol(NamedTuple):
    """Settings of the attack. Units: pixels for the window, fractions of the image's mass times
    pixels^p for radii, shares of the image's mass for the step."""

    increment: float = 0.01
    """Growth of the radius ε in every step, from this."""
    steps: int = 200
    """Gradient steps at most."""
    step_size: float = 0.06
    """Length of the step along the gradient, in the pixel that changes most."""
    reg: float = 1000.0
    """λ, the projection's weight on the distance against the plan's entropy."""
    window: int = 5
    """Side of the window in which mass may move, in pixels, odd."""
    p: float = 1.0
    """Exponent of the Euclidean ground cost."""


MNIST = HuProtocol()
"""Evaluation on MNIST."""
CIFAR10 = HuProtocol(increment=0.001, steps=400, step_size=0.02, reg=3000.0)
"""Evaluation on CIFAR-10: the step is 0.06 over three channels."""


def hu(
    grid_size: tuple[int, int],
    protocol: HuProtocol = MNIST,
    **first_order_options: Unpack[FirstOrderOptions],
) -> FirstOrderAttack:
    """Gradient steps projected on a capped Wasserstein ball that grows until the image is fooled.

    Args:
      grid_size: (H, W) of the images.
      protocol: the settings, `MNIST` by default.
      **first_order_options: `objective`, `keep`, `targeted`, `random_start`, `restarts` as for
        `first_order`.

    Raises:
      InputError: an even window, numbers out of range, no steps.
    """
    for name in ("increment", "step_size"):
        check_positive(name, getattr(protocol, name))
    geometry = local_grid(grid_size, euclidean_power(protocol.p), protocol.window)
    return first_order(
        capped_ball(geometry, protocol.reg),
        pgd(linf_unit(protocol.step_size)),
        radius=linear(protocol.increment),
        steps=protocol.steps,
        **first_order_options,
    )
