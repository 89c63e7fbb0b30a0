"""The MNIST network of Wong & Kolter (2018).

Wong, Schmidt & Kolter (2019) attack and train the same network under Wasserstein perturbations.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wasserstein_adv.models.convolution import convolve
from wasserstein_adv.models.layers import normalised
from wasserstein_adv.models.torch_import import TorchForm

# The published network's places in a PyTorch `Sequential`, ReLUs and the flattening among them.
WONG_KOLTER_TORCH = TorchForm(
    {"conv1": "0", "conv2": "2", "dense1": "5", "dense2": "7"},
    flattened={"dense1": 32},
)


class WongKolterCNN(nn.Module):
    """Two strided convolutions and two dense layers, with ReLU between.

    Conv 16 4×4 stride 2 padding 1, ReLU, conv 32 4×4 stride 2 padding 1, ReLU, flatten (rows,
    columns, channels), dense 100, ReLU, dense `classes`. The parameters' shapes follow the first
    input; the published checkpoints fit images of 28×28×1 and ten classes.

    Attributes:
      classes: The number of logits.
      dtype: The type to compute in; parameters and logits stay float32.
      mean: Of the intensities of each channel; the published code takes them as they are.
      std: Their standard deviations.
    """

    classes: int = 10
    dtype: DTypeLike = jnp.float32
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @nn.compact
    def __call__(
        self, images: Float[Array, "n height width channels"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Compute the logits.

        Args:
          images: `(n, height, width, channels)`, floating point, intensities in [0, 1].
          train: Makes no difference.

        Returns:
          `(n, classes)` float32, unnormalised log-probabilities.

        Raises:
          InputError: `images` has another number of axes or of channels or is not floating point.
        """
        x = normalised(images, self.mean, self.std, self.dtype)
        x = nn.relu(_convolution(16, self.dtype, "conv1")(x))
        x = nn.relu(_convolution(32, self.dtype, "conv2")(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(100, dtype=self.dtype, name="dense1")(x))
        return nn.Dense(self.classes, dtype=self.dtype, name="dense2")(x).astype(jnp.float32)


def _convolution(features: int, dtype: DTypeLike, name: str) -> nn.Conv:
    """Return a 4×4 convolution with stride 2 and one pixel of zeros around the image."""
    return nn.Conv(
        features,
        (4, 4),
        strides=2,
        padding=1,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )
