"""How a network is trained, whatever the defence: optimiser, learning rates, random changes."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax
from jaxtyping import Array

from wasserstein_adv import parallel
from wasserstein_adv.data import random_crop, random_flip
from wasserstein_adv.errors import InputError
from wasserstein_adv.training import Augment


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, whatever the defence.

    Attributes:
        epochs: Passes over the images, each in another order; those that come last in one and do
            not fill a batch are left out of it.
        learning_rate: The highest rate.
        optimizer: "adam", or "sgd" with momentum 0.9 and a weight decay of 0.0005.
        schedule: "one-cycle" rises to the rate over the first fifth of the steps and falls to
            nearly zero over the rest, both along a cosine, or is constant where there are fewer
            than five steps; "drop" divides it by ten after half of them; "constant" leaves it.
        batch_size: Images in a batch, over all devices; at most as many as there are.
        padding: Every image is moved by up to so many pixels along either axis, at random and
            filled up with zeros; 0 for none.
        flip: Whether half of the images, at random, are mirrored.
        seed: Of the first weights, the order of the images, and all else that is random.
    """

    epochs: int
    learning_rate: float
    optimizer: Literal["adam", "sgd"] = "adam"
    schedule: Literal["one-cycle", "drop", "constant"] = "one-cycle"
    batch_size: int = 128
    padding: int = 0
    flip: bool = False
    seed: int = 0


def steps_of(recipe: Recipe, images: int) -> int:
    """How many steps a recipe takes on so many images."""
    return images // recipe.batch_size * recipe.epochs


def optimizer_of(recipe: Recipe, steps: int) -> optax.GradientTransformation:
    """A recipe's optimiser, for so many steps in all."""
    rate = learning_rates(recipe, steps)
    if recipe.optimizer == "adam":
        return optax.adam(rate)
    # PyTorch's weight decay: part of the gradient that momentum sees.
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def learning_rates(recipe: Recipe, steps: int) -> optax.Schedule:
    """A recipe's learning rate, by step."""
    peak = recipe.learning_rate
    if recipe.schedule == "drop":
        return optax.piecewise_constant_schedule(peak, {(steps + 1) // 2: 0.1})
    if recipe.schedule == "one-cycle" and steps >= 5:  # else the cycle has a part without steps
        return optax.cosine_onecycle_schedule(steps, peak, pct_start=0.2)
    return optax.constant_schedule(peak)


def augmentation(padding: int, flip: bool) -> Augment:
    """The random change of every training image."""

    def augment(key: jax.Array, image: Array) -> Array:
        crop_key, flip_key = jax.random.split(key)
        if padding:
            image = random_crop(crop_key, image, padding)
        return random_flip(flip_key, image) if flip else image

    return augment


def check_recipe(recipe: Recipe, images: int) -> None:
    """Raise InputError where a number is out of range."""
    for name, lowest in (("epochs", 1), ("batch_size", 1), ("padding", 0)):
        if getattr(recipe, name) < lowest:
            raise InputError(f"{name} must be at least {lowest}, got {getattr(recipe, name)}")
    if recipe.batch_size > images:
        raise InputError(f"batch_size must be at most the {images} images, got {recipe.batch_size}")
    parallel.devices_for(recipe.batch_size)
    if not 0 < recipe.learning_rate < float("inf"):
        raise InputError(f"learning_rate must be positive and finite, got {recipe.learning_rate}")
    if not 0 <= recipe.seed < 2**32:
        raise InputError(f"seed must be from 0 to 2^32 - 1, got {recipe.seed}")
