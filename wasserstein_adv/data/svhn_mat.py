"""SVHN as it was published: cropped digits in MATLAB files."""

import io
import math

import numpy as np
from jaxtyping import Int64, UInt8

from wasserstein_adv.data.files import File, Tree, most_unpacked, read_bytes
from wasserstein_adv.data.published import Published, Split, require
from wasserstein_adv.errors import InputError

IMAGE_SHAPE = (32, 32, 3)
DIGITS = tuple(map(str, range(10)))
FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}


def read_svhn(tree: Tree) -> Published:
    """Read both splits.

    Args:
        tree: folder with `train_32x32.mat` and `test_32x32.mat`. The label 10 means the digit 0.

    Returns:
        The dataset, in the order of the files.

    Raises:
        InputError: a file is missing, damaged, or not of that kind.
    """
    return Published(
        DIGITS, {split: _read_split(require(tree, name)) for split, name in FILES.items()}
    )


def _read_split(file: File) -> Split:
    images, labels = _read_mat(file)
    return Split(labels, lambda position: images[..., position])


def _read_mat(file: File) -> tuple[UInt8[np.ndarray, "32 32 3 n"], Int64[np.ndarray, "n"]]:
    from scipy.io import loadmat, whosmat

    content = read_bytes(file)
    try:
        declared = {name: math.prod(shape) for name, shape, _ in whosmat(io.BytesIO(content))}
        if declared["X"] > (most := most_unpacked(len(content))):
            raise InputError(f"{file}: unpacks to more than {most:,} bytes")
        variables = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        images, labels = variables["X"], variables["y"].ravel()
    except InputError:
        raise
    except Exception as error:  # scipy lets through whatever goes wrong inside
        raise InputError(f"{file}: not a MATLAB file with X and y, or damaged") from error
    if images.dtype != np.uint8 or images.shape[:-1] != IMAGE_SHAPE:
        found = "×".join(map(str, images.shape))
        raise InputError(f"{file}: X is {found} {images.dtype}, expected 32×32×3×n uint8")
    if len(labels) != images.shape[-1]:
        raise InputError(f"{file}: {len(labels)} labels for {images.shape[-1]} images")
    wrong = np.flatnonzero(~np.isin(labels, range(1, 11)))
    if wrong.size:
        first = int(wrong[0])
        raise InputError(f"{file}: label {labels[first]} at position {first}, expected 1 to 10")
    return images, labels.astype(np.int64) % 10
