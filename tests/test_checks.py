"""Values that are not images are refused at the border."""

import numpy as np
import pytest

import wasserstein_adv as wa

GOOD = np.full((2, 3, 4, 1), 0.5, np.float32)


def changed(value):
    images = GOOD.copy()
    images[1, 2, 3, 0] = value
    return images


def test_images_are_accepted():
    wa.check_images(GOOD)
    wa.check_images(changed(0.0))
    wa.check_images(changed(1.0))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GOOD[0], "shape"),
        (GOOD[:0], "shape"),
        ((GOOD * 255).astype(np.uint8), "floating"),
        (changed(np.nan), "finite"),
        (changed(np.inf), "finite"),
        (changed(-1e-3), "0, 1"),
        (changed(1.5), "0, 1"),
    ],
)
def test_anything_else_is_refused_by_name(images, message):
    with pytest.raises(ValueError, match=f"photos must .*{message}"):
        wa.check_images(images, "photos")
