"""The datasets and networks that the commands know, an entry each.

A dataset is added by its recipe in `wasserstein_adv.data.recipes` and an entry of `DATASETS`, a
network by its file in `wasserstein_adv.models` and an entry of `MODELS` there.
"""

from typing import Literal, NamedTuple

from wasserstein_adv.data import describe
from wasserstein_adv.models import MODELS
from wasserstein_adv.recipes import Recipe


class DataEntry(NamedTuple):
    """What the commands take with a dataset where nothing else is said."""

    model: str
    """The network that the papers use with it."""
    recipe: Recipe
    """How that is trained, without a defence."""


DATASETS = {
    "mnist": DataEntry("wong-kolter", Recipe(epochs=6, learning_rate=4e-3, padding=2)),
    "mnist-5k": DataEntry("wong-kolter", Recipe(20, 4e-3, batch_size=64, padding=2)),
    "fashion_mnist": DataEntry("wong-kolter", Recipe(epochs=6, learning_rate=4e-3, padding=1)),
    "cifar10": DataEntry("resnet18", Recipe(30, 0.1, "sgd", padding=4, flip=True)),
    "cifar100": DataEntry("resnet18", Recipe(30, 0.1, "sgd", padding=4, flip=True)),
    "svhn": DataEntry("resnet18", Recipe(15, 0.05, "sgd", padding=4)),
    "tiny_imagenet": DataEntry("resnet50", Recipe(50, 1e-3, padding=8, flip=True)),
}

ModelName = Literal[tuple(MODELS)]
DataName = Literal[("auto", *DATASETS)]
GreyName = Literal[("auto", *(name for name in DATASETS if not describe(name).colour))]
"""The types of options that name one; auto: the MNIST that there is."""
