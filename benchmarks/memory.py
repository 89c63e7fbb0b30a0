"""Peak memory of every projection, 64×64×3, each in a process of its own.

Two figures: what the process, or the accelerator, held at most above what it held with JAX loaded
and its device open, XLA's compiler included; and XLA's own account of the compiled function,
arguments, result and temporary buffers together.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from benchmarks._child import in_fresh_process
from benchmarks._measure import Record, Setup, core_count, lay_out, number, record, text
from benchmarks._problem import COST, RADIUS, REG, WINDOW
from wasserstein_adv.geometry import local_grid, separable_grid, unit_square
from wasserstein_adv.projections import (
    diagonal_plan,
    dual_projection,
    flow_projection,
    linear_oracle,
    projected_sinkhorn,
    unbalanced_sinkhorn,
)

_SHAPE = (64, 64, 3)
_BATCHES, _QUICK_BATCHES = (1, 8, 32, 128), (32,)
_ITERATIONS = 10  # memory does not depend on them

PROJECTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "projected_sinkhorn": lambda x, w: projected_sinkhorn(
        _window(), x, w, RADIUS, REG, max_iterations=_ITERATIONS
    ),
    "projected_sinkhorn, capped": lambda x, w: projected_sinkhorn(
        _window(), x, w, RADIUS, REG, cap=1.0, max_iterations=_ITERATIONS
    ),
    "dual_projection": lambda x, w: dual_projection(
        _window(), x, _stepped_plan(x, w), RADIUS, cap=1.0, max_iterations=_ITERATIONS
    ),
    "flow_projection": lambda x, w: flow_projection(x, w, RADIUS, max_iterations=_ITERATIONS),
    "unbalanced_sinkhorn": lambda x, w: unbalanced_sinkhorn(
        separable_grid(_SHAPE[:2], 1.0, unit_square(*_SHAPE[:2])), x, w, max_iterations=_ITERATIONS
    ),
    "linear_oracle": lambda x, w: linear_oracle(
        _window(), x, w, RADIUS, max_iterations=_ITERATIONS
    ),
}
"""Every projection, of one image and one stepped image."""


def _window() -> Any:
    return local_grid(_SHAPE[:2], COST, WINDOW)


def _stepped_plan(x: Any, w: Any) -> Any:
    """A coupling to project: x where it is, and w in every displacement."""
    plan = diagonal_plan(_window(), x)
    return plan + w[None] / len(plan)


def measure(setup: Setup) -> list[Record]:
    """Measure all projections, as many at a time as there are cores."""
    batches = _QUICK_BATCHES if setup.quick else _BATCHES
    wanted = [(name, batch) for batch in batches for name in PROJECTIONS]

    def one(case: tuple[str, int]) -> dict[str, Any]:
        name, batch = case
        setup.tell(f"{name}, batch {batch}")
        return in_fresh_process(__name__, projection=name, batch=batch)

    # An accelerator's memory is one.
    workers = core_count() if jax.default_backend() == "cpu" else 1
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(one, wanted))
    setting = "{}×{}×{}, random images".format(*_SHAPE)
    return [
        record("memory", name, each.pop("seconds"), setting=setting, batch=batch, **each)
        for (name, batch), each in zip(wanted, found, strict=True)
    ]


def child(projection: str, batch: int) -> dict[str, float | None]:
    """Run a projection on a batch, and say what it took; in a process of its own."""
    project = jax.jit(jax.vmap(PROJECTIONS[projection]))
    device = jax.local_devices()[0]
    jnp.zeros(()).block_until_ready()  # opens the device
    before = _peak_bytes(device)
    x, w = np.random.default_rng(0).random((2, batch, *_SHAPE), np.float32)
    started = time.perf_counter()
    compiled = project.lower(x, w).compile()
    compilation, started = time.perf_counter() - started, time.perf_counter()
    jax.block_until_ready(compiled(x, w))
    seconds = time.perf_counter() - started
    peak = _peak_bytes(device) - before
    return {
        "seconds": seconds,
        "seconds_of_compilation": compilation,
        "peak_bytes": peak,
        "xla_bytes": _xla_bytes(compiled),
    }


def _peak_bytes(device: jax.Device) -> int:
    """What an accelerator, or else this process, has held at most so far."""
    statistics = device.memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    status = Path("/proc/self/status")
    if status.is_file():
        # Not `ru_maxrss`, which on Linux begins at what the parent held when it started us.
        (line,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _xla_bytes(compiled: Any) -> int | None:
    """Arguments, result and temporary buffers, by XLA's account; None where it gives none."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    parts = ("argument", "output", "temp")
    return sum(getattr(analysis, f"{part}_size_in_bytes") for part in parts)


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""

    def megabytes(key: str) -> Callable[[Record], str]:
        return lambda each: "–" if each[key] is None else f"{each[key] / 1e6:,.0f}"

    return lay_out(
        f"memory: {records[0]['setting']}",
        records,
        {
            "projection": text("method"),
            "batch": text("batch"),
            "peak, MB": megabytes("peak_bytes"),
            "by XLA's account, MB": megabytes("xla_bytes"),
            "compilation, s": number("seconds_of_compilation", ".1f"),
        },
    )
