"""Defences: what a network is trained on, and what its answers cost it."""

from wasserstein_adv.defenses.defense import (
    ADVERSARIAL,
    CLEAN,
    Answers,
    Defense,
    Views,
    adversarial_training,
    consistency,
    plain,
)
from wasserstein_adv.defenses.papers import (
    LINF_CIFAR10,
    LINF_MNIST,
    LinfProtocol,
    linf_training,
    unbalanced_training,
    wong_training,
)

__all__ = [
    "ADVERSARIAL",
    "CLEAN",
    "LINF_CIFAR10",
    "LINF_MNIST",
    "Answers",
    "Defense",
    "LinfProtocol",
    "Views",
    "adversarial_training",
    "consistency",
    "linf_training",
    "plain",
    "unbalanced_training",
    "wong_training",
]
