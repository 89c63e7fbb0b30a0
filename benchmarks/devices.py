"""The projection on 1, 2, 4, … devices: images per second, and the efficiency.

On a CPU, as many devices are made out of the cores, each number in a process of its own; more
devices than cores cannot be faster, so that the efficiency is against the lesser number. On
accelerators, the first 1, 2, 4, … of them.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from rich.table import Table

from benchmarks._child import in_fresh_process
from benchmarks._measure import (
    Record,
    Setup,
    call_together,
    core_count,
    interleaved,
    lay_out,
    number,
    record,
    text,
)
from benchmarks._problem import ours, problem_on
from experiments.harness.arguments import use_all_cores
from wasserstein_adv.data import load

_BATCH = 256
_HOST_DEVICES, _QUICK_HOST_DEVICES = (1, 2, 4, 8), (1, 2)


def measure(setup: Setup) -> list[Record]:
    """Time one batch on every number of devices."""
    batch = min(_BATCH, len(setup.subject.x) // 8 * 8)
    if jax.default_backend() == "cpu":
        most, seconds = core_count(), {}
        for count in _QUICK_HOST_DEVICES if setup.quick else _HOST_DEVICES:
            setup.tell(f"{count} devices")
            seconds[count] = in_fresh_process(
                __name__,
                data=setup.subject.data,
                data_dir=None if setup.data_dir is None else str(setup.data_dir),
                devices=count,
                batch=batch,
                repeats=setup.repeats,
            )
        unit = f"host devices on {most} cores"
    else:
        devices = jax.local_devices()
        most = len(devices)
        counts = [2**k for k in range(most.bit_length()) if 2**k <= most]
        problem = problem_on(setup.subject.x[:batch])
        runs = {f"{n} devices": ours(problem, devices=devices[:n]) for n in counts}
        call_together(list(runs.values()))
        _, times = interleaved(runs, setup.repeats, setup.tell)
        seconds = dict(zip(counts, times.values(), strict=True))
        unit = devices[0].device_kind
    ours_at_one = np.median(seconds[1])
    return [
        record(
            "devices",
            f"{count} devices",
            float(np.median(times)),
            np.divide(times, ours_at_one),
            setting=f"{setup.subject.data}, {batch} images, {unit}",
            images_per_second=float(batch / np.median(times)),
            efficiency=float(ours_at_one / np.median(times) / min(count, most)),
        )
        for count, times in seconds.items()
    ]


def child(data: str, data_dir: str | None, devices: int, batch: int, repeats: int) -> list[float]:
    """Seconds of every round on so many host devices; in a process of its own."""
    use_all_cores()
    jax.config.update("jax_num_cpu_devices", devices)
    x = load(data, "test", None if data_dir is None else Path(data_dir)).images[:batch]
    run = ours(problem_on(x))
    run()
    _, seconds = interleaved({"ours": run}, repeats, lambda now: None)
    return seconds["ours"]


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        f"devices: {records[0]['setting']}",
        records,
        {
            "devices": text("method"),
            "seconds": number("seconds"),
            "images / s": number("images_per_second", ",.0f"),
            "efficiency": number("efficiency", ".0%"),
        },
    )
