"""Natural perturbations of images, and how unlike they leave an image: pure functions of arrays."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Amount = Literal["up-to", "exact"]
"""Whether a perturbation's size is the largest that an image may be moved by, or that of each."""

# Unlike "constant", this mode also interpolates between the edge and the zeros beyond it.
_BILINEAR = {"order": 1, "mode": "grid-constant"}


def random_draws(seed: int, count: int) -> Float[np.ndarray, "n 3"]:
    """Three numbers for each image: what its angle, its shift of rows and of columns follow.

    They are uniform on [-1, 1), a function of the seed and the image's index alone: an image is
    moved alike whatever other images there are, and by the same share of every size.
    """
    generators = (np.random.default_rng([seed, index]) for index in range(count))
    return np.array([rng.uniform(-1.0, 1.0, 3) for rng in generators]).reshape(count, 3)


def rotation_angles(
    draws: Float[np.ndarray, "n 3"], degrees: float, amount: Amount
) -> Float[np.ndarray, "n"]:
    """Angles of a rotation in degrees, positive for counter-clockwise.

    Args:
        draws: as `random_draws` gives them.
        degrees: the rotation's size, positive.
        amount: "up-to": uniform on [-degrees, degrees). "exact": ±degrees, either as likely.
    """
    turn = draws[:, 0]
    return degrees * (turn if amount == "up-to" else _signs(turn))


def translation_shifts(
    draws: Float[np.ndarray, "n 3"], pixels: tuple[float, float], amount: Amount
) -> Float[np.ndarray, "n 2"]:
    """Shifts of a translation in pixels, (down, right).

    Args:
        draws: as `random_draws` gives them.
        pixels: the translation's size, along the rows' axis and the columns', positive.
        amount: "up-to": along either axis uniform up to the size, both ways, and rounded to whole
            pixels, as torchvision's `RandomAffine` does. "exact": the size itself, along one axis,
            up, down, left or right, each as likely.
    """
    size, move = np.asarray(pixels, np.float64), draws[:, 1:]
    if amount == "up-to":
        return np.round(size * move)
    # Of two draws that are alike, each is as likely to be the larger.
    rows = np.abs(move[:, :1]) > np.abs(move[:, 1:])
    return size * _signs(move) * np.concatenate([rows, ~rows], axis=1)


def rotate(
    images: Float[np.ndarray, "n h w c"], angles: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n h w c"]:
    """Turn each image about its centre; the size stays, and what comes from outside is zero.

    Args:
        images: intensities.
        angles: degrees, positive for counter-clockwise.

    Returns:
        The turned images, interpolated bilinearly, in the type of `images`.
    """
    from scipy import ndimage  # here, because it takes a while to import

    turned = [
        ndimage.rotate(image, angle, reshape=False, **_BILINEAR)
        for image, angle in zip(images, angles, strict=True)
    ]
    return np.array(turned, images.dtype).reshape(images.shape)


def translate(
    images: Float[np.ndarray, "n h w c"], shifts: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n h w c"]:
    """Move each image; the size stays, what leaves it is lost, and what enters it is zero.

    Args:
        images: intensities.
        shifts: pixels, (down, right), fractions too.

    Returns:
        The moved images, interpolated bilinearly, in the type of `images`.
    """
    from scipy import ndimage  # here, because it takes a while to import

    moved = [
        ndimage.shift(image, (down, right, 0), **_BILINEAR)
        for image, (down, right) in zip(images, shifts, strict=True)
    ]
    return np.array(moved, images.dtype).reshape(images.shape)


def procrustes_dissimilarity(
    x: Float[np.ndarray, "n h w c"], z: Float[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n"]:
    """Procrustes dissimilarity of pairs of images, the H rows of an image as points.

    Both sets of points are centred and scaled to norm 1, and one is rotated (or reflected) and
    scaled to come nearest to the other; the dissimilarity is the sum of squares that is left, from
    0 to 1. The rotation acts on the rows' W·C values: it is none of the image's plane.

    Returns:
        One number for each pair; NaN where the rows of either image are all alike, so that nothing
        is left of it once it is centred.
    """
    from scipy.spatial import procrustes  # here, because it takes a while to import

    found = np.full(len(x), np.nan)
    for index, pair in enumerate(zip(x, z, strict=True)):
        # Checked here: the mean of equal numbers can be off by rounding, and scipy would divide
        # by that.
        if all((image != image[:1]).any() for image in pair):
            rows = (np.asarray(image, np.float64).reshape(len(image), -1) for image in pair)
            found[index] = procrustes(*rows)[2]
    return found


def _signs(values: np.ndarray) -> np.ndarray:
    """-1 for negative numbers, 1 for the others: never the 0 of `np.sign`."""
    return np.where(values < 0, -1.0, 1.0)


class Perturbation(NamedTuple):
    """A perturbation of one size."""

    kind: Literal["rotation", "translation"]
    size: float
    """Degrees, or percent of the image's side."""

    @property
    def name(self) -> str:
        """Its kind and size: `rotation 10`."""
        return f"{self.kind} {self.size:g}"


def perturb(
    perturbation: Perturbation,
    amount: Amount,
    images: Float[np.ndarray, "n h w c"],
    draws: Float[np.ndarray, "n 3"],
) -> Float[np.ndarray, "n h w c"]:
    """Rotate or translate each image.

    Args:
        perturbation: which, and its size.
        amount: whether the size is the largest, or that of every image.
        images: intensities in [0, 1].
        draws: each image's own, as `random_draws` gives them.

    Returns:
        The perturbed images, in [0, 1].
    """
    if perturbation.kind == "rotation":
        moved = rotate(images, rotation_angles(draws, perturbation.size, amount))
    else:
        height, width = images.shape[1:3]
        pixels = (perturbation.size / 100 * height, perturbation.size / 100 * width)
        moved = translate(images, translation_shifts(draws, pixels, amount))
    return np.clip(moved, 0.0, 1.0)  # rounding only: interpolation leaves no range
