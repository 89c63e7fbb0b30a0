"""What the networks share: how images enter them, and the layers that residual networks repeat."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wasserstein_adv.errors import InputError
from wasserstein_adv.models.convolution import convolve

# He et al. (2015), eq. 14, from the outputs, as torchvision and the WRN codes draw it.
_he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def normalised(
    images: Float[Array, "n height width channels"],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: DTypeLike,
) -> Float[Array, "n height width channels"]:
    """Compute (images − mean) / std in float32, per channel.

    Args:
      images: `(n, height, width, channels)`, floating point, intensities in [0, 1].
      mean: One intensity per channel, or one for all.
      std: As many, positive.
      dtype: The type of the result.

    Returns:
      `(n, height, width, channels)` of `dtype`.

    Raises:
      InputError: `images` has another number of axes or of channels or is not floating point.
    """
    if jnp.ndim(images) != 4:
        raise InputError(f"images: shape {jnp.shape(images)} is not (n, height, width, c)")
    if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
        raise InputError(f"images: {jnp.result_type(images)} values, not floating point")
    channels = jnp.shape(images)[3]
    if not len(mean) == len(std) or len(mean) not in (1, channels):
        raise InputError(
            f"images: {channels} channels, the network has the means of {len(mean)} "
            f"and the deviations of {len(std)}"
        )
    x = jnp.asarray(images, jnp.float32)
    x = (x - jnp.array(mean, jnp.float32)) / jnp.array(std, jnp.float32)
    return x.astype(dtype)


def convolution(features: int, size: int, stride: int, dtype: DTypeLike, name: str) -> nn.Conv:
    """Return a `size`×`size` convolution of a residual network, its padding `size // 2` zeros.

    PyTorch's padding: the same number of zeros on every side, where "SAME" would with stride 2
    put more of them below and to the right. No bias, as batch normalisation follows or precedes.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_he_normal,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


def batch_norm(train: bool, dtype: DTypeLike, axis_name: str | None, name: str) -> nn.BatchNorm:
    """Return batch normalisation with PyTorch's constants.

    In use it is PyTorch's. In training its running variance is that of the n values seen, where
    PyTorch's is n/(n − 1) times that.

    Args:
      train: Normalise by the batch's own statistics and update the running ones.
      dtype: The type of the result; statistics are float32 whatever it is.
      axis_name: The mapped axis over which the batch's statistics are averaged, if any.
      name: The layer's.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
        name=name,
    )
