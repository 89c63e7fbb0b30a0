"""The folder that a run leaves: resumed by the same command, never overwritten."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.harness.files import (
    INCOMPLETE,
    load_arrays,
    read_json,
    save_arrays,
    write_json_atomic,
    write_text,
)
from experiments.harness.tables import Table, from_json, markdown, on_terminal
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Part, to_json

SETTINGS = "settings.json"
_CHECKPOINT = "checkpoint.npz"
RESULTS = "results.json"
EVIDENCE = "evidence.json"
_LOCK = ".lock"


class RunFolder(NamedTuple):
    """A folder whose settings are those of the command that is running."""

    path: Path
    finished: bool
    """Whether it holds the results already."""


def claim(path: Path, settings: dict[str, Any]) -> RunFolder:
    """Take a folder for a run with these settings: a new one, or one that such a run began.

    Until the run is finished no other process can take it; that ends with this process, however it
    ends. `settings` are everything that the results depend on, as JSON can hold it.

    Raises:
        InputError: it holds something else, or a run with other settings, or cannot be written, or
            another process is at work in it.
    """
    settings = json.loads(json.dumps(settings))
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / SETTINGS).is_file() and any(not _left_by_us(p) for p in path.iterdir()):
            raise InputError(f"--out {path}: is not empty and holds no run, choose another")
        if not (path / RESULTS).is_file():
            _lock(path)
            for left in path.glob(f"{INCOMPLETE}*"):  # by a process that was killed
                shutil.rmtree(left)
        if not (path / SETTINGS).is_file():
            write_json_atomic(path / SETTINGS, settings)
        begun = read_json(path / SETTINGS)
        if not isinstance(begun, dict):
            raise InputError(
                f"{path / SETTINGS}: does not hold a run's settings, choose another --out"
            )
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
    return RunFolder(path, (path / RESULTS).is_file())


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


def show_finished(folder: RunFolder, console: Console) -> bool:
    """Show the results of a run if it is finished, and say whether it is.

    Raises:
        InputError: its results cannot be read, or hold no table, as those of earlier versions.
    """
    if not folder.finished:
        return False
    results = read_json(folder.path / RESULTS)
    try:
        (first, *_) = results["tables"]
        console.print(on_terminal(from_json(first)))
        gone = [name for name in results.get("arrays", ()) if not (folder.path / name).is_file()]
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder.path / RESULTS}: holds no table to show, as those of earlier versions; "
            "choose another --out"
        ) from error
    console.print(f"finished before: {folder.path}", highlight=False, soft_wrap=True)
    if gone:
        raise InputError(
            f"{folder.path}: {', '.join(gone)} of this finished run is gone; choose another --out, "
            f"or remove its {RESULTS} to run it again"
        )
    return True


def finish(
    folder: RunFolder,
    results: dict[str, Any],
    tables: Sequence[Table],
    parts: Sequence[Part] | None = None,
) -> None:
    """Write what a run found, which makes it finished, and drop its checkpoint.

    Args:
        folder: the run's.
        results: all that it found.
        tables: what of it people look at; the first is what the terminal shows.
        parts: where the figures come from; None for a run that is no evidence.
    """
    if parts is not None:
        write_json_atomic(folder.path / EVIDENCE, to_json(parts))
    write_text(folder.path / "table.md", markdown(tables))
    kept = [table._asdict() for table in tables]
    arrays = sorted(file.name for file in folder.path.glob("*.npz") if file.name != _CHECKPOINT)
    write_json_atomic(folder.path / RESULTS, {**results, "arrays": arrays, "tables": kept})
    (folder.path / _CHECKPOINT).unlink(missing_ok=True)


def withdraw(folder: RunFolder) -> None:
    """Remove the results of a run that has lost what they are of: it is not finished any more."""
    (folder.path / RESULTS).unlink(missing_ok=True)


def save_checkpoint(folder: RunFolder, name: str, tree: Any, seconds: float) -> None:
    """Keep a pytree of arrays, of what, and how long it took so far, for `load_checkpoint`."""
    leaves = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(tree))}
    about = {"seconds": np.float64(seconds), "name": np.str_(name)}
    # Uncompressed: it is written every few seconds, beside the attack.
    save_arrays(folder.path / _CHECKPOINT, compress=False, **about, **leaves)


def load_checkpoint(folder: RunFolder, name: str, like: Any) -> tuple[Any, float] | None:
    """What `save_checkpoint` kept of that name, in the structure of `like`; None where nothing is
    usable: it cannot be read, is of something else or has other shapes. The run begins anew."""
    expected, structure = jax.tree.flatten(like)
    try:
        stored = load_arrays(folder.path / _CHECKPOINT)
        leaves = [stored[f"leaf{i}"] for i in range(len(expected))]
        seconds, of = float(stored["seconds"]), str(stored["name"])
    except (InputError, KeyError, ValueError):
        return None
    same = of == name and all(
        a.shape == b.shape and a.dtype == b.dtype for a, b in zip(leaves, expected, strict=True)
    )
    return (jax.tree.unflatten(structure, leaves), seconds) if same else None
