"""Which images make up each step's batch, and getting batches ready ahead of time."""

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from wasserstein_adv.errors import InputError

T = TypeVar("T")


def batch_indices(
    seed: int, step: int, count: int, batch_size: int
) -> Int[np.ndarray, "batch_size"]:
    """Return which images make up the batch of a step.

    An epoch is `count // batch_size` steps long and takes the images in a random order of its own;
    the last, which do not fill a batch, are left out of it. Nothing but the arguments decides, so
    an interrupted training goes on with the batches that it would have had.

    Args:
        seed: of the orders, 0 or more.
        step: number of the step, from 0.
        count: number of images, N.
        batch_size: images in a batch, from 1 to N.

    Returns:
        Positions from 0 to N − 1, no two alike, read-only.

    Raises:
        InputError: an argument is out of range.
    """
    if not 1 <= batch_size <= count:
        raise InputError(f"batch_size must be from 1 to the {count} images, got {batch_size}")
    if seed < 0 or step < 0:
        raise InputError(f"seed and step must be 0 or more, got {seed} and {step}")
    epoch, position = divmod(step, count // batch_size)
    start = position * batch_size
    return _order(seed, epoch, count)[start : start + batch_size]


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Int[np.ndarray, "count"]:
    # NumPy promises that raw bits stay the same from version to version, but not shuffles.
    bits = np.random.PCG64([seed, epoch]).random_raw(count)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False  # callers share it
    return order


def prefetch(
    make: Callable[[int], T], steps: Iterable[int], depth: int = 2
) -> Generator[tuple[T, float], None, None]:
    """Make what steps need in a thread of its own, ahead of time and in order.

    The thread starts with the first item asked for, and ends with the last item, with an exception,
    or when the iterator is closed.

    Args:
        make: makes what a step needs, in the thread.
        steps: the steps, which may go on for ever.
        depth: how many items may be made before they are asked for, 1 or more.

    Yields:
        Each step's item, and how many seconds it was waited for.

    Raises:
        InputError: `depth` is out of range.
        Exception: what `make` raised, in place of that step's item.
    """
    if depth < 1:
        raise InputError(f"depth must be 1 or more, got {depth}")
    steps = iter(steps)
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        ahead = deque(pool.submit(make, step) for step in itertools.islice(steps, depth))
        while ahead:
            started = time.perf_counter()
            item = ahead.popleft().result()
            waited = time.perf_counter() - started
            ahead.extend(pool.submit(make, step) for step in itertools.islice(steps, 1))
            yield item, waited
    finally:
        pool.shutdown(cancel_futures=True)
