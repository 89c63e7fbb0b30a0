"""Small datasets in the published layout of MNIST, on disk."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from layouts import idx, write_folder


class Source(NamedTuple):
    """A folder with four idx files, and what stands in them."""

    folder: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


@pytest.fixture
def write_source(tmp_path: Path) -> Callable[..., Source]:
    """Return a function that writes a source folder of random digits, packed or plain."""

    def write(packed: bool = True) -> Source:
        content, images, labels = idx()
        if not packed:
            content = {name[:-3]: gzip.decompress(data) for name, data in content.items()}
        return Source(write_folder(content, tmp_path / "source"), images, labels)

    return write


@pytest.fixture
def source(write_source: Callable[..., Source]) -> Source:
    """A small source folder as published, that is packed."""
    return write_source()
