"""The folder that a run leaves: resumed by the same command, never overwritten."""

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments._report import INCOMPLETE, write_json_atomic
from wasserstein_adv.errors import InputError

_SETTINGS = "settings.json"
_CHECKPOINT = "checkpoint.npz"
_RESULTS = "results.json"
_LOCK = ".lock"


class RunFolder(NamedTuple):
    """A folder whose settings are those of the command that is running."""

    path: Path
    finished: bool
    """Whether it holds the results already."""


def claim(path: Path, settings: dict[str, Any]) -> RunFolder:
    """Take a folder for a run with these settings: a new one, or one that such a run began.

    Until the run is finished no other process can take it; that ends with this process, however it
    ends.

    Args:
        path: the folder; made if it is not there.
        settings: everything that the results depend on, as JSON can hold it.

    Raises:
        InputError: it holds something else, or a run with other settings, or cannot be written, or
            another process is at work in it.
    """
    settings = json.loads(json.dumps(settings))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / _SETTINGS).is_file() and any(not _left_by_us(p) for p in path.iterdir()):
            raise InputError(f"--out {path}: is not empty and holds no run, choose another")
        if not (path / _RESULTS).is_file():
            _lock(path)
            for left in path.glob(f"{INCOMPLETE}*"):  # by a process that was killed
                shutil.rmtree(left)
        if not (path / _SETTINGS).is_file():
            write_json_atomic(path / _SETTINGS, settings)
        begun = json.loads((path / _SETTINGS).read_text("utf-8"))
        if not isinstance(begun, dict):
            raise InputError(f"--out {path}: is not empty and holds no run, choose another")
        if begun != settings:
            keys = [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
            raise InputError(
                f"--out {path}: holds a run with another {', '.join(sorted(keys))}, "
                "choose another folder"
            )
    except InputError:
        raise
    except (OSError, ValueError) as error:  # damaged text or JSON is a ValueError
        raise InputError(f"--out {path}: cannot be used ({error})") from error
    return RunFolder(path, (path / _RESULTS).is_file())


def _left_by_us(path: Path) -> bool:
    """Whether a file says nothing of whose its folder is: a process killed early may leave it."""
    return path.name == _LOCK or path.name.startswith(INCOMPLETE)


def _lock(path: Path) -> None:
    """Keep other processes out of a folder for as long as this one lives."""
    file = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)  # never closed: that unlocks it
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(file)
        raise InputError(f"--out {path}: another process is at work in it") from error
    except OSError:  # a file system without locks
        os.close(file)


def default_folder(command: str, settings: dict[str, Any]) -> Path:
    """`runs/COMMAND-DATASET-HASH`: one folder for one set of settings."""
    text = json.dumps(settings, sort_keys=True)
    return (
        Path("runs")
        / f"{command}-{settings['data']}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    )


def stored_results(folder: RunFolder) -> dict[str, Any]:
    """The results of a finished run.

    Raises:
        InputError: they cannot be read.
    """
    path = folder.path / _RESULTS
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def show_finished(folder: RunFolder, table: Callable[[Any], Table], console: Console) -> bool:
    """Show the results of a run that is finished.

    Args:
        folder: of the run.
        table: lays out its results.
        console: where they are shown.

    Returns:
        Whether it is finished.

    Raises:
        InputError: its results cannot be read, or are not of such a run.
    """
    if not folder.finished:
        return False
    results = stored_results(folder)
    try:
        console.print(table(results))
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder.path / _RESULTS}: is not of such a run") from error
    console.print(f"finished before: {folder.path}", highlight=False, soft_wrap=True)
    return True


def finish(folder: RunFolder, results: dict[str, Any]) -> None:
    """Write the results, which makes the run finished, and drop its checkpoint."""
    write_json_atomic(folder.path / _RESULTS, results)
    (folder.path / _CHECKPOINT).unlink(missing_ok=True)


def withdraw(folder: RunFolder) -> None:
    """Remove the results of a run that has lost what they are of: it is not finished any more."""
    (folder.path / _RESULTS).unlink(missing_ok=True)


def save_arrays(path: Path, *, compress: bool = True, **arrays: np.ndarray) -> None:
    """Write an `.npz` file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **arrays)
    os.replace(partial, path)


def save_checkpoint(folder: RunFolder, tree: Any, seconds: float) -> None:
    """Keep a pytree of arrays, and how long it took to come this far, for `load_checkpoint`."""
    leaves = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    # Uncompressed: it is written every few seconds, beside the attack.
    save_arrays(folder.path / _CHECKPOINT, compress=False, seconds=np.float64(seconds), **leaves)


def load_checkpoint(folder: RunFolder, like: Any) -> tuple[Any, float] | None:
    """What `save_checkpoint` kept, in the structure of `like`; None where there is nothing usable.

    A checkpoint that cannot be read or has other shapes is not used: the run begins anew.
    """
    path = folder.path / _CHECKPOINT
    expected, structure = jax.tree.flatten(like)
    try:
        with np.load(path) as stored:
            leaves = [stored[f"leaf{i}"] for i in range(len(expected))]
            seconds = float(stored["seconds"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    same = all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(leaves, expected, strict=True)
    )
    return (jax.tree.unflatten(structure, leaves), seconds) if same else None
