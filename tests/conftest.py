"""Fixtures that tests of several subpackages share."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published datasets and checkpoints; skips the test where there is none."""
    folder = os.environ.get("WASSERSTEIN_ADV_DATA")
    if not folder:
        pytest.skip("needs the published data: set WASSERSTEIN_ADV_DATA to its folder")
    return Path(folder)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Finds a port of this machine that nobody listens on."""

    def find() -> int:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            return listening.getsockname()[1]

    return find
