"""The folder of a run: whose it is, and what is kept in it."""

import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from experiments._runs import (
    claim,
    default_folder,
    finish,
    load_checkpoint,
    save_arrays,
    save_checkpoint,
    stored_results,
)
from wasserstein_adv.errors import InputError

SETTINGS = {"data": "mnist", "radii": (0.3, 0.5), "reg": 1000.0, "seed": 0}
TREE = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": (np.array([True]), np.int32(4))}


@pytest.fixture
def folder(tmp_path):
    return claim(tmp_path / "new" / "run", SETTINGS)


def test_claim_makes_a_folder_and_takes_it_again(folder):
    assert not folder.finished
    assert {p.name for p in folder.path.iterdir()} == {"settings.json", ".lock"}
    assert claim(folder.path, SETTINGS) == folder


def test_claim_takes_an_empty_folder(tmp_path):
    assert claim(tmp_path, SETTINGS).path == tmp_path


@pytest.mark.parametrize("change", [{"reg": 500.0}, {"window": 5}, {"radii": (0.3,)}])
def test_another_run_is_named_and_left_alone(folder, change):
    before = (folder.path / "settings.json").read_bytes()
    with pytest.raises(InputError, match=f"another {next(iter(change))}"):
        claim(folder.path, {**SETTINGS, **change})
    assert (folder.path / "settings.json").read_bytes() == before


def test_a_folder_belongs_to_one_process_until_that_ends(tmp_path):
    hold = f"""
import sys
from pathlib import Path
from experiments._runs import claim
claim(Path({str(tmp_path / "run")!r}), {{"seed": 0}})
print("held", flush=True)
sys.stdin.read()
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=PIPE, stdout=PIPE, text=True, cwd=root
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another process is at work in it"):
            claim(tmp_path / "run", {"seed": 0})
        other.kill()
    assert not claim(tmp_path / "run", {"seed": 0}).finished


def test_what_a_process_killed_early_left_is_no_hindrance(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".incomplete.abc").mkdir()
    (tmp_path / ".incomplete.abc" / "settings.json").write_text("{")
    assert not claim(tmp_path, SETTINGS).finished
    assert {p.name for p in tmp_path.iterdir()} == {"settings.json", ".lock"}


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "settings.json").write_text("{")
    for name in ("file", "other", "damaged", "file/below"):
        with pytest.raises(InputError, match="--out") as caught:
            claim(tmp_path / name, SETTINGS)
        assert "\n" not in str(caught.value)


def test_results_make_a_run_finished_and_drop_its_checkpoint(folder):
    save_checkpoint(folder, TREE, 1.0)
    finish(folder, {"accuracy": 0.5})
    again = claim(folder.path, SETTINGS)
    assert again.finished
    assert stored_results(again) == {"accuracy": 0.5}
    assert {p.name for p in folder.path.iterdir()} == {"settings.json", "results.json", ".lock"}
    (folder.path / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json"):
        stored_results(again)


def test_default_folder_follows_the_settings():
    one = default_folder("attack", SETTINGS)
    assert one == default_folder("attack", json.loads(json.dumps(SETTINGS)))
    assert one != default_folder("attack", {**SETTINGS, "seed": 1})
    assert one.parts[0] == "runs"
    assert one.name.startswith("attack-mnist-")


def test_checkpoint_comes_back(folder):
    assert load_checkpoint(folder, TREE) is None
    save_checkpoint(folder, TREE, 1.5)
    save_checkpoint(folder, TREE, 2.5)
    found, seconds = load_checkpoint(folder, TREE)
    assert seconds == 2.5
    np.testing.assert_array_equal(found["a"], TREE["a"])
    np.testing.assert_array_equal(found["b"][0], TREE["b"][0])
    assert (folder.path / "checkpoint.npz").is_file()
    assert not list(folder.path.glob(".*partial"))


def test_checkpoint_of_other_shapes_is_not_used(folder):
    save_checkpoint(folder, TREE, 1.0)
    assert load_checkpoint(folder, {**TREE, "a": np.zeros((3, 2), np.float32)}) is None
    assert load_checkpoint(folder, {**TREE, "a": np.zeros((2, 3))}) is None
    assert load_checkpoint(folder, {**TREE, "c": np.zeros(1)}) is None


@pytest.mark.parametrize("kept", [0, 0.3, 0.9, "text", "flipped"])
def test_damaged_checkpoint_is_not_used(folder, kept):
    save_checkpoint(folder, TREE, 1.0)
    path = folder.path / "checkpoint.npz"
    data = bytearray(path.read_bytes())
    if kept == "text":
        data = b"no checkpoint"
    elif kept == "flipped":
        at = data.index(TREE["a"].tobytes())
        data[at] ^= 1
    else:
        data = data[: int(kept * len(data))]
    path.write_bytes(data)
    assert load_checkpoint(folder, TREE) is None


def test_arrays_are_written_whole(tmp_path):
    save_arrays(tmp_path / "radii.npz", radius=np.arange(3))
    save_arrays(tmp_path / "radii.npz", radius=np.arange(4))
    np.testing.assert_array_equal(np.load(tmp_path / "radii.npz")["radius"], np.arange(4))
    assert [p.name for p in tmp_path.iterdir()] == ["radii.npz"]


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"{"])
def test_claim_refuses_damaged_settings(folder, content):
    (folder.path / "settings.json").write_bytes(content)
    with pytest.raises(InputError, match="--out"):
        claim(folder.path, SETTINGS)
