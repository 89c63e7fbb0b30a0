"""Which datasets there are, in which layouts they are published, and where."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from wasserstein_adv.data import cifar_batches, idx, image_folder, svhn_mat, tiny_imagenet
from wasserstein_adv.data.download import Download
from wasserstein_adv.data.files import Tree, open_tree
from wasserstein_adv.data.published import Published, check_classes
from wasserstein_adv.errors import InputError

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")


class Spec(NamedTuple):
    """What is known of a dataset before it is loaded.

    Attributes:
        image_shape: height and width in pixels, and channels.
        classes: how many classes it has.
    """

    image_shape: tuple[int, int, int]
    classes: int

    @property
    def colour(self) -> bool:
        """Whether the images have colours: more channels than one."""
        return self.image_shape[-1] > 1


class Layout(NamedTuple):
    """One way in which a dataset is published.

    Attributes:
        marks: files, and folders with "/" behind, any of which shows this layout.
        read: reads it; raises InputError where files are missing or not valid.
    """

    marks: tuple[str, ...]
    read: Callable[[Tree], Published]


class Recipe(NamedTuple):
    """How one dataset is made.

    Attributes:
        dataset: TFDS's name for it, which is its folder in the data directory; not the name of
            TFDS's own, which is written with TensorFlow and could lie in the same data directory.
        description: what it is, in a line.
        spec: the shape of its images and its number of classes.
        sizes: how many images of each split are published; parts of it are read as well.
        names: the names of its classes, by number; None where only its files say.
        layouts: the layouts in which it is published.
        downloads: files that make up one of these layouts, packed or not.
    """

    dataset: str
    description: str
    spec: Spec
    sizes: Mapping[str, int]
    names: tuple[str, ...] | None
    layouts: tuple[Layout, ...]
    downloads: tuple[Download, ...]


def _idx(name: str, classes: tuple[str, ...]) -> Layout:
    names = [name for pair in idx.FILES.values() for name in pair]
    marks = (*names, *(f"{name}.gz" for name in names))
    return Layout(marks, partial(idx.read_idx, name=name, classes=classes))


def _batches(
    files: Mapping[str, tuple[str, ...]],
    suffix: str,
    read: Callable[[Tree], Published],
) -> Layout:
    return Layout(tuple(f"{name}{suffix}" for names in files.values() for name in names), read)


def _images(classes: tuple[str, ...]) -> Layout:
    read = partial(image_folder.read_image_folder, classes=classes, shape=(32, 32, 3))
    return Layout(image_folder.MARKS, read)


def _mirrored(
    addresses: tuple[str, ...], files: dict[str, tuple[int, str]]
) -> tuple[Download, ...]:
    return tuple(
        Download(tuple(f"{address}{name}" for address in addresses), size, checksum)
        for name, (size, checksum) in files.items()
    )


RECIPES = {
    "mnist": Recipe(
        "wasserstein_mnist",
        "MNIST, images of handwritten digits.",
        Spec(idx.IMAGE_SHAPE, 10),
        {"train": 60_000, "test": 10_000},
        idx.DIGITS,
        (_idx("mnist", idx.DIGITS),),
        _mirrored(
            (
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
            ),
            {
                "train-images-idx3-ubyte.gz": (
                    9912422,
                    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                ),
                "train-labels-idx1-ubyte.gz": (
                    28881,
                    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                ),
                "t10k-images-idx3-ubyte.gz": (
                    1648877,
                    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    4542,
                    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                ),
            },
        ),
    ),
    "fashion_mnist": Recipe(
        "wasserstein_fashion_mnist",
        "Fashion-MNIST, images of articles of clothing.",
        Spec(idx.IMAGE_SHAPE, 10),
        {"train": 60_000, "test": 10_000},
        idx.CLOTHING,
        (_idx("fashion_mnist", idx.CLOTHING),),
        _mirrored(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            {
                "train-images-idx3-ubyte.gz": (
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                "train-labels-idx1-ubyte.gz": (
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                "t10k-images-idx3-ubyte.gz": (
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                "t10k-labels-idx1-ubyte.gz": (
                    5148,
                    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                ),
            },
        ),
    ),
    "cifar10": Recipe(
        "wasserstein_cifar10",
        "CIFAR-10, images of animals and vehicles.",
        Spec(cifar_batches.IMAGE_SHAPE, 10),
        {"train": 50_000, "test": 10_000},
        cifar_batches.CIFAR10,
        (
            _batches(cifar_batches.CIFAR10_FILES, "", cifar_batches.read_cifar10_python),
            _batches(cifar_batches.CIFAR10_FILES, ".bin", cifar_batches.read_cifar10_binary),
            _images(cifar_batches.CIFAR10),
        ),
        _mirrored(
            ("https://www.cs.toronto.edu/~kriz/",),
            {
                "cifar-10-binary.tar.gz": (
                    170052171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                )
            },
        ),
    ),
    "cifar100": Recipe(
        "wasserstein_cifar100",
        "CIFAR-100, images of a hundred fine classes.",
        Spec(cifar_batches.IMAGE_SHAPE, 100),
        {"train": 50_000, "test": 10_000},
        cifar_batches.CIFAR100,
        (
            _batches(cifar_batches.CIFAR100_FILES, "", cifar_batches.read_cifar100_python),
            _batches(cifar_batches.CIFAR100_FILES, ".bin", cifar_batches.read_cifar100_binary),
            _images(cifar_batches.CIFAR100),
        ),
        _mirrored(
            ("https://www.cs.toronto.edu/~kriz/",),
            {
                "cifar-100-binary.tar.gz": (
                    168513733,
                    "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                )
            },
        ),
    ),
    "svhn": Recipe(
        "wasserstein_svhn",
        "SVHN, images of cropped house numbers.",
        Spec(svhn_mat.IMAGE_SHAPE, 10),
        {"train": 73_257, "test": 26_032},
        svhn_mat.DIGITS,
        (
            Layout(tuple(svhn_mat.FILES.values()), svhn_mat.read_svhn),
            _images(svhn_mat.DIGITS),
        ),
        _mirrored(
            ("http://ufldl.stanford.edu/housenumbers/",),
            {
                "train_32x32.mat": (
                    182040794,
                    "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                ),
                "test_32x32.mat": (
                    64275384,
                    "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                ),
            },
        ),
    ),
    "tiny_imagenet": Recipe(
        "wasserstein_tiny_imagenet",
        "Tiny ImageNet, training and validation images of 200 classes.",
        Spec(tiny_imagenet.IMAGE_SHAPE, tiny_imagenet.NUM_CLASSES),
        {"train": 100_000, "test": 10_000},
        None,
        (Layout(tiny_imagenet.MARKS, tiny_imagenet.read_tiny_imagenet),),
        _mirrored(
            ("http://cs231n.stanford.edu/",),
            {
                "tiny-imagenet-200.zip": (
                    248100043,
                    "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
                )
            },
        ),
    ),
}


@contextlib.contextmanager
def open_published(name: str, source: Path) -> Iterator[Published]:
    """Find and check a published dataset.

    Args:
        name: one of `RECIPES`.
        source: folder or archive (tar, gzipped tar, zip) with its files in one of its layouts, at
            the top or in a folder at the top; or folder with such an archive and no other.

    Yields:
        The dataset; its images can be read until the context ends.

    Raises:
        InputError: no layout of the dataset is there; a file is missing or not valid; or a split
            lacks a class. Image files are only checked when they are read.
    """
    layouts = RECIPES[name].layouts
    with contextlib.ExitStack() as stack:
        tree = stack.enter_context(open_tree(source))
        found = _find(tree, layouts)
        archives = [path for path in tree.files if source.is_dir() and _is_archive(path)]
        if found is None and len(archives) == 1:
            tree = stack.enter_context(open_tree(source / archives[0]))
            found = _find(tree, layouts)
        if found is None:
            expected = " or ".join(layout.marks[0] for layout in layouts)
            several = f", and {len(archives)} archives: give one" if len(archives) > 1 else ""
            raise InputError(f"{tree.place}: no files of {name} ({expected}){several}")
        read, tree = found
        published = read(tree)
        check_classes(published, tree.place)
        yield published


def _is_archive(path: str) -> bool:
    return "/" not in path and path.lower().endswith(_ARCHIVES)


def _find(
    tree: Tree, layouts: tuple[Layout, ...]
) -> tuple[Callable[[Tree], Published], Tree] | None:
    """The first layout that is there, at the top or in a folder at the top, and the tree of it."""
    folders = sorted({path.split("/", 1)[0] for path in tree.files if "/" in path})
    parts = (tree, *(_inside(tree, folder) for folder in folders))
    for layout in layouts:
        for part in parts:
            if any(_has(part, mark) for mark in layout.marks):
                return layout.read, part
    return None


def _inside(tree: Tree, folder: str) -> Tree:
    start = f"{folder}/"
    files = {
        path.removeprefix(start): f for path, f in tree.files.items() if path.startswith(start)
    }
    return Tree(f"{tree.place}/{folder}", files)


def _has(tree: Tree, mark: str) -> bool:
    if mark.endswith("/"):
        return any(path.startswith(mark) for path in tree.files)
    return mark in tree.files
