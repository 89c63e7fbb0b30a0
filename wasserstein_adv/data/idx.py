"""Read and check image datasets published as idx files, the layout of MNIST and Fashion-MNIST."""

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from wasserstein_adv.errors import InputError

IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10

# The published names, without the ".gz" they are published with: images, labels.
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

_GZIP_MAGIC = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08  # idx's code for the type of the entries


class IdxSplit(NamedTuple):
    """The images and labels of one split, in the order of the files."""

    images: UInt8[np.ndarray, "n 28 28 1"]
    labels: UInt8[np.ndarray, "n"]


def find_idx_files(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Find the four published files in a folder.

    A file may lie there as published, `NAME.gz`, or unpacked, `NAME`; where both do, the published
    one is taken.

    Args:
        folder: the folder.

    Returns:
        The paths of the images and of the labels for "train" and "test".

    Raises:
        InputError: `folder` is no folder, or one of the files is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    return {
        split: (_find(folder, images), _find(folder, labels))
        for split, (images, labels) in FILES.items()
    }


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise InputError(f"{folder} has neither {name}.gz nor {name}")


def read_idx_split(images_path: Path, labels_path: Path) -> IdxSplit:
    """Read one split and check everything that idx files say about themselves.

    Whether a file is compressed is told from its first bytes, not from its name.

    Args:
        images_path: idx file with N images of 28×28 unsigned bytes, gzip or plain.
        labels_path: idx file with N labels, each from 0 to 9, gzip or plain.

    Returns:
        The images, uint8 (N, 28, 28, 1), and the labels, uint8 (N,).

    Raises:
        InputError: a file cannot be read or unpacked, is no idx file of that kind, is shorter or
            longer than its header says, or has a label above 9; or the two differ in N; or N = 0.
    """
    images = _read_idx(images_path, ndim=3)
    labels = _read_idx(labels_path, ndim=1)
    height, width, _ = IMAGE_SHAPE
    if images.shape[1:] != (height, width):
        found = "×".join(map(str, images.shape[1:]))
        raise InputError(f"{images_path}: the images are {found}, expected {height}×{width}")
    wrong = np.flatnonzero(labels >= NUM_CLASSES)
    if wrong.size:
        first = int(wrong[0])
        raise InputError(
            f"{labels_path}: label {labels[first]} at position {first}, "
            f"expected 0 to {NUM_CLASSES - 1}"
        )
    if len(images) != len(labels):
        raise InputError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path}"
        )
    if not len(images):
        raise InputError(f"{images_path}: no images")
    return IdxSplit(images[..., None], labels)


def _read_idx(path: Path, ndim: int) -> UInt8[np.ndarray, "..."]:
    """Read an idx file of unsigned bytes with `ndim` axes, checking its header and its length."""
    content = _read_bytes(path)
    header_size = 4 + 4 * ndim
    magic = bytes([0, 0, _UNSIGNED_BYTE, ndim])
    if content[:4] != magic:
        raise InputError(
            f"{path}: not an idx file of {'images' if ndim == 3 else 'labels'}: "
            f"begins with 0x{content[:4].hex()}, expected 0x{magic.hex()}"
        )
    if len(content) < header_size:
        raise InputError(f"{path}: ends within the header, after {len(content)} bytes")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header_size, 4)]
    expected = int(np.prod(shape, dtype=object))
    found = len(content) - header_size
    if found != expected:
        raise InputError(
            f"{path}: {found} bytes of data, but its header says {'×'.join(map(str, shape))}"
            f"{f' = {expected}' if ndim > 1 else ''}"
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    """Read a file whole, unpacked where it is gzip."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: damaged gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
