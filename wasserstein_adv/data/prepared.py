"""Prepare TFDS datasets on this machine and read them back, both without TensorFlow.

tensorflow_datasets and Pillow are imported inside the functions that need them: they are slow to
import, and the library itself does not require them.
"""

import contextlib
import io
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from wasserstein_adv.data.download import fetch
from wasserstein_adv.data.images import decode_png
from wasserstein_adv.data.published import Published
from wasserstein_adv.data.recipes import RECIPES, Recipe, open_published
from wasserstein_adv.errors import InputError

_VERSION = "1.0.0"
_FILE_FORMAT = "array_record"  # the one that TFDS reads at random without TensorFlow
_ABANDONED_AFTER_S = 3600
_CHUNK = 1000  # records read at once

# Called now and then with how many images are done, and of how many. What it prints to `sys.stderr`
# during a preparation is swallowed with what TFDS prints.
Progress = Callable[[int, int], None]


def default_data_dir() -> Path:
    """Return TFDS's default data directory: $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def prepared_dir(name: str, data_dir: Path | None = None) -> Path:
    """Return the folder in which a prepared dataset lies, whether it is there or not.

    Args:
        name: one of `RECIPES`.
        data_dir: TFDS data directory; None means `default_data_dir()`.

    Returns:
        `data_dir/DATASET/VERSION`.

    Raises:
        InputError: the name is not known.
    """
    if name not in RECIPES:
        raise InputError(f"dataset {name!r} cannot be prepared, expected one of {_listed(RECIPES)}")
    root = default_data_dir() if data_dir is None else data_dir.expanduser()
    return root / RECIPES[name].dataset / _VERSION


def is_prepared(name: str, data_dir: Path | None = None) -> bool:
    """Return whether a dataset is prepared; arguments and errors are those of `prepared_dir`."""
    folder = prepared_dir(name, data_dir)
    # TFDS writes these two last, and moves the folder into place only then.
    return all((folder / file).is_file() for file in ("dataset_info.json", "features.json"))


def prepare(
    name: str,
    source: Path | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Path, bool]:
    """Prepare a dataset, unless it is prepared already.

    Everything but the image files is checked before anything is written. The dataset appears in one
    step: a failure leaves nothing behind, a kill at most a folder `incomplete.*`, which never
    counts as the dataset and which a later call removes once it is an hour old.

    Args:
        name: one of `RECIPES`.
        source: folder or archive (tar, gzipped tar, zip) with the published files, see
            `open_published`; None downloads them.
        data_dir: TFDS data directory; None means `default_data_dir()`.
        progress: called with the number of images written, and of all.

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
    try:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(_downloaded(name)) if source is None else source
            published = stack.enter_context(open_published(name, place.expanduser()))
            _build(RECIPES[name], published, folder, progress)
    except OSError as error:
        if is_prepared(name, data_dir):  # another process was faster
            return folder, False
        raise InputError(f"{folder}: cannot be written ({_one_line(error)})") from error
    except InputError as error:
        if source is not None:
            raise
        raise InputError(f"{missing_message(name, data_dir)}; {error}") from error
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


def prepared_classes(folder: Path) -> tuple[str, ...]:
    """Return the names of a prepared dataset's classes, by number.

    Args:
        folder: the dataset's folder, as `prepare` returns it.

    Returns:
        The names.

    Raises:
        InputError: the folder holds no dataset that can be read.
    """
    return tuple(_open(folder).info.features["label"].names)


def read_prepared(
    folder: Path, split: str, progress: Progress | None = None
) -> tuple[UInt8[np.ndarray, "n h w c"], Int32[np.ndarray, "n"]]:
    """Read one split of a prepared dataset whole.

    Args:
        folder: the dataset's folder, as `prepare` returns it. Its features are `image`, of one
            fixed shape, and `label`.
        split: name of the split.
        progress: called with the number of images decoded, and of all.

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
    shape = builder.info.features["image"].shape
    try:
        # Raw records: TFDS's own decoding takes twice as long.
        source = builder.as_data_source(
            split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        count = len(source)
        images, labels = np.empty((count, *shape), np.uint8), np.empty(count, np.int32)
        for start in range(0, count, _CHUNK):
            positions = range(start, min(start + _CHUNK, count))
            for position, record in zip(positions, source.__getitems__(positions), strict=True):
                images[position], labels[position] = _decode(record, shape)
            if progress is not None:
                progress(positions.stop, count)
    # array_record reports damage by any of these, protobuf by its own kind of ValueError.
    except (ValueError, IndexError, RuntimeError, OSError, SyntaxError) as error:
        raise InputError(
            f"{folder}: damaged ({_one_line(error)}), remove it and prepare it again"
        ) from error
    return images, labels


def _decode(record: bytes, shape: tuple[int, int, int]) -> tuple[UInt8[np.ndarray, "h w c"], int]:
    """Decode a serialized example with an encoded `image` of the given shape and a `label`."""
    from tensorflow_datasets.proto import tf_example_pb2

    feature = tf_example_pb2.Example.FromString(record).features.feature
    image = decode_png(feature["image"].bytes_list.value[0], shape)
    return image, feature["label"].int64_list.value[0]


@contextlib.contextmanager
def _downloaded(name: str) -> Iterator[Path]:
    """A temporary folder with a dataset's published files."""
    with tempfile.TemporaryDirectory() as folder:
        for download in RECIPES[name].downloads:
            fetch(download, Path(folder))
        yield Path(folder)


def _build(recipe: Recipe, published: Published, folder: Path, progress: Progress | None) -> None:
    """Make a dataset in `folder`, which must not exist."""
    _import_tfds()
    from wasserstein_adv.data.builders import PublishedBuilder

    new_folders = [parent for parent in folder.parents if not parent.exists()]
    builder = PublishedBuilder(
        recipe=recipe,
        published=published,
        progress=progress,
        data_dir=folder.parent.parent,
        file_format=_FILE_FORMAT,
    )
    _remove_abandoned(folder)
    try:
        with _silence(), tempfile.TemporaryDirectory() as unused:
            builder.download_and_prepare(download_dir=unused)
    finally:
        # TFDS makes them even for a dataset that then fails; one with something in it stays.
        for parent in new_folders:
            with contextlib.suppress(OSError):
                parent.rmdir()


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
