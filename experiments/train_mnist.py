"""Train the network of Wong & Kolter (2018) on MNIST, to be attacked by the other commands.

python -m experiments.train_mnist --out runs/mnist
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from experiments._cli import run_command
from experiments._training import (
    RECIPES,
    TrainConfig,
    accuracy,
    check_free,
    progress_bar,
    save,
    train,
)
from wasserstein_adv.data import load, resolve
from wasserstein_adv.models import WongKolterCNN


@dataclass(frozen=True)
class TrainMnistConfig:
    """Train the network of Wong & Kolter on clean images; what is not given is the standard."""

    data: Literal["auto", "mnist", "mnist-5k"] = "auto"
    """The dataset; auto takes mnist where it is prepared, and else the 5,000 digits."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    epochs: int | None = None
    """Passes over the training images."""

    learning_rate: float | None = None
    """Adam's highest learning rate; it rises to it and falls again along a cosine."""

    batch_size: int | None = None
    """Images in a batch."""

    seed: int = 0
    """Seed of the weights, the order of the images and their shifts."""

    out: Path | None = None
    """Folder for the weights, an Orbax checkpoint; it must not exist or be empty."""


def main(config: TrainMnistConfig) -> None:
    """Train, print the accuracies and save the weights.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; the data cannot be loaded; or `out` is not empty or
            cannot be written.
    """
    if config.out is not None:
        check_free(config.out)
    name = resolve(config.data, config.data_dir)
    recipe = _recipe(name, config)
    model = WongKolterCNN()
    training = load(name, "train", config.data_dir)
    test = load(name, "test", config.data_dir)

    start = time.perf_counter()
    with progress_bar(f"training on {name}") as show:
        variables = train(model, training, recipe, show)
    seconds = time.perf_counter() - start
    if config.out is not None:
        save(config.out, variables)

    table = Table(title=f"{name}, {recipe.epochs} epochs in {seconds:.1f} s")
    table.add_column("split")
    table.add_column("images", justify="right")
    table.add_column("accuracy", justify="right")
    for split, dataset in (("train", training), ("test", test)):
        share = accuracy(model, variables, dataset)
        table.add_row(split, f"{len(dataset.labels):,}", f"{share:.2%}")
    Console().print(table)
    if config.out is not None:
        print(f"weights saved at {config.out}")


def _recipe(name: str, config: TrainMnistConfig) -> TrainConfig:
    """Return the dataset's standard recipe with the options that were given in its place."""
    options = ("epochs", "learning_rate", "batch_size", "seed")
    given = {option: getattr(config, option) for option in options}
    changes = {option: value for option, value in given.items() if value is not None}
    return dataclasses.replace(RECIPES[name], **changes)


if __name__ == "__main__":
    sys.exit(run_command(main, TrainMnistConfig))
