"""Random crops and flips of one image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wasserstein_adv.data import random_crop, random_flip

KEYS = jax.random.split(jax.random.key(0), 600)


def draw(function, dtype, *arguments):
    """600 draws for one image, whose values all differ."""
    image = (1 + jnp.arange(5 * 4 * 3).reshape(5, 4, 3)).astype(dtype)
    drawn = jax.vmap(lambda key: function(key, image, *arguments))(KEYS)
    assert drawn.shape == (600, 5, 4, 3) and drawn.dtype == dtype
    return np.asarray(image), np.asarray(drawn)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint8])
def test_crops_are_all_shifts_alike(dtype):
    image, drawn = draw(random_crop, dtype, 1)
    counts = []
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            shifted = np.zeros((7, 6, 3), image.dtype)
            shifted[1 + rows : 6 + rows, 1 + columns : 5 + columns] = image
            counts.append((drawn == shifted[1:6, 1:5]).all((1, 2, 3)).sum())
    assert sum(counts) == 600
    # 600 / 9 = 67, give or take 7.7: within four of these.
    assert min(counts) >= 36 and max(counts) <= 97


def test_a_crop_without_padding_is_the_image():
    image, drawn = draw(random_crop, jnp.float32, 0)
    np.testing.assert_array_equal(drawn, np.broadcast_to(image, drawn.shape))


def test_a_crop_keeps_the_mass_that_lies_inside():
    image = jnp.zeros((9, 9, 1)).at[2:7, 2:7].set(jax.random.uniform(KEYS[0], (5, 5, 1)))
    drawn = jax.vmap(lambda key: random_crop(key, image, 2))(KEYS)
    np.testing.assert_allclose(drawn.sum((1, 2, 3)), image.sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint8])
def test_flips_are_half_of_the_draws(dtype):
    image, drawn = draw(random_flip, dtype)
    flipped = (drawn == image[:, ::-1]).all((1, 2, 3))
    np.testing.assert_array_equal(flipped, ~(drawn == image).all((1, 2, 3)))
    assert 250 <= flipped.sum() <= 350  # 300, give or take 12
