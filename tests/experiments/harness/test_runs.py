"""The folder of a run: whose it is, and what is kept in it."""

import io
import json
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
from rich.console import Console

from experiments.harness.files import read_json
from experiments.harness.runs import (
    claim,
    default_folder,
    finish,
    load_checkpoint,
    save_checkpoint,
    show_finished,
    withdraw,
)
from experiments.harness.tables import Table
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Part, figure, from_json

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


def test_all_settings_that_differ_are_named(folder):
    with pytest.raises(InputError, match="with another reg, seed, window, choose another folder"):
        claim(folder.path, {**SETTINGS, "seed": 1, "window": 5, "reg": 1.0})
    shorter = {key: value for key, value in SETTINGS.items() if key != "reg"}
    with pytest.raises(InputError, match="with another reg, choose"):
        claim(folder.path, shorter)


def test_a_folder_belongs_to_one_process_until_that_ends(tmp_path):
    hold = f"""
import sys
from pathlib import Path
from experiments.harness.runs import claim
claim(Path({str(tmp_path / "run")!r}), {{"seed": 0}})
print("held", flush=True)
sys.stdin.read()
"""
    root = Path(__file__).parents[3]
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
        said = "damaged/settings.json" if name == "damaged" else "--out"
        with pytest.raises(InputError, match=said) as caught:
            claim(tmp_path / name, SETTINGS)
        assert "\n" not in str(caught.value)


TABLE = Table("digits", ("attack", "left %"), [("flow", "57.4")])


def test_results_make_a_run_finished_and_drop_its_checkpoint(folder):
    save_checkpoint(folder, "flow", TREE, 1.0)
    parts = [Part("flow", {"accuracy": figure("left", "flow/success")})]
    finish(folder, {"accuracy": np.float64(0.5)}, [TABLE], parts)
    again = claim(folder.path, SETTINGS)
    assert again.finished
    kept = {"accuracy": 0.5, "arrays": [], "tables": [json.loads(json.dumps(TABLE._asdict()))]}
    assert read_json(folder.path / "results.json") == kept
    assert from_json(read_json(folder.path / "evidence.json")) == parts
    assert "| flow | 57.4 |" in (folder.path / "table.md").read_text("utf-8")
    files = {"settings.json", "results.json", "evidence.json", "table.md", ".lock"}
    assert {p.name for p in folder.path.iterdir()} == files


def shown(folder) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=80)
    return show_finished(folder, console), console.file.getvalue()


def test_a_finished_run_is_shown_and_one_that_lost_its_results_is_none(folder):
    assert shown(folder) == (False, "")
    finish(folder, {}, [TABLE])
    assert not (folder.path / "evidence.json").exists()
    finished, told = shown(claim(folder.path, SETTINGS))
    assert finished and "57.4" in told
    assert told.splitlines()[-1] == f"finished before: {folder.path}"
    withdraw(folder)
    assert not claim(folder.path, SETTINGS).finished
    withdraw(folder)


def test_a_finished_run_whose_arrays_are_gone_says_so(folder):
    for name in ("clean", "flow"):
        (folder.path / f"{name}.npz").write_bytes(b"arrays")
    finish(folder, {}, [TABLE])
    assert shown(claim(folder.path, SETTINGS))[0]
    (folder.path / "flow.npz").unlink()
    with pytest.raises(InputError, match=r"flow\.npz of this finished run is gone") as refused:
        shown(claim(folder.path, SETTINGS))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        '{"accuracy": 0.5}',
        '{"tables": [{"title": "", "columns": [], "rows": []}], "arrays": [3]}',
        "[]",
        '{"tables": []}',
        '{"tables": [3]}',
        '{"tables": [{"title": "t"}]}',
        "{",
        "",
    ],
)
def test_results_without_a_table_as_of_an_earlier_version_are_refused_in_one_line(folder, content):
    (folder.path / "results.json").write_text(content)
    with pytest.raises(InputError, match=r"results\.json: ") as refused:
        shown(claim(folder.path, SETTINGS))
    assert "\n" not in str(refused.value)


def test_default_folder_follows_the_settings():
    one = default_folder("attack", SETTINGS)
    assert one == default_folder("attack", json.loads(json.dumps(SETTINGS)))
    assert one != default_folder("attack", {**SETTINGS, "seed": 1})
    assert one.parts[0] == "runs"
    assert one.name.startswith("attack-mnist-")


def test_checkpoint_comes_back(folder):
    assert load_checkpoint(folder, "flow", TREE) is None
    save_checkpoint(folder, "flow", TREE, 1.5)
    save_checkpoint(folder, "flow", TREE, 2.5)
    found, seconds = load_checkpoint(folder, "flow", TREE)
    assert seconds == 2.5
    np.testing.assert_array_equal(found["a"], TREE["a"])
    np.testing.assert_array_equal(found["b"][0], TREE["b"][0])
    assert (folder.path / "checkpoint.npz").is_file()
    assert not list(folder.path.glob(".*partial"))


def test_checkpoint_of_something_else_is_not_used(folder):
    save_checkpoint(folder, "flow", TREE, 1.0)
    assert load_checkpoint(folder, "hu", TREE) is None


def test_checkpoint_of_other_shapes_is_not_used(folder):
    save_checkpoint(folder, "flow", TREE, 1.0)
    assert load_checkpoint(folder, "flow", {**TREE, "a": np.zeros((3, 2), np.float32)}) is None
    assert load_checkpoint(folder, "flow", {**TREE, "a": np.zeros((2, 3))}) is None
    assert load_checkpoint(folder, "flow", {**TREE, "c": np.zeros(1)}) is None


@pytest.mark.parametrize("kept", [0, 0.3, 0.9, "text", "flipped"])
def test_damaged_checkpoint_is_not_used(folder, kept):
    save_checkpoint(folder, "flow", TREE, 1.0)
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
    assert load_checkpoint(folder, "flow", TREE) is None


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe", b"{"])
def test_claim_refuses_damaged_settings(folder, content):
    (folder.path / "settings.json").write_bytes(content)
    with pytest.raises(InputError, match=r"/settings\.json: ") as refused:
        claim(folder.path, SETTINGS)
    assert "\n" not in str(refused.value)
