"""Time and error of the projection against image side, batch, window and λ, beside the package.

One thing varies at a time. Ours stops at its default tolerance, the package by its own rule. Sides
other than the images' own are those images resized; a batch of more images than there are repeats
them.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
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
    record,
    records_of,
    text,
)
from benchmarks._problem import REG, WINDOW, Problem, errors, problem_on, reference
from benchmarks.projection import ours_to
from experiments.harness.pictures import COLOURS, new_figure, save_figure

_JUDGED = 16  # images of a batch whose error is measured
_ITERATIONS = 500  # of the package at most: its own rule stops it before, where it converges
_TOLERANCE = 1e-4  # ours by default
_OURS = "ours"


class Point(NamedTuple):
    """A problem's size; the defaults are what stays while one of them varies."""

    side: int = 28
    batch: int = 16
    window: int = WINDOW
    reg: float = REG


_AXES = {
    "side": ((14, 28, 32, 64, 128), (28, 56)),
    "batch": ((1, 4, 16, 64, 256, 1024), (1, 16, 100)),
    "window": ((3, 5, 7, 9), (5, 9)),
    "reg": ((100.0, 1000.0, 10_000.0),) * 2,
}
"""What varies, and its values, in full and with --quick."""
_LABELS = {"side": "image side", "batch": "batch", "window": "window", "reg": "λ"}


def measure(setup: Setup) -> list[Record]:
    """Time both methods at every size."""
    points = {
        axis: [Point(**{axis: value}) for value in values[setup.quick]]
        for axis, values in _AXES.items()
    }
    distinct = list(dict.fromkeys(point for part in points.values() for point in part))
    problems = {point: _problem(point, setup.subject.x) for point in distinct}
    few = {point: _problem(point._replace(batch=_JUDGED), setup.subject.x) for point in distinct}
    setup.tell("compiling, and references in float64")
    runs = {point: ours_to(problem, _TOLERANCE) for point, problem in problems.items()}
    judges = {(p.side, p.window, p.reg): functools.partial(_reference, few[p]) for p in distinct}
    call_together(list(runs.values()))
    exact = dict(zip(judges, call_together(list(judges.values())), strict=True))
    found = {
        p: _at(setup, p, problems[p], runs[p], exact[p.side, p.window, p.reg]) for p in distinct
    }
    return [
        {**r, "varies": axis, "value": getattr(point, axis)}
        for axis, part in points.items()
        for point in part
        for r in found[point]
    ]


def _problem(point: Point, images: np.ndarray) -> Problem:
    """The problem of a size, on the first images."""
    x = np.resize(images, (point.batch, *images.shape[1:]))
    shape = (len(x), point.side, point.side, x.shape[-1])
    if x.shape != shape:
        x = np.maximum(np.asarray(jax.image.resize(x, shape, "linear")), 0.0)
    return problem_on(x, reg=point.reg, window=point.window)


def _reference(problem: Problem) -> np.ndarray:
    return reference(problem).point


def _at(
    setup: Setup,
    point: Point,
    problem: Problem,
    run: Callable[[], np.ndarray],
    exact: np.ndarray,
) -> list[Record]:
    """Records of both methods at one size."""
    where = ", ".join(f"{_LABELS[axis]} {value:g}" for axis, value in point._asdict().items())
    runs = {_OURS: run}
    if not _peers.missing([_peers.PACKAGE]):
        runs[_peers.PACKAGE] = guarded(_peers.package(problem, _ITERATIONS))
    answers, seconds = interleaved(runs, setup.repeats, lambda now: setup.tell(f"{where}: {now}"))
    package = answers.get(_peers.PACKAGE)
    if failed := isinstance(package, Failure):
        del answers[_peers.PACKAGE], seconds[_peers.PACKAGE]
    more = {
        name: {**errors(z[:_JUDGED], exact[: len(z)]), "device": _peers.device_of(name)}
        for name, z in answers.items()
    }
    records = records_of("sizes", seconds, more, setting=where)
    if failed:
        records.append(
            record(
                "sizes",
                _peers.PACKAGE,
                None,
                setting=where,
                failed=str(package),
                device=_peers.device_of(_peers.PACKAGE),
            )
        )
    return [
        {**r, "seconds_per_image": None if r["seconds"] is None else r["seconds"] / point.batch}
        for r in records
    ]


class Failure(str):
    """Why a method has no answer."""


def guarded(run: Callable[[], np.ndarray]) -> Callable[[], np.ndarray | Failure]:
    """A method that may exponentiate what float32 cannot hold, and then has no answer."""

    def guard() -> np.ndarray | Failure:
        try:
            answer = run()
        except (NotImplementedError, ArithmeticError, RuntimeError) as error:
            return Failure(f"{type(error).__name__} {error}".strip())
        return answer if np.isfinite(answer).all() else Failure("the answer is not finite")

    return guard


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    return lay_out(
        "projection by size: what varies, from 28×28, batch 16, 5×5, λ = 1000",
        records,
        {
            "varies": lambda r: f"{_LABELS[r['varies']]} {r['value']:g}",
            "method": text("method"),
            "ms / image": lambda r: (
                "failed" if r["seconds"] is None else f"{1e3 * r['seconds_per_image']:.3g}"
            ),
            "ratio": ratio_cell,
            "error": number("error", ".0e"),
            "worst": number("error_worst", ".0e"),
        },
    )


def figure(records: Sequence[Record], path: Path) -> None:
    """Draw seconds per image against each size, a panel for what varies, a curve for a method."""
    drawing = new_figure(10.4, 3.4)
    panels = drawing.subplots(1, len(_AXES), sharey=True)
    for axes, axis in zip(panels, _AXES, strict=True):
        part = [r for r in records if r["varies"] == axis]
        for colour, name in zip(COLOURS, (_OURS, _peers.PACKAGE), strict=False):
            _draw(axes, [r for r in part if r["method"] == name], name, colour)
        values = sorted({r["value"] for r in part})
        axes.set(xscale="log", yscale="log", xlabel=_LABELS[axis])
        axes.set_xticks(values, [f"{value:g}" for value in values], fontsize=8)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set(ylabel="seconds per image")
    handles, labels = panels[-1].get_legend_handles_labels()
    drawing.legend(handles, labels, frameon=False, fontsize=9, loc="outside upper left", ncols=3)
    save_figure(drawing, path)


def _draw(axes: Any, records: Sequence[Record], name: str, colour: str) -> None:
    timed = [r for r in records if r["seconds"] is not None]
    if timed:
        axes.plot(
            [r["value"] for r in timed], [r["seconds_per_image"] for r in timed], "-o",
            color=colour, ms=4, lw=1.6, label=name,
        )  # fmt: skip
    for r in records:
        if r["seconds"] is None:
            axes.plot(
                r["value"], 0.97, "x", color=colour, transform=axes.get_xaxis_transform(),
                label=f"{name}: no finite answer",
            )  # fmt: skip
