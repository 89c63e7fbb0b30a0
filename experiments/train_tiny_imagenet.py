"""Train a classifier of Tiny ImageNet's photographs, with or without a defence.

python -m experiments.train_tiny_imagenet --defense wong
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.harness.arguments import run_command
from experiments.training.command import run_training
from experiments.training.options import TrainOptions


@dataclass(frozen=True)
class TrainTinyImagenetConfig(TrainOptions):
    """Train a ResNet-50 on Tiny ImageNet, to be attacked by the other commands.

    As train_mnist, but for the dataset and its network.
    """

    data: Literal["tiny_imagenet"] = "tiny_imagenet"
    """The dataset; downloaded and prepared where it is not."""


if __name__ == "__main__":
    sys.exit(run_command(run_training, TrainTinyImagenetConfig))
