"""Attack a classifier of Fashion-MNIST's clothes.

python -m experiments.attack_fashion_mnist
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.evaluation.attack import AttackOptions, attack
from experiments.harness.arguments import run_command
from experiments.harness.catalogue.attacks import AttackName


@dataclass(frozen=True)
class AttackFashionMnistConfig(AttackOptions):
    """Attack a classifier of clothes, and measure what the attack did by an independent solver.

    As attack_mnist, but for the dataset and its standard model, which is trained on the first run
    and cached; --attack unbalanced is the default, whose paper has this dataset.
    """

    data: Literal["fashion_mnist"] = "fashion_mnist"
    """The dataset; downloaded and prepared where it is not."""

    attack: AttackName = "unbalanced"


if __name__ == "__main__":
    sys.exit(run_command(attack, AttackFashionMnistConfig))
