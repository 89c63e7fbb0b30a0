"""A dataset as it was published: its classes, its labels, and its images one at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from wasserstein_adv.data.files import File, Tree
from wasserstein_adv.data.images import read_rgb
from wasserstein_adv.errors import InputError


class Split(NamedTuple):
    """One split: all its labels, and its images where they lie.

    Attributes:
        labels: class numbers from 0, in the split's order.
        image: returns the image at a position, uint8 (H, W, C); raises InputError if its file is
            damaged.
    """

    labels: Int[np.ndarray, "n"]
    image: Callable[[int], UInt8[np.ndarray, "h w c"]]


class Published(NamedTuple):
    """A dataset.

    Attributes:
        classes: the names of the classes, by number.
        splits: "train" and "test".
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Split]


def split_of_files(
    files: Sequence[File], labels: Sequence[int], shape: tuple[int, int, int]
) -> Split:
    """Make a split of JPEG and PNG files, each read when it is asked for.

    Args:
        files: the files, in the split's order.
        labels: their class numbers.
        shape: the images' shape (H, W, 3).

    Returns:
        The split.
    """
    height, width, _ = shape
    return Split(
        np.asarray(labels, np.int64), lambda position: read_rgb(files[position], height, width)
    )


def check_classes(published: Published, place: str) -> None:
    """Check that each split has an image of each class.

    Args:
        published: the dataset.
        place: where it lies, for the message.

    Raises:
        InputError: a split is empty or lacks a class.
    """
    for split, (labels, _) in published.splits.items():
        if not len(labels):
            raise InputError(f"{place}: no {split} images")
        counts = np.bincount(labels, minlength=len(published.classes))
        missing = np.flatnonzero(counts == 0)
        if missing.size:
            raise InputError(f"{place}: no {split} image of class {published.classes[missing[0]]}")


def require(tree: Tree, name: str) -> File:
    """Return a file of a tree by its path inside.

    Raises:
        InputError: there is none.
    """
    if name not in tree.files:
        raise InputError(f"{tree.place} has no {name}")
    return tree.files[name]
