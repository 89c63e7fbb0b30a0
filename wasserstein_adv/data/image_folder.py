"""Datasets as folders of image files, `{train,test}/CLASS/FILE`."""

import itertools
import re
from collections.abc import Sequence
from typing import TypeVar

from wasserstein_adv.data.files import File, Tree
from wasserstein_adv.data.published import Published, Split, split_of_files
from wasserstein_adv.errors import InputError

MARKS = ("train/", "test/")

_SUFFIXES = (".jpg", ".jpeg", ".png")

T = TypeVar("T")


def read_image_folder(
    tree: Tree, classes: tuple[str, ...], shape: tuple[int, int, int]
) -> Published:
    """Find the images of both splits, which are read when they are asked for.

    Args:
        tree: folder with `train/CLASS/FILE` and `test/CLASS/FILE`, JPEG or PNG; see `interleave`
            for the order.
        classes: the names of the classes, which are those of their folders, by number.
        shape: the images' shape (H, W, 3).

    Returns:
        The dataset.

    Raises:
        InputError: a file lies in no class's folder, or is called like no image.
    """
    splits = {split: _read_split(tree, split, classes, shape) for split in ("train", "test")}
    return Published(classes, splits)


def _read_split(
    tree: Tree, split: str, classes: tuple[str, ...], shape: tuple[int, int, int]
) -> Split:
    groups: dict[str, dict[str, File]] = {name: {} for name in classes}
    for path, file in tree.files.items():
        if not path.startswith(f"{split}/"):
            continue
        name, _, file_name = path.removeprefix(f"{split}/").partition("/")
        if name not in groups:
            raise InputError(f"{file}: {name!r} is not one of the {len(classes)} classes")
        if "/" in file_name or not file_name.lower().endswith(_SUFFIXES):
            raise InputError(f"{file}: expected .jpg, .jpeg or .png files here")
        groups[name][file_name] = file
    labels, files = interleave([in_natural_order(groups[name]) for name in classes])
    return split_of_files(files, labels, shape)


def in_natural_order(files: dict[str, T]) -> list[T]:
    """Sort by name, numbers within names by their values: 2 before 10."""
    return [files[name] for name in sorted(files, key=_natural)]


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", name)  # text and digits take turns
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def interleave(groups: Sequence[Sequence[T]]) -> tuple[list[int], list[T]]:
    """Deal out the classes in turn: the first of each, the second of each, and so on.

    So the first n are a fair sample of the classes. A class that has no more is passed over.

    Args:
        groups: what belongs to each class, in order.

    Returns:
        The class numbers, and what belongs to them.
    """
    rounds = itertools.zip_longest(*([(label, item) for item in group]
                                     for label, group in enumerate(groups)))  # fmt: skip
    pairs = [pair for dealt in rounds for pair in dealt if pair is not None]
    return [label for label, _ in pairs], [item for _, item in pairs]
