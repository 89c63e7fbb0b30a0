"""Our convolution has the value and the gradients of JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from wasserstein_adv.models.convolution import convolve


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [
        ((8, 7), (3, 3), 1, 1),
        ((8, 7), (3, 3), 2, 1),
        ((9, 8), (1, 1), 2, 0),
        ((13, 16), (7, 7), 2, 3),
        ((9, 12), (4, 4), 2, 1),
        ((9, 6), (3, 2), 1, 0),
    ],
)
def test_value_and_gradients_are_those_of_jax(shape, size, stride, padding):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    kernel = rng.normal(size=(*size, 3, 4)).astype(np.float32)
    strides, border = (stride, stride), ((padding, padding), (padding, padding))

    def theirs(x, k):
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, strides, border, dimension_numbers=layout)

    expected, gradients = jax.vjp(theirs, images, kernel)
    slope = rng.normal(size=expected.shape).astype(np.float32)
    found, ours = jax.vjp(lambda x, k: convolve(x, k, strides, border), images, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for mine, right in zip(ours(slope), gradients(slope), strict=True):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, right, atol=1e-4)

    def product(convolution):
        def gradient(x):
            return jax.grad(lambda x: jnp.sum(jnp.tanh(convolution(x, kernel))))(x)

        return jax.jvp(gradient, (images,), (images,))[1]

    mine = product(lambda x, k: convolve(x, k, strides, border))
    np.testing.assert_allclose(mine, product(theirs), atol=1e-3)
