"""Fixtures that tests of several subpackages share."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of published datasets and checkpoints; skips the test where there is none."""
    folder = os.environ.get("WASSERSTEIN_ADV_DATA")
    if not folder:
        pytest.skip("needs the published data: set WASSERSTEIN_ADV_DATA to its folder")
    return Path(folder)
