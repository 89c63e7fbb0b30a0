"""Checks of values, on concrete arrays only: traced code cannot raise."""

import numpy as np
from numpy.typing import ArrayLike

from wasserstein_adv.errors import InputError


def check_images(images: ArrayLike, name: str = "images") -> None:
    """Refuse what is not a batch of images: (n, h, w, c), finite, in [0, 1].

    Args:
      images: the batch, any real dtype; integers would be mistaken for intensities and are refused.
      name: what to call it in the message.

    Raises:
      InputError: one line that says what is wrong.
    """
    array = np.asarray(images)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"{name} must have shape (n, h, w, c), none of them 0, got {array.shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} must be floating point in [0, 1], got {array.dtype}")
    bad = ~np.isfinite(array)
    if bad.any():
        raise InputError(f"{name} must be finite, {int(bad.sum())} values are not")
    low, high = array.min(), array.max()
    if low < 0 or high > 1:
        raise InputError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}")
