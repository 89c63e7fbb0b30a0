"""Checks of values, on concrete ones only: traced code cannot raise."""

from typing import Any

import jax
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


def check_positive(name: str, value: Any) -> None:
    """Refuse a setting that is not positive and finite; an array of JAX is let pass.

    Raises:
      InputError: one line that names the setting.
    """
    if not isinstance(value, jax.Array) and not 0 < value < float("inf"):
        raise InputError(f"{name} must be positive and finite, got {value}")


def check_cap(cap: Any) -> None:
    """Refuse what no pixel could hold; None or ∞ for no limit, an array of JAX is let pass.

    Raises:
      InputError: one line that says what is wrong.
    """
    if cap is not None and not isinstance(cap, jax.Array) and not cap > 0:
        raise InputError(f"cap must be positive, got {cap}")
