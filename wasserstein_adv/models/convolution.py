"""A convolution whose gradient is as fast inside a loop as outside, on CPUs too."""

import functools
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c f"],
    window_strides: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    **flax: Any,
) -> Float[Array, "n oh ow f"]:
    """A plain convolution, to be given to `flax.linen.Conv` as its `conv_general_dilated`.

    The value and the gradients are those of `jax.lax.conv_general_dilated`. JAX's own gradient with
    respect to the images reads the kernel with its feature axes exchanged, and XLA brings that into
    the form that its fast CPU convolutions take only outside of loops: inside the loop of an attack
    it is five times slower. So on CPUs, and there alone, the axes are exchanged in the kernel
    itself.

    Derivatives are reverse, of any order, and forward over reverse, as for Hessian-vector products;
    forward ones of the value alone (`jax.jvp` of a network) JAX refuses.

    Args:
      images: any floating type.
      kernel: of the same type.
      window_strides: step in rows and columns.
      padding: zeros before and after, of rows and columns.
      **flax: what else Flax passes: dilations of 1, one group, its layout and its precision; this
        is of no use for anything else.
    """
    del flax
    return _convolve(images, kernel, tuple(window_strides), tuple(map(tuple, padding)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(images: Array, kernel: Array, strides: Any, padding: Any) -> Array:
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _forward(images: Array, kernel: Array, strides: Any, padding: Any) -> tuple[Array, Any]:
    # Not itself, so that the gradient can be differentiated forward too.
    return _convolve.fun(images, kernel, strides, padding), (images, kernel)


def _backward(strides: Any, padding: Any, saved: Any, slope: Array) -> tuple[Array, Array]:
    images, kernel = saved
    _, to_kernel = jax.vjp(lambda k: _convolve.fun(images, k, strides, padding), kernel)
    before = [size - 1 - low for size, (low, _) in zip(kernel.shape[:2], padding, strict=True)]
    after = [
        image + size - 1 - ((out - 1) * step + 1) - low
        for image, size, out, step, low in zip(
            images.shape[1:3], kernel.shape[:2], slope.shape[1:3], strides, before, strict=True
        )
    ]

    def exchanged(slope: Array) -> Array:
        return lax.conv_general_dilated(
            slope, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), list(zip(before, after, strict=True)),
            lhs_dilation=strides, dimension_numbers=_LAYOUT,
        )  # fmt: skip

    def jaxs_own(slope: Array) -> Array:
        _, to_images = jax.vjp(lambda x: _convolve.fun(x, kernel, strides, padding), images)
        return to_images(slope)[0]

    to_images = lax.platform_dependent(slope, cpu=exchanged, default=jaxs_own)
    return to_images, to_kernel(slope)[0]


_convolve.defvjp(_forward, _backward)
