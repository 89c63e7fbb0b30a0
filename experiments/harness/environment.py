"""What a run's numbers may depend on, apart from its settings."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import wasserstein_adv

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("jax", "jaxlib", "ott-jax", "optax", "flax", "numpy", "POT")


def program() -> str:
    """`python -m package.module`, as the user called it; the file where it was no module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else sys.argv[0]


def command_line() -> str:
    """The command as it was given."""
    return f"{program()} {shlex.join(sys.argv[1:])}".strip()


def run_environment() -> dict[str, Any]:
    """Return what a run's numbers may depend on, apart from its settings.

    Versions, None for a package that is not installed; the platform and JAX's "device";
    "git_commit" of this checkout and whether it is "git_dirty" (files changed or added since), both
    None outside a git checkout or without git.
    """
    import jax

    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "wasserstein_adv": wasserstein_adv.__version__,
        **{package: _installed(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        **_git_state(_ROOT),
    }


def _installed(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _git_state(root: Path) -> dict[str, str | bool | None]:
    """Return the commit checked out at `root`, and whether files there differ from it."""
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    # A copy inside somebody else's checkout is not theirs.
    if not top or not commit or Path(top).resolve() != root.resolve():
        return {"git_commit": None, "git_dirty": None}
    changes = _git(root, "--no-optional-locks", "status", "--porcelain")
    return {"git_commit": commit, "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    """Return what a git command printed; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
