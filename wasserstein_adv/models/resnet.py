"""Residual networks of He et al. (2016): ResNet-18 for 32×32 images, ResNet-50 for larger ones.

The forms are those of published PyTorch code: `kuangliu/pytorch-cifar` for ResNet-18 (a 3×3 stem
that keeps the resolution), torchvision for ResNet-50 (a 7×7 stem and pooling that quarter it, and
a bottleneck's stride in its 3×3 convolution).
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wasserstein_adv.models.layers import batch_norm, convolution, normalised
from wasserstein_adv.models.torch_import import TorchForm

RESNET18_TORCH = TorchForm(
    {"shortcut_conv": "shortcut.0", "shortcut_bn": "shortcut.1", "dense": "linear"}
)
RESNET50_TORCH = TorchForm(
    {"shortcut_conv": "downsample.0", "shortcut_bn": "downsample.1", "dense": "fc"}
)


class ResNet18(nn.Module):
    """ResNet-18 for 32×32 images.

    Conv 64 3×3, then four stages of two basic blocks with 64, 128, 256 and 512 features, the last
    three stages halving the resolution, the mean over all pixels, dense `classes`. 11,173,962
    parameters for three channels and ten classes.

    Attributes:
      classes: The number of logits.
      dtype: The type to compute in; parameters, batch statistics and logits stay float32.
      axis_name: The mapped axis over which batch statistics are averaged in training, if any.
      mean: Of the intensities of each channel, by default CIFAR-10's as published with the code.
      std: Their standard deviations.
    """

    classes: int = 10
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)

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
          InputError: `images` has another number of axes or of channels or is not floating point.
        """
        x = normalised(images, self.mean, self.std, self.dtype)
        x = convolution(64, 3, 1, self.dtype, "conv1")(x)
        x = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn1")(x))
        for name, features, stride in _blocks((2, 2, 2, 2)):
            x = _BasicBlock(features, stride, self.dtype, self.axis_name, name=name)(x, train)
        x = nn.Dense(self.classes, dtype=self.dtype, name="dense")(x.mean((1, 2)))
        return x.astype(jnp.float32)


class ResNet50(nn.Module):
    """ResNet-50, here for the 64×64 images of Tiny ImageNet.

    Conv 64 7×7 stride 2, max pool 3×3 stride 2, then stages of 3, 4, 6 and 3 bottleneck blocks
    with 256, 512, 1024 and 2048 features, the last three stages halving the resolution, the mean
    over all pixels, dense `classes`. 25,557,032 parameters for three channels and 1000 classes.

    Attributes:
      classes: The number of logits.
      dtype: The type to compute in; parameters, batch statistics and logits stay float32.
      axis_name: The mapped axis over which batch statistics are averaged in training, if any.
      mean: Of the intensities of each channel, by default ImageNet's as torchvision has them.
      std: Their standard deviations.
    """

    classes: int = 200
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

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
          InputError: `images` has another number of axes or of channels or is not floating point.
        """
        x = normalised(images, self.mean, self.std, self.dtype)
        x = convolution(64, 7, 2, self.dtype, "conv1")(x)
        x = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn1")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for name, features, stride in _blocks((3, 4, 6, 3)):
            x = _Bottleneck(features, stride, self.dtype, self.axis_name, name=name)(x, train)
        x = nn.Dense(self.classes, dtype=self.dtype, name="dense")(x.mean((1, 2)))
        return x.astype(jnp.float32)


def _blocks(counts: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Return the name, the inner features and the stride of every block, stage after stage."""
    return [
        (f"layer{stage}_{number}", 32 * 2**stage, 2 if stage > 1 and number == 0 else 1)
        for stage, count in enumerate(counts, 1)
        for number in range(count)
    ]


class _BasicBlock(nn.Module):
    """Two 3×3 convolutions added to their input."""

    features: int
    stride: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = convolution(self.features, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn1")(y))
        y = convolution(self.features, 3, 1, self.dtype, "conv2")(y)
        y = batch_norm(train, self.dtype, self.axis_name, "bn2")(y)
        if x.shape != y.shape:
            x = convolution(self.features, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = batch_norm(train, self.dtype, self.axis_name, "shortcut_bn")(x)
        return nn.relu(x + y)


class _Bottleneck(nn.Module):
    """Convolutions 1×1, 3×3 and 1×1, the last with four times the features, plus their input."""

    features: int
    stride: int
    dtype: DTypeLike
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        y = convolution(self.features, 1, 1, self.dtype, "conv1")(x)
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn1")(y))
        y = convolution(self.features, 3, self.stride, self.dtype, "conv2")(y)
        y = nn.relu(batch_norm(train, self.dtype, self.axis_name, "bn2")(y))
        y = convolution(4 * self.features, 1, 1, self.dtype, "conv3")(y)
        y = batch_norm(train, self.dtype, self.axis_name, "bn3")(y)
        if x.shape != y.shape:
            x = convolution(4 * self.features, 1, self.stride, self.dtype, "shortcut_conv")(x)
            x = batch_norm(train, self.dtype, self.axis_name, "shortcut_bn")(x)
        return nn.relu(x + y)
