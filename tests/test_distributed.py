"""Training in two processes of four devices, against one process with eight devices or one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plainly import FLAGS

pytestmark = pytest.mark.long
PROGRAM = Path(__file__).parent / "train_together.py"


def begin(out: Path, devices: int, *process: int) -> subprocess.Popen:
    command = [sys.executable, str(PROGRAM), str(out), str(devices), *map(str, process)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    environment["PYTHONPATH"] = str(PROGRAM.parents[1])
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory, free_port) -> dict[str, dict[str, np.ndarray]]:
    """What each way of running left, by its name."""
    folder, port = tmp_path_factory.mktemp("together"), free_port()
    running = {
        "process 0": begin(folder / "process 0.npz", 4, port, 2, 0),
        "process 1": begin(folder / "process 1.npz", 4, port, 2, 1),
        "eight devices": begin(folder / "eight devices.npz", 8),
        "one device": begin(folder / "one device.npz", 1),
    }
    try:
        for name, process in running.items():
            told, _ = process.communicate(timeout=400)
            assert process.returncode == 0, f"{name}: {told}"
    finally:
        for process in running.values():
            process.kill()
    results = {}
    for name in running:
        with np.load(folder / f"{name}.npz") as stored:
            results[name] = dict(stored)
    return results


WAYS = ["process 1", "eight devices", "one device"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", ["plain", "gradient"])
def test_weights_after_plain_steps_and_the_first_adversarial_gradient_agree(found, way, part):
    names = [name for name in found[way] if name.startswith(part)]
    assert any("Conv" in name for name in names)
    assert part == "gradient" or any("batch_stats" in name for name in names)
    for name in names:
        expected = found["process 0"][name]
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(found[way][name], expected, atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_accuracies_after_adversarial_training_agree(found, way):
    """Sign steps amplify rounding: the weights differ, what they are worth does not."""
    for name in ("nominal", "adversarial"):
        assert found[way][name] == pytest.approx(found["process 0"][name], abs=0.01)
    assert found[way]["nominal"] > 0.6
