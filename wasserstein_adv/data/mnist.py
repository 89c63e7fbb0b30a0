"""TFDS builders for MNIST and Fashion-MNIST that need no TensorFlow.

Importing this module imports tensorflow_datasets. The datasets have names of their own,
`wasserstein_mnist` and `wasserstein_fashion_mnist`, because TFDS's `mnist` and `fashion_mnist` are
written with TensorFlow and could lie in the same data directory.
"""

import io
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.download.checksums import UrlInfo

from wasserstein_adv.data.idx import (
    FILES,
    IMAGE_SHAPE,
    NUM_CLASSES,
    IdxSplit,
    find_idx_files,
    read_idx_split,
)
from wasserstein_adv.errors import InputError

_REACH_TIMEOUT_S = 10


class _LocalInfo(tfds.core.DatasetInfo):
    """Dataset info that is never looked for in TFDS's bucket."""

    def initialize_from_bucket(self) -> None:
        """Do nothing; TFDS's own leaves an empty temporary folder behind each time."""


class _IdxBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """What the datasets published as four idx files have in common.

    The examples stand in the order of the files: `image`, uint8 (28, 28, 1) as PNG, and `label`.

    Attributes:
        ADDRESSES: folders on the web that hold the published files, in the order to try them.
        CHECKSUMS: size in bytes and SHA-256 of each published file, by its name without ".gz".
    """

    VERSION = tfds.core.Version("1.0.0")
    ADDRESSES: ClassVar[tuple[str, ...]]
    CHECKSUMS: ClassVar[Mapping[str, tuple[int, str]]]
    url_infos: ClassVar[dict[str, UrlInfo]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Takes the place of TFDS's checksums.tsv, which would have to ship as package data.
        cls.url_infos = {
            f"{address}{name}.gz": UrlInfo(size=size, checksum=checksum, filename=f"{name}.gz")
            for address in cls.ADDRESSES
            for name, (size, checksum) in cls.CHECKSUMS.items()
        }

    def __init__(self, *, source: Path | None = None, **kwargs: Any) -> None:
        """Make a builder, reading and checking the files of `source` at once.

        Args:
            source: folder with the published files (see `find_idx_files`); None downloads them when
                the dataset is prepared.
            **kwargs: what TFDS's own builders take, `data_dir` and `file_format` above all.

        Raises:
            InputError: a file of `source` is missing or not valid.
        """
        # Before TFDS gets to work: what is not valid is refused before anything is written.
        self._splits = None if source is None else _read_splits(find_idx_files(source))
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=IMAGE_SHAPE, encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            # Published results on "the first n test images" mean the published order.
            disable_shuffling=True,
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        splits = _read_splits(self._download(dl_manager)) if self._splits is None else self._splits
        return {name: self._generate_examples(split) for name, split in splits.items()}

    def _generate_examples(self, split: IdxSplit) -> Iterator[tuple[int, dict[str, Any]]]:
        for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            yield index, {"image": _encode_png(image[..., 0]), "label": int(label)}

    def _download(self, dl_manager: tfds.download.DownloadManager) -> dict[str, tuple[Path, Path]]:
        """Download the published files from the first address that answers.

        Raises:
            InputError: no address answers, or a download fails or has the wrong checksum.
        """
        address = _first_reachable(self.ADDRESSES, probe=f"{FILES['test'][1]}.gz")
        urls = {name: f"{address}{name}.gz" for names in FILES.values() for name in names}
        try:
            paths = dl_manager.download(urls)
        except Exception as error:  # whatever its HTTP library or its checksums raise
            reason = " ".join(str(error).split())
            raise InputError(f"the download from {address} failed ({reason})") from error
        return {
            split: (Path(paths[images]), Path(paths[labels]))
            for split, (images, labels) in FILES.items()
        }


class WassersteinMnist(_IdxBuilder):
    """MNIST, 60,000 training and 10,000 test images of handwritten digits."""

    ADDRESSES = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
    CHECKSUMS: ClassVar = {
        "train-images-idx3-ubyte": (
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        "train-labels-idx1-ubyte": (
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        "t10k-images-idx3-ubyte": (
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        "t10k-labels-idx1-ubyte": (
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    }


class WassersteinFashionMnist(_IdxBuilder):
    """Fashion-MNIST, 60,000 training and 10,000 test images of articles of clothing."""

    ADDRESSES = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    CHECKSUMS: ClassVar = {
        "train-images-idx3-ubyte": (
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte": (
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte": (
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte": (
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    }


def _read_splits(files: Mapping[str, tuple[Path, Path]]) -> dict[str, IdxSplit]:
    return {split: read_idx_split(*paths) for split, paths in files.items()}


def _encode_png(image: UInt8[np.ndarray, "h w"]) -> io.BytesIO:
    """Encode a grey image; TFDS stores ready bytes as they are, arrays only with TensorFlow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    buffer.seek(0)
    return buffer


def _first_reachable(addresses: tuple[str, ...], probe: str) -> str:
    """Return the first address that has the file `probe`.

    TFDS retries for minutes before it gives up on an address, so it is only given one that answers.

    Raises:
        InputError: none does.
    """
    for address in addresses:
        request = urllib.request.Request(address + probe, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_REACH_TIMEOUT_S):
                return address
        except OSError:  # no route, no such name, a timeout, or an HTTP status of 400 and above
            continue
    raise InputError(f"none of its addresses can be reached ({', '.join(addresses)})")
