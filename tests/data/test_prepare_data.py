"""Preparing datasets: what is refused, what is written, and what a failure leaves behind.

All with MNIST's layout; `test_layouts.py` has the others.
"""

import functools
import gzip
import hashlib
import http.server
import threading
import typing
from pathlib import Path

import numpy as np
import pytest
from layouts import idx_bytes

from experiments.harness.arguments import run_command
from experiments.prepare_data import PrepareConfig, main
from wasserstein_adv.data import load, prepare, read, split_sizes
from wasserstein_adv.data.download import Download
from wasserstein_adv.data.idx import FILES, find_idx_files, read_idx_split
from wasserstein_adv.data.prepared import is_prepared, prepared_dir
from wasserstein_adv.data.recipes import RECIPES
from wasserstein_adv.errors import InputError

IMAGES, LABELS = FILES["train"]


def command(*arguments: object) -> int:
    return run_command(main, PrepareConfig, [str(argument) for argument in arguments])


def entries(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def rewrite(folder: Path, name: str, change) -> Path:
    """Replace a packed file by what `change` makes of its unpacked bytes, packed again."""
    path = folder / f"{name}.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    return path


@pytest.mark.parametrize(("name", "packed"), [("mnist", True), ("fashion_mnist", False)])
def test_round_trip_is_exact_and_keeps_the_order(write_source, tmp_path, name, packed):
    source = write_source(packed)
    folder, made = prepare(name, source.folder, tmp_path / "tfds")
    assert made
    assert folder == prepared_dir(name, tmp_path / "tfds")
    assert split_sizes(folder) == {"train": 37, "test": 23}
    for split in ("train", "test"):
        raw = read(name, split, tmp_path / "tfds", download=False)
        np.testing.assert_array_equal(raw.images, source.images[split], strict=True)
        dataset = load(name, split, tmp_path / "tfds", download=False)
        assert dataset.name == raw.name == name
        np.testing.assert_array_equal(
            dataset.images, source.images[split] / np.float32(255), strict=True
        )
        for labels in (raw.labels, dataset.labels):
            np.testing.assert_array_equal(
                labels, source.labels[split].astype(np.int32), strict=True
            )


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_make_sense(name):
    recipe = RECIPES[name]
    assert recipe.dataset == f"wasserstein_{name}"
    assert recipe.names is None or len(recipe.names) == recipe.spec.classes
    assert recipe.downloads
    for download in recipe.downloads:
        assert download.size > 4000 and len(bytes.fromhex(download.sha256)) == 32
        (file,) = {address.rsplit("/", 1)[1] for address in download.addresses}
        assert file in recipe.layouts[0].marks or file.endswith((".tar.gz", ".zip"))
        assert all(address.startswith("http") for address in download.addresses)


def test_command_knows_every_dataset():
    option = typing.get_type_hints(PrepareConfig, include_extras=True)["name"]
    literal, *_ = typing.get_args(option)
    assert typing.get_args(literal) == tuple(RECIPES)


def test_command_prepares_once(source, tmp_path, capsys):
    data_dir = tmp_path / "tfds"
    arguments = ("mnist", "--source", source.folder, "--data-dir", data_dir)
    assert command(*arguments) == 0
    output = capsys.readouterr()
    sizes = "37 of 60,000 train, 23 of 10,000 test images"
    assert output.out == f"mnist: prepared at {prepared_dir('mnist', data_dir)} ({sizes})\n"
    before = entries(data_dir)
    assert command(*arguments) == 0
    assert "already prepared" in capsys.readouterr().out
    assert entries(data_dir) == before
    assert {path.name for path in data_dir.iterdir()} == {"wasserstein_mnist"}  # no leftovers


def test_default_place_is_that_of_tfds(source, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "by_variable"))
    folder, _ = prepare("mnist", source.folder)
    assert folder == tmp_path / "by_variable" / "wasserstein_mnist" / "1.0.0"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepared_dir("mnist").is_relative_to(tmp_path / "tensorflow_datasets")


def flip_byte(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


INVALID = {
    "magic": (IMAGES, lambda idx: b"\x00\x00\x0d" + idx[3:], "0x00000d03, expected 0x00000803"),
    "labels as images": (IMAGES, lambda idx: b"\x00\x00\x08\x01" + idx[4:], "idx file of images"),
    "images as labels": (LABELS, lambda idx: b"\x00\x00\x08\x03" + idx[4:], "idx file of labels"),
    "web page": (IMAGES, lambda idx: b"<!DOCTYPE html>", "not an idx file"),
    "empty": (IMAGES, lambda idx: b"", "not an idx file"),
    "cut in the header": (IMAGES, lambda idx: idx[:9], "ends within the header"),
    "cut in the data": (IMAGES, lambda idx: idx[:-1], "29007 bytes of data, but its header"),
    "too long": (LABELS, lambda idx: idx + b"\x00", "38 bytes of data, but its header says 37"),
    "label above 9": (LABELS, lambda idx: idx[:10] + b"\x0a" + idx[11:], "label 10 at position 2"),
    "fewer labels": (
        LABELS,
        lambda idx: idx[:4] + (36).to_bytes(4, "big") + idx[8:-1],
        "36 labels for the 37 images",
    ),
    "other size": (
        IMAGES,
        lambda idx: idx[:8] + (14).to_bytes(4, "big") + (56).to_bytes(4, "big") + idx[16:],
        "14×56, expected 28×28",
    ),
    "no images": (IMAGES, lambda idx: idx[:4] + bytes(4) + idx[8:16], "37 labels for the 0 images"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_files_are_refused_before_anything_is_written(source, tmp_path, capsys, case):
    name, change, message = INVALID[case]
    path = rewrite(source.folder, name, change)
    assert command("mnist", "--source", source.folder, "--data-dir", tmp_path / "tfds") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert str(path) in error and message in error
    assert not (tmp_path / "tfds").exists()


def test_damaged_gzip_is_refused(source, tmp_path):
    path = source.folder / f"{IMAGES}.gz"
    content = path.read_bytes()
    for damaged in (content[:-20], content[:5000], flip_byte(content, 9000)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{IMAGES}.gz: damaged gzip file"):
            prepare("mnist", source.folder, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_a_file_that_unpacks_to_far_too_much_is_refused(source, tmp_path):
    (source.folder / f"{IMAGES}.gz").write_bytes(gzip.compress(bytes(20 << 20)))
    with pytest.raises(InputError, match=f"{IMAGES}.gz: unpacks to more than 16,777,216 bytes"):
        prepare("mnist", source.folder, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_missing_files_and_folders_are_refused(source, tmp_path):
    (source.folder / f"{LABELS}.gz").unlink()
    with pytest.raises(InputError, match=rf"neither {LABELS}\.gz nor {LABELS}"):
        prepare("mnist", source.folder, tmp_path / "tfds")
    with pytest.raises(InputError, match="absent is not a folder"):
        prepare("mnist", tmp_path / "absent", tmp_path / "tfds")
    with pytest.raises(InputError, match="'mnist-5k' cannot be prepared"):
        prepare("mnist-5k", source.folder, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_unknown_name_is_a_usage_error(source):
    with pytest.raises(SystemExit) as exit_info:
        command("cifar", "--source", source.folder)
    assert exit_info.value.code == 2


def test_data_dir_that_cannot_be_written_is_refused(source, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert command("mnist", "--source", source.folder, "--data-dir", tmp_path / "file") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_failure_on_the_way_leaves_nothing(source, tmp_path, monkeypatch):
    from wasserstein_adv.data import builders

    calls = iter(range(50))  # fails at the 51st of 60 images, after the training split is written

    def encode(image, encode=builders.encode_png):
        if next(calls, None) is None:
            raise OSError("No space left on device")
        return encode(image)

    monkeypatch.setattr(builders, "encode_png", encode)
    with pytest.raises(InputError, match="No space left on device"):
        prepare("mnist", source.folder, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_incomplete_folder_is_not_taken_for_the_dataset(source, tmp_path):
    folder, _ = prepare("mnist", source.folder, tmp_path)
    (folder / "dataset_info.json").unlink()
    assert not is_prepared("mnist", tmp_path)
    with pytest.raises(InputError, match="not a complete dataset"):
        prepare("mnist", source.folder, tmp_path)


def test_damaged_dataset_is_reported(source, tmp_path):
    folder, _ = prepare("mnist", source.folder, tmp_path)
    (records,) = folder.glob("*-test.array_record*")
    content = records.read_bytes()
    for damaged in (b"", content[:1000], flip_byte(content, 200)):
        records.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged .*remove it and prepare it again"):
            load("mnist", "test", tmp_path)
    records.unlink()
    with pytest.raises(InputError, match="damaged"):
        load("mnist", "test", tmp_path)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="not a prepared dataset"):
        load("mnist", "test", tmp_path)


class _Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


NOWHERE = "http://127.0.0.1:9/"  # nothing listens there: a host that is out of reach


@pytest.fixture
def published(source, monkeypatch):
    """Serve the source folder at the second of two addresses, with its true checksums."""
    handler = functools.partial(_Server, directory=str(source.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    downloads = tuple(
        Download(
            (NOWHERE + path.name, address + path.name),
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in source.folder.iterdir()
    )
    monkeypatch.setitem(RECIPES, "mnist", RECIPES["mnist"]._replace(downloads=downloads))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield source
    server.shutdown()
    thread.join()
    server.server_close()


def test_load_downloads_what_is_missing(published, tmp_path):
    dataset = load("mnist", "test", tmp_path / "tfds")
    np.testing.assert_array_equal(dataset.labels, published.labels["test"])
    assert {path.name for path in (tmp_path / "tfds").iterdir()} == {"wasserstein_mnist"}


WRONG = {
    # A valid file with other labels: only the checksum can tell.
    "other": lambda idx: idx[:8] + bytes(len(idx) - 8),
    "longer": lambda idx: idx + bytes(100_000),
    "empty": lambda idx: b"",
}


@pytest.mark.parametrize("case", WRONG)
def test_download_with_a_wrong_checksum_is_refused(published, tmp_path, case):
    rewrite(published.folder, LABELS, WRONG[case])
    with pytest.raises(InputError, match="wrong checksum"):
        load("mnist", "test", tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_download_of_a_missing_file_is_refused(published, tmp_path):
    (published.folder / f"{LABELS}.gz").unlink()
    with pytest.raises(InputError, match=rf"{LABELS}\.gz: HTTP Error 404"):
        load("mnist", "test", tmp_path / "tfds")


def test_network_out_of_reach_names_the_command(tmp_path, monkeypatch, capsys):
    downloads = (Download((f"{NOWHERE}{IMAGES}.gz",), 1, "0" * 64),)
    monkeypatch.setitem(RECIPES, "mnist", RECIPES["mnist"]._replace(downloads=downloads))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data_dir = tmp_path / "tfds"
    assert command("mnist", "--data-dir", data_dir) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(prepared_dir("mnist", data_dir)) in error
    assert f"python -m experiments.prepare_data mnist --source DIR --data-dir {data_dir}" in error
    assert "http://127.0.0.1:9/" in error
    assert not data_dir.exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_files_are_valid(real_data, name):
    files = find_idx_files(real_data / name)
    sizes = {split: len(read_idx_split(*pair).labels) for split, pair in files.items()}
    assert sizes == {"train": 60_000, "test": 10_000}


def test_real_test_images_survive_exactly(real_data, source, tmp_path):
    # The first thousand, and a small training split: all of it takes a quarter of a minute.
    read_real = [
        np.frombuffer(gzip.decompress((real_data / "mnist" / f"{name}.gz").read_bytes()), np.uint8)
        for name in FILES["test"]
    ]
    images = read_real[0][16:].reshape(10_000, 28, 28)[:1000]
    labels = read_real[1][8:][:1000]
    for name, array in zip(FILES["test"], (images, labels), strict=True):
        (source.folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(array), 1))
    prepare("mnist", source.folder, tmp_path / "tfds")
    dataset = load("mnist", "test", tmp_path / "tfds")
    np.testing.assert_array_equal(dataset.images, images[..., None] / np.float32(255), strict=True)
    np.testing.assert_array_equal(dataset.labels, labels)
