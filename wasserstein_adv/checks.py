"""Checks of values, on concrete ones only: traced code cannot raise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wasserstein_adv.errors import InputError


def check_images(images: Any, name: str = "images") -> None:
    """Refuse what is not a batch of images: (n, h, w, c), finite, in [0, 1].

    Args:
      images: the batch, any floating type; integers would be mistaken for intensities and are
        refused. Of a traced one the shape and the type are looked at.
      name: what to call it in the message.

    Raises:
      InputError: one line that says what is wrong.
    """
    array = images if isinstance(images, jax.Array) else np.asarray(images)
    if array.ndim != 4 or 0 in array.shape:
        raise InputError(f"{name} must have shape (n, h, w, c), none of them 0, got {array.shape}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        advice = ": divide by 255" if jnp.issubdtype(array.dtype, jnp.integer) else ""
        raise InputError(f"{name} must be floating point in [0, 1], got {array.dtype}{advice}")
    if (found := _extremes(name, array)) is None:
        return
    low, high = found
    if low < 0 or high > 1:
        advice = ": divide by 255" if low >= 0 and 1 < high <= 255 else ""
        raise InputError(f"{name} must lie in [0, 1], got values from {low:g} to {high:g}{advice}")


def check_positive(name: str, value: Any, *, infinite: bool = False) -> None:
    """Refuse a setting that is not positive and finite, or ∞ where it may be `infinite`; a traced
    one is let pass.

    Raises:
      InputError: one line that names the setting.
    """
    if isinstance(value, jax.core.Tracer):
        return
    if not (_is_number(value) and float(value) > 0 and (infinite or float(value) < float("inf"))):
        must = "positive" if infinite else "positive and finite"
        raise InputError(f"{name} must be {must}, got {value!r}")


def check_cap(cap: Any) -> None:
    """Refuse what no pixel could hold; None or ∞ for no limit, a traced one is let pass.

    Raises:
      InputError: one line that says what is wrong.
    """
    if cap is not None:
        check_positive("cap", cap, infinite=True)


def check_room(x: Any, cap: Any) -> None:
    """Refuse an image with more in a pixel than the cap; traced ones are let pass.

    Raises:
      InputError: one line that says what is wrong.
    """
    if cap is None or isinstance(x, jax.core.Tracer) or isinstance(cap, jax.core.Tracer):
        return
    most = float(np.asarray(x).max(initial=0.0))
    if most > float(cap):
        raise InputError(f"cap must be at least x's largest value {most:g}, got {float(cap):g}")


def check_field(name: str, values: Any, *, signed: bool = True) -> None:
    """Refuse what is not an array of finite numbers of a floating type; `signed` says whether they
    may be negative. Integers would be mistaken for intensities. Of a traced one only the type is
    looked at.

    Raises:
      InputError: one line that names the array and says what is wrong.
    """
    if not isinstance(values, (jax.Array, np.ndarray)):
        raise InputError(f"{name} must be an array, got {type(values).__name__}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise InputError(f"{name} must be floating point, got {values.dtype}")
    if values.size == 0 or (found := _extremes(name, values)) is None:
        return
    low, _ = found
    if low < 0 and not signed:
        raise InputError(f"{name} must be non-negative, got {low:g}")


def _extremes(name: str, values: jax.Array | np.ndarray) -> tuple[float, float] | None:
    """The smallest and the largest of finite values, and None of traced ones; else InputError."""
    if isinstance(values, jax.core.Tracer):
        return None
    here = np.asarray(values)  # which stays concrete while something else is traced
    low, high = float(here.min()), float(here.max())  # NaN where there is one
    if not np.isfinite([low, high]).all():
        bad = int((~np.isfinite(here)).sum())
        raise InputError(f"{name} must be finite, {bad} values are not")
    return low, high


def _is_number(value: Any) -> bool:
    """Whether it is one real number: Python's, NumPy's, or JAX's."""
    if isinstance(value, bool) or not isinstance(
        value, (int, float, np.generic, np.ndarray, jax.Array)
    ):
        return False
    kind = np.asarray(value)
    return kind.ndim == 0 and (
        jnp.issubdtype(kind.dtype, jnp.floating) or jnp.issubdtype(kind.dtype, jnp.integer)
    )
