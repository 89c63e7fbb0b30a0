"""What all tests share: one store of compiled programs, memory handed back, fixtures."""

import ctypes
import gc
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


def pytest_configure(config):
    """The workers, and the programs that tests start, share what any of them compiled: in a new
    folder for each run, as a program of another run must not hide that one no longer compiles."""
    if hasattr(config, "workerinput"):
        return  # a worker has the variables of the process that started it
    folder = tempfile.mkdtemp(prefix="compiled-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # Compiled in one piece instead of 32 side by side, as the workers are side by side already, and
    # by LLVM's first level of optimisation: most programs run once.
    flags = "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def pytest_collection_modifyitems(items):
    """What takes long begins first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="module", autouse=True)
def memory_of_one_file():
    """Hands back the memory of each file's programs: of all files' it is several gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        if sys.platform == "linux":  # glibc keeps what compiling has freed
            getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


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
