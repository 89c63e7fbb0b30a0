"""Accuracy under attack as a function of the radius, with confidence intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wasserstein_adv.errors import InputError


class Accuracy(NamedTuple):
    """Accuracy at some radii, every field of the radii's shape.

    Attributes:
        radius: The radii, in the attack's units.
        accuracy: Share of the images that are still classified rightly at each radius.
        low: Lower end of the Wilson interval of that share.
        high: Upper end of it.
    """

    radius: NDArray[np.floating]
    accuracy: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: all p with |k/n - p| ≤ q·sqrt(p(1 - p)/n).

    Here k of n independent trials succeeded, and q is the standard normal quantile of
    (1 + confidence)/2. Unlike k/n ± q·s it stays in [0, 1] and has a width at k = 0 and k = n.

    Args:
        successes: k, from 0 to n.
        n: Trials, at least 1.
        confidence: Coverage, in (0, 1).

    Returns:
        The interval's lower and upper end.

    Raises:
        InputError: If an argument is out of its range.
    """
    if not (n >= 1 and 0 <= successes <= n):
        raise InputError(f"successes must be from 0 to n and n positive, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence}")
    from scipy.stats import binomtest  # here, because it takes a second to import

    interval = binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_at(radii: ArrayLike, at: ArrayLike, confidence: float = 0.95) -> Accuracy:
    """Share of images whose radius is strictly above each r: #{i : radii_i > r}/N.

    At r = 0 that is the nominal accuracy. The comparison is made in the precision of `radii`, so
    that an image fooled at float32(0.3) does not count as withstanding 0.3.

    Args:
        radii: (N,) smallest radius at which each image is misclassified; 0 for one misclassified
            clean, inf for one never fooled.
        at: Radii r to evaluate at, of any shape, in the same units, non-negative.
        confidence: Coverage of the Wilson intervals, in (0, 1).

    Returns:
        The accuracy and its interval at each r.

    Raises:
        InputError: If `radii` is empty or not one-dimensional, or a value is NaN or negative.
    """
    radii = np.asarray(radii)
    if radii.ndim != 1 or radii.size == 0:
        raise InputError(f"radii must be a list of at least one radius, got shape {radii.shape}")
    if not np.issubdtype(radii.dtype, np.floating):
        radii = radii.astype(np.float64)
    at = np.asarray(at, radii.dtype)
    for name, values in (("radii", radii), ("at", at)):
        if not np.all(values >= 0):  # NaN fails too
            raise InputError(f"{name} must be non-negative and not NaN")
    counts = (radii > at[..., None]).sum(-1)
    ends = [wilson_interval(int(k), radii.size, confidence) for k in counts.ravel()]
    low, high = np.array(ends).reshape(-1, 2).T
    return Accuracy(at, counts / radii.size, low.reshape(counts.shape), high.reshape(counts.shape))
