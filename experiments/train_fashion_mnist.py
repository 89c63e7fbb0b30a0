"""Train a classifier of Fashion-MNIST's clothes, with or without a defence.

python -m experiments.train_fashion_mnist --defense wong
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.harness.arguments import run_command
from experiments.training.command import run_training
from experiments.training.options import TrainOptions


@dataclass(frozen=True)
class TrainFashionMnistConfig(TrainOptions):
    """Train the network of Wong & Kolter on Fashion-MNIST, to be attacked by the other commands.

    As train_mnist, but for the dataset and its network.
    """

    data: Literal["fashion_mnist"] = "fashion_mnist"
    """The dataset; downloaded and prepared where it is not."""


if __name__ == "__main__":
    sys.exit(run_command(run_training, TrainFashionMnistConfig))
