"""CIFAR-10 and CIFAR-100 as they were published: batches for Python, and binary ones."""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, UInt8

from wasserstein_adv.data.files import File, Tree, read_bytes
from wasserstein_adv.data.published import Published, Split, require
from wasserstein_adv.errors import InputError

IMAGE_SHAPE = (32, 32, 3)
PIXELS = 32 * 32 * 3

CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

_FINE_LABELS = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
    cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
    lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_FINE_LABELS.split())

# By split, for Python; the binary ones end in ".bin".
CIFAR10_FILES = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
CIFAR100_FILES = {"train": ("train",), "test": ("test",)}

Batch = tuple[UInt8[np.ndarray, "n 3072"], Int[np.ndarray, "n"]]


def read_cifar10_python(tree: Tree) -> Published:
    """Read CIFAR-10's batches for Python, without running what the pickles say.

    Args:
        tree: folder with `data_batch_1` to `data_batch_5` and `test_batch`.

    Returns:
        The dataset, in the order of the files.

    Raises:
        InputError: a file is missing, damaged, or not of that kind.
    """
    return _read(tree, CIFAR10, CIFAR10_FILES, lambda file: _read_pickle(file, b"labels"))


def read_cifar10_binary(tree: Tree) -> Published:
    """Read CIFAR-10's binary batches, `data_batch_1.bin` and so on; else `read_cifar10_python`."""
    return _read(tree, CIFAR10, _binary(CIFAR10_FILES), lambda file: _read_binary(file, 1))


def read_cifar100_python(tree: Tree) -> Published:
    """Read CIFAR-100's files for Python, `train` and `test`; else `read_cifar10_python`."""
    return _read(tree, CIFAR100, CIFAR100_FILES, lambda file: _read_pickle(file, b"fine_labels"))


def read_cifar100_binary(tree: Tree) -> Published:
    """Read CIFAR-100's binary files, `train.bin` and `test.bin`; else `read_cifar10_python`."""
    # The coarse label comes first.
    return _read(tree, CIFAR100, _binary(CIFAR100_FILES), lambda file: _read_binary(file, 2))


def _binary(files: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(f"{name}.bin" for name in names) for split, names in files.items()}


def _read(
    tree: Tree,
    classes: tuple[str, ...],
    files: Mapping[str, tuple[str, ...]],
    read: Callable[[File], Batch],
) -> Published:
    def read_checked(name: str) -> Batch:
        file = require(tree, name)
        pixels, labels = read(file)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
        if wrong.size:
            first = int(wrong[0])
            raise InputError(
                f"{file}: label {labels[first]} at position {first}, "
                f"expected 0 to {len(classes) - 1}"
            )
        return pixels, labels

    return Published(
        classes,
        {split: _joined([read_checked(name) for name in names]) for split, names in files.items()},
    )


def _joined(batches: list[Batch]) -> Split:
    pixels, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    planes = pixels.reshape(-1, 3, 32, 32)  # red, green, blue
    return Split(labels, lambda position: planes[position].transpose(1, 2, 0))


def _read_binary(file: File, label_bytes: int) -> Batch:
    """Records of `label_bytes` labels, of which the last counts, and the pixels."""
    content = read_bytes(file)
    record = label_bytes + PIXELS
    if len(content) % record:
        raise InputError(f"{file}: {len(content)} bytes, expected a multiple of {record}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_pickle(file: File, label_key: bytes) -> Batch:
    """A pickled dictionary with an array `data` and a list of labels."""
    content = read_bytes(file)
    try:
        batch = _InertUnpickler(io.BytesIO(content), encoding="bytes").load()
        data, labels = batch[b"data"], np.asarray(batch[label_key])
        if labels.dtype != np.int64 or labels.ndim != 1:
            raise ValueError(f"its {label_key.decode()} are not integers")
    except Exception as error:  # a damaged pickle may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{file}: not a CIFAR batch for Python ({reason})") from error
    pixels = _pixels(data)
    if pixels is None:
        raise InputError(f"{file}: data is not an array of n×{PIXELS} unsigned bytes")
    if len(pixels) != len(labels):
        raise InputError(f"{file}: {len(labels)} labels for {len(pixels)} images")
    return pixels, labels


def _pixels(data: Any) -> UInt8[np.ndarray, "n 3072"] | None:
    """The array that a pickle describes, or None where it is of another kind."""
    match data:
        case _Array(state=(_, (int(count), int(width)), _Dtype(code=b"u1"), by_column, bytes(raw))):
            if width == PIXELS and len(raw) == count * width:
                order: Literal["F", "C"] = "F" if by_column else "C"
                return np.frombuffer(raw, np.uint8).reshape((count, width), order=order)
    return None


class _Array:
    """Stands in for a pickled NumPy array, whose state it keeps."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype:
    """Stands in for a pickled NumPy dtype, whose code it keeps."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _InertUnpickler(pickle.Unpickler):
    """Knows no names but those of NumPy arrays, and even for these runs nothing of NumPy's."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands in for a name; called for every name in the pickle."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _STAND_INS[module, name]


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}
