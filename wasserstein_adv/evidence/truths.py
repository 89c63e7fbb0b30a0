"""What is true of every image of a run: each a pure function of arrays, one answer an image."""

import numpy as np
from jaxtyping import Bool, Float, Int

from wasserstein_adv.evidence.figures import INSIDE

_ROUNDING = 1e-6  # of a pixel, in float32

__all__ = [
    "answered",
    "bounded",
    "clamped",
    "in_unit_interval",
    "kept",
    "nominal",
    "reached",
    "unchanged",
]


def in_unit_interval(images: Float[np.ndarray, "n h w c"]) -> Bool[np.ndarray, "n"]:
    """Every pixel is in [0, 1]."""
    return np.all((images >= 0) & (images <= 1), axis=(1, 2, 3))


def clamped(
    before: Float[np.ndarray, "n h w c"], images: Float[np.ndarray, "n h w c"]
) -> Bool[np.ndarray, "n"]:
    """The image is what it was before, clamped to [0, 1]."""
    return (np.abs(np.clip(before, 0, 1) - images) <= _ROUNDING).all((1, 2, 3))


def answered(
    success: Bool[np.ndarray, "n"], prediction: Int[np.ndarray, "n"], label: Int[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """It counts as fooled just where the answer is another than the label."""
    return success == (prediction != label)


def reached(
    success: Bool[np.ndarray, "n"], prediction: Int[np.ndarray, "n"], target: Int[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """It counts as a success just where the answer is the label that was wanted."""
    return success == (prediction == target)


def kept(
    radius: Float[np.ndarray, "n"], budget: Float[np.ndarray, "n"], success: Bool[np.ndarray, "n"]
) -> Bool[np.ndarray, "n"]:
    """The radius of a success is its budget, and that of others infinite."""
    return radius == np.where(success, budget, np.inf)


def bounded(budget: Float[np.ndarray, "n"], largest: float) -> Bool[np.ndarray, "n"]:
    """The budget is at most the attack's largest radius."""
    return (budget >= 0) & (budget <= largest * (1 + INSIDE))


def unchanged(
    clean: Float[np.ndarray, "n h w c"],
    images: Float[np.ndarray, "n h w c"],
    budget: Float[np.ndarray, "n"],
) -> Bool[np.ndarray, "n"]:
    """What was given no budget is as it was."""
    still = (np.abs(images - clean) <= _ROUNDING).all((1, 2, 3))
    return still | (budget > 0)


def nominal(
    prediction: Int[np.ndarray, "n"],
    label: Int[np.ndarray, "n"],
    success: Bool[np.ndarray, "n"],
    budget: Float[np.ndarray, "n"],
) -> Bool[np.ndarray, "n"]:
    """An image is fooled without a budget just where the answer to it as it is was wrong."""
    return (prediction == label) == ((budget > 0) | ~success.astype(bool))
