"""Small datasets in their published layouts, written here byte by byte, and what stands in them."""

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import savemat

CIFAR10 = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


class Example(NamedTuple):
    """Files by their paths, and the images and labels that they stand for, in order, by split."""

    content: dict[str, bytes]
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def some_labels(rng: np.random.Generator, classes: int, extra: int) -> np.ndarray:
    """Each class once, and some more, in random order."""
    more = rng.integers(0, classes, extra)
    return rng.permutation(np.concatenate([np.arange(classes), more]))


def idx_bytes(array: np.ndarray) -> bytes:
    """Write a uint8 array as the specification says: two zeros, type, axes, sizes, entries."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def idx() -> Example:
    rng = np.random.default_rng(0)
    content, images, labels = {}, {}, {}
    for split, name, size in (("train", "train", 37), ("test", "t10k", 23)):
        images[split] = rng.integers(0, 256, (size, 28, 28, 1), np.uint8)
        labels[split] = some_labels(rng, 10, size - 10)
        pixels = idx_bytes(images[split][..., 0])
        content[f"{name}-images-idx3-ubyte.gz"] = gzip.compress(pixels, 1)
        content[f"{name}-labels-idx1-ubyte.gz"] = gzip.compress(
            idx_bytes(labels[split].astype(np.uint8)), 1
        )
    return Example(content, images, labels)


def _text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def python2_array(array: np.ndarray, code: bytes = b"u1") -> bytes:
    """The opcodes with which Python 2 and NumPy of 2009 pickled a matrix."""
    raw = array.tobytes()
    dtype = b"cnumpy\ndtype\n" + _text(code) + _integer(0) + _integer(1) + b"\x87R"
    dtype += b"(" + _integer(3) + _text(b"|") + b"NNN" + _integer(-1) * 2 + _integer(0) + b"tb"
    new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    new += _integer(0) + b"\x85" + _text(b"b") + b"\x87R"
    shape = _integer(array.shape[0]) + _integer(array.shape[1]) + b"\x86"
    raw = b"T" + struct.pack("<i", len(raw)) + raw
    return new + b"(" + _integer(1) + shape + dtype + b"\x89" + raw + b"tb"


def python2_pickle(data: bytes, labels: list[int], key: bytes = b"labels") -> bytes:
    """A pickled dictionary of an array, as `python2_array` makes it, and a list."""
    numbers = b"](" + b"".join(map(_integer, labels)) + b"e"
    return b"\x80\x02}(" + _text(b"data") + data + _text(key) + numbers + b"u."


def cifar_pixels(images: np.ndarray) -> np.ndarray:
    """All red values of an image, row by row, then all green ones, then all blue ones."""
    return np.stack([images[..., channel].reshape(len(images), -1) for channel in range(3)], 1)


def cifar10(binary: bool) -> Example:
    rng = np.random.default_rng(1)
    content, images, labels = {}, {}, {}
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    for split, size in (("train", 15), ("test", 11)):
        images[split] = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
        labels[split] = some_labels(rng, 10, size - 10)
        parts = np.array_split(np.arange(size), len(names[split]))
        for name, part in zip(names[split], parts, strict=True):
            pixels = cifar_pixels(images[split][part]).reshape(len(part), 3072)
            numbers = labels[split][part]
            if binary:
                records = [bytes([n]) + p.tobytes() for n, p in zip(numbers, pixels, strict=True)]
                content[f"cifar-10-batches-bin/{name}.bin"] = b"".join(records)
            else:
                pickled = python2_pickle(python2_array(pixels), numbers.tolist())
                content[f"cifar-10-batches-py/{name}"] = pickled
    return Example(content, images, labels)


def cifar100(binary: bool) -> Example:
    rng = np.random.default_rng(2)
    content, images, labels = {}, {}, {}
    for split in ("train", "test"):
        images[split] = rng.integers(0, 256, (102, 32, 32, 3), np.uint8)
        labels[split] = some_labels(rng, 100, 2)
        pixels = cifar_pixels(images[split]).reshape(-1, 3072)
        if binary:
            content[f"cifar-100-binary/{split}.bin"] = b"".join(
                bytes([number // 5, number]) + p.tobytes()
                for number, p in zip(labels[split], pixels, strict=True)
            )
        else:
            pickled = python2_pickle(python2_array(pixels), labels[split].tolist(), b"fine_labels")
            content[f"cifar-100-python/{split}"] = pickled
    return Example(content, images, labels)


def mat_bytes(**variables: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables, do_compression=True)
    return buffer.getvalue()


def svhn() -> Example:
    rng = np.random.default_rng(3)
    content, images, labels = {}, {}, {}
    for split in ("train", "test"):
        images[split] = rng.integers(0, 256, (13, 32, 32, 3), np.uint8)
        labels[split] = some_labels(rng, 10, 3)
        y = np.where(labels[split] == 0, 10, labels[split]).astype(np.uint8)
        mat = mat_bytes(X=images[split].transpose(1, 2, 3, 0), y=y[:, None])
        content[f"{split}_32x32.mat"] = mat
    return Example(content, images, labels)


def image_bytes(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def pillow_rgb(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def image_folders() -> Example:
    """Class c has 1 + c % 3 training images and one test image."""
    rng = np.random.default_rng(4)
    content = {}
    for number, name in enumerate(CIFAR10):
        for split, files in (("test", ["0.jpeg"]), ("train", ["2.png", "10.jpg", "101.JPG"])):
            for file in files[: 1 + number % 3]:
                image = rng.integers(0, 256, (32, 32, 3), np.uint8)
                kind = "PNG" if file.endswith("png") else "JPEG"
                content[f"cifar10/{split}/{name}/{file}"] = image_bytes(image, kind)
    content["cifar10/train/bird/2.png"] = image_bytes(image[..., 0])  # grey
    content["cifar10/train/.DS_Store"] = b"not an image, and hidden"
    order = {
        "test": [(number, "0.jpeg") for number in range(10)],
        # Class by class the first file, then the second, then the third; 2 before 10 before 101.
        "train": [(number, "2.png") for number in range(10)]
        + [(number, "10.jpg") for number in (1, 2, 4, 5, 7, 8)]
        + [(number, "101.JPG") for number in (2, 5, 8)],
    }
    images = {
        split: np.stack(
            [pillow_rgb(content[f"cifar10/{split}/{CIFAR10[n]}/{f}"]) for n, f in pairs]
        )
        for split, pairs in order.items()
    }
    labels = {split: np.array([number for number, _ in pairs]) for split, pairs in order.items()}
    return Example(content, images, labels)


WNIDS = [f"n{10_000_000 + 37 * number:08d}" for number in range(200)]


def tiny_imagenet() -> Example:
    """Two training images and one test image of each class, each of one colour, some grey."""
    rng = np.random.default_rng(5)
    content, images, labels = {}, {}, {}

    def jpeg(number: int) -> bytes:
        colour = rng.integers(0, 256, 1 if number % 7 == 0 else 3, np.uint8)
        return image_bytes(np.broadcast_to(colour, (64, 64, len(colour))).squeeze(), "JPEG")

    shuffled = rng.permutation(200)
    content["wnids.txt"] = "".join(f"{WNIDS[number]}\n" for number in shuffled).encode()
    content["words.txt"] = "".join(f"{wnid}\tthing, {wnid[-3:]}\n" for wnid in WNIDS).encode()
    for number in shuffled:
        wnid = WNIDS[number]
        content[f"train/{wnid}/{wnid}_boxes.txt"] = b"0\t0\t1\t1\n"
        for file in (10, 9):
            content[f"train/{wnid}/images/{wnid}_{file}.JPEG"] = jpeg(number)
    train = [f"train/{wnid}/images/{wnid}_{file}.JPEG" for file in (9, 10) for wnid in WNIDS]
    labels["train"] = np.tile(np.arange(200), 2)
    labels["test"] = rng.permutation(200)
    lines = []
    for position, number in enumerate(labels["test"]):
        content[f"val/images/val_{position}.JPEG"] = jpeg(number)
        lines.append(f"val_{position}.JPEG\t{WNIDS[number]}\t0\t32\t44\t62\n")
    content["val/val_annotations.txt"] = "".join(lines).encode()
    test = [f"val/images/val_{position}.JPEG" for position in range(200)]
    for split, names in (("train", train), ("test", test)):
        images[split] = np.stack([pillow_rgb(content[name]) for name in names])
    content = {f"tiny-imagenet-200/{name}": data for name, data in content.items()}
    return Example(content, images, labels)


def write_folder(content: dict[str, bytes], path: Path) -> Path:
    for name, data in content.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path


def tar_bytes(content: dict[str, bytes], start: str = "", mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(start + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_bytes(content: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()
