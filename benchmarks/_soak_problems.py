"""Random problems over the range in which projections must be right, special images among them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wasserstein_adv.geometry import euclidean_power, local_grid

SIZES = (
    (4, 4, 1, 3), (5, 5, 1, 3), (7, 4, 1, 5), (8, 8, 1, 5),
    (8, 8, 3, 5), (11, 16, 1, 7), (16, 16, 1, 5), (16, 16, 1, 9),
)  # fmt: skip
"""(height, width, channels, window)."""


class Problems(NamedTuple):
    """Problems of one size, n of each field."""

    kind: list[str]
    x: np.ndarray
    w: np.ndarray
    plan: np.ndarray
    """A coupling to project, (n, taps, h, w, c)."""
    cap: np.ndarray
    radius: np.ndarray
    reg: np.ndarray
    eta: np.ndarray
    tau: np.ndarray
    gamma: np.ndarray


def _one_pixel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = np.zeros(shape)
    x[rng.integers(shape[0]), rng.integers(shape[1])] = rng.uniform(0.1, 1.0)
    return x


def _strokes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(size=shape) * (rng.uniform(size=shape) < 0.2)


IMAGES: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "uniform": lambda rng, shape: rng.uniform(size=shape),
    "strokes": _strokes,
    "strokes ": _strokes,  # twice as often
    "binary": lambda rng, shape: (rng.uniform(size=shape) < rng.uniform()).astype(float),
    "grey": lambda rng, shape: np.full(shape, rng.uniform(0.05, 0.95)),
    "one pixel": _one_pixel,
    "one dark": lambda rng, shape: 1.0 - _one_pixel(rng, shape),
    "white": lambda rng, shape: np.ones(shape),
    "blank": lambda rng, shape: np.zeros(shape),
    "checkers": lambda rng, shape: np.indices(shape)[:2].sum(0) % 2 * 1.0,
    "faint": lambda rng, shape: rng.uniform(size=shape) * 10.0 ** rng.uniform(-6, -1),
    "faint strokes": lambda rng, shape: _strokes(rng, shape) * 10.0 ** rng.uniform(-6, -1),
    "scaled": lambda rng, shape: rng.uniform(size=shape) * 10.0 ** rng.uniform(-22, 19),
}


@functools.cache
def displacements(window: int) -> tuple[tuple[int, int], ...]:
    """Where the taps of a coupling lead, in the order of its first axis."""
    taps = local_grid((window, window), euclidean_power(1.0), window).taps(axis=1)
    return tuple((int(down), int(right)) for _, moves in taps for down, right in moves)


def _log_uniform(rng: np.random.Generator, low: float, high: float, n: int) -> np.ndarray:
    return np.exp(rng.uniform(np.log(low), np.log(high), n))


def _step(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A direction whose largest entry is about 1."""
    kind = rng.integers(4)
    if kind == 0:
        return np.sign(rng.standard_normal(shape))
    if kind == 1:
        return rng.standard_normal(shape) / 3
    if kind == 2:
        return _one_pixel(rng, shape) * rng.choice([-1.0, 1.0])
    return rng.uniform(size=shape)


def draw(rng: np.random.Generator, size: tuple[int, int, int, int], n: int) -> Problems:
    """n problems of a size: radii from 1e-3 to 4, λ from 1 to 1e5, steps from 1e-3 to 5."""
    height, width, channels, window = size
    shape = (height, width, channels)
    kinds = [list(IMAGES)[k] for k in rng.integers(len(IMAGES), size=n)]
    x = np.stack([IMAGES[kind](rng, shape) for kind in kinds])
    # A step is as long whatever the image, but for images in a unit of their own.
    unit = np.array(
        [a.max() if kind == "scaled" else 1.0 for kind, a in zip(kinds, x, strict=True)]
    )
    length = _log_uniform(rng, 1e-3, 5.0, n) * unit
    moves = np.stack([_step(rng, shape) for _ in range(n)])
    plan = rng.standard_normal((n, window**2, *shape)) * length.reshape(n, 1, 1, 1, 1) / window
    plan[:, displacements(window).index((0, 0))] += x
    return Problems(
        kind=[kind.strip() for kind in kinds],
        x=x.astype(np.float32),
        w=(x + length.reshape(n, 1, 1, 1) * moves).astype(np.float32),
        plan=plan.astype(np.float32),
        cap=np.maximum(unit * 1.001, 1.0).astype(np.float32),
        radius=_log_uniform(rng, 1e-3, 4.0, n).astype(np.float32),
        reg=_log_uniform(rng, 1.0, 1e5, n).astype(np.float32),
        eta=_log_uniform(rng, 1e-4, 1e-1, n).astype(np.float32),
        tau=_log_uniform(rng, 1e-3, 1.0, n).astype(np.float32),
        gamma=_log_uniform(rng, 1e-2, 1e2, n).astype(np.float32),
    )
