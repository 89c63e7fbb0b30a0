"""What an attack achieved: accuracy by radius, and exact transport distances to prove the radius.

Everything here computes with NumPy; importing it imports neither POT nor JAX.
"""

from wasserstein_adv.metrics.accuracy import Accuracy, accuracy_at, wilson_interval
from wasserstein_adv.metrics.transport import (
    GroundCost,
    TransportDistance,
    exact_distance,
    exact_distances,
)

__all__ = [
    "Accuracy",
    "GroundCost",
    "TransportDistance",
    "accuracy_at",
    "exact_distance",
    "exact_distances",
    "wilson_interval",
]
