"""What two processes of one command agree on."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys
import jax, numpy as np
from wasserstein_adv.processes import all_or_none, check_same, of_first
from wasserstein_adv.errors import InputError

number = int(sys.argv[2])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(sys.argv[1], 2, number)

def refused(function, *arguments):
    try:
        return function(*arguments)
    except InputError as error:
        return str(error)

def only_the_first():
    if number == 1:
        raise InputError("no data here")
    return "data"

found = {
    "first": np.asarray(of_first({"a": np.arange(3) + 10 * number})["a"]).tolist(),
    "both": all_or_none(lambda: f"of {number}"),
    "one": refused(all_or_none, only_the_first),
    "same": refused(check_same, "settings", "seed 0"),
    "different": refused(check_same, "settings", f"seed {number}"),
}
print(json.dumps(found))
"""


def test_where_one_process_cannot_go_on_none_does(free_port):
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(number)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    first, second = (
        json.loads(process.communicate(timeout=300)[0].splitlines()[-1]) for process in processes
    )
    assert first["first"] == second["first"] == [0, 1, 2]
    assert (first["both"], second["both"]) == ("of 0", "of 1")
    assert first["one"] == "process 1 cannot go on, and says why"
    assert second["one"] == "no data here"
    assert first["same"] is second["same"] is None
    assert first["different"] == second["different"] == "the processes have different settings"
