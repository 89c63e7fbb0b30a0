"""The papers' defences with their settings."""

from typing import NamedTuple

from wasserstein_adv.attacks import constant, first_order, last, linf_ball, pgd, sign
from wasserstein_adv.attacks.unbalanced import TRAINING, UnbalancedProtocol, unbalanced
from wasserstein_adv.attacks.wong import MNIST_TRAINING, WongProtocol, wong
from wasserstein_adv.checks import check_positive
from wasserstein_adv.defenses.defense import Defense, adversarial_training, consistency

_ITERATIONS = 5
"""Of a projection in training. In the ball after any number; on MNIST five fool as many images as
iterating to a residual of 1e-3 does."""


class LinfProtocol(NamedTuple):
    """Projected gradient descent in an ℓ∞ ball, in intensities."""

    radius: float = 0.3
    """ε."""
    step_size: float = 0.01
    """Length of the sign step."""
    steps: int = 40
    """Gradient steps."""


LINF_MNIST = LinfProtocol()
"""Madry et al. (2018), MNIST."""
LINF_CIFAR10 = LinfProtocol(8 / 255, 2 / 255, 7)
"""Madry et al. (2018), CIFAR-10."""


def linf_training(protocol: LinfProtocol = LINF_MNIST) -> Defense:
    """Adversarial training in an ℓ∞ ball, from a random start: Madry et al. (2018).

    Args:
      protocol: the settings.

    Raises:
      InputError: numbers out of range, no steps.
    """
    for name in ("radius", "step_size"):
        check_positive(name, getattr(protocol, name))
    attack = first_order(
        linf_ball(), pgd(sign(protocol.step_size)), radius=constant(protocol.radius),
        steps=protocol.steps, keep=last(), random_start=True,
    )  # fmt: skip
    return adversarial_training(attack)


def wong_training(grid_size: tuple[int, int], protocol: WongProtocol = MNIST_TRAINING) -> Defense:
    """Adversarial training in a growing Wasserstein ball: Wong et al. (2019), appendix B.

    Every image is replaced by the first adversarial one on its way through balls that grow until
    the network errs, or by the last iterate where it never does.

    Args:
      grid_size: (H, W) of the images.
      protocol: the settings, `MNIST_TRAINING` by default.

    Raises:
      InputError: as `wong`.
    """
    return adversarial_training(wong(grid_size, protocol, max_iterations=_ITERATIONS))


def unbalanced_training(
    grid_size: tuple[int, int], protocol: UnbalancedProtocol = TRAINING
) -> Defense:
    """Training on clean images with the answers to adversarial ones kept near: Subramanyam, V.A.

    λ = 0.9, noise of 0.01, 20 steps of the unbalanced attack.

    Args:
      grid_size: (H, W) of the images.
      protocol: the attack's settings, `TRAINING` by default.

    Raises:
      InputError: as `unbalanced`.
    """
    return consistency(unbalanced(grid_size, protocol))
