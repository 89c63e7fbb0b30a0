"""What the workloads share: their setup, interleaved timing, records with ratios, tables."""

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.evaluation.subjects import Subject

Record = dict[str, Any]
"""One measurement, as it stands in the results. Among its keys are "workload"; "method"; "seconds",
the median of the rounds, compilation left out; "ratio_to_ours" and "ratio_spread", the median ratio
to our seconds of the same round, and the least and the greatest; "error", None where there is none;
"device"."""


_SHORT, _AGAIN = 0.2, 6  # seconds; calls


class Setup(NamedTuple):
    """What a workload measures on."""

    subject: Subject
    """Test images, and the weights to attack where they were given."""
    data_dir: Path | None
    quick: bool
    batch: int
    """Images at a time, where the workload does not vary it."""
    repeats: int
    """Rounds in which every method is timed once."""
    tell: Callable[[str], None]
    """To be called with what is being done now."""


class Timed(NamedTuple):
    """A call, and how long it took."""

    answer: Any
    seconds: float
    """Without `compiling`."""
    compiling: float
    """Seconds in XLA's compiler, or in reading from its cache what it compiled before."""


@functools.cache
def _compilations() -> list[float]:
    """The seconds of every compilation from now on."""
    durations: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations


def timed(run: Callable[[], Any]) -> Timed:
    """Call a function, wait for its answer, and tell compilation from computation."""
    durations = _compilations()
    before, started = len(durations), time.perf_counter()
    answer = jax.block_until_ready(run())
    whole, compiling = time.perf_counter() - started, sum(durations[before:])
    return Timed(answer, whole - compiling, compiling)


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    repeats: int,
    tell: Callable[[str], None],
    once: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What every method returns, and its seconds in each of the rounds.

    Args:
        runs: the methods by name. Those that compile should have been called before: compilation
            is left out of a time, tracing is not.
        repeats: rounds. In each, a call that is over soon is repeated, and the median counts.
        tell: called with what is about to run.
        once: methods too slow to repeat, timed in the first round alone.
    """
    answers, seconds = {}, {name: [] for name in runs}
    for number in range(repeats):
        for name, run in runs.items():
            if number and name in once:
                continue
            tell(f"{name}, {number + 1} of {1 if name in once else repeats}")
            found = timed(run)
            answers.setdefault(name, found.answer)
            times = [found.seconds]
            if found.seconds < _SHORT:
                times += [timed(run).seconds for _ in range(_AGAIN)]
            seconds[name].append(float(np.median(times)))
    return answers, seconds


def call_together(runs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call functions side by side, one to a core: first calls, that is, which compile."""
    with ThreadPoolExecutor(core_count()) as pool:
        list(pool.map(lambda run: jax.block_until_ready(run()), runs))
    # Again, because JAX finds what it compiled more slowly when a thread first asks for it.
    return [jax.block_until_ready(run()) for run in runs]


def records_of(
    workload: str,
    seconds: Mapping[str, list[float]],
    more: Mapping[str, Mapping[str, Any]],
    **common: Any,
) -> list[Record]:
    """A record of every method, with its ratios to the first, which is ours.

    Args:
        workload: what was measured.
        seconds: by method, as `interleaved` returns them.
        more: by method, what else to record, over "error" None and "device" JAX's.
        **common: what else to record of all.
    """
    ours = next(iter(seconds.values()))
    return [
        record(
            workload, name, float(np.median(times)), np.divide(times, ours), **common, **more[name]
        )
        for name, times in seconds.items()
    ]


def record(
    workload: str, method: str, seconds: float | None, ratios: Any = None, **more: Any
) -> Record:
    """A record; without `ratios` one that is compared with nothing."""
    return {
        "workload": workload,
        "method": method,
        "seconds": seconds,
        "ratio_to_ours": None if ratios is None else float(np.median(ratios)),
        "ratio_spread": None if ratios is None else [float(np.min(ratios)), float(np.max(ratios))],
        "error": None,
        "device": device_name(),
        **more,
    }


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_name() -> str:
    """The CPU as records name it: its model, where the system tells, and the cores used."""
    model, cores = "CPU", core_count()
    about = Path("/proc/cpuinfo")
    if about.is_file() and (found := re.search(r"model name\s*: (.+)", about.read_text())):
        model = found[1]
    return f"{model}, {cores} core" + "s" * (cores > 1)


def device_name() -> str:
    """JAX's device as records name it."""
    device = jax.devices()[0]
    return cpu_name() if device.platform == "cpu" else device.device_kind


# Tables -------------------------------------------------------------------------------------------


def lay_out(
    title: str, records: Iterable[Record], columns: Mapping[str, Callable[[Record], str]]
) -> Table:
    """A table with a row for each record, its columns given by header and cell."""
    table = Table(title=title, box=SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")
    for number, header in enumerate(columns):
        table.add_column(header, justify="right" if number else "left")
    for each in records:
        table.add_row(*(cell(each) for cell in columns.values()))
    return table


def number(key: str, form: str = ".3g") -> Callable[[Record], str]:
    """The cell of a number, a dash where there is none."""
    return lambda each: "–" if each.get(key) is None else format(each[key], form)


def text(key: str) -> Callable[[Record], str]:
    """The cell of a text."""
    return lambda each: str(each[key])


def ratio_cell(each: Record) -> str:
    """A record's ratio with its spread."""
    if each["ratio_to_ours"] is None:
        return "–"
    middle, low, high = (_three_digits(r) for r in (each["ratio_to_ours"], *each["ratio_spread"]))
    # Not to be broken between lines.
    return middle if low == high else f"{middle}\u00a0({low}–{high})"


def _three_digits(value: float) -> str:
    """Three digits, without an exponent where the number is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
