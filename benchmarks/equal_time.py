"""The error of the projection against time: what either method has after so many seconds."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks import _peers
from benchmarks._measure import (
    Record,
    Setup,
    call_together,
    interleaved,
    lay_out,
    number,
    ratio_cell,
    records_of,
    text,
)
from benchmarks._problem import errors, problem_on, reference
from benchmarks.projection import ours_to
from experiments.harness.pictures import COLOURS, new_figure, save_figure

_TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_QUICK_TOLERANCES = (1e-3, 1e-5, 1e-6)
_ITERATIONS = (5, 10, 20, 50, 100, 200, 500)
_QUICK_ITERATIONS = (5, 20, 50, 500)
_MEASURES = ("error", "error_worst")


def measure(setup: Setup) -> list[Record]:
    """Stop ours at a ladder of tolerances, the package at a ladder of iterations."""
    problem = problem_on(setup.subject.x[: setup.batch])
    tolerances = _QUICK_TOLERANCES if setup.quick else _TOLERANCES
    iterations = _QUICK_ITERATIONS if setup.quick else _ITERATIONS
    runs = {f"ours, to {t:.0e}": ours_to(problem, t) for t in tolerances}
    setup.tell("compiling, and a reference in float64")
    *_, exact = call_together([*runs.values(), functools.partial(reference, problem)])
    own = set(runs)
    if not _peers.missing([_peers.PACKAGE]):
        runs |= {f"{_peers.PACKAGE}, ≤ {n}": _peers.package(problem, n) for n in iterations}
    answers, seconds = interleaved(runs, setup.repeats, setup.tell)
    more = {
        name: {**errors(z, exact.point), "device": _peers.device_of(name)}
        for name, z in answers.items()
    }
    setting = f"{setup.subject.data}, {problem}"
    records = records_of("equal_time", seconds, more, setting=setting)
    ladder = [r for r in records if r["method"] in own]
    return [r if r["method"] in own else {**r, **error_ratios(r, ladder)} for r in records]


def error_ratios(peer: Mapping[str, Any], ladder: Sequence[Record]) -> dict[str, float | None]:
    """A peer's errors over ours at the peer's time, "error_ratio" and "error_worst_ratio".

    Ours are interpolated between the runs of the ladder, both scales logarithmic. A peer that took
    longer than the last of them is compared with that; one that was done before the first, with
    nothing: None.
    """
    ladder = sorted(ladder, key=lambda r: r["seconds"])
    times = np.log([r["seconds"] for r in ladder])
    at = np.log(peer["seconds"])
    if at < times[0]:
        return {f"{key}_ratio": None for key in _MEASURES}

    def ours_then(key: str) -> float:
        # The best so far: timings close together may come in another order than the tolerances.
        best = np.minimum.accumulate([r[key] for r in ladder])
        return float(np.exp(np.interp(at, times, np.log(best))))

    return {f"{key}_ratio": peer[key] / ours_then(key) for key in _MEASURES}


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        f"error against time: {records[0]['setting']}",
        records,
        {
            "method": text("method"),
            "seconds": number("seconds"),
            "ratio": ratio_cell,
            "error": number("error", ".0e"),
            "worst": number("error_worst", ".0e"),
            "÷ ours then": number("error_ratio"),
            "worst ÷ ours": number("error_worst_ratio"),
        },
    )


def figure(records: Sequence[Record], path: Path) -> None:
    """Draw the errors against time, a curve for the median and one for the worst of each method."""
    drawing = new_figure(6.4, 4.0)
    axes = drawing.add_subplot()
    for colour, name in zip(COLOURS, ("ours", _peers.PACKAGE), strict=False):
        part = [r for r in records if r["method"].startswith(name)]
        part.sort(key=lambda r: r["seconds"])
        times = [r["seconds"] for r in part]
        for key, style, which in zip(_MEASURES, ("-", "--"), ("median", "worst"), strict=True):
            if part:
                axes.plot(
                    times, [r[key] for r in part], style, color=colour, marker="o", ms=4, lw=1.6,
                    label=f"{name}, {which} image",
                )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="seconds", ylabel="error ‖z − z*‖ / ‖z*‖")
    axes.set_title(records[0]["setting"], loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=9)
    save_figure(drawing, path)
