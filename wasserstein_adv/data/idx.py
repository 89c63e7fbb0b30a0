"""Read and check image datasets published as idx files, the layout of MNIST and Fashion-MNIST."""

import gzip
import hashlib
import io
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from wasserstein_adv.data.files import GZIP_MAGIC, File, Tree, most_unpacked, open_tree, read_bytes
from wasserstein_adv.data.published import Published, Split
from wasserstein_adv.errors import InputError

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10

DIGITS = tuple(map(str, range(NUM_CLASSES)))
CLOTHING = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

# The published names, without the ".gz" they are published with: images, labels.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

# SHA-256 of the published test labels: the two datasets' files have the same names and sizes.
_TEST_LABELS = {
    "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5": "mnist",
    "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9": "fashion_mnist",
}
_UNSIGNED_BYTE = 0x08  # idx's code for the type of the entries


class IdxSplit(NamedTuple):
    """The images and labels of one split, in the order of the files."""

    images: UInt8[np.ndarray, "n 28 28 1"]
    labels: UInt8[np.ndarray, "n"]


def read_idx(tree: Tree, name: str, classes: tuple[str, ...]) -> Published:
    """Read both splits.

    Args:
        tree: folder with the four published files, packed or not.
        name: the dataset's, mnist or fashion_mnist.
        classes: the names of the ten classes, by number.

    Returns:
        The dataset, in the order of the files.

    Raises:
        InputError: a file is missing or not valid, see `read_idx_split`; or they are those of the
            other dataset.
    """
    splits = {split: read_idx_split(*files) for split, files in _find_files(tree).items()}
    labels = hashlib.sha256(splits["test"].labels.tobytes()).hexdigest()
    if (found := _TEST_LABELS.get(labels, name)) != name:
        raise InputError(f"{tree.place}: holds {found}, not {name}")
    return Published(
        classes,
        {
            split: Split(labels.astype(np.int64), images.__getitem__)
            for split, (images, labels) in splits.items()
        },
    )


def find_idx_files(folder: Path) -> dict[str, tuple[File, File]]:
    """Find the four published files in a folder.

    A file may lie there as published, `NAME.gz`, or unpacked, `NAME`; where both do, the published
    one is taken.

    Args:
        folder: the folder.

    Returns:
        The files of images and of labels for "train" and "test".

    Raises:
        InputError: `folder` is no folder, or one of the files is missing.
    """
    with open_tree(folder) as tree:
        return _find_files(tree)


def _find_files(tree: Tree) -> dict[str, tuple[File, File]]:
    return {
        split: (_find(tree, images), _find(tree, labels))
        for split, (images, labels) in FILES.items()
    }


def _find(tree: Tree, name: str) -> File:
    for path in (f"{name}.gz", name):
        if path in tree.files:
            return tree.files[path]
    raise InputError(f"{tree.place} has neither {name}.gz nor {name}")


def read_idx_split(images_file: File, labels_file: File) -> IdxSplit:
    """Read one split and check everything that idx files say about themselves.

    Whether a file is compressed is told from its first bytes, not from its name.

    Args:
        images_file: idx file with N images of 28×28 unsigned bytes, gzip or plain.
        labels_file: idx file with N labels, each from 0 to 9, gzip or plain.

    Returns:
        The images, uint8 (N, 28, 28, 1), and the labels, uint8 (N,).

    Raises:
        InputError: a file cannot be read or unpacked, is no idx file of that kind, is shorter or
            longer than its header says, or has a label above 9; or the two differ in N; or N = 0.
    """
    images = _read_idx(images_file, ndim=3)
    labels = _read_idx(labels_file, ndim=1)
    height, width, _ = IMAGE_SHAPE
    if images.shape[1:] != (height, width):
        found = "×".join(map(str, images.shape[1:]))
        raise InputError(f"{images_file}: the images are {found}, expected {height}×{width}")
    wrong = np.flatnonzero(labels >= NUM_CLASSES)
    if wrong.size:
        first = int(wrong[0])
        raise InputError(
            f"{labels_file}: label {labels[first]} at position {first}, "
            f"expected 0 to {NUM_CLASSES - 1}"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{labels_file}: {len(labels)} labels for the {len(images)} images of {images_file}"
        )
    if not len(images):
        raise InputError(f"{images_file}: no images")
    return IdxSplit(images[..., None], labels)


def _read_idx(file: File, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes with `ndim` axes, checking its header and its length."""
    content = _read_unpacked(file)
    header_size = 4 + 4 * ndim
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if content[:4] != magic:
        raise InputError(
            f"{file}: not an idx file of {'images' if ndim == 3 else 'labels'}: "
            f"begins with 0x{content[:4].hex()}, expected 0x{magic.hex()}"
        )
    if len(content) < header_size:
        raise InputError(f"{file}: ends within the header, after {len(content)} bytes")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header_size, 4)]
    expected = int(np.prod(shape, dtype=object))
    found = len(content) - header_size
    if found != expected:
        raise InputError(
            f"{file}: {found} bytes of data, but its header says {'×'.join(map(str, shape))}"
            f"{f' = {expected}' if ndim > 1 else ''}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _read_unpacked(file: File) -> bytes:
    """Read a file whole, unpacked where it is gzip."""
    content = read_bytes(file)
    if not content.startswith(GZIP_MAGIC):
        return content
    most = most_unpacked(len(content))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            unpacked = packed.read(most + 1)
        if len(unpacked) > most:
            raise InputError(f"{file}: unpacks to more than {most:,} bytes")
        return unpacked
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file}: damaged gzip file ({error})") from error
