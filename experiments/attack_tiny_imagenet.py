"""Attack a classifier of Tiny ImageNet's photographs.

python -m experiments.attack_tiny_imagenet
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.evaluation.attack import AttackOptions, attack
from experiments.harness.arguments import run_command


@dataclass(frozen=True)
class AttackTinyImagenetConfig(AttackOptions):
    """Attack a classifier of Tiny ImageNet's photographs, and measure what the attack did.

    As attack_mnist, with the settings that the papers have for CIFAR-10: mass moves within its
    colour, distances are fractions of the mass of all three, and one budget serves them all.
    """

    data: Literal["tiny_imagenet"] = "tiny_imagenet"
    """The dataset; downloaded and prepared where it is not."""

    num_images: int = 20
    """How many test images to attack, from the first; the exact distance of one takes seconds."""


if __name__ == "__main__":
    sys.exit(run_command(attack, AttackTinyImagenetConfig))
