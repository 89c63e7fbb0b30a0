"""What the tests of several commands share."""

from pathlib import Path

import jax
import numpy as np
import pytest
from run_files import contents

from experiments import verify
from experiments._cli import run_command
from experiments._weights import save
from wasserstein_adv.models import WongKolterCNN


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A network with small random weights, as the training command saves them."""
    variables = WongKolterCNN().init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    path = tmp_path_factory.mktemp("weights") / "network"
    save(path, jax.tree.map(np.asarray, variables))
    return path


@pytest.fixture
def check(capsys, monkeypatch):
    """Runs `verify` on a folder; returns its exit status and what it printed, having made sure that
    it wrote nothing."""
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
