"""The defences that the training commands know, an entry each.

A defence is added by its file in `wasserstein_adv.defenses` and an entry of `DEFENSES`; its options
are the fields of its settings, a NamedTuple whose docstrings are the options' help.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from experiments.harness.arguments import named
from experiments.harness.catalogue.datasets import DATASETS
from wasserstein_adv import defenses
from wasserstein_adv.attacks.unbalanced import TRAINING
from wasserstein_adv.attacks.wong import CIFAR10_TRAINING, MNIST_TRAINING
from wasserstein_adv.data import describe
from wasserstein_adv.recipes import Recipe


class DefenseEntry(NamedTuple):
    """A defence that the training commands know."""

    about: str
    """What it is, in a line of the commands' help."""
    build: Callable[[tuple[int, int], Any], defenses.Defense]
    """(grid_size, settings) ↦ the defence."""
    settings: Callable[[str], Any] = lambda data: None
    """dataset ↦ the settings of its attack, a NamedTuple; None for a defence without one."""
    recipe: Callable[[str], Recipe] = lambda data: DATASETS[data].recipe
    """dataset ↦ how a network is trained under it."""


def _recipe(data: str, usual: Recipe, **others: Recipe) -> Recipe:
    """A paper's recipe, with the dataset's own changes to colour images."""
    standard = DATASETS[data].recipe
    recipe = others.get(data, usual)
    if not describe(data).colour:
        return recipe
    return replace(recipe, padding=standard.padding, flip=standard.flip)


DEFENSES = {
    "plain": DefenseEntry(about="nothing", build=lambda grid_size, settings: defenses.plain()),
    "pgd": DefenseEntry(
        about="signed steps in an ℓ∞ ball (Madry et al. 2018)",
        build=lambda grid_size, settings: defenses.linf_training(settings),
        settings=lambda data: (
            defenses.LINF_CIFAR10 if describe(data).colour else defenses.LINF_MNIST
        ),
    ),
    # Appendix B: SGD at 0.1, later 0.01, in batches of 128.
    "wong": DefenseEntry(
        about="a Wasserstein ball that grows, image by image, until the network errs (Wong et al. "
        "2019)",
        build=defenses.wong_training,
        settings=lambda data: CIFAR10_TRAINING if describe(data).colour else MNIST_TRAINING,
        recipe=lambda data: _recipe(data, Recipe(20, 0.1, "sgd", "drop")),
    ),
    # Section V.A: SGD at 0.01 for 40 epochs on MNIST, at 0.0003 for 60 on Fashion-MNIST, Adam at
    # 0.0001 for 50 on Tiny ImageNet, with 2 steps of the attack there; MNIST's where it has none.
    "unbalanced": DefenseEntry(
        about="clean images, and answers to unbalanced-transport attacks kept near those to clean "
        "ones (Subramanyam)",
        build=defenses.unbalanced_training,
        settings=lambda data: TRAINING._replace(steps=2) if data == "tiny_imagenet" else TRAINING,
        recipe=lambda data: _recipe(
            data,
            Recipe(40, 0.01, "sgd", "constant"),
            fashion_mnist=Recipe(60, 3e-4, "sgd", "constant"),
            tiny_imagenet=Recipe(50, 1e-4, "adam", "constant"),
        ),
    ),
}


def defense_settings(defense: str, data: str | None = None) -> Any:
    """The settings of a defence's attack by its name and the dataset's; None if there are none."""
    entry = DEFENSES.get(defense)
    known = data if data in DATASETS else "mnist"
    return entry and entry.settings(known)


DefenseName = named(DEFENSES)
"""The type of an option that names one."""
