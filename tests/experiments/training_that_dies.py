"""`train_mnist`, sending itself a signal at a chosen moment.

python tests/experiments/training_that_dies.py SIGNAL MOMENT STEP OPTIONS...

MOMENT is "step", after that step, or "save", with the checkpoint of that step written but not yet
in its place. SIGNAL "none" lets it run.
"""

import os
import signal
import sys

from experiments import _train, train_mnist
from experiments._cli import run_command

NAME, MOMENT, STEP = sys.argv[1], sys.argv[2], int(sys.argv[3])


def die() -> None:
    os.kill(os.getpid(), getattr(signal, NAME))


def dying_log(after_step):
    def wrapped(self, step, measures, waited):
        after_step(self, step, measures, waited)
        if step == STEP:
            die()

    return wrapped


def dying_save(save):
    def wrapped(folder, state, about):
        if int(state.step) == STEP:
            rename = os.rename
            os.rename = lambda *paths, **options: (die(), rename(*paths, **options))
        save(folder, state, about)

    return wrapped


if NAME != "none" and MOMENT == "step":
    _train._Log.after_step = dying_log(_train._Log.after_step)
elif NAME != "none":
    _train.save_checkpoint = dying_save(_train.save_checkpoint)
sys.exit(run_command(train_mnist.main, train_mnist.TrainMnistConfig, sys.argv[4:]))
