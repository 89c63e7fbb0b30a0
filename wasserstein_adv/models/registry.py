"""The networks by name, and the PyTorch checkpoints of each."""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flax import linen as nn

from wasserstein_adv.errors import InputError
from wasserstein_adv.models.carlini_wagner import CARLINI_WAGNER_TORCH, CarliniWagnerCNN
from wasserstein_adv.models.resnet import RESNET18_TORCH, RESNET50_TORCH, ResNet18, ResNet50
from wasserstein_adv.models.torch_import import TorchForm, import_torch
from wasserstein_adv.models.wide_resnet import WIDE_RESNET_TORCH, WideResNet
from wasserstein_adv.models.wong_kolter import WONG_KOLTER_TORCH, WongKolterCNN

# What commands call the networks.
MODELS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {
        "wong-kolter": WongKolterCNN,
        "carlini-wagner": CarliniWagnerCNN,
        "resnet18": ResNet18,
        "resnet50": ResNet50,
        "wrn-34-10": WideResNet,
    }
)
_FORMS: dict[type[nn.Module], TorchForm] = {
    WongKolterCNN: WONG_KOLTER_TORCH,
    CarliniWagnerCNN: CARLINI_WAGNER_TORCH,
    ResNet18: RESNET18_TORCH,
    ResNet50: RESNET50_TORCH,
    WideResNet: WIDE_RESNET_TORCH,
}


def load_torch(
    model: nn.Module, path: str | os.PathLike[str], image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Load a PyTorch checkpoint of one of the networks here.

    Args:
      model: The network, one of `MODELS`; how many classes it has, it says.
      path: A file that `read_torch_checkpoint` reads and that holds the network's state dict,
          under `state_dict`, `model_state_dict`, `net` or `model`, in a list of one or not, or
          bare; its keys with or without `module.` before them.
      image_shape: The height, width and channels of the images that the network takes.

    Returns:
      Variables for `model.apply`, float32: `{"params": ...}`, and `"batch_stats"` where the network
      has batch normalisation. With them it computes what PyTorch did, on images laid out NHWC and
      normalised as `model` does it: no checkpoint says by which mean and deviation that was, so
      where it was by others than the network's own, give it those as `mean` and `std`.

    Raises:
      InputError: `model` is none of these networks; the file cannot be read or holds no state
          dict; a key is missing, unexpected or doubled; a tensor has another shape or is not
          floating point; a weight is not finite in float32.
    """
    form = _FORMS.get(type(model))
    if form is None:
        raise InputError(f"model: {type(model).__name__} is none of {', '.join(MODELS)}")
    return import_torch(model, form, path, image_shape)


def load_wong_kolter(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a published PyTorch checkpoint of `WongKolterCNN`, for 28×28×1 images.

    Args:
      path: As in `load_torch`. The keys are those of a `Sequential`: `0` and `2` the convolutions,
          `5` and `7` the dense layers.

    Returns:
      Variables for `WongKolterCNN().apply`: `{"params": {layer: {"kernel", "bias"}}}`, float32.

    Raises:
      InputError: As `load_torch`.
    """
    return load_torch(WongKolterCNN(), path, (28, 28, 1))
