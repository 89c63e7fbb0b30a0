"""What the processes of one command, each on a part of the devices, have to agree on."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from wasserstein_adv.errors import InputError

T = TypeVar("T")


def all_or_none(act: Callable[[], T]) -> T:
    """Do something in every process; where one of them cannot, none goes on.

    Args:
        act: what to do; not what waits for the other processes.

    Returns:
        What it returned in this process.

    Raises:
        InputError: as `act` in this process; or `act` did in another.
    """
    try:
        found = act()
    except InputError:
        _gathered(True)
        raise
    failed = _gathered(False)
    if failed.any():
        raise InputError(f"process {int(failed.argmax())} cannot go on, and says why")
    return found


def check_same(what: str, text: str) -> None:
    """Raise InputError in all processes unless they were all given the same text."""
    digest = hashlib.sha256(text.encode()).digest()[:8]
    if len(np.unique(_gathered(*np.frombuffer(digest, np.uint32)), axis=0)) > 1:
        raise InputError(f"the processes have different {what}")


def of_first(tree: Any) -> Any:
    """The pytree of arrays and numbers that process 0 has, in the others' place, as NumPy arrays.

    Args:
        tree: of the same structure, shapes and types in all processes.
    """
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def _gathered(*numbers: int) -> np.ndarray:
    """Each process's numbers, a row for each."""
    return np.asarray(multihost_utils.process_allgather(np.array(numbers, np.uint32)))
