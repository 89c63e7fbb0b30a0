"""`train_mnist`, sending itself a signal at a chosen moment.

python tests/experiments/training_that_dies.py SIGNAL MOMENT STEP OPTIONS...

MOMENT is "step", after that step, or "save", with the checkpoint of that step written but not yet
in its place. SIGNAL "none" lets it run.
"""

import os
import signal
import sys

from experiments.harness.arguments import run_command
from experiments.train_mnist import TrainMnistConfig
from experiments.training import command
from experiments.training.log import Log

NAME, MOMENT, STEP = sys.argv[1], sys.argv[2], int(sys.argv[3])


def die() -> None:
    os.kill(os.getpid(), getattr(signal, NAME))


def counting_log(after_step):
    """Leaves how many steps this process took, and dies after the chosen one."""
    taken = 0

    def wrapped(self, step, measures, waited):
        nonlocal taken
        after_step(self, step, measures, waited)
        taken += 1
        if self.path.is_dir():
            (self.path / "steps").write_text(str(taken), "utf-8")
        if NAME != "none" and ("step", step) == (MOMENT, STEP):
            die()

    return wrapped


def dying_save(save):
    def wrapped(folder, state, about):
        if int(state.step) == STEP:
            rename = os.rename
            os.rename = lambda *paths, **options: (die(), rename(*paths, **options))
        save(folder, state, about)

    return wrapped


Log.after_step = counting_log(Log.after_step)
if NAME != "none" and MOMENT == "save":
    command.save_checkpoint = dying_save(command.save_checkpoint)
sys.exit(run_command(command.run_training, TrainMnistConfig, sys.argv[4:]))
