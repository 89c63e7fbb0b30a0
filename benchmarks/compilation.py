"""What compiling costs: the first call ever, the first call of a later process, a warm call.

The commands keep what they compiled in JAX's persistent cache; here it is a folder that is empty at
first.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from rich.table import Table

from benchmarks._child import in_fresh_process
from benchmarks._measure import Record, Setup, lay_out, number, ratio_cell, record, text
from benchmarks._problem import ours, problem_on
from experiments.evaluation.subjects import logits_of
from experiments.harness.arguments import use_all_cores
from experiments.training.weights import Classifier
from wasserstein_adv import parallel
from wasserstein_adv.attacks.wong import MNIST, wong
from wasserstein_adv.models import WongKolterCNN

_BATCH = 64
_STEPS = 20  # of the attack; what they are does not change what is compiled
_FIRST, _LATER, _WARM = (
    "first call, empty cache",
    "first call, later process",
    "warm call",
)


def measure(setup: Setup) -> list[Record]:
    """Time the projection and an attack in two processes, one after the other."""
    found = []
    # The attack's first call is timed by its own workload too.
    for work in ["projection"] if setup.quick else _WORKS:
        with tempfile.TemporaryDirectory() as cache:
            environment = {"WASSERSTEIN_ADV_CACHE": cache}
            seconds = {}
            for process in (_FIRST, _LATER):
                setup.tell(f"{work}: {process}")
                first, seconds[_WARM] = in_fresh_process(__name__, environment, work=work)
                seconds[process] = first
        found += [
            record("compilation", process, seconds[process], seconds[process] / seconds[_WARM],
                   setting=f"{work}, {_BATCH} images of 28×28", work=work)
            for process in (_WARM, _LATER, _FIRST)
        ]  # fmt: skip
    return found


def child(work: str) -> tuple[float, float]:
    """Seconds of the first and of the second call, in a process of its own."""
    use_all_cores()
    x = np.random.default_rng(0).random((_BATCH, 28, 28, 1), np.float32)
    run = _WORKS[work](x)

    def seconds() -> float:
        started = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - started

    return seconds(), seconds()


def _projection(x: np.ndarray) -> Callable[[], Any]:
    return ours(problem_on(x))


def _attack(x: np.ndarray) -> Callable[[], Any]:
    # Untrained: that changes nothing of what is compiled.
    model = WongKolterCNN()
    logits_fn = logits_of(Classifier(model, model.init(jax.random.key(0), x)))
    y = np.argmax(np.asarray(logits_fn(x)), -1)
    attack = wong((28, 28), MNIST._replace(steps=_STEPS, white="clamped"))
    run = parallel.evaluator(attack, logits_fn)
    return lambda: run(jax.random.key(0), x, y)


_WORKS = {"projection": _projection, "attack": _attack}


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        f"compilation, {_BATCH} images of 28×28",
        records,
        {
            "call": text("method"),
            "of": text("work"),
            "seconds": number("seconds"),
            "times the warm call": ratio_cell,
        },
    )
