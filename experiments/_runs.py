"""The folder that a run leaves: resumed by the same command, never overwritten."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments._report import write_json_atomic
from wasserstein_adv.errors import InputError

_SETTINGS = "settings.json"
_CHECKPOINT = "checkpoint.npz"
_RESULTS = "results.json"


class RunFolder(NamedTuple):
    """A folder whose settings are those of the command that is running."""

    path: Path
    finished: bool
    """Whether it holds the results already."""


def claim(path: Path, settings: dict[str, Any]) -> RunFolder:
    """Take a folder for a run with these settings: a new one, or one that such a run began.

    Args:
        path: the folder; made if it is not there.
        settings: everything that the results depend on, as JSON can hold it.

    Raises:
        InputError: it holds something else, or a run with other settings, or cannot be written.
    """
    settings = json.loads(json.dumps(settings))
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            stored = path / _SETTINGS
            if not path.is_dir() or not stored.is_file():
                raise InputError(f"--out {path}: is not empty and holds no run, choose another")
            begun = json.loads(stored.read_text("utf-8"))
            if not isinstance(begun, dict):
                raise InputError(f"--out {path}: is not empty and holds no run, choose another")
            if begun != settings:
                keys = [k for k in {**begun, **settings} if begun.get(k) != settings.get(k)]
                raise InputError(
                    f"--out {path}: holds a run with another {', '.join(sorted(keys))}, "
                    "choose another folder"
                )
        else:
            path.mkdir(parents=True, exist_ok=True)
            write_json_atomic(path / _SETTINGS, settings)
    except InputError:
        raise
    except (OSError, ValueError) as error:  # damaged text or JSON is a ValueError
        raise InputError(f"--out {path}: cannot be used ({error})") from error
    return RunFolder(path, (path / _RESULTS).is_file())


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


def finish(folder: RunFolder, results: dict[str, Any]) -> None:
    """Write the results, which makes the run finished, and drop its checkpoint."""
    write_json_atomic(folder.path / _RESULTS, results)
    (folder.path / _CHECKPOINT).unlink(missing_ok=True)


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
