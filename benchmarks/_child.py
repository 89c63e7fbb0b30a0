"""Measurements that need a process of their own: `python -m benchmarks._child MODULE ARGUMENTS`.

The module's `child` is called with the arguments, a JSON object; its answer is printed as JSON.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]


def in_fresh_process(
    module: str, environment: Mapping[str, str] | None = None, **arguments: Any
) -> Any:
    """What the `child` of a module of this package returns in a process of its own.

    Args:
        module: `benchmarks.NAME`.
        environment: variables to set there.
        **arguments: of `child`, as JSON can hold them.

    Raises:
        RuntimeError: the process failed; the message is the last of what it said.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._child", module, json.dumps(arguments)],
        # Unfiltered, so that what went wrong is the last line; and without taking an accelerator's
        # memory beforehand, as much of it is this process's.
        env={
            **os.environ,
            "JAX_TRACEBACK_FILTERING": "off",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "PYTHONPATH": path,
            **(environment or {}),
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"{module}, in a process of its own: {said[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _, name, given = sys.argv
    print(json.dumps(importlib.import_module(name).child(**json.loads(given))))
