"""The MNIST network of Carlini & Wagner (2017), table 1."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wasserstein_adv.models.convolution import convolve
from wasserstein_adv.models.layers import normalised
from wasserstein_adv.models.torch_import import TorchForm

# The paper's code is Keras, and codes in PyTorch name the layers each in its own way.
CARLINI_WAGNER_TORCH = TorchForm(
    {
        "conv1": "0",
        "conv2": "2",
        "conv3": "5",
        "conv4": "7",
        "dense1": "11",
        "dense2": "13",
        "dense3": "15",
    },
    flattened={"dense1": 64},
)


class CarliniWagnerCNN(nn.Module):
    """Four convolutions and three dense layers, with ReLU between.

    Two 3×3 convolutions of 32 features without padding, max pool 2×2, two of 64, max pool 2×2,
    flatten (rows, columns, channels), dense 200, dense 200, dense `classes`. The parameters'
    shapes follow the first input; 312,202 of them for 28×28×1 images and ten classes. The dropout
    with which the paper trains is left out.

    PyTorch checkpoints have the keys of a `Sequential` of conv, ReLU, conv, ReLU, pool, the same
    five again, flatten, dense, ReLU, dense, ReLU, dense: 0, 2, 5, 7, 11, 13, 15.

    Attributes:
      classes: The number of logits.
      dtype: The type to compute in; parameters and logits stay float32.
      mean: Of the intensities of each channel. By default they are taken as they are, as later
          codes do; the paper's own moves them to [-0.5, 0.5], a mean of 0.5.
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
          images: `(n, height, width, channels)`, floating point, intensities in [0, 1], 16 pixels
              high and wide or more.
          train: Makes no difference.

        Returns:
          `(n, classes)` float32, unnormalised log-probabilities.

        Raises:
          InputError: `images` has another number of axes or of channels or is not floating point.
        """
        glorot = nn.initializers.glorot_uniform()  # the default of Keras
        conv = partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding=0,
            kernel_init=glorot,
            dtype=self.dtype,
            conv_general_dilated=convolve,
        )
        dense = partial(nn.Dense, kernel_init=glorot, dtype=self.dtype)
        x = normalised(images, self.mean, self.std, self.dtype)
        x = nn.relu(conv(32, name="conv1")(x))
        x = nn.relu(conv(32, name="conv2")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(conv(64, name="conv3")(x))
        x = nn.relu(conv(64, name="conv4")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(dense(200, name="dense1")(x))
        x = nn.relu(dense(200, name="dense2")(x))
        return dense(self.classes, name="dense3")(x).astype(jnp.float32)
