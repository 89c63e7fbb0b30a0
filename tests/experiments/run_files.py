"""What is in a run's folder, for the tests of several commands."""

import json
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
