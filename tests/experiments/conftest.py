"""What the tests of several commands share.

Fixtures import what imports JAX: that reads once, when it is imported, where compiled programs are
kept, and pytest can load this file before `../conftest.py` has said it.
"""

from pathlib import Path

import numpy as np
import pytest
from run_files import QUICK, contents


@pytest.fixture(scope="module", autouse=True)
def devices_as_they_are():
    """Commands leave JAX the devices that it has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A network with small random weights, as the training command saves them."""
    import jax

    from experiments.training.weights import save
    from wasserstein_adv.models import WongKolterCNN

    init = jax.jit(WongKolterCNN().init, compiler_options={"xla_backend_optimization_level": 0})
    variables = init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    path = tmp_path_factory.mktemp("weights") / "network"
    save(path, jax.tree.map(np.asarray, variables))
    return path


@pytest.fixture(scope="session")
def attacked(weights, tmp_path_factory):
    """Runs an attack of `QUICK` on six digits, with more options; returns its exit status."""
    from experiments.attack_mnist import AttackMnistConfig
    from experiments.evaluation.attack import attack
    from experiments.harness.arguments import run_command

    def run(name: str, out: Path, *arguments: str) -> int:
        basic = ["--data", "mnist-5k", "--num-images", "6", "--checkpoint", str(weights)]
        argv = [*basic, "--attack", name, "--out", str(out), *QUICK[name], *arguments]
        return run_command(attack, AttackMnistConfig, argv)

    return run


@pytest.fixture(scope="session")
def runs(attacked, tmp_path_factory):
    """By the attack's name the folder of a finished run, never to be changed."""
    folder, finished = tmp_path_factory.mktemp("runs"), {}

    def run(name: str) -> Path:
        if name not in finished:
            assert attacked(name, folder / name) == 0
            finished[name] = folder / name
        return finished[name]

    return run


@pytest.fixture
def check(capsys, monkeypatch):
    """Runs `verify` on a folder; returns its exit status and what it printed, having made sure that
    it wrote nothing."""
    from experiments import verify
    from experiments.harness.arguments import run_command

    monkeypatch.setenv("COLUMNS", "120")

    def run(folder, *arguments):
        before = contents(folder)
        capsys.readouterr()
        try:
            status = run_command(verify.main, verify.VerifyConfig, [str(folder), *arguments])
        except SystemExit as stopped:
            status = stopped.code
        assert contents(folder) == before
        return status, capsys.readouterr()

    return run
