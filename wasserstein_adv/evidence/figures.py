"""Figures that follow from arrays: each a pure function of them, in the types that JSON has.

Distances, budgets and radii are in the units of the run; shares are from 0 to 1, and intervals the
95 % Wilson intervals of shares. None stands where there is nothing to take the figure of.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from wasserstein_adv.metrics.accuracy import Accuracy, accuracy_at, wilson_interval

INSIDE = 1e-4
"""Relative slack of "inside the ball": float32 images, their mass rounded."""

__all__ = [
    "above",
    "above_interval",
    "accuracy",
    "accuracy_interval",
    "after_steps",
    "against",
    "at_distances",
    "at_most",
    "count",
    "extremes",
    "inside",
    "largest",
    "left",
    "left_interval",
    "mean",
    "median",
    "reached",
    "reached_interval",
    "summary",
]


def count(values: np.ndarray) -> int:
    """How many there are."""
    return len(values)


def mean(values: Float[np.ndarray, "n"]) -> float | None:
    """The mean of numbers."""
    return float(values.mean(dtype=np.float64)) if len(values) else None


def median(values: Float[np.ndarray, "n"]) -> float | None:
    """The median of numbers."""
    return float(np.median(values.astype(np.float64))) if len(values) else None


def largest(values: Float[np.ndarray, "n"]) -> float | None:
    """The largest of numbers, inf where one of them is none."""
    return float(np.nan_to_num(values, nan=np.inf, posinf=np.inf).max()) if len(values) else None


def extremes(values: Float[np.ndarray, "n"]) -> dict[str, float]:
    """The median and the maximum of the numbers' sizes."""
    sizes = np.abs(values)
    return {"median": float(np.median(sizes)), "max": float(sizes.max())} if len(values) else {}


def summary(values: Float[np.ndarray, "n"]) -> dict[str, float | int | None]:
    """Mean, median and maximum of the finite ones, and how many that leaves out."""
    finite = values[np.isfinite(values)].astype(np.float64)
    some = len(finite) > 0
    return {
        "mean": float(finite.mean()) if some else None,
        "median": float(np.median(finite)) if some else None,
        "max": float(finite.max()) if some else None,
        "left_out": len(values) - len(finite),
    }


# Shares -------------------------------------------------------------------------------------------


def reached(success: Bool[np.ndarray, "n"]) -> float | None:
    """Share of the images that were fooled."""
    return float(success.mean()) if len(success) else None


def reached_interval(success: Bool[np.ndarray, "n"]) -> list[float] | None:
    """Its interval."""
    return list(wilson_interval(int(success.sum()), len(success))) if len(success) else None


def left(success: Bool[np.ndarray, "n"]) -> float | None:
    """Share of the images that were not fooled."""
    return reached(~success.astype(bool))


def left_interval(success: Bool[np.ndarray, "n"]) -> list[float] | None:
    """Its interval."""
    return reached_interval(~success.astype(bool))


def accuracy(prediction: Int[np.ndarray, "n"], label: Int[np.ndarray, "n"]) -> float | None:
    """Share of the answers that are right."""
    return reached(prediction == label)


def accuracy_interval(
    prediction: Int[np.ndarray, "n"], label: Int[np.ndarray, "n"]
) -> list[float] | None:
    """Its interval."""
    return reached_interval(prediction == label)


def at_most(values: Float[np.ndarray, "n"], limit: float) -> float | None:
    """Share of the numbers that are at most so large."""
    return float((values <= limit).mean()) if len(values) else None


# Accuracy as a function ---------------------------------------------------------------------------


def _curve(values: np.ndarray, at: Sequence[float]) -> Accuracy:
    return accuracy_at(values, np.asarray(at, np.float64))


def above(radius: Float[np.ndarray, "n"], at: Sequence[float]) -> dict[str, float]:
    """Share of the images whose radius is above each of some numbers, by those."""
    return dict(zip(map(str, at), _curve(radius, at).accuracy.tolist(), strict=True))


def above_interval(radius: Float[np.ndarray, "n"], at: Sequence[float]) -> dict[str, list[float]]:
    """Its intervals."""
    curve = _curve(radius, at)
    ends = np.stack([curve.low, curve.high], -1).tolist()
    return dict(zip(map(str, at), ends, strict=True))


def after_steps(
    steps: Int[np.ndarray, "n"], success: Bool[np.ndarray, "n"], last: int
) -> dict[str, float]:
    """Accuracy left after each number of steps, of an attack that keeps the first success."""
    return above(np.where(success, steps, np.inf).astype(np.float64), range(last + 1))


def least_distance(*runs: np.ndarray) -> Float[np.ndarray, "n"]:
    """Least distance at which runs fooled each image: 0 where it was wrong already, inf if never.

    Args:
        runs: of each the distance of n images, or of the first, then success and budget of all; an
            image without a distance was not fooled.
    """
    each = []
    for distance, success, budget in zip(runs[::3], runs[1::3], runs[2::3], strict=True):
        success, budget = (values[: len(distance)] for values in (success, budget))
        known = np.where(np.isnan(distance), np.inf, distance)
        each.append(np.where(success, np.where(budget == 0, 0.0, known), np.inf))
    return np.min(each, axis=0)


def at_distances(*runs: np.ndarray, at: Sequence[float]) -> dict[str, float]:
    """Accuracy left at each of some distances; `runs` as for `least_distance`."""
    curve = _curve(least_distance(*runs), at)
    return {f"{value:g}": left for value, left in zip(at, curve.accuracy.tolist(), strict=True)}


# Distances against the radii claimed --------------------------------------------------------------


def _shares(distance: np.ndarray, budget: np.ndarray) -> Float[np.ndarray, "m"]:
    """Distances over the radii claimed, of the images measured that claim one."""
    budget = budget[: len(distance)].astype(np.float64)
    return distance[budget > 0] / budget[budget > 0]


def inside(distance: Float[np.ndarray, "m"], budget: Float[np.ndarray, "n"]) -> float | None:
    """Share of the images that are inside the radius that they claim, fooled or not."""
    shares = _shares(distance, budget)
    return float((shares <= 1.0 + INSIDE).mean()) if len(shares) else None


def against(distance: Float[np.ndarray, "m"], budget: Float[np.ndarray, "n"]) -> dict[str, Any]:
    """Distances as fractions of the radius claimed, over the images that claim one."""
    shares = _shares(distance, budget)
    if len(shares) == 0:
        return {}
    return {
        "median": float(np.median(shares)),
        "max": float(np.max(shares)),
        "no_plan": float(np.isinf(shares).mean()),
        "inside": inside(distance, budget),
    }
