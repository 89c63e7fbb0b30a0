"""Train a classifier of CIFAR-10's photographs, with or without a defence.

python -m experiments.train_cifar10 --defense wong
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.harness.arguments import run_command
from experiments.training.command import run_training
from experiments.training.options import TrainOptions


@dataclass(frozen=True)
class TrainCifar10Config(TrainOptions):
    """Train a ResNet-18 on CIFAR-10, to be attacked by the other commands.

    As train_mnist, but for the dataset and its network.
    """

    data: Literal["cifar10"] = "cifar10"
    """The dataset; downloaded and prepared where it is not."""


if __name__ == "__main__":
    sys.exit(run_command(run_training, TrainCifar10Config))
