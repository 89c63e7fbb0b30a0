"""Tiny ImageNet as it was published: 200 classes of ImageNet at 64×64."""

import re

from wasserstein_adv.data.files import File, Tree, read_lines
from wasserstein_adv.data.image_folder import in_natural_order, interleave
from wasserstein_adv.data.published import Published, Split, require, split_of_files
from wasserstein_adv.errors import InputError

IMAGE_SHAPE = (64, 64, 3)
NUM_CLASSES = 200
MARKS = ("wnids.txt", "train/", "val/")

_ANNOTATIONS = "val/val_annotations.txt"


def read_tiny_imagenet(tree: Tree) -> Published:
    """Find the images of both splits, which are read when they are asked for.

    The classes are numbered by their sorted WordNet ids, which is how PyTorch's ImageFolder numbers
    the folders of `train`; `wnids.txt` has another order. Their names are id and words,
    "n01443537 goldfish, Carassius auratus". "train" deals out the classes in turn (see
    `interleave`); "test" is the published validation split in the order of its annotations, which
    mixes the classes. The published test split has no labels and is not used.

    Args:
        tree: folder with `wnids.txt`, `words.txt`, `train/WNID/images/*.JPEG`, `val/images/*.JPEG`
            and `val/val_annotations.txt`.

    Returns:
        The dataset.

    Raises:
        InputError: a file is missing, or they do not fit together.
    """
    wnids = _read_wnids(require(tree, "wnids.txt"))
    words_file = require(tree, "words.txt")
    words = dict(line.split("\t", 1) for line in read_lines(words_file) if "\t" in line)
    for wnid in wnids:
        if wnid not in words:
            raise InputError(f"{words_file}: no line for {wnid}, a class of wnids.txt")
    names = tuple(f"{wnid} {words[wnid].strip()}" for wnid in wnids)
    return Published(names, {"train": _read_train(tree, wnids), "test": _read_val(tree, wnids)})


def _read_wnids(file: File) -> list[str]:
    wnids = sorted(line.strip() for line in read_lines(file))
    wrong = [wnid for wnid in wnids if not re.fullmatch("n[0-9]{8}", wnid)]
    if wrong:
        raise InputError(f"{file}: {wrong[0]!r} is not a WordNet id like n01443537")
    if len(set(wnids)) != NUM_CLASSES or len(wnids) != NUM_CLASSES:
        raise InputError(
            f"{file}: {len(wnids)} lines, {len(set(wnids))} of them different, "
            f"expected {NUM_CLASSES} WordNet ids"
        )
    return wnids


def _read_train(tree: Tree, wnids: list[str]) -> Split:
    groups: dict[str, dict[str, File]] = {wnid: {} for wnid in wnids}
    for path, file in tree.files.items():
        match path.split("/"):
            case ["train", wnid, *_] if wnid not in groups:
                raise InputError(f"{file}: {wnid!r} is not in wnids.txt")
            case ["train", wnid, "images", name]:
                groups[wnid][name] = file
    labels, files = interleave([in_natural_order(groups[wnid]) for wnid in wnids])
    return split_of_files(files, labels, IMAGE_SHAPE)


def _read_val(tree: Tree, wnids: list[str]) -> Split:
    annotations = require(tree, _ANNOTATIONS)
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    left = {
        path.removeprefix("val/images/"): file
        for path, file in tree.files.items()
        if path.startswith("val/images/")
    }
    files, labels = [], []
    for number, line in enumerate(read_lines(annotations), 1):
        where = f"{annotations}: line {number}"
        name, wnid, *_ = [*line.split("\t"), ""]  # and a box, which is not used
        if wnid not in numbers:
            raise InputError(f"{where} has the class {wnid!r}, which is not in wnids.txt")
        if name not in left:
            raise InputError(f"{where} names {name!r}, not in val/images or named before")
        files.append(left.pop(name))
        labels.append(numbers[wnid])
    if left:
        raise InputError(f"{annotations}: no line for {next(iter(left))!r} of val/images")
    return split_of_files(files, labels, IMAGE_SHAPE)
