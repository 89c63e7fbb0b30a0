"""What the tests of several commands share."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments._weights import save
from wasserstein_adv.models import WongKolterCNN


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    """A network with small random weights, as the training command saves them."""
    variables = WongKolterCNN().init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
    path = tmp_path_factory.mktemp("weights") / "network"
    save(path, jax.tree.map(np.asarray, variables))
    return path
