"""Each published layout, in a folder and in archives: what is read, and what is refused."""

import gzip
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
from PIL import Image

from experiments.harness.arguments import run_command
from experiments.prepare_data import PrepareConfig, main
from wasserstein_adv.data import class_names, describe, prepare, read
from wasserstein_adv.data.files import open_tree, read_bytes
from wasserstein_adv.data.recipes import RECIPES, open_published
from wasserstein_adv.data.svhn_mat import read_svhn
from wasserstein_adv.errors import InputError

EXAMPLES: dict[str, tuple[str, Callable[[], layouts.Example]]] = {
    "idx": ("fashion_mnist", layouts.idx),
    "cifar10 python": ("cifar10", lambda: layouts.cifar10(binary=False)),
    "cifar10 binary": ("cifar10", lambda: layouts.cifar10(binary=True)),
    "cifar100 python": ("cifar100", lambda: layouts.cifar100(binary=False)),
    "cifar100 binary": ("cifar100", lambda: layouts.cifar100(binary=True)),
    "image folders": ("cifar10", layouts.image_folders),
    "svhn": ("svhn", layouts.svhn),
    "tiny imagenet": ("tiny_imagenet", layouts.tiny_imagenet),
}


@pytest.fixture(scope="module")
def examples() -> Callable[[str], tuple[str, layouts.Example]]:
    """Return a function from a layout's name to a dataset's name and files, each made once."""
    made = {}

    def get(layout: str) -> tuple[str, layouts.Example]:
        if layout not in made:
            name, make = EXAMPLES[layout]
            made[layout] = (name, make())
        name, example = made[layout]
        return name, example._replace(content=dict(example.content))  # tests change it

    return get


def assert_published(name: str, source: Path, example: layouts.Example) -> None:
    with open_published(name, source) as published:
        assert list(published.splits) == ["train", "test"]
        assert len(published.classes) == describe(name).classes
        for split, (labels, image) in published.splits.items():
            np.testing.assert_array_equal(labels, example.labels[split])
            images = np.stack([image(position) for position in range(len(labels))])
            np.testing.assert_array_equal(images, example.images[split], strict=True)


@pytest.mark.parametrize("layout", EXAMPLES)
def test_layout_is_read_in_the_published_order(examples, tmp_path, layout):
    name, example = examples(layout)
    assert_published(name, layouts.write_folder(example.content, tmp_path), example)


PACKED = {
    "x.tar": layouts.tar_bytes,
    "x.tar.gz": lambda content: layouts.tar_bytes(content, mode="w:gz"),
    "x.zip": layouts.zip_bytes,
    "dots.tar": lambda content: layouts.tar_bytes(content, start="./"),  # as `tar cf x.tar .`
    "bare.tgz": lambda content: layouts.tar_bytes(
        {name.split("/", 1)[1]: data for name, data in content.items()}, mode="w:gz"
    ),
    "reversed.tar": lambda content: layouts.tar_bytes(dict(reversed(content.items()))),
    "called_otherwise": layouts.zip_bytes,
}


@pytest.mark.parametrize("packed", PACKED)
def test_archives_are_read_as_they_are(examples, tmp_path, packed):
    name, example = examples("image folders")
    path = tmp_path / packed
    path.write_bytes(PACKED[packed](example.content))
    before = path.stat().st_mtime_ns
    assert_published(name, path, example)
    assert path.stat().st_mtime_ns == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("layout", ["cifar10 python", "svhn", "tiny imagenet"])
def test_a_folder_may_hold_the_archive(examples, tmp_path, layout):
    name, example = examples(layout)
    (tmp_path / "archive.tar").write_bytes(layouts.tar_bytes(example.content))
    (tmp_path / "README.md").write_text("where it is from")
    assert_published(name, tmp_path, example)


def test_linked_folders_count(examples, tmp_path):
    name, example = examples("image folders")
    layouts.write_folder(example.content, tmp_path / "there")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "cifar10").symlink_to(tmp_path / "there" / "cifar10")
    (tmp_path / "there" / "cifar10" / "circle").symlink_to(tmp_path / "there")
    assert_published(name, tmp_path / "here", example)


def test_archives_cannot_lead_elsewhere(tmp_path):
    (tmp_path / "secret").write_text("secret")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("../up", "/absolute", "a/../../up", "train/file"):
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b"ok"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("train/link")
            link.type, link.linkname = kind, str(tmp_path / "secret")
            tar.addfile(link)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    before = set(tmp_path.rglob("*"))
    with open_tree(tmp_path / "x.tar") as tree:
        assert {name: read_bytes(file) for name, file in tree.files.items()} == {
            "train/file": b"ok"
        }
    assert set(tmp_path.rglob("*")) == before


def cut(content: bytes, share: float) -> bytes:
    return content[: int(len(content) * share)]


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


DAMAGED = {
    "cut tar": lambda content: cut(layouts.tar_bytes(content), 0.6),
    "tar cut between two files": lambda content: layouts.tar_bytes(content).rstrip(b"\0")[
        : -(-len(layouts.tar_bytes(content).rstrip(b"\0")) // 512) * 512
    ],
    "tar with a broken header": lambda content: flipped(
        layouts.tar_bytes(content), layouts.tar_bytes(content).index(b"cifar10/test/bird")
    ),
    "cut gzip": lambda content: cut(layouts.tar_bytes(content, mode="w:gz"), 0.6),
    "damaged gzip": lambda content: flipped(layouts.tar_bytes(content, mode="w:gz"), 5000),
    "gzip without a tar": lambda content: gzip.compress(b"hello"),
    "cut zip": lambda content: cut(layouts.zip_bytes(content), 0.6),
    "text": lambda content: b"<!DOCTYPE html>",
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives_are_refused(examples, tmp_path, case):
    name, example = examples("image folders")
    (tmp_path / "x.tar").write_bytes(DAMAGED[case](example.content))
    with (
        pytest.raises(InputError, match=r"x\.tar: not a whole tar or zip file \("),
        open_published(name, tmp_path / "x.tar"),
    ):
        pass


def test_a_damaged_file_in_a_zip_is_refused(examples, tmp_path):
    name, example = examples("cifar10 binary")
    content = layouts.zip_bytes(example.content)
    (tmp_path / "x.zip").write_bytes(flipped(content, content.index(b"test_batch.bin") + 500))
    with (
        pytest.raises(InputError, match=r"test_batch\.bin: damaged in its archive \(Bad CRC"),
        open_published(name, tmp_path / "x.zip"),
    ):
        pass


def test_zip_with_a_password_is_refused(examples, tmp_path):
    name, example = examples("cifar10 binary")
    content = bytearray(layouts.zip_bytes(example.content))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        offsets = [member.header_offset for member in archive.infolist()]
    for offset in offsets:
        content[offset + 6] |= 1  # encrypted, says the file's own header
    start = content.index(b"PK\x01\x02")
    while content[start : start + 4] == b"PK\x01\x02":
        content[start + 8] |= 1  # and the directory
        start += 46 + sum(
            int.from_bytes(content[start + at : start + at + 2], "little") for at in (28, 30, 32)
        )
    (tmp_path / "x.zip").write_bytes(content)
    with (
        pytest.raises(InputError, match=r"damaged in its archive .*encrypted"),
        open_published(name, tmp_path / "x.zip"),
    ):
        pass


def refused(capsys: pytest.CaptureFixture[str], name: str, source: Path, data_dir: Path) -> str:
    """Run the command, which is to fail with one line and leave nothing; return the line."""
    arguments = [name, "--source", str(source), "--data-dir", str(data_dir)]
    assert run_command(main, PrepareConfig, arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not data_dir.exists()
    return output.err


def put(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.update({name: data})


def drop(start: str) -> Callable[[dict[str, bytes]], None]:
    def change(content: dict[str, bytes]) -> None:
        found = [name for name in content if name.startswith(start)]
        assert found
        for name in found:
            del content[name]

    return change


def edit(name: str, function: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.update({name: function(content[name])})


def batch(pixels: int = 3072, labels: int = 2, first: int = 0, code: bytes = b"u1") -> bytes:
    data = layouts.python2_array(np.zeros((2, pixels), np.uint8), code)
    return layouts.python2_pickle(data, [first] + [1] * (labels - 1))


def mat(labels: int = 13, first: int = 1, side: int = 32, dtype: type = np.uint8) -> bytes:
    y = np.arange(first, first + labels)[:, None] % 10 + 1
    y[0] = first
    return layouts.mat_bytes(X=np.zeros((side, 32, 3, 13), dtype), y=y)


PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"
TINY = "tiny-imagenet-200"
VAL = f"{TINY}/val/val_annotations.txt"
SMALL = np.zeros((28, 28, 3), np.uint8)
FIRST = layouts.WNIDS[0]

BAD = {
    # Other data.
    "MNIST for CIFAR-10": ("idx", "cifar10", drop("t10k-labels"), "no files of cifar10 (data_ba"),
    "CIFAR-10 for MNIST": ("cifar10 python", "mnist", drop(f"{PY}/test"), "no files of mnist"),
    "CIFAR-10 for CIFAR-100": (
        "image folders",
        "cifar100",
        drop("cifar10/test"),
        "'airplane' is not one of the 100 classes",
    ),
    "CIFAR-10 for Tiny ImageNet": (
        "image folders",
        "tiny_imagenet",
        drop("cifar10/test"),
        "x.zip/cifar10 has no wnids.txt",
    ),
    # CIFAR's batches.
    "batch missing": ("cifar10 python", "", drop(f"{PY}/data_batch_3"), "py has no data_batch_3"),
    "cut batch": (
        "cifar10 python",
        "",
        edit(f"{PY}/data_batch_2", lambda data: data[:-40]),
        "data_batch_2: not a CIFAR batch for Python (",
    ),
    "no pickle": ("cifar10 python", "", put(f"{PY}/test_batch", b"hello"), "not a CIFAR batch"),
    "other dictionary": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", pickle.dumps({b"labels": [1]}, 2)),
        "test_batch: not a CIFAR batch for Python (",
    ),
    "CIFAR-100's labels": (
        "cifar10 python",
        "",
        edit(f"{PY}/test_batch", lambda data: data.replace(b"U\x06labels", b"U\x06xabels")),
        "test_batch: not a CIFAR batch for Python (b'labels')",
    ),
    "labels that are no integers": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch().replace(b"J\x01\0\0\0eu.", b"Neu.")),
        "test_batch: not a CIFAR batch for Python (its labels are not integers)",
    ),
    "huge label": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch().replace(b"J\x01\0\0\0eu.", b"I" + b"9" * 30 + b"\neu.")),
        "test_batch: not a CIFAR batch for Python (its labels are not integers)",
    ),
    "images of another size": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch(pixels=1024)),
        "test_batch: data is not an array of n×3072 unsigned bytes",
    ),
    "floats": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch(code=b"f4")),
        "data is not an array of n×3072 unsigned bytes",
    ),
    "fewer labels": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch(labels=1)),
        "test_batch: 1 labels for 2 images",
    ),
    "label out of range": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch(first=10)),
        "test_batch: label 10 at position 0, expected 0 to 9",
    ),
    "negative label": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch(first=-1)),
        "test_batch: label -1 at position 0",
    ),
    "class missing in a batch": (
        "cifar10 python",
        "",
        put(f"{PY}/test_batch", batch()),
        "py: no test image of class bird",
    ),
    "cut binary batch": (
        "cifar10 binary",
        "",
        edit(f"{BIN}/data_batch_5.bin", lambda data: data[:-1]),
        "data_batch_5.bin: 9218 bytes, expected a multiple of 3073",
    ),
    "empty binary batch": ("cifar10 binary", "", put(f"{BIN}/test_batch.bin", b""), "no test ima"),
    "label out of range, binary": (
        "cifar100 binary",
        "",
        edit("cifar-100-binary/test.bin", lambda data: b"\x00\x64" + data[2:]),
        "test.bin: label 100 at position 0, expected 0 to 99",
    ),
    # SVHN.
    "mat missing": ("svhn", "", drop("test_32x32.mat"), "has no test_32x32.mat"),
    "no mat": ("svhn", "", put("test_32x32.mat", b"hello"), "test_32x32.mat: not a MATLAB file"),
    "cut mat": (
        "svhn",
        "",
        edit("test_32x32.mat", lambda data: data[: len(data) // 2]),
        "test_32x32.mat: not a MATLAB file with X and y, or damaged",
    ),
    "other variables": (
        "svhn",
        "",
        put("test_32x32.mat", layouts.mat_bytes(Z=np.zeros(3))),
        "not a MATLAB file with X and y",
    ),
    "mat of another shape": (
        "svhn",
        "",
        put("test_32x32.mat", mat(side=28)),
        "test_32x32.mat: X is 28×32×3×13 uint8, expected 32×32×3×n uint8",
    ),
    "mat of another type": (
        "svhn",
        "",
        put("test_32x32.mat", mat(dtype=np.float64)),
        "X is 32×32×3×13 float64",
    ),
    "fewer labels in a mat": ("svhn", "", put("test_32x32.mat", mat(12)), "12 labels for 13 image"),
    "label 0 in a mat": (
        "svhn",
        "",
        put("test_32x32.mat", mat(first=0)),
        "test_32x32.mat: label 0 at position 0, expected 1 to 10",
    ),
    # Image folders.
    "class missing": ("image folders", "", drop("cifar10/test/dog/"), "no test image of class dog"),
    "split missing": ("image folders", "", drop("cifar10/test"), "no test images"),
    "unknown class": (
        "image folders",
        "",
        put("cifar10/train/zebra/1.png", b""),
        "train/zebra/1.png: 'zebra' is not one of the 10 classes",
    ),
    "file of another kind": (
        "image folders",
        "",
        put("cifar10/train/dog/notes.txt", b""),
        "train/dog/notes.txt: expected .jpg, .jpeg or .png files here",
    ),
    "folder too deep": (
        "image folders",
        "",
        put("cifar10/train/dog/more/1.png", b""),
        "train/dog/more/1.png: expected",
    ),
    # Tiny ImageNet.
    "annotations missing": ("tiny imagenet", "", drop(VAL), "has no val/val_annotations.txt"),
    "wnids missing": ("tiny imagenet", "", drop(f"{TINY}/wnids.txt"), "has no wnids.txt"),
    "words missing": ("tiny imagenet", "", drop(f"{TINY}/words.txt"), "has no words.txt"),
    "image missing": (
        "tiny imagenet",
        "",
        drop(f"{TINY}/val/images/val_7.JPEG"),
        "val_annotations.txt: line 8 names 'val_7.JPEG', not in val/images",
    ),
    "annotation missing": (
        "tiny imagenet",
        "",
        edit(VAL, lambda data: data[: data.index(b"val_199.JPEG")]),
        "val_annotations.txt: no line for 'val_199.JPEG' of val/images",
    ),
    "annotation twice": (
        "tiny imagenet",
        "",
        edit(VAL, lambda data: data.replace(b"val_1.JPEG", b"val_0.JPEG")),
        "val_annotations.txt: line 2 names 'val_0.JPEG', not in val/images or named before",
    ),
    "annotation without a class": (
        "tiny imagenet",
        "",
        edit(VAL, lambda data: b"val_0.JPEG\n" + data),
        "val_annotations.txt: line 1 has the class ''",
    ),
    "annotation with an unknown class": (
        "tiny imagenet",
        "",
        edit(VAL, lambda data: data.replace(FIRST.encode(), b"n99999999")),
        "has the class 'n99999999', which is not in wnids.txt",
    ),
    "annotations that are no text": ("tiny imagenet", "", put(VAL, b"\xff\xfe"), "not a text file"),
    "wnid of no folder": (
        "tiny imagenet",
        "",
        drop(f"{TINY}/train/{FIRST}/images"),
        f"no train image of class {FIRST}",
    ),
    "folder of no wnid": (
        "tiny imagenet",
        "",
        put(f"{TINY}/train/n99999999/images/x.JPEG", b""),
        "x.JPEG: 'n99999999' is not in wnids.txt",
    ),
    "fewer wnids": (
        "tiny imagenet",
        "",
        edit(f"{TINY}/wnids.txt", lambda data: data[:-10]),
        "wnids.txt: 199 lines, 199 of them different, expected 200",
    ),
    "wnid twice": (
        "tiny imagenet",
        "",
        edit(f"{TINY}/wnids.txt", lambda data: data[10:] + data[10:20]),
        "wnids.txt: 200 lines, 199 of them different",
    ),
    "other wnids": (
        "tiny imagenet",
        "",
        edit(f"{TINY}/wnids.txt", lambda data: data.replace(b"n", b"m")),
        "is not a WordNet id like n01443537",
    ),
    "words of no wnid": (
        "tiny imagenet",
        "",
        edit(f"{TINY}/words.txt", lambda data: data.replace(FIRST.encode(), b"n99999999")),
        f"words.txt: no line for {FIRST}",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_not_valid_is_refused_before_anything_is_written(
    examples, tmp_path, capsys, monkeypatch, case
):
    layout, name, change, message = BAD[case]
    own, example = examples(layout)
    change(example.content)
    (tmp_path / "x.zip").write_bytes(layouts.zip_bytes(example.content))
    monkeypatch.setattr("wasserstein_adv.data.prepared._build", None)  # not reached
    error = refused(capsys, name or own, tmp_path / "x.zip", tmp_path / "tfds")
    assert message in error and str(tmp_path / "x.zip") in error


def test_missing_and_ambiguous_sources_are_refused(tmp_path, capsys):
    error = refused(capsys, "cifar10", tmp_path / "absent", tmp_path / "tfds")
    assert "absent is not a folder, nor a tar or zip file" in error
    (tmp_path / "here").mkdir()
    error = refused(capsys, "svhn", tmp_path / "here", tmp_path / "tfds")
    assert "here: no files of svhn (train_32x32.mat or train/)" in error
    for name in ("a.tar", "b.zip"):
        (tmp_path / "here" / name).touch()
    error = refused(capsys, "cifar10", tmp_path / "here", tmp_path / "tfds")
    assert "here: no files of cifar10" in error and "2 archives: give one" in error


def grey16() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


NO_IMAGE = {
    "text": (b"hello", "not a JPEG or PNG image"),
    "empty": (b"", "not a JPEG or PNG image"),
    "other size": (layouts.image_bytes(SMALL), "the image is 28×28, expected 32×32"),
    "cut": (
        layouts.image_bytes(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))[:900],
        "damaged image (",
    ),
    "GIF": (layouts.image_bytes(np.zeros((32, 32), np.uint8), "GIF"), "not a JPEG or PNG image"),
    "16 bits": (grey16(), "the image has mode I;16, expected 8 bits a channel"),
}


@pytest.mark.parametrize("case", NO_IMAGE)
def test_a_bad_image_on_the_way_leaves_nothing(examples, tmp_path, capsys, case):
    data, message = NO_IMAGE[case]
    name, example = examples("image folders")
    example.content["cifar10/test/truck/0.jpeg"] = data  # the last one of all
    layouts.write_folder(example.content, tmp_path / "source")
    error = refused(capsys, name, tmp_path / "source", tmp_path / "tfds")
    assert f"{tmp_path / 'source'}/cifar10/test/truck/0.jpeg: {message}" in error


def test_pickles_are_read_as_numpy_means_them():
    data = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    pickled = layouts.python2_pickle(layouts.python2_array(data), [3, 1])
    batch = pickle.loads(pickled, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], data, strict=True)
    assert batch[b"labels"] == [3, 1]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (b"cos\nsystem\n(S'touch %s'\ntR.", "os.system"),
        (b"cposix\nsystem\n(S'touch %s'\ntR.", "posix.system"),
        (b'c__builtin__\neval\n(S\'open("%s","w")\'\ntR.', "__builtin__.eval"),
        (b"cnumpy\nload\n(S'%s'\ntR.", "numpy.load"),
        (b"(S'touch %s'\nios\nsystem\n.", "os.system"),
    ],
)
def test_pickles_are_not_obeyed(examples, tmp_path, capsys, call, named):
    name, example = examples("cifar10 python")
    trace = tmp_path / "trace"
    example.content[f"{PY}/data_batch_1"] = call.replace(b"%s", os.fsencode(trace))
    layouts.write_folder(example.content, tmp_path / "source")
    error = refused(capsys, name, tmp_path / "source", tmp_path / "tfds")
    assert f"data_batch_1: not a CIFAR batch for Python (it names {named})" in error
    assert not trace.exists()


@pytest.mark.parametrize("layout", ["image folders", "tiny imagenet"])
def test_what_is_prepared_is_what_was_published(examples, tmp_path, layout):
    name, example = examples(layout)
    (tmp_path / "x.zip").write_bytes(layouts.zip_bytes(example.content))
    steps = []
    folder, made = prepare(name, tmp_path / "x.zip", tmp_path, lambda *step: steps.append(step))
    total = sum(map(len, example.labels.values()))
    assert made and steps == [(n, total) for n in (*range(100, total, 100), total)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECIPES[name].dataset, "x.zip"]
    for split in ("train", "test"):
        steps.clear()
        dataset = read(name, split, tmp_path, False, lambda *step: steps.append(step))
        assert steps == [(len(example.labels[split]),) * 2]
        np.testing.assert_array_equal(dataset.images, example.images[split], strict=True)
        np.testing.assert_array_equal(dataset.labels, example.labels[split].astype(np.int32))
        assert dataset.images.shape[1:] == describe(name).image_shape
    names = class_names(name, tmp_path)
    assert (folder / "label.labels.txt").read_text().splitlines() == list(names)
    if name == "tiny_imagenet":
        assert names == tuple(f"{wnid} thing, {wnid[-3:]}" for wnid in layouts.WNIDS)
    else:
        assert names == tuple(layouts.CIFAR10)


def test_more_than_one_shard_keeps_the_order(examples, tmp_path, monkeypatch):
    from wasserstein_adv.data import builders

    monkeypatch.setattr(builders, "_SHARD", 7)
    name, example = examples("cifar10 binary")
    folder, _ = prepare(name, layouts.write_folder(example.content, tmp_path / "source"), tmp_path)
    assert len(list(folder.glob("*-train.array_record*"))) == 3  # of 15 images
    for split in ("train", "test"):
        dataset = read(name, split, tmp_path)
        np.testing.assert_array_equal(dataset.images, example.images[split], strict=True)
        np.testing.assert_array_equal(dataset.labels, example.labels[split].astype(np.int32))


def member(tar: bytes, name: str) -> bytes:
    """A file in a tar, by the specification: a header of 512 bytes, size at 124, then the data."""
    header = tar.index(name.encode() + b"\0")
    size = int(tar[header + 124 : header + 135], 8)
    return tar[header + 512 : header + 512 + size]


def test_cifar10_subset(real_data):
    path = real_data / "cifar10" / "cifar10_images.tar"
    tar = path.read_bytes()
    with open_published("cifar10", path) as published:
        for split, size in (("train", 25_000), ("test", 10_000)):
            labels, image = published.splits[split]
            np.testing.assert_array_equal(labels, np.arange(size) % 10)
            for position in (0, 13):
                name = f"cifar10/{split}/{layouts.CIFAR10[position % 10]}/000{position // 10}.jpg"
                expected = layouts.pillow_rgb(member(tar, name))
                np.testing.assert_array_equal(image(position), expected, strict=True)


def test_tiny_imagenet_subset(real_data):
    path = real_data / "tiny_imagenet"
    with open_published("tiny_imagenet", path) as published:
        assert len(published.classes) == 200
        assert published.classes[0] == "n01443537 goldfish, Carassius auratus"
        train, test = published.splits["train"], published.splits["test"]
        np.testing.assert_array_equal(train.labels, np.arange(12_000) % 200)
        assert np.bincount(test.labels).tolist() == [20] * 200
        # A fair sample: 5 of each class on average, and no class more than 15 times.
        assert np.bincount(test.labels[:1000]).max() <= 15
        assert published.classes[test.labels[0]].startswith("n03444034")
        tar = (path / "tiny-imagenet-200_subset.tar").read_bytes()
        content = member(tar, "tiny-imagenet-200/val/images/val_0.JPEG")
        np.testing.assert_array_equal(test.image(0), layouts.pillow_rgb(content), strict=True)
        grey = sum(np.ptp(train.image(position), axis=-1).max() == 0 for position in range(400))
        assert 0 < grey < 40


@pytest.mark.parametrize(
    ("name", "other"), [("mnist", "fashion_mnist"), ("fashion_mnist", "mnist")]
)
def test_the_two_datasets_of_idx_files_are_told_apart(real_data, name, other):
    message = f"{other}: holds {other}, not {name}$"
    with pytest.raises(InputError, match=message), open_published(name, real_data / other):
        pass


def test_a_name_in_a_zip_file_that_is_no_text_is_one_line(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ä.png", b"")
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xff"))
    with pytest.raises(InputError, match="not a whole tar or zip file"), open_tree(path):
        pass


def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path):
    content = {"zeros": bytes(20 << 20)}
    packed, zipped = tmp_path / "x.tar.gz", tmp_path / "x.zip"
    packed.write_bytes(layouts.tar_bytes(content, mode="w:gz"))
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", content["zeros"])
    for path in (packed, zipped):
        message = "unpacks to more than 16,777,216 bytes"
        with pytest.raises(InputError, match=message), open_tree(path) as tree:
            read_bytes(tree.files["zeros"])
    (tmp_path / "mat").mkdir()
    mat = layouts.mat_bytes(X=np.zeros((32, 32, 3, 6000), np.uint8), y=np.ones((6000, 1)))
    (tmp_path / "mat" / "train_32x32.mat").write_bytes(mat)
    with (
        open_tree(tmp_path / "mat") as tree,
        pytest.raises(InputError, match="unpacks to more than"),
    ):
        read_svhn(tree)


def test_a_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="cannot be read"), open_tree(tmp_path):
        pass
