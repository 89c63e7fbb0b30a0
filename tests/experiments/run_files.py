"""What is in a run's folder, and changes of it, for the tests of several commands."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Change = Callable[[Path], object]
"""A change of a run's folder."""

QUICK = {
    "wong": ["--steps", "7", "--window", "3", "--radii", "0.3", "1.0", "--white", "clamped"],
    "flow": ["--steps", "40", "--growth", "1.08", "--radii", "0.3", "--batch-size", "1"],
    "unbalanced": ["--steps", "2", "--keep", "first-success", "--batch-size", "1"],
}
"""Options with which an attack takes no time; in batches of one there is one program to compile."""


def contents(folder: Path) -> dict[str, bytes] | None:
    """Every file below a folder by its path there; None where there is no folder."""
    if not folder.is_dir():
        return None
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def results_of(folder: Path) -> dict[str, Any]:
    """The results of a finished run."""
    return json.loads((folder / "results.json").read_text("utf-8"))


def arrays_of(folder: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of a run, by the name of what they are of."""
    with np.load(_file(folder, name)) as stored:
        return dict(stored)


def _file(folder: Path, name: str) -> Path:
    return folder / f"{re.sub('[^-.=0-9A-Za-zεα]', '-', name)}.npz"


def disagreeing(printed: str) -> set[tuple[str, str]]:
    """(attack, claim) of the printed claims that do not agree."""
    found, title = set(), None
    for line in printed.splitlines():
        if line.startswith(" "):
            title = line.strip()
        elif match := re.match(r"(\S.*?)  .*  no(?:, \d+ of \d+)? *$", line):
            found.add((title, match[1]))
    return found


def wrong(printed: str) -> set[str]:
    """The printed claims that do not agree."""
    return {claim for _, claim in disagreeing(printed)}


# Changes ------------------------------------------------------------------------------------------


def entry(file: str, *keys: str | int, value: Any) -> Change:
    """An entry of a JSON file: another one; None removes it."""

    def change(folder: Path) -> None:
        whole = json.loads((folder / file).read_text("utf-8"))
        inner = whole
        for key in keys[:-1]:
            inner = inner[key]
        if value is None:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = value
        (folder / file).write_text(json.dumps(whole), "utf-8")

    return change


def result(*keys: str | int, value: Any) -> Change:
    """An entry of `results.json`; None removes it."""
    return entry("results.json", *keys, value=value)


def array(name: str, key: str, value: Any) -> Change:
    """An array of a run: another one, or a function of it; None removes it."""

    def change(folder: Path) -> None:
        arrays = arrays_of(folder, name)
        old = arrays.pop(key)
        if value is not None:
            arrays[key] = value(old) if callable(value) else value
        np.savez_compressed(_file(folder, name), **arrays)

    return change


def at(name: str, key: str, index: Any, value: float) -> Change:
    """One element of an array."""

    def changed(old: np.ndarray) -> np.ndarray:
        new = old.copy()
        new[index] = value
        return new

    return array(name, key, changed)


def both(*changes: Change) -> Change:
    """One change after the other."""
    return lambda folder: [change(folder) for change in changes]


def text(file: str, content: str) -> Change:
    """A file with another content."""
    return lambda folder: (folder / file).write_text(content)


def without(file: str) -> Change:
    """No such file."""
    return lambda folder: (folder / file).unlink()
