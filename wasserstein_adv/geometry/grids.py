"""Dense and separable geometries over the pixels of an image."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from ott.geometry import costs as ott_costs
from ott.geometry import geometry, grid

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.costs import Cost, window_cost
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.manhattan_grid import ManhattanGrid


def local_grid(
    grid_size: tuple[int, int],
    cost: Cost,
    window: int = 5,
    unit: float | tuple[float, float] = 1.0,
    **kwargs: Any,
) -> LocalGrid:
    """Transport inside a k×k window at a ground cost: `LocalGrid` with `window_cost`.

    Args:
      grid_size: (H, W).
      cost: ground cost, see `geometry.costs`.
      window: side k of the window in pixels, odd.
      unit: length of a pixel step; 1 for pixels, `unit_square(H, W)` for fractions of the image.
      **kwargs: OTT's `epsilon`, `relative_epsilon`.

    Raises:
      InputError: an even window, a cost that is negative or not 0 at 0.
    """
    return LocalGrid(grid_size, window_cost(cost, window, unit), **kwargs)


def dense_grid(
    grid_size: tuple[int, int],
    cost: Cost,
    window: int | None = None,
    unit: float | tuple[float, float] = 1.0,
    **kwargs: Any,
) -> geometry.Geometry:
    """Every pixel to every pixel: a dense (H·W)² cost matrix. For small images and comparisons.

    Args:
      grid_size: (H, W).
      cost: ground cost, see `geometry.costs`.
      window: if given, moves outside a window of this odd side cost +inf.
      unit: as in `local_grid`.
      **kwargs: OTT's `epsilon`, `relative_epsilon`.

    Raises:
      InputError: an even window.
    """
    height, width = grid_size
    side = 2 * max(height, width) - 1 if window is None else window
    matrix = LocalGrid(grid_size, window_cost(cost, side, unit)).cost_matrix
    return geometry.Geometry(cost_matrix=matrix, **kwargs)


def separable_grid(
    grid_size: tuple[int, int],
    p: float = 1.0,
    unit: float | tuple[float, float] = 1.0,
    **kwargs: Any,
) -> grid.Grid:
    """Every pixel to every pixel at |Δrow|^p + |Δcol|^p: OTT's `Grid`, one axis at a time.

    A kernel application costs O(H·W·(H + W)) time, and O(H·W) for p = 1, a `ManhattanGrid`; nothing
    of size (H·W)² is formed. OTT's own default for `Grid` is the squared Euclidean cost in the unit
    square.

    Args:
      grid_size: (H, W).
      p: exponent, p ≥ 1.
      unit: as in `local_grid`.
      **kwargs: OTT's `epsilon`, `relative_epsilon`.

    Raises:
      InputError: p < 1.
    """
    if not (np.isfinite(p) and p >= 1):
        raise InputError(f"p must be at least 1, got {p}")
    # PNormP(p) is |Δ|^p / p: stretch the coordinates to take its factor out.
    units = np.broadcast_to(np.asarray(unit, np.float64), (2,)) * p ** (1 / p)
    axes = [jnp.asarray(np.arange(n) * u) for n, u in zip(grid_size, units, strict=True)]
    family = ManhattanGrid if p == 1 else grid.Grid
    return family(x=axes, cost_fns=[ott_costs.PNormP(p)], **kwargs)
