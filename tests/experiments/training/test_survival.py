"""Trainings that are killed and started again, and checkpoints that are damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from run_files import results_of

from experiments.harness.runs import RunFolder
from experiments.training import checkpoints
from experiments.training.checkpoints import load_checkpoint, save_checkpoint
from experiments.training.command import _resumed
from experiments.training.weights import load_weights
from wasserstein_adv.data import prepare
from wasserstein_adv.errors import InputError
from wasserstein_adv.training import TrainState

PROGRAM = Path(__file__).parent / "training_that_dies.py"
SIGKILL, SIGTERM = -9, 143
COUNT = 96  # images: 6 steps of 16 an epoch


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """A few digits, prepared as mnist."""
    folder, source = tmp_path_factory.mktemp("tfds"), tmp_path_factory.mktemp("source")
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        for name, array in (("images", images), ("labels", labels)):
            sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
            path = source / f"{split}-{name}-idx{array.ndim}-ubyte"
            path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    prepare("mnist", source, folder)
    return folder


def start(data_dir: Path, out: Path, how: str, *devices: str) -> subprocess.Popen:
    """The command, on devices that its options name."""
    options = "--data mnist --defense pgd --steps 2 --epochs 3 --batch-size 16"
    command = [sys.executable, str(PROGRAM), *how.split(), *options.split()]
    command += ["--data-dir", str(data_dir), "--out", str(out), "--checkpoint-every", "0", *devices]
    cache = os.environ.get("WASSERSTEIN_ADV_CACHE", str(data_dir / "cache"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "WASSERSTEIN_ADV_CACHE": cache}
    environment["PYTHONPATH"] = str(PROGRAM.parents[3])
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str]:
    """Its exit status and what it said on stderr."""
    _, told = process.communicate(timeout=300)
    return process.returncode, told


def run(data_dir: Path, out: Path, how: str = "none step 0") -> tuple[int, str]:
    """The command's exit status and what it said on stderr, from one process with two devices."""
    return ended(start(data_dir, out, how, "--host-devices", "2"))


def run_two(data_dir: Path, port: int, *outs_and_hows: tuple[Path, str]) -> list[tuple[int, str]]:
    """The same from two processes with a device each."""
    together = ["--host-devices", "1", "--num-processes", "2"]
    together += ["--coordinator", f"127.0.0.1:{port}"]
    processes = [
        start(data_dir, out, how, *together, "--process-id", str(number))
        for number, (out, how) in enumerate(outs_and_hows)
    ]
    return [ended(process) for process in processes]


def taken(folder: Path) -> int:
    """Steps that the last process took."""
    return int((folder / "steps").read_text("utf-8"))


def weights(folder: Path) -> list[np.ndarray]:
    return jax.tree.leaves(load_weights(folder, "mnist").variables)


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(
    data_dir, tmp_path, free_port
):
    status, told = run(data_dir, tmp_path / "whole")
    assert status == 0, told
    broken = tmp_path / "broken"
    # With a checkpoint half done; then politely, as two processes of which one is told, and which
    # see different folders; then never again.
    assert run(data_dir, broken, "SIGKILL save 8")[0] == SIGKILL
    assert sorted(p.name for p in (broken / "checkpoints").iterdir() if p.name.isdigit()) == list(
        "67"
    )
    with pytest.raises(InputError, match="not finished"):
        load_weights(broken, "mnist")
    elsewhere = tmp_path / "elsewhere"
    parts = (broken, "none step 0"), (elsewhere, "SIGTERM step 13")
    two = run_two(data_dir, free_port(), *parts)
    for status, told in two:
        assert status == SIGTERM, told
        assert told.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert not elsewhere.exists()
    # The other one hears of it in the next step.
    assert taken(broken) == 14 - 7
    assert max(int(path.name) for path in (broken / "checkpoints").iterdir()) == 14
    status, told = run(data_dir, broken)
    assert status == 0, told
    # It went on, from where it was: the same weights would come of beginning anew, too.
    assert "warning" not in told
    assert not list(broken.glob("damaged-*"))
    assert taken(broken) == 18 - 14
    for one, other in zip(weights(tmp_path / "whole"), weights(broken), strict=True):
        np.testing.assert_array_equal(one, other)

    whole, resumed = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        for folder in (tmp_path / "whole", broken)
    )
    assert [line["step"] for line in resumed] == [6, 6, 12, 12, 18, 18]
    assert {line["step"]: line.get("test_accuracy") for line in resumed} == {
        line["step"]: line.get("test_accuracy") for line in whole
    }
    assert list((broken / "tensorboard").iterdir())
    results = results_of(broken)
    assert results["accuracy"] == results_of(tmp_path / "whole")["accuracy"]


def state(step: int, shape: tuple[int, ...] = (3, 4)) -> TrainState:
    value = np.full(shape, step, np.float32)
    return TrainState(np.asarray(step, np.int32), {"params": {"kernel": value}}, (value + 1,))


def test_the_two_newest_checkpoints_are_kept_and_the_newest_is_read(tmp_path):
    for step in (3, 5, 8):
        save_checkpoint(tmp_path / "checkpoints", state(step), {"seed": 4})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["5", "8"]
    found, about = load_checkpoint(tmp_path / "checkpoints", state(0))
    jax.tree.map(np.testing.assert_array_equal, found, state(8))
    assert (about["seed"], about["step"]) == (4, 8)
    assert load_checkpoint(tmp_path / "nothing", state(0)) is None


def damages():
    def cut(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def turn_a_bit(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return [cut, turn_a_bit, Path.unlink]


@pytest.mark.parametrize("damage", damages(), ids=lambda f: f.__name__)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(damage, tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    for step in (5, 8):
        save_checkpoint(folder, state(step, (400, 500)), {})
    # The largest file: the weights themselves.
    files = [path for path in (folder / "8" / "state").rglob("*") if path.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size))
    found, _ = load_checkpoint(folder, state(0, (400, 500)))
    assert int(found.step) == 5
    told = capfd.readouterr().err
    assert told.startswith(f"warning: {folder / '8'}: damaged")
    assert len(told.splitlines()) == 1
    assert (tmp_path / "damaged-8").is_dir()
    save_checkpoint(folder, state(8, (400, 500)), {})
    assert int(load_checkpoint(folder, state(0, (400, 500)))[0].step) == 8


def test_what_says_nothing_of_a_checkpoint_leaves_it_where_it_is(tmp_path, monkeypatch, capfd):
    save_checkpoint(tmp_path, state(3), {})

    def out_of_memory(leaves):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_digest", out_of_memory)
        with pytest.raises(InputError, match=r"3: cannot be read \(no room\)"):
            load_checkpoint(tmp_path, state(0))
    assert capfd.readouterr().err == ""
    assert int(load_checkpoint(tmp_path, state(0))[0].step) == 3


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save_checkpoint(tmp_path, state(3), {})
    with pytest.raises(InputError, match=r"is float32 \(3, 4\), expected float32 \(4, 4\)"):
        load_checkpoint(tmp_path, state(0, (4, 4)))


def test_another_number_of_devices_is_warned_of(tmp_path, capfd):
    about = {"devices": 999, "seconds": 5.0, "seconds_waiting": 0.5}
    save_checkpoint(tmp_path / "checkpoints", state(3), about)
    found, so_far = _resumed(RunFolder(tmp_path, False), state(0), 2)
    assert (int(found.step), so_far) == (3, {"seconds": 5.0, "seconds_waiting": 0.5})
    assert "begun on 999 devices and going on on 2:" in capfd.readouterr().err
