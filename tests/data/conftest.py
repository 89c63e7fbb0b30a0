"""Small datasets in the published layout, written by the tests themselves."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
SIZES = {"train": 37, "test": 23}


class Source(NamedTuple):
    """A folder with four idx files, and what stands in them."""

    folder: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def idx_bytes(array: np.ndarray) -> bytes:
    """Write a uint8 array as the specification says: two zeros, type, axes, sizes, entries."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[..., Source]:
    """Return a function that writes a source folder of random digits, packed or plain."""

    def write(packed: bool = True) -> Source:
        rng = np.random.default_rng(0)
        folder = tmp_path / "source"
        folder.mkdir()
        images, labels = {}, {}
        for split, size in SIZES.items():
            images[split] = rng.integers(0, 256, (size, 28, 28), np.uint8)
            labels[split] = rng.integers(0, 10, size, np.uint8)
            for name, array in zip(NAMES[split], (images[split], labels[split]), strict=True):
                if packed:
                    (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array)))
                else:
                    (folder / name).write_bytes(idx_bytes(array))
        return Source(folder, images, labels)

    return write


@pytest.fixture
def source(write_source: Callable[..., Source]) -> Source:
    """A small source folder as published, that is packed."""
    return write_source()
