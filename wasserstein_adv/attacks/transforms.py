"""Random maps of one image, through which an attack looks at the model: see `first_order`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from wasserstein_adv.checks import check_positive
from wasserstein_adv.errors import InputError

Transform = Callable[[PRNGKeyArray, Float[Array, "h w c"]], Float[Array, "h w c"]]
"""(key, image) ↦ the image as the model might see it; differentiable."""


def input_diversity(smallest: float = 0.9, probability: float = 0.5) -> Transform:
    """With a probability, the image resized bilinearly to a random smaller size, at a random place.

    Xie et al. (2019), as torchattacks has it for images that stay as large as they are: the side is
    a whole number from ⌊smallest·h⌋ to h − 1, and there are zeros around it. Sides are those of
    square images; of others each side is resized by the same share.

    Args:
      smallest: the smallest side, as a share of the image's, between 0 and 1.
      probability: of being resized at all.

    Raises:
      InputError: a share that is none.
    """
    for name, share in (("smallest", smallest), ("probability", probability)):
        if not 0.0 <= share <= 1.0:
            raise InputError(f"{name} must be between 0 and 1, got {share}")

    def transform(key: PRNGKeyArray, image: Array) -> Array:
        whether, size, top, left = jax.random.split(key, 4)
        height, width, _ = image.shape
        side = jax.random.randint(size, (), int(smallest * height), max(height, 2))
        other = (side * width) // height
        rows = _resizing(height, side, _offset(top, height - side), image.dtype)
        cols = _resizing(width, other, _offset(left, width - other), image.dtype)
        resized = jnp.einsum(
            "ij,jkc,lk->ilc", rows, image, cols, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.where(jax.random.uniform(whether) < probability, resized, image)

    return transform


def _offset(key: PRNGKeyArray, room: Array) -> Array:
    return jax.random.randint(key, (), 0, jnp.maximum(room, 1))


def _resizing(size: int, side: Array, offset: Array, dtype: jnp.dtype) -> Array:
    """(size, size): bilinear resizing of `size` pixels to `side`, put at `offset`, as a matrix."""
    at = jnp.arange(size) - offset
    source = jnp.clip((at + 0.5) * size / side - 0.5, 0.0, size - 1.0)
    weights = jnp.maximum(1.0 - jnp.abs(source[:, None] - jnp.arange(size)), 0.0)
    return jnp.where(((at >= 0) & (at < side))[:, None], weights, 0.0).astype(dtype)


def rotation_and_shift(degrees: float = 30.0, pixels: float = 3.0) -> Transform:
    """The image turned by up to so many degrees and shifted by up to so many pixels, uniformly.

    Around its middle, with bilinear interpolation and zeros from outside: transformations over
    which Athalye et al. (2018) take expectations, in the range of Engstrom et al. (2019).

    Args:
      degrees, pixels: the most, to either side.

    Raises:
      InputError: a range that is not positive.
    """
    check_positive("degrees", degrees)
    check_positive("pixels", pixels)

    def transform(key: PRNGKeyArray, image: Array) -> Array:
        turn, shift = jax.random.split(key)
        angle = jnp.deg2rad(jax.random.uniform(turn, (), image.dtype, -degrees, degrees))
        shifts = jax.random.uniform(shift, (2,), image.dtype, -pixels, pixels)
        height, width, _ = image.shape
        rows = jnp.arange(height)[:, None] - 0.5 * (height - 1) - shifts[0]
        cols = jnp.arange(width)[None, :] - 0.5 * (width - 1) - shifts[1]
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        source = [
            cosine * rows + sine * cols + 0.5 * (height - 1),
            -sine * rows + cosine * cols + 0.5 * (width - 1),
        ]

        def turned(channel: Array) -> Array:
            return jax.scipy.ndimage.map_coordinates(channel, source, order=1, mode="constant")

        return jax.vmap(turned, in_axes=-1, out_axes=-1)(image)

    return transform
