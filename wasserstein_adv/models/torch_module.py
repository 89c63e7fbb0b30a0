"""A PyTorch module as a function of JAX arrays: attacked where it is, not converted.

PyTorch computes, forward and backward, on the memory that XLA hands to `buffer_callback`. That is
the one callback of JAX's that takes the arrays as they are: `jax.pure_callback` first puts them on
the CPU client, whose threads are the ones that wait in the callback, and from 100 kB on a device
never comes back from there. PyTorch is imported inside the function that needs it.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental.buffer_callback import Buffer, ExecutionContext, buffer_callback
from jaxtyping import Array, Float

from wasserstein_adv.errors import InputError

if TYPE_CHECKING:
    import torch

# How far the logits of an image may move with the batch it is in, over the largest: rounding, with
# half precision and TF32 allowed for. Statistics of the batch move them by as much as they are.
_ROUNDING = 0.02


def from_torch(
    module: torch.nn.Module, image_shape: tuple[int, int, int]
) -> Callable[[Float[Array, "n h w c"]], Float[Array, "n k"]]:
    """Return the logits of a PyTorch module as a pure JAX function, with gradients in the images.

    The function is what attacks and `parallel.evaluate` take: under `jit`, `grad`, `vjp`, `vmap`,
    `pmap` and in loops, on CPUs and GPUs, with batches of any size. Images (n, h, w, c) go to the
    module as (n, c, h, w), which is PyTorch's layout, on the device and in the floating-point type
    of its parameters; logits and gradients come back as float32. PyTorch's autograd computes the
    gradients, once: those of gradients and forward mode there are none.

    It computes with a copy of the module in eval mode, taken here: batch normalisation uses its
    running statistics, dropout does nothing, and training the module afterwards changes nothing.
    One call of the module runs at a time, over all devices; PyTorch uses its own threads.

    Args:
      module: From images (n, c, h, w) in [0, 1] to logits (n, k), each image by itself. What it
        was trained on, such as normalised images, must be inside it.
      image_shape: (h, w, c) of the images.

    Raises:
      InputError: PyTorch is not installed; `module` is no module, cannot be copied or fails on such
        images, returns something else than one tensor of floating point (n, k) with k at least 2,
        passes no gradient on to its images, or gives an image other logits in another batch or in
        another call. From the function returned: the images have another shape.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "module: PyTorch is not installed; `pip install torch` installs it"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    try:
        module = copy.deepcopy(module).eval().requires_grad_(False)
    except Exception as error:  # whatever the copying of a stranger's module raises
        raise InputError(f"module cannot be copied: {_one_line(error)}") from error
    tensors = itertools.chain(module.parameters(), module.buffers())
    weight = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    k = _classes(module, weight, image_shape)
    one_at_a_time = threading.Lock()  # a module may keep things in itself while it computes

    def images_of(buffer: Buffer) -> torch.Tensor:
        images = torch.from_dlpack(buffer).reshape(-1, *image_shape)  # `vmap` adds leading axes
        return images.to(weight.device, weight.dtype)

    def write(out: Buffer, value: torch.Tensor) -> None:
        written = torch.from_dlpack(out)
        written.copy_(value.reshape(written.shape))

    def forward(context: ExecutionContext, out: Buffer, images: Buffer) -> None:
        with one_at_a_time, _stream(context, images), torch.no_grad():
            write(out, module(_nchw(images_of(images))))

    def backward(
        context: ExecutionContext, out: Buffer, images: Buffer, cotangents: Buffer
    ) -> None:
        with one_at_a_time, _stream(context, images), torch.enable_grad():
            leaf = images_of(images).requires_grad_()
            logits = module(_nchw(leaf))
            given = torch.from_dlpack(cotangents).reshape(logits.shape).to(logits)
            write(out, torch.autograd.grad(logits, leaf, given)[0])

    def call(callback: Callable[..., None], shape: tuple[int, ...], *arrays: Array) -> Any:
        result = jax.ShapeDtypeStruct(shape, jnp.float32)
        return buffer_callback(callback, result, vmap_method="broadcast_all")(*arrays)

    @jax.custom_vjp
    def logits(images: Array) -> Array:
        return call(forward, (len(images), k), images)

    logits.defvjp(
        lambda images: (logits(images), images),
        lambda images, cotangents: (call(backward, images.shape, images, cotangents),),
    )

    def logits_fn(images: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        if images.ndim != 4 or images.shape[1:] != tuple(image_shape):
            wanted = ", ".join(map(str, image_shape))
            raise InputError(f"images must have shape (n, {wanted}), got {images.shape}")
        return logits(jnp.asarray(images, jnp.float32))

    return logits_fn


def _nchw(images: torch.Tensor) -> torch.Tensor:
    """Images (n, h, w, c) as PyTorch has them, a copy: a module may work in place, or `view`."""
    import torch

    return images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def _stream(context: ExecutionContext, buffer: Buffer) -> contextlib.AbstractContextManager[Any]:
    """On a GPU, PyTorch queues its work where XLA queues its own: neither waits for the other."""
    import torch

    device = torch.from_dlpack(buffer).device
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.ExternalStream(context.stream, device=device))


def _classes(
    module: torch.nn.Module, weight: torch.Tensor, image_shape: tuple[int, int, int]
) -> int:
    """The k of a module's logits (n, k); raise InputError if it is not as `from_torch` needs it."""
    import torch

    # Two images of unlike contrast, so that statistics of a batch are not those of either.
    noise = torch.rand((2, *image_shape), generator=torch.Generator().manual_seed(0))
    probe = (noise * torch.tensor([0.3, 1.0])[:, None, None, None]).to(weight).requires_grad_()
    try:
        with torch.enable_grad():
            both, one = module(_nchw(probe)), module(_nchw(probe[:1]))
    except Exception as error:  # whatever a stranger's module raises
        shape = tuple(_nchw(probe).shape)
        raise InputError(f"module fails on images of shape {shape}: {_one_line(error)}") from error
    if not isinstance(both, torch.Tensor):
        raise InputError(f"module must return one tensor of logits, got {type(both).__name__}")
    if both.ndim != 2 or len(both) != 2 or both.shape[1] < 2 or not both.is_floating_point():
        got = f"{str(both.dtype).removeprefix('torch.')} {tuple(both.shape)}"
        raise InputError(f"module must return logits (n, k), k at least 2, got {got} for n = 2")
    if not both.requires_grad:
        raise InputError("module passes no gradient to its images: is there a no_grad or detach?")
    try:
        with torch.enable_grad():
            torch.autograd.grad(both.sum(), probe)
    except Exception as error:
        raise InputError(f"module fails in its gradient: {_one_line(error)}") from error
    moved, largest = (both[:1] - one).abs().max().item(), both.abs().max().item()
    if moved > _ROUNDING * largest:
        raise InputError(
            "module gives an image other logits in another batch or call: does it use statistics "
            "of the batch, or chance, in eval mode?"
        )
    return both.shape[1]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
