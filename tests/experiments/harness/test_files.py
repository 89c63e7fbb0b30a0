"""Files that appear whole or not at all, strict JSON, and where things are kept."""

import errno
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.harness.files import (
    cache_root,
    file_name,
    load_arrays,
    read_json,
    save_arrays,
    write_json_atomic,
    write_text,
)
from experiments.harness.pictures import new_figure, save_figure
from wasserstein_adv.errors import InputError


def test_json_is_strict(tmp_path):
    path = tmp_path / "results.json"
    obj = {
        0.5: float("nan"),
        "infinite": [np.float32(np.inf), -np.inf],
        "arrays": (np.array([[1.5, np.nan]]), jnp.arange(2), np.bool_(True), np.int64(3)),
        "path": Path("a"),
        "text": "ε",
        "none": None,
    }
    write_json_atomic(path, obj)

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(path.read_text("utf-8"), parse_constant=refuse) == {
        "0.5": None,
        "infinite": ["inf", "-inf"],
        "arrays": [[[1.5, None]], [0, 1], True, 3],
        "path": "a",
        "text": "ε",
        "none": None,
    }


def test_json_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json_atomic(path, {"run": 1})
    with pytest.raises(TypeError):
        write_json_atomic(path, {"run": object()})
    assert json.loads(path.read_text()) == {"run": 1}
    write_json_atomic(path, {"run": 2})
    assert json.loads(path.read_text()) == {"run": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    with pytest.raises(InputError, match="cannot be written"):
        write_json_atomic(tmp_path / "no" / "results.json", {})


def test_arrays_are_written_whole(tmp_path):
    save_arrays(tmp_path / "radii.npz", radius=np.arange(3))
    save_arrays(tmp_path / "radii.npz", radius=np.arange(4))
    np.testing.assert_array_equal(load_arrays(tmp_path / "radii.npz")["radius"], np.arange(4))
    assert [p.name for p in tmp_path.iterdir()] == ["radii.npz"]


@pytest.mark.parametrize(
    ("name", "write", "through"),
    [
        ("a.npz", lambda path: save_arrays(path, radius=np.arange(3)), (np, "savez_compressed")),
        ("a.md", lambda path: write_text(path, "text"), (Path, "write_text")),
        ("a.png", lambda path: save_figure(new_figure(1, 1), path), (Figure, "savefig")),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    name, write, through, tmp_path, monkeypatch
):
    path = tmp_path / name
    path.write_bytes(b"old")

    def half(*arguments, **_):
        place = next(at for at in arguments if isinstance(at, Path))
        place.write_bytes(b"ha")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    with monkeypatch.context() as patched:
        patched.setattr(*through, half)
        with pytest.raises(InputError, match=f"{name}: cannot be written .No space left") as told:
            write(path)
    assert "\n" not in str(told.value)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == [name]
    write(path)
    assert path.read_bytes() != b"old"


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut"])
def test_what_cannot_be_read_is_refused(tmp_path, content):
    for name, read in (("a.npz", load_arrays), ("a.json", read_json)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read") as refused:
            read(tmp_path / name)
        assert "\n" not in str(refused.value)


def test_names_of_files():
    assert file_name("wu-projection ε = 0.01") == "wu-projection-ε-=-0.01"
    assert file_name("a/b, c_d") == "a-b--c-d"


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WASSERSTEIN_ADV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == tmp_path / ".cache" / "wasserstein_adv"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "wasserstein_adv"
    monkeypatch.setenv("WASSERSTEIN_ADV_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"
