"""Turns a PyTorch state dict into variables of a Flax network, whichever network it is.

A network says by a `TorchForm` how PyTorch code names its layers. Everything else follows from
the network's own variables: which keys there must be, and of which shapes.
"""

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from wasserstein_adv.errors import InputError
from wasserstein_adv.models.torch_checkpoint import read_torch_checkpoint

_WRAPPINGS = ("state_dict", "model_state_dict", "net", "model")
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class TorchForm(NamedTuple):
    """How published PyTorch code names and lays out a network.

    Attributes:
      renamed: PyTorch's names of those layers that it calls otherwise. In the other names "_"
          stands for PyTorch's ".", so `layer1_0` is `layer1.0`.
      flattened: The dense layers that take a flattened image, and its number of channels. PyTorch
          flattens channels, rows, columns; the network rows, columns, channels.
      unused: What keys begin with that stand for layers that PyTorch's class has and does not use.
    """

    renamed: Mapping[str, str]
    flattened: Mapping[str, int] = MappingProxyType({})
    unused: tuple[str, ...] = ()


class _Place(NamedTuple):
    """Where a tensor comes from and where it goes."""

    key: str
    shape: tuple[int, ...]  # in PyTorch's layout
    channels: int  # of the image whose pixels its inputs are, 1 where there is none


def import_torch(
    model: nn.Module,
    form: TorchForm,
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int],
) -> dict[str, Any]:
    """Load a network's variables from a PyTorch checkpoint.

    Args:
      model: The network.
      form: How PyTorch names its layers.
      path: A file that `read_torch_checkpoint` reads and that holds the network's state dict,
          under `state_dict`, `model_state_dict`, `net` or `model`, in a list of one or not, or
          bare; its keys with or without `module.` before them.
      image_shape: The height, width and channels of the images that the network takes.

    Returns:
      Variables for `model.apply`, float32: `{"params": ...}`, and `"batch_stats"` where the network
      has running statistics. With them it computes what PyTorch did, on images laid out NHWC.

    Raises:
      InputError: The file cannot be read or holds no state dict; a key is missing, unexpected
          or doubled; a tensor has another shape or is not floating point; a weight is not
          finite in float32.
    """
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    )
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    places = [_place([key.key for key in keys], leaf.shape, form) for keys, leaf in leaves]
    shapes = {place.key: place.shape for place in places}
    state = _unprefixed(_state_dict(read_torch_checkpoint(path), path), path)
    tensors = {key: t for key, t in state.items() if not _is_ignored(key, shapes, form)}
    for key in sorted(shapes.keys() | tensors.keys()):
        _check_tensor(tensors, shapes, key, path)
    found = [_flax_layout(_float32(tensors, place.key, path), place.channels) for place in places]
    return jax.tree.unflatten(structure, found)


# Where every tensor belongs -----------------------------------------------------------------------


def _place(path: list[str], shape: tuple[int, ...], form: TorchForm) -> _Place:
    """Return the place of a variable.

    Args:
      path: Its keys in the network's variables: the collection, the layers, the leaf.
      shape: In Flax's layout.
      form: How PyTorch names the layers.
    """
    _, *layers, leaf = path
    names = [form.renamed.get(layer, layer.replace("_", ".")) for layer in layers]
    return _Place(
        key=".".join([*names, _LEAVES[leaf]]),
        # (height, width, in, out) of a convolution, (in, out) of a dense layer.
        shape=(*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1],
        channels=form.flattened.get(layers[-1], 1),
    )


def _is_ignored(key: str, shapes: Mapping[str, tuple[int, ...]], form: TorchForm) -> bool:
    """Tell whether a key of PyTorch's stands for nothing that the network computes with."""
    layer, _, name = key.rpartition(".")
    counter = name == "num_batches_tracked" and f"{layer}.running_mean" in shapes
    return counter or key.startswith(form.unused)


def _flax_layout(weight: np.ndarray, channels: int) -> jax.Array:
    """Return a PyTorch tensor as Flax lays it out.

    Args:
      weight: `(out, in, height, width)` of a convolution, `(out, in)` of a dense layer, or `(c,)`.
      channels: Of the image that is flattened to the dense layer's `in`; 1 if none is.

    Returns:
      `(height, width, in, out)`, `(in, out)` or `(c,)`.
    """
    if weight.ndim == 4:
        return jnp.asarray(weight.transpose(2, 3, 1, 0))
    if weight.ndim == 2:
        # Pixels go from one channel after the other to all channels of one after the other.
        out, size = weight.shape
        weight = weight.reshape(out, channels, -1).transpose(2, 1, 0).reshape(size, out)
    return jnp.asarray(weight)


# What a checkpoint holds --------------------------------------------------------------------------


def _state_dict(checkpoint: Any, path: str | os.PathLike[str]) -> Mapping[Any, Any]:
    """Return the state dict in a checkpoint, out of whichever wrapping it has."""
    found = checkpoint
    while (inner := _unwrapped(found)) is not None:
        found = inner
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no state dict, bare or under {' or '.join(_WRAPPINGS)}")
    return found


def _unwrapped(found: Any) -> Any:
    """Return what a wrapping is around; None where there is none."""
    if isinstance(found, list):
        return found[0] if len(found) == 1 else None
    if isinstance(found, dict):
        return next((found[key] for key in _WRAPPINGS if key in found), None)
    return None


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


def _check_tensor(
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    key: str,
    path: str | os.PathLike[str],
) -> None:
    """Raise InputError unless `key` belongs to the network and its tensor can be its weights."""
    tensor, expected = tensors.get(key), shapes.get(key)
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
