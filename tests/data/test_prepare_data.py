"""Preparing datasets: what is refused, what is written, and what a failure leaves behind."""

import functools
import gzip
import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments._cli import run_command
from experiments.prepare_data import PrepareConfig, main
from wasserstein_adv.data import load, prepare, split_sizes
from wasserstein_adv.data.idx import FILES, find_idx_files, read_idx_split
from wasserstein_adv.data.prepared import RECIPES, is_prepared, prepared_dir
from wasserstein_adv.errors import InputError

ROOT = Path(__file__).parents[2]
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


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_round_trip_is_exact_and_keeps_the_order(write_source, tmp_path, name, packed):
    source = write_source(packed)
    folder, made = prepare(name, source.folder, tmp_path / "tfds")
    assert made
    assert folder == prepared_dir(name, tmp_path / "tfds")
    assert split_sizes(folder) == {"train": 37, "test": 23}
    for split in ("train", "test"):
        dataset = load(name, split, tmp_path / "tfds", download=False)
        assert dataset.name == name
        np.testing.assert_array_equal(
            dataset.images, source.images[split][..., None] / np.float32(255), strict=True
        )
        np.testing.assert_array_equal(
            dataset.labels, source.labels[split].astype(np.int32), strict=True
        )


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_recipes_agree_with_their_builders(name):
    from wasserstein_adv.data import mnist

    recipe = RECIPES[name]
    builder = getattr(mnist, recipe.builder)
    assert (builder.name, str(builder.VERSION)) == (recipe.dataset, recipe.version)
    assert set(builder.CHECKSUMS) == {file for files in FILES.values() for file in files}
    for address in builder.ADDRESSES:
        for file, (size, checksum) in builder.CHECKSUMS.items():
            info = builder.url_infos[f"{address}{file}.gz"]
            assert (info.size, info.checksum) == (size, checksum)


def test_command_prepares_once(source, tmp_path, capsys):
    data_dir = tmp_path / "tfds"
    arguments = ("mnist", "--source", source.folder, "--data-dir", data_dir)
    assert command(*arguments) == 0
    output = capsys.readouterr()
    assert output.out == (
        f"mnist: prepared at {prepared_dir('mnist', data_dir)} (37 train, 23 test images)\n"
    )
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
    from wasserstein_adv.data import mnist

    calls = iter(range(50))  # fails at the 51st of 60 images, after the training split is written

    def encode(image, encode=mnist._encode_png):
        if next(calls, None) is None:
            raise OSError("No space left on device")
        return encode(image)

    monkeypatch.setattr(mnist, "_encode_png", encode)
    with pytest.raises(InputError, match="No space left on device"):
        prepare("mnist", source.folder, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_kill_on_the_way_leaves_nothing_that_counts(source, tmp_path):
    data_dir = tmp_path / "tfds"
    script = f"""
import os, signal
from pathlib import Path
from wasserstein_adv.data import mnist, prepare
calls = iter(range(50))
def encode(image, encode=mnist._encode_png):
    if next(calls, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(image)
mnist._encode_png = encode
prepare("mnist", Path({str(source.folder)!r}), Path({str(data_dir)!r}))
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # what a kill leaves, pytest removes
    killed = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    (leftover,) = prepared_dir("mnist", data_dir).parent.iterdir()
    assert leftover.name.startswith("incomplete.")
    assert not is_prepared("mnist", data_dir)

    folder, made = prepare("mnist", source.folder, data_dir)
    assert made and leftover.exists()  # it might still have been at work
    assert len(load("mnist", "test", data_dir).labels) == 23

    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    os.utime(leftover, (0, 0))
    prepare("mnist", source.folder, data_dir)
    assert list(folder.parent.iterdir()) == [folder]


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


@pytest.fixture
def published(source, monkeypatch):
    """Serve the source folder as the only published address, with its true checksums."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    from wasserstein_adv.data import mnist

    handler = functools.partial(_Server, directory=str(source.folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    # Nothing listens on port 9, so the first address stands for a host that is out of reach.
    monkeypatch.setattr(mnist.WassersteinMnist, "ADDRESSES", ("http://127.0.0.1:9/", address))
    infos = {}
    for path in source.folder.iterdir():
        content = path.read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        infos[address + path.name] = UrlInfo(len(content), checksum, path.name)
    monkeypatch.setattr(mnist.WassersteinMnist, "url_infos", infos)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield source
    server.shutdown()
    thread.join()
    server.server_close()


def test_load_downloads_what_is_missing(published, tmp_path):
    dataset = load("mnist", "test", tmp_path / "tfds")
    np.testing.assert_array_equal(dataset.labels, published.labels["test"])
    assert {path.name for path in (tmp_path / "tfds").iterdir()} == {"wasserstein_mnist"}


def test_download_with_a_wrong_checksum_is_refused(published, tmp_path):
    # A valid file with other labels: only the checksum can tell.
    rewrite(published.folder, LABELS, lambda idx: idx[:8] + bytes(len(idx) - 8))
    with pytest.raises(InputError, match="wrong checksum"):
        load("mnist", "test", tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_download_without_a_checksum_is_refused(published, tmp_path, monkeypatch):
    from wasserstein_adv.data import mnist

    monkeypatch.setattr(mnist.WassersteinMnist, "url_infos", {})
    with pytest.raises(InputError, match="Missing checksums"):
        prepare("mnist", data_dir=tmp_path / "tfds")


def test_network_out_of_reach_names_the_command(tmp_path, monkeypatch, capsys):
    from wasserstein_adv.data import mnist

    monkeypatch.setattr(mnist.WassersteinMnist, "ADDRESSES", ("http://127.0.0.1:9/",))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    data_dir = tmp_path / "tfds"
    assert command("mnist", "--data-dir", data_dir) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(prepared_dir("mnist", data_dir)) in error
    assert f"python -m experiments.prepare_data mnist --source DIR --data-dir {data_dir}" in error
    assert "http://127.0.0.1:9/" in error
    assert not data_dir.exists()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_real_files_are_valid(real_data, name):
    files = find_idx_files(real_data / name)
    sizes = {split: len(read_idx_split(*paths).labels) for split, paths in files.items()}
    assert sizes == {"train": 60_000, "test": 10_000}


def test_real_test_images_survive_exactly(real_data, source, tmp_path):
    # The training split stays small: preparing all of it takes a quarter of a minute.
    for name in FILES["test"]:
        packed = source.folder / f"{name}.gz"
        packed.unlink()
        packed.symlink_to(real_data / "mnist" / packed.name)
    prepare("mnist", source.folder, tmp_path / "tfds")
    dataset = load("mnist", "test", tmp_path / "tfds")
    # Parsed here independently of the code under test.
    idx = gzip.decompress((real_data / "mnist" / f"{FILES['test'][0]}.gz").read_bytes())
    images = np.frombuffer(idx, np.uint8, offset=16).reshape(10_000, 28, 28, 1)
    np.testing.assert_array_equal(dataset.images, images / np.float32(255), strict=True)
    idx = gzip.decompress((real_data / "mnist" / f"{FILES['test'][1]}.gz").read_bytes())
    np.testing.assert_array_equal(dataset.labels, np.frombuffer(idx, np.uint8, offset=8))
