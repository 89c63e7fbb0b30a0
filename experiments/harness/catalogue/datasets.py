"""The datasets and networks that the commands know, an entry each.

A dataset is added by its recipe in `wasserstein_adv.data.recipes` and an entry of `DATASETS`, a
network by its file in `wasserstein_adv.models` and an entry of `MODELS` there.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from wasserstein_adv.data import describe
from wasserstein_adv.models import MODELS


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the defence.

    Attributes:
        epochs: Passes over the images, each in another order; those that come last in one and do
            not fill a batch are left out of it.
        learning_rate: The highest rate.
        optimizer: "adam", or "sgd" with momentum 0.9 and a weight decay of 0.0005.
        schedule: "one-cycle" rises to the rate over the first fifth of the steps and falls to
            nearly zero over the rest, both along a cosine, or is constant where there are fewer
            than five steps; "drop" divides it by ten after half of them; "constant" leaves it.
        batch_size: Images in a batch, over all devices; at most as many as there are.
        padding: Every image is moved by up to so many pixels along either axis, at random and
            filled up with zeros; 0 for none.
        flip: Whether half of the images, at random, are mirrored.
        seed: Of the first weights, the order of the images, and all else that is random.
    """

    epochs: int
    learning_rate: float
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["one-cycle", "drop", "constant"] = "one-cycle"
    batch_size: int = 128
    padding: int = 0
    flip: bool = False
    seed: int = 0


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
