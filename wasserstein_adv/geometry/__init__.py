"""Where mass may move, and at what cost: OTT-JAX geometries over the pixels of an image."""

from wasserstein_adv.geometry.best_destination import Choice, best_destination
from wasserstein_adv.geometry.costs import (
    Cost,
    euclidean_power,
    minkowski,
    separable_power,
    unit_square,
    window_cost,
)
from wasserstein_adv.geometry.grids import dense_grid, local_grid, separable_grid
from wasserstein_adv.geometry.local_grid import LocalGrid
from wasserstein_adv.geometry.log_kernel import (
    LogKernel,
    log_kernel,
    push_forward,
)
from wasserstein_adv.geometry.manhattan_grid import ManhattanGrid
from wasserstein_adv.geometry.strips import exp_kernel, exp_push_forward, from_strip, to_strip

__all__ = [
    "Choice",
    "Cost",
    "LocalGrid",
    "LogKernel",
    "ManhattanGrid",
    "best_destination",
    "dense_grid",
    "euclidean_power",
    "exp_kernel",
    "exp_push_forward",
    "from_strip",
    "local_grid",
    "log_kernel",
    "minkowski",
    "push_forward",
    "separable_grid",
    "separable_power",
    "to_strip",
    "unit_square",
    "window_cost",
]
