"""Files that appear whole or not at all: JSON, arrays, text; and where what lasts is kept."""

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wasserstein_adv.errors import InputError

INCOMPLETE = ".incomplete."
"""What the name of a folder begins with in which something is written that is to appear whole."""


def cache_root() -> Path:
    """Return where trained networks are kept between runs, whether it is there or not:
    $WASSERSTEIN_ADV_CACHE, or else $XDG_CACHE_HOME/wasserstein_adv, or else
    ~/.cache/wasserstein_adv; a variable that is empty counts as unset."""
    if own := os.environ.get("WASSERSTEIN_ADV_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wasserstein_adv"


def write_json_atomic(path: Path, obj: Any) -> None:
    """Write what `plain` takes as strict JSON, in one step: the file is the old one or the new,
    whole. Raise InputError where it cannot be written, TypeError where the object holds else."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file, which becomes `path` when the block ends: that is the old one or the
    new, and nothing else is left. Raise InputError where it cannot be written."""
    try:
        with tempfile.TemporaryDirectory(prefix=INCOMPLETE, dir=path.parent) as folder:
            written = Path(folder) / path.name
            yield written
            os.replace(written, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, in one step; raise InputError where that fails."""
    with whole(path) as written:
        written.write_text(text, encoding="utf-8")


def plain(obj: Any) -> Any:
    """Return an object in the types and numbers that strict JSON has.

    It may hold dictionaries, lists, tuples, strings, numbers, booleans, None, paths, and arrays
    and scalars of NumPy or JAX. NaN becomes null, the infinities the strings "inf" and "-inf".
    """
    if isinstance(obj, Mapping):
        return {str(key): plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if hasattr(obj, "tolist"):  # arrays and scalars of NumPy and JAX
        return plain(obj.tolist())
    if isinstance(obj, float) and not math.isfinite(obj):
        return None if math.isnan(obj) else str(obj)
    return obj


def read_json(path: Path) -> Any:
    """Read a JSON file; raise InputError where that fails."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def save_arrays(path: Path, *, compress: bool = True, **arrays: np.ndarray) -> None:
    """Write an `.npz` file whole or not at all; raise InputError where that fails."""
    with whole(path) as written:
        (np.savez_compressed if compress else np.savez)(written, **arrays)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read an `.npz` file; raise InputError where it is missing or damaged."""
    try:
        with np.load(path) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # a damaged archive raises almost any
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from error


def file_name(name: str) -> str:
    """A name as that of a file."""
    return "".join(c if c.isalnum() or c in "-.=" else "-" for c in name)
