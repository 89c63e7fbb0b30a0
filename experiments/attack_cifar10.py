"""Attack a classifier of CIFAR-10's photographs.

python -m experiments.attack_cifar10
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.evaluation.attack import AttackOptions, attack
from experiments.harness.arguments import run_command


@dataclass(frozen=True)
class AttackCifar10Config(AttackOptions):
    """Attack a classifier of CIFAR-10's photographs, and measure what the attack did.

    As attack_mnist, with the settings that the papers have for CIFAR-10: mass moves within its
    colour, distances are fractions of the mass of all three, and one budget serves them all.
    """

    data: Literal["cifar10"] = "cifar10"
    """The dataset; downloaded and prepared where it is not."""


if __name__ == "__main__":
    sys.exit(run_command(attack, AttackCifar10Config))
