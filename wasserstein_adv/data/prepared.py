"""Prepare TFDS datasets on this machine and read them back, both without TensorFlow.

tensorflow_datasets and Pillow are imported inside the functions that need them: they are slow to
import, and the library itself does not require them.
"""

import contextlib
import importlib
import io
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from wasserstein_adv.errors import InputError

_FILE_FORMAT = "array_record"  # the one that TFDS reads at random without TensorFlow
_ABANDONED_AFTER_S = 3600


class Recipe(NamedTuple):
    """How one dataset is made.

    Attributes:
        dataset: TFDS's name for it, which is its folder in the data directory.
        version: its version, which is the folder inside.
        module: module with its builder, whose class takes `source` besides TFDS's own arguments.
        builder: the builder's name in that module.
    """

    dataset: str
    version: str
    module: str
    builder: str


RECIPES = {
    "mnist": Recipe("wasserstein_mnist", "1.0.0", "wasserstein_adv.data.mnist", "WassersteinMnist"),
    "fashion_mnist": Recipe(
        "wasserstein_fashion_mnist",
        "1.0.0",
        "wasserstein_adv.data.mnist",
        "WassersteinFashionMnist",
    ),
}


def default_data_dir() -> Path:
    """Return TFDS's default data directory: $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def prepared_dir(name: str, data_dir: Path | None = None) -> Path:
    """Return the folder in which a prepared dataset lies, whether it is there or not.

    Args:
        name: one of `RECIPES`.
        data_dir: TFDS data directory; None means `default_data_dir()`.

    Returns:
        `data_dir/dataset/version`.

    Raises:
        InputError: the name is not known.
    """
    if name not in RECIPES:
        raise InputError(f"dataset {name!r} cannot be prepared, expected one of {_listed(RECIPES)}")
    recipe = RECIPES[name]
    root = default_data_dir() if data_dir is None else data_dir.expanduser()
    return root / recipe.dataset / recipe.version


def is_prepared(name: str, data_dir: Path | None = None) -> bool:
    """Return whether a dataset is prepared; arguments and errors are those of `prepared_dir`."""
    folder = prepared_dir(name, data_dir)
    # TFDS writes these two last, and moves the folder into place only then.
    return all((folder / file).is_file() for file in ("dataset_info.json", "features.json"))


def prepare(
    name: str, source: Path | None = None, data_dir: Path | None = None
) -> tuple[Path, bool]:
    """Prepare a dataset, unless it is prepared already.

    What is not valid is refused before anything is written, and the dataset appears in one step:
    a failure leaves nothing behind, a kill at most a folder `incomplete.*`, which never counts as
    the dataset and which a later call removes once it is an hour old.

    Args:
        name: one of `RECIPES`.
        source: folder with the published files; None downloads them.
        data_dir: TFDS data directory; None means `default_data_dir()`.

    Returns:
        The dataset's folder, and whether this call made it.

    Raises:
        InputError: the name is not known; a source file is missing or not valid; the files cannot
            be downloaded; `data_dir` cannot be written; or the dataset's folder is there but is
            not complete.
    """
    folder = prepared_dir(name, data_dir)
    if is_prepared(name, data_dir):
        return folder, False
    if folder.exists():
        raise InputError(f"{folder} is there but is not a complete dataset: remove it first")
    new_folders = [parent for parent in folder.parents if not parent.exists()]
    try:
        _build(RECIPES[name], source, folder)
    except OSError as error:
        if is_prepared(name, data_dir):  # another process was faster
            return folder, False
        raise InputError(f"{folder}: cannot be written ({_one_line(error)})") from error
    except InputError as error:
        if source is not None:
            raise
        raise InputError(f"{missing_message(name, data_dir)}; {error}") from error
    finally:
        # TFDS makes them even for a dataset that then fails; one with something in it stays.
        for parent in new_folders:
            with contextlib.suppress(OSError):
                parent.rmdir()
    return folder, True


def missing_message(name: str, data_dir: Path | None = None) -> str:
    """Say in one line where a dataset was looked for and which command makes it.

    Args:
        name: one of `RECIPES`.
        data_dir: TFDS data directory; None means `default_data_dir()`.

    Returns:
        The line, without a full stop.
    """
    option = "" if data_dir is None else f" --data-dir {shlex.quote(str(data_dir))}"
    return (
        f"dataset {name!r} is not prepared (nothing complete at {prepared_dir(name, data_dir)}): "
        "make it from its published files with "
        f"`python -m experiments.prepare_data {name} --source DIR{option}`"
    )


def split_sizes(folder: Path) -> dict[str, int]:
    """Return the number of examples in each split of a prepared dataset.

    Args:
        folder: the dataset's folder, as `prepare` returns it.

    Returns:
        The numbers by split, in the order in which the splits were written.

    Raises:
        InputError: the folder holds no dataset that can be read.
    """
    return {name: split.num_examples for name, split in _open(folder).info.splits.items()}


def read_prepared(
    folder: Path, split: str
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n"]]:
    """Read one split of a prepared dataset whole.

    Args:
        folder: the dataset's folder, as `prepare` returns it. Its features are `image`, of one
            fixed shape, and `label`.
        split: name of the split.

    Returns:
        The images, uint8 (N, H, W, C), and the labels, int32 (N,), in the dataset's order.

    Raises:
        InputError: there is no such split, or the files are damaged.
    """
    tfds = _import_tfds()
    builder = _open(folder)
    if split not in builder.info.splits:
        raise InputError(
            f"{folder} has no split {split!r}, expected one of {_listed(builder.info.splits)}"
        )
    try:
        # Raw records: TFDS's own decoding takes twice as long.
        source = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = source.__getitems__(range(len(source)))
        return _decode(records, builder.info.features["image"].shape)
    # array_record reports damage by any of these, protobuf by its own kind of ValueError.
    except (ValueError, IndexError, RuntimeError, OSError) as error:
        raise InputError(
            f"{folder}: damaged ({_one_line(error)}), remove it and prepare it again"
        ) from error


def _decode(
    records: list[bytes], shape: tuple[int, int, int]
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n"]]:
    """Decode serialized examples with an encoded `image` of the given shape and a `label`."""
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    images = np.empty((len(records), *shape), np.uint8)
    labels = np.empty(len(records), np.int32)
    for i, record in enumerate(records):
        feature = tf_example_pb2.Example.FromString(record).features.feature
        encoded = feature["image"].bytes_list.value[0]
        # Threads do not help: at this size nearly all of the time is spent in Python.
        images[i] = np.asarray(Image.open(io.BytesIO(encoded))).reshape(shape)
        labels[i] = feature["label"].int64_list.value[0]
    return images, labels


def _build(recipe: Recipe, source: Path | None, folder: Path) -> None:
    """Make a dataset in `folder`, which must not exist."""
    tfds = _import_tfds()
    builder_class = getattr(importlib.import_module(recipe.module), recipe.builder)
    builder = builder_class(source=source, data_dir=folder.parent.parent, file_format=_FILE_FORMAT)
    _remove_abandoned(folder)
    with _silence(), tempfile.TemporaryDirectory() as downloads:
        builder.download_and_prepare(
            download_dir=downloads,
            download_config=tfds.download.DownloadConfig(force_checksums_validation=True),
        )


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed preparations of `folder` left, sparing any that may still run."""
    for path in folder.parent.glob(f"incomplete.*_{folder.name}"):
        if time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S:
            shutil.rmtree(path, ignore_errors=True)


def _open(folder: Path) -> Any:
    """Return TFDS's read-only builder for a prepared dataset."""
    tfds = _import_tfds()
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # json, protobuf and TFDS itself each have their own
        raise InputError(f"{folder}: not a prepared dataset ({_one_line(error)})") from error


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"prepared datasets need the packages in requirements.txt ({_one_line(error)})"
        ) from error
    return tfds


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Swallow what TFDS prints and its progress bars; errors are raised, not printed."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))
