"""The entropic projection beside published implementations of it.

All solve equation (17) of Wong, Schmidt and Kolter (2019) for the same images, radius, λ and
window; the peers stop by their own rule, or at the iterations they are given. A fast answer that is
not the answer is none, so beside each time stands the answer's `quality`, and the ratio to the
fastest run of ours that is at least as exact.
"""

import functools
from collections.abc import Callable, Sequence
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
from benchmarks._problem import Problem, ours, problem_on, quality, reference

_TOLERANCES = (1e-3, 1e-5)
# The package's iterations at most: its default, and enough for its own rule to stop most batches.
_ITERATIONS = (50, 500)
_MAX_ITERATIONS = 10_000


def measure(setup: Setup) -> list[Record]:
    """Time the projection of a batch by every method, and judge every answer."""
    problem = problem_on(setup.subject.x[: setup.batch])
    runs = {f"ours, to {t:.0e}": ours_to(problem, t) for t in _TOLERANCES}
    setup.tell("compiling, and a reference in float64")
    *_, exact = call_together([*runs.values(), functools.partial(reference, problem)])
    runs |= peers(problem)
    slow = [name for name in runs if name.startswith(_peers.ART)] if setup.quick else ()
    answers, seconds = interleaved(runs, setup.repeats, setup.tell, slow)
    setup.tell("exact distances and dual values")
    more = {
        name: {**quality(problem, z, exact), "device": _peers.device_of(name)}
        for name, z in answers.items()
    }
    setting = f"{setup.subject.data}, {problem}"
    return with_equal_quality(records_of("projection", seconds, more, setting=setting))


def ours_to(problem: Problem, tolerance: float) -> Callable[[], np.ndarray]:
    """Our projection, to a tolerance, however many iterations that takes."""
    return ours(problem, tolerance=tolerance, max_iterations=_MAX_ITERATIONS)


def peers(problem: Problem) -> dict[str, Callable[[], np.ndarray]]:
    """The published implementations that are installed."""
    runs: dict[str, Callable[[], Any]] = {}
    if not _peers.missing([_peers.PACKAGE]):
        runs |= {f"{_peers.PACKAGE}, ≤ {n}": _peers.package(problem, n) for n in _ITERATIONS}
    if not _peers.missing([_peers.ART]):
        runs[f"{_peers.ART}, ≤ {max(_ITERATIONS)}"] = _peers.art(problem, max(_ITERATIONS))
    return runs


def with_equal_quality(records: Sequence[Record]) -> list[Record]:
    """The records, each of a peer with its ratio to the fastest of ours that is as exact.

    "ratio_same_quality" is the ratio of the medians to that run of ours, "same_quality", whose
    median and worst errors are both at most the peer's; None where none is.
    """
    own = sorted((r for r in records if r["method"].startswith("ours")), key=lambda r: r["seconds"])

    def as_exact(peer: Record) -> Record:
        keys = ("error", "error_worst")
        match = next((r for r in own if all(r[key] <= peer[key] for key in keys)), None)
        return {
            **peer,
            "same_quality": None if match is None else match["method"],
            "ratio_same_quality": None if match is None else peer["seconds"] / match["seconds"],
        }

    return [r if r in own else as_exact(r) for r in records]


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        f"projection: {records[0]['setting']}",
        records,
        {
            "method": text("method"),
            "seconds": number("seconds", ".2g"),
            "ratio": ratio_cell,
            "as exact": number("ratio_same_quality"),
            "error": number("error", ".0e"),
            "worst": number("error_worst", ".0e"),
            "gap": number("dual_gap", ".0e"),
            "inside": number("inside", ".0%"),
            "mass ±": number("mass_change", ".0e"),
        },
    )
