"""What is in a run's folder, for the tests of several commands."""

import json
import re
from pathlib import Path
from typing import Any


def contents(folder: Path) -> dict[str, bytes] | None:
    """Every file below a folder by its path there; None where there is no folder."""
    if not folder.is_dir():
        return None
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def results_of(folder: Path) -> dict[str, Any]:
    """The results of a finished run."""
    return json.loads((folder / "results.json").read_text())


def disagreeing(printed):
    """(attack, claim) of the printed claims that do not agree."""
    found, title = set(), None
    for line in printed.splitlines():
        if line.startswith(" "):
            title = line.strip()
        elif match := re.match(r"(\S.*?)  .*  no(?:, \d+ of \d+)? *$", line):
            found.add((title, match[1]))
    return found


def result(*keys, value):
    """Changes an entry of `results.json`; None removes it."""

    def change(folder):
        results = results_of(folder)
        entry = results
        for key in keys[:-1]:
            entry = entry[key]
        if value is None:
            del entry[keys[-1]]
        else:
            entry[keys[-1]] = value
        (folder / "results.json").write_text(json.dumps(results))

    return change
