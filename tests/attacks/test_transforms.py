"""Random maps of images against SciPy and JAX's own resizing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from wasserstein_adv.attacks.transforms import input_diversity, rotation_and_shift
from wasserstein_adv.errors import InputError

IMAGE = np.random.default_rng(0).random((20, 20, 2)).astype(np.float32)


def test_resized_images_are_resized_and_somewhere():
    transform = jax.jit(input_diversity(0.8, 1.0))
    sides = set()
    for seed in range(40):
        found = np.asarray(transform(jax.random.key(seed), IMAGE))
        rows, cols = (np.flatnonzero(found.any(axis)) for axis in ((1, 2), (0, 2)))
        side = len(rows)
        sides.add(side)
        assert len(cols) == side and side in range(16, 20)
        resized = jax.image.resize(IMAGE, (side, side, 2), "linear", antialias=False)
        here = found[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        np.testing.assert_allclose(here, resized, atol=1e-5)
    assert sides == set(range(16, 20))


def test_how_often_images_are_resized():
    transform = input_diversity(0.9, 0.3)
    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.vmap(transform, (0, None))(keys, jnp.asarray(IMAGE))
    same = np.asarray((found == IMAGE).all((1, 2, 3))).mean()
    assert abs(same - 0.7) < 0.1
    none = input_diversity(0.9, 0.0)(keys[0], jnp.asarray(IMAGE))
    np.testing.assert_array_equal(none, IMAGE)


def test_turned_images_are_scipys():
    transform = rotation_and_shift(40.0, 4.0)
    for seed in range(3):
        key = jax.random.key(seed)
        turn, shift = jax.random.split(key)
        angle = float(jax.random.uniform(turn, (), jnp.float32, -40.0, 40.0))
        shifts = np.asarray(jax.random.uniform(shift, (2,), jnp.float32, -4.0, 4.0))
        found = transform(key, jnp.asarray(IMAGE))
        sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
        rows, cols = np.indices((20, 20)) - 9.5 - shifts[:, None, None]
        source = np.stack([cosine * rows + sine * cols, cosine * cols - sine * rows]) + 9.5
        # What is half outside is each library's own affair.
        inside = ((source >= 0) & (source <= 19)).all(0)
        for channel in range(2):
            expected = scipy.ndimage.map_coordinates(IMAGE[..., channel], source, order=1)
            np.testing.assert_allclose(found[..., channel][inside], expected[inside], atol=1e-4)
        outside = ((source < -1) | (source > 20)).any(0)
        assert inside.sum() > 200 and (np.asarray(found)[outside] == 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: input_diversity(1.2), "smallest must be between"),
        (lambda: input_diversity(0.9, -0.1), "probability must be between"),
        (lambda: rotation_and_shift(0.0), "degrees must be positive"),
        (lambda: rotation_and_shift(10.0, -1.0), "pixels must be positive"),
    ],
)
def test_ranges_that_are_none_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
