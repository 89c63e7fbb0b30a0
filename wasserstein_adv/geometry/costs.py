"""Ground costs of the papers, as functions of a displacement between two pixels.

Each function works elementwise on NumPy or JAX arrays of displacements, in whatever unit they are
given; windows and dense matrices of costs are built from them. They are symmetric in the signs of
both arguments and vanish at (0, 0).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from wasserstein_adv.errors import InputError

Cost = Callable[[Any, Any], Any]
"""A ground cost: `(drow, dcol) -> cost`, elementwise on arrays."""


def _check_exponent(p: float) -> float:
    if not (np.isfinite(p) and p > 0):
        raise InputError(f"p must be a positive finite number, got {p}")
    return float(p)


def euclidean_power(p: float = 1.0) -> Cost:
    """(|Δrow|² + |Δcol|²)^(p/2): the Euclidean distance to the power p.

    Wong et al. (2019), section 5 and appendix C.1; `p=1` gives the 1-Wasserstein distance.

    Args:
      p: exponent, positive.

    Raises:
      InputError: `p` is not a positive finite number.
    """
    p = _check_exponent(p)
    return lambda drow, dcol: (drow**2 + dcol**2) ** (p / 2)


def minkowski(p: float = 1.0) -> Cost:
    """(|Δrow|^p + |Δcol|^p)^(1/p): the ℓp distance. The unbalanced attack's papers.

    `minkowski(2)` is `euclidean_power(1)`, and `minkowski(1)` is separable over the axes.

    Args:
      p: exponent, positive (a norm for p ≥ 1).

    Raises:
      InputError: `p` is not a positive finite number.
    """
    p = _check_exponent(p)

    def cost(drow: Any, dcol: Any) -> Any:
        # In shares of the sum, so that no power underflows to a cost of 0.
        row, col = abs(drow), abs(dcol)
        total = row + col
        unit = total + (total == 0)
        return total * ((row / unit) ** p + (col / unit) ** p) ** (1 / p)

    return cost


def separable_power(p: float = 1.0) -> Cost:
    """|Δrow|^p + |Δcol|^p: the rootless cost, separable over the axes for every p.

    Args:
      p: exponent, positive.

    Raises:
      InputError: `p` is not a positive finite number.
    """
    p = _check_exponent(p)
    return lambda drow, dcol: abs(drow) ** p + abs(dcol) ** p


def check_window_size(window: int, name: str = "window") -> int:
    """Return `window` if it is an odd positive integer, the side of a window with a centre.

    Raises:
      InputError: it is not.
    """
    if window != int(window) or window < 1 or window % 2 == 0:
        raise InputError(f"{name} must be an odd positive integer, got {window}")
    return int(window)


def window_cost(cost: Cost, window: int, unit: float | tuple[float, float] = 1.0) -> np.ndarray:
    """Cost of every displacement inside a k×k window: `out[r + Δrow, r + Δcol]`, r = (k-1)/2.

    Args:
      cost: a ground cost.
      window: side k of the window in pixels, odd.
      unit: length of one pixel step, `(row, column)` or one number for both: 1 measures distances
        in pixels, `unit_square(height, width)` in fractions of the image's side.

    Returns:
      `(k, k)` float64 array.

    Raises:
      InputError: `window` is even or not positive.
    """
    radius = check_window_size(window) // 2
    row_unit, col_unit = np.broadcast_to(np.asarray(unit, np.float64), (2,))
    steps = np.arange(-radius, radius + 1, dtype=np.float64)
    drow, dcol = np.meshgrid(steps * row_unit, steps * col_unit, indexing="ij")
    return np.asarray(cost(drow, dcol), np.float64)


def unit_square(height: int, width: int) -> tuple[float, float]:
    """Length of one pixel step when the image's corner pixels sit on the corners of [0, 1]²."""
    return 1.0 / max(height - 1, 1), 1.0 / max(width - 1, 1)
