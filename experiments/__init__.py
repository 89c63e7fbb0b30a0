"""Commands that run the attacks and defences: `python -m experiments.NAME`."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

_MOVED = {  # commands that are still found under their former names
    "experiments.unbalanced_table": "table",
    "experiments.transport_onset": "onset",
    "experiments.sensitivity": "sensitivity",
    "experiments.targeted": "targeted",
    "experiments.natural_perturbations": "natural_perturbations",
}


class _Moved:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in _MOVED:
            return None
        file = Path(__file__).parent / "unbalanced" / f"{_MOVED[name]}.py"
        return spec_from_file_location(name, file)


sys.meta_path.append(_Moved)
