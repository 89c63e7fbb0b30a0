"""How far an iteration of the projection is from what the hardware could do.

The floor is the greater of two times: that of moving the least bytes, every array that an iteration
carries read and written once and the data read once, at the measured bandwidth; and that of the
operations that XLA counts in one compiled step, transcendental functions counted as one and the
mixing of the steps before left out, at the measured rate of multiplications and additions. XLA's
count of bytes is that of the step's fusions one by one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from rich.table import Table

from benchmarks._measure import Record, Setup, lay_out, number, record, text, timed
from benchmarks._problem import COST, RADIUS, REG, Problem, ours, problem_on, spread
from wasserstein_adv.geometry import local_grid
from wasserstein_adv.projections import block_ascent, projected_sinkhorn

_SHAPES = {"MNIST": (28, 28, 1), "CIFAR-10": (32, 32, 3), "Tiny ImageNet": (64, 64, 3)}
_COUNTS = {"cpu": (1000, 256, 64), "other": (10_000, 10_000, 2048)}
_ITERATIONS = (20, 120)
_NEVER = 1e-30  # a tolerance that is never met
_STREAM = {"cpu": 2**25, "other": 2**28}  # floats of each array, far more than any cache holds
_LANES, _CHAIN, _WIDTH = 8, 64, 2**22
_MEMORY = 3  # steps before that the iteration mixes
# Per pixel: β and z; for the mixing the last point and its image, and as many differences of each
# as there are steps; and x and w, which stay.
_CARRIED, _DATA = 2 + 2 * (1 + _MEMORY), 2


class Machine(NamedTuple):
    """What all devices together do at best, measured."""

    bytes_per_second: float
    operations_per_second: float


def measure(setup: Setup) -> list[Record]:
    """Measure the machine, then an iteration at each shape."""
    kind = "cpu" if jax.default_backend() == "cpu" else "other"
    setup.tell("the machine")
    machine = measure_machine(setup.repeats)
    found = []
    for (name, shape), count in zip(_SHAPES.items(), _COUNTS[kind], strict=True):
        setup.tell(f"{name}, {count:,} images")
        x = _images(setup.subject.x, (count, *shape))
        found.append(_record(f"{count:,} {name}", problem_on(x), machine, setup.repeats))
    return found


def _images(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Test images in another size and number, all channels alike."""
    count, height, width, channels = shape
    x = np.resize(images, (count, *images.shape[1:])).mean(-1, keepdims=True)
    if x.shape[1:3] != (height, width):
        x = np.maximum(np.asarray(jax.image.resize(x, (count, height, width, 1), "linear")), 0.0)
    return np.repeat(x, channels, -1)


# The machine --------------------------------------------------------------------------------------


def measure_machine(repeats: int) -> Machine:
    """Bandwidth by a triad a + sb over long arrays, the rate by chains of fused multiply-adds."""
    devices = jax.local_device_count()
    cpu = jax.default_backend() == "cpu"
    length = _STREAM["cpu" if cpu else "other"] // devices
    a = np.ones((devices, length), np.float32)
    triad = _best(spread(lambda a, b: a + 0.5 * b, a, a), repeats)

    def chains(start: Array) -> Array:
        # Independent lanes hide each other's latency; the factors are data, so that XLA keeps them.
        lanes = [start + lane for lane in range(_LANES)]
        for _ in range(_CHAIN):
            lanes = [lane * start + start for lane in lanes]
        return sum(lanes)

    width = _WIDTH // devices * devices
    fma = _best(spread(chains, np.full(width, 0.5, np.float32)), repeats)
    return Machine(3 * 4 * a.size / triad, 2 * _LANES * _CHAIN * width / fma)


def _best(run: Callable[[], Any], repeats: int) -> float:
    run()
    return min(timed(run).seconds for _ in range(repeats))


# An iteration -------------------------------------------------------------------------------------


def _record(name: str, problem: Problem, machine: Machine, repeats: int) -> Record:
    """An iteration's time against its floor."""
    seconds = _seconds_of_iteration(problem, repeats)
    counted = counts(problem.x.shape[1:], problem.window)
    images, pixels = len(problem.x), problem.x[0].size
    least = 4.0 * images * pixels * (2 * _CARRIED + _DATA)
    operations = images * counted["operations"]
    moving, computing = least / machine.bytes_per_second, operations / machine.operations_per_second
    return record(
        "floor",
        name,
        seconds,
        setting=str(problem),
        bytes_per_second=machine.bytes_per_second,
        operations_per_second=machine.operations_per_second,
        least_bytes=least,
        xla_bytes=images * counted["bytes"],
        operations=operations,
        seconds_moving=moving,
        seconds_computing=computing,
        times_the_floor=seconds / max(moving, computing),
    )


def _seconds_of_iteration(problem: Problem, repeats: int) -> float:
    """By the difference of many iterations and few, so that start and finish drop out."""
    few, many = (
        _best(ours(problem, tolerance=_NEVER, max_iterations=count, memory=_MEMORY), repeats)
        for count in _ITERATIONS
    )
    return (many - few) / (_ITERATIONS[1] - _ITERATIONS[0])


def counts(shape: tuple[int, int, int], window: int) -> dict[str, float]:
    """ "operations" and "bytes" of one step of one image as XLA counts them."""
    geometry = local_grid(shape[:2], COST, window)
    seen = []

    def spy(*given: Any) -> Any:
        seen.append(given)
        return block_ascent(*given)

    def project(x: Array, w: Array) -> Array:
        return projected_sinkhorn(geometry, x, w, RADIUS, REG, step=spy).point

    jax.eval_shape(project, *[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2)
    kernel, *given = seen[0]  # the first is that of the fast domain
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
    compiled = jax.jit(functools.partial(block_ascent, kernel)).lower(*given).compile()
    cost = compiled.cost_analysis()
    return {
        "operations": cost.get("flops", 0.0) + cost.get("transcendentals", 0.0),
        "bytes": cost.get("bytes accessed", 0.0),
    }


def table(records: Sequence[Record]) -> Table:
    """Lay out what `measure` found."""
    first = records[0]
    return lay_out(
        f"one iteration against the floor of {first['device']}: "
        f"{first['bytes_per_second'] / 1e9:,.0f} GB/s, "
        f"{first['operations_per_second'] / 1e9:,.0f} Gflop/s, measured",
        records,
        {
            "images": text("method"),
            "ms": lambda r: f"{1e3 * r['seconds']:.3g}",
            "moving, ms": lambda r: f"{1e3 * r['seconds_moving']:.3g}",
            "computing, ms": lambda r: f"{1e3 * r['seconds_computing']:.3g}",
            "× the floor": number("times_the_floor", ".1f"),
            "XLA's bytes × least": lambda r: f"{r['xla_bytes'] / r['least_bytes']:.1f}",
        },
    )
