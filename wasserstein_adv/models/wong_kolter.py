"""The MNIST network of Wong & Kolter (2018) and its published checkpoints.

Wong, Schmidt & Kolter (2019) attack and train the same network under Wasserstein perturbations.
"""

import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from wasserstein_adv.errors import InputError
from wasserstein_adv.models.torch_checkpoint import read_torch_checkpoint

# The published network's place in a PyTorch `Sequential` and here. Convolutions are OIHW there,
# dense layers (outputs, inputs).
_LAYERS = {
    "0": ("conv1", (16, 1, 4, 4)),
    "2": ("conv2", (32, 16, 4, 4)),
    "5": ("dense1", (100, 32 * 7 * 7)),
    "7": ("dense2", (10, 100)),
}
_SHAPES = {
    f"{number}.{part}": shape if part == "weight" else shape[:1]
    for number, (_, shape) in _LAYERS.items()
    for part in ("weight", "bias")
}


class WongKolterCNN(nn.Module):
    """Two strided convolutions and two dense layers, with ReLU between, all in float32.

    Conv 16 4×4 stride 2 padding 1, ReLU, conv 32 4×4 stride 2 padding 1, ReLU, flatten (rows,
    columns, channels), dense 100, ReLU, dense `classes`. The parameters' shapes follow the first
    input; the published checkpoints fit images of 28×28×1 and ten classes.

    Attributes:
      classes: The number of logits.
    """

    classes: int = 10

    @nn.compact
    def __call__(self, images: Float[Array, "n height width channels"]) -> Float[Array, "n k"]:
        """Compute the logits.

        Args:
          images: `(n, height, width, channels)`, floating point, intensities in [0, 1].

        Returns:
          `(n, classes)` float32, unnormalised log-probabilities.

        Raises:
          InputError: `images` has another number of axes or is not floating point.
        """
        if jnp.ndim(images) != 4:
            raise InputError(f"images: shape {jnp.shape(images)} is not (n, height, width, c)")
        if not jnp.issubdtype(jnp.result_type(images), jnp.floating):
            raise InputError(f"images: {jnp.result_type(images)} values, not floating point")
        x = nn.relu(_convolution(16, "conv1")(images))
        x = nn.relu(_convolution(32, "conv2")(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(100, dtype=jnp.float32, name="dense1")(x))
        return nn.Dense(self.classes, dtype=jnp.float32, name="dense2")(x)


def _convolution(features: int, name: str) -> nn.Conv:
    """Return a 4×4 convolution with stride 2 and one pixel of zeros around the image."""
    return nn.Conv(features, (4, 4), strides=2, padding=1, dtype=jnp.float32, name=name)


def load_wong_kolter(path: str | os.PathLike[str]) -> dict[str, dict[str, dict[str, jax.Array]]]:
    """Load a published PyTorch checkpoint of the network.

    Args:
      path: A file that `read_torch_checkpoint` reads and that holds the network's state dict,
          under `state_dict` or `net`, in a list of one or not, or bare. Its keys are those of a
          `Sequential` (`0` and `2` the convolutions, `5` and `7` the dense layers), with or
          without `module.` before them.

    Returns:
      Variables for `WongKolterCNN().apply`: `{"params": {layer: {"kernel", "bias"}}}`, float32.
      With them the network computes what PyTorch did, on images laid out NHWC.

    Raises:
      InputError: The file cannot be read or holds no state dict; a key is missing, unexpected
          or doubled; a tensor has another shape or is not floating point; a weight is not
          finite in float32.
    """
    tensors = _unprefixed(_state_dict(read_torch_checkpoint(path), path), path)
    for key in sorted(_SHAPES.keys() | tensors.keys()):
        _check_tensor(tensors, key, path)
    return {
        "params": {
            name: {
                "kernel": _kernel(number, _float32(tensors, f"{number}.weight", path)),
                "bias": jnp.asarray(_float32(tensors, f"{number}.bias", path)),
            }
            for number, (name, _) in _LAYERS.items()
        }
    }


def _state_dict(checkpoint: Any, path: str | os.PathLike[str]) -> Mapping[Any, Any]:
    """Return the state dict in a checkpoint, out of whichever wrapping it has."""
    found = checkpoint
    if isinstance(found, dict):
        wrapping = next((key for key in ("state_dict", "net") if key in found), None)
        found = found if wrapping is None else found[wrapping]
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no state dict, bare or under state_dict or net")
    return found


def _unprefixed(tensors: Mapping[Any, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state dict without the `module.` that a parallel model's keys begin with."""
    plain: dict[str, Any] = {}
    for key, tensor in tensors.items():
        if type(key) is not str:
            raise InputError(f"{path}: the state dict has a key that is not a string")
        name = key.removeprefix("module.")
        if name in plain:
            raise InputError(f"{path}: {name[:80]!a} is there twice, with and without module.")
        plain[name] = tensor
    return plain


def _check_tensor(tensors: Mapping[str, Any], key: str, path: str | os.PathLike[str]) -> None:
    """Raise InputError unless `key` belongs to the network and its tensor can be its weights."""
    tensor, expected = tensors.get(key), _SHAPES.get(key)
    there = f"shape {tensor.shape}" if isinstance(tensor, np.ndarray) else "no tensor"
    if expected is None:
        raise InputError(f"{path}: unexpected key {key[:80]!a}: {there}, expected no such key")
    if not isinstance(tensor, np.ndarray) or tensor.shape != expected:
        problem = "is missing" if key not in tensors else "does not fit"
        raise InputError(f"{path}: {key} {problem}: {there}, expected shape {expected}")
    if not np.issubdtype(tensor.dtype, np.floating):
        raise InputError(f"{path}: {key} holds {tensor.dtype} values, not floating point")


def _float32(
    tensors: Mapping[str, np.ndarray], key: str, path: str | os.PathLike[str]
) -> np.ndarray:
    """Return a tensor as float32; raise InputError unless all of it is finite."""
    with np.errstate(over="ignore"):  # what overflows is reported below, with its key
        tensor = tensors[key].astype(np.float32)
    if not np.isfinite(tensor).all():
        raise InputError(f"{path}: {key} holds weights that are not finite")
    return tensor


def _kernel(number: str, weight: np.ndarray) -> jax.Array:
    """Return a PyTorch weight as Flax lays it out.

    Args:
      number: The layer's place in the `Sequential`.
      weight: `(out, in, height, width)` of a convolution or `(out, in)` of a dense layer.

    Returns:
      `(height, width, in, out)` or `(in, out)`.
    """
    if weight.ndim == 4:
        return jnp.asarray(weight.transpose(2, 3, 1, 0))
    if number == "5":
        # Its inputs are a flattened 32×7×7 image, channels first there and last here.
        return jnp.asarray(weight.reshape(-1, 32, 7, 7).transpose(2, 3, 1, 0).reshape(32 * 49, -1))
    return jnp.asarray(weight.T)
