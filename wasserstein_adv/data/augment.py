"""Random changes of a training image that keep its class. Each is of one image: vmap it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


def random_crop(
    key: PRNGKeyArray, image: Float[Array, "h w c"] | UInt8[Array, "h w c"], padding: int
) -> Float[Array, "h w c"] | UInt8[Array, "h w c"]:
    """Shift an image by up to `padding` pixels each way, all (2·padding + 1)² shifts alike.

    Args:
        key: random key.
        image: the image, (H, W, C).
        padding: how many pixels of zeros to put around it, before cropping back to its size.

    Returns:
        The shifted image, of the same shape and type; what leaves it is lost.
    """
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)


def random_flip(
    key: PRNGKeyArray, image: Float[Array, "h w c"] | UInt8[Array, "h w c"]
) -> Float[Array, "h w c"] | UInt8[Array, "h w c"]:
    """Swap left and right, or not, with equal chances.

    Args:
        key: random key.
        image: the image, (H, W, C).

    Returns:
        The image or its mirror image, of the same shape and type.
    """
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)
