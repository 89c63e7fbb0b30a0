"""The wide residual network of Zagoruyko & Komodakis (2016), as adversarial training uses it.

The form is that of TRADES (Zhang et al., 2019, `yaodongyu/TRADES`, `models/wideresnet.py`) without
dropout, which its training does not use either.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wasserstein_adv.errors import InputError
from wasserstein_adv.models.layers import batch_norm, convolution, normalised
from wasserstein_adv.models.torch_import import TorchForm

# TRADES's class makes a second first block that its forward pass leaves out.
WIDE_RESNET_TORCH = TorchForm({"shortcut": "convShortcut", "dense": "fc"}, unused=("sub_block1.",))


class WideResNet(nn.Module):
    """WRN-34-10, or another depth and width, for 32×32 images.

    Conv 16 3×3, then three blocks of (`depth` − 4) / 6 pre-activation layers with 16, 32 and 64
    times `widen` features, the last two blocks halving the resolution, batch normalisation, ReLU,
    the mean over all pixels, dense `classes`. 46,160,474 parameters for three channels, ten
    classes, depth 34 and width 10.

    Attributes:
      classes: The number of logits.
      dtype: The type to compute in; parameters, batch statistics and logits stay float32.
      axis_name: The mapped axis over which batch statistics are averaged in training, if any.
      mean: Of the intensities of each channel; TRADES takes them as they are.
      std: Their standard deviations.
      depth: The number of convolutions on the longest way and the dense layer, 4 more than a
          multiple of 6.
      widen: The width, as a multiple of the narrow network's.
    """

    classes: int = 10
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    depth: int = 34
    widen: int = 10

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width channels"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Compute the logits.

        Args:
          images: `(n, height, width, channels)`, floating point, intensities in [0, 1].
          train: Normalise by the batch's statistics and update those in `batch_stats`, which the
              caller makes mutable.

        Returns:
          `(n, classes)` float32, unnormalised log-probabilities.

        Raises:
          InputError: `images` has another number of axes or of channels or is not floating point;
              there is no network of this depth.
        """
        if self.depth < 10 or self.depth % 6 != 4:
            raise InputError(f"depth: {self.depth} is not 10, 16, 22, 28, 34 or so on")
        x = normalised(images, self.mean, self.std, self.dtype)
        x = convolution(16, 3, 1, self.dtype, "conv1")(x)
        for block in (1, 2, 3):
            features = 8 * 2**block * self.widen
            for number in range((self.depth - 4) // 6):
                x = _Layer(
                    features=features,
                    stride=2 if block > 1 and number == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"block{block}_layer_{number}",
                )(x, train)
        x = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn1")(x))
        x = nn.Dense(self.classes, dtype=self.dtype, name="dense")(x.mean((1, 2)))
        return x.astype(jnp.float32)


class _Layer(nn.Module):
    """Two 3×3 convolutions, each after normalisation and ReLU, added to their input."""

    features: int
    stride: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn1")(x))
        if x.shape[3] != self.features:
            # The first layer of a block takes its shortcut behind the activation.
            x = convolution(self.features, 1, self.stride, self.dtype, "shortcut")(y)
        y = convolution(self.features, 3, self.stride, self.dtype, "conv1")(y)
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn2")(y))
        return x + convolution(self.features, 3, 1, self.dtype, "conv2")(y)
