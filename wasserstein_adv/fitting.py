"""Training a network under a defence: the loop, on all devices of all processes."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from wasserstein_adv import parallel
from wasserstein_adv.data import RawDataset, batch_indices, prefetch
from wasserstein_adv.defenses import Defense, plain
from wasserstein_adv.recipes import Recipe, augmentation, check_recipe, optimizer_of, steps_of
from wasserstein_adv.training import (
    Batch,
    Measures,
    TrainState,
    Variables,
    initialise,
    to_unit_interval,
    train_step,
)

_EVALUATION_BATCH = 500


class Hooks(NamedTuple):
    """What a training tells while it runs, and asks."""

    resume: TrainState | None = None
    """Where to go on from."""
    after_step: Callable[[int, Measures, float], object] = lambda step, measures, waited: None
    """(steps taken, measures that may not be there yet, seconds that the step waited for input)."""
    after_epoch: Callable[[int, Callable[[], Variables]], object] = lambda step, variables: None
    """(steps taken, how to get the variables as they are)."""
    save_due: Callable[[int], bool] = lambda step: False
    """steps taken ↦ whether `save` is to be called."""
    save: Callable[[TrainState], object] = lambda state: None
    stop: Callable[[], bool] = lambda: False
    """Whether this process is to stop. When any process is, all `save` and then stop."""


class Stopped(Exception):
    """A training that was told to stop, and has saved where it was."""


def train(
    model: nn.Module,
    dataset: RawDataset,
    recipe: Recipe,
    defense: Defense | None = None,
    hooks: Hooks = Hooks(),  # noqa: B008 (a tuple)
) -> Variables:
    """Train a classifier on all devices of all processes.

    Batches, their changes and the attacks on them are functions of the seed, the step and each
    image's number alone, so that the same arguments on as many devices give the same weights, on a
    CPU bit for bit, whether the training was interrupted or not.

    Args:
        model: The network; one with batch statistics with `axis_name=parallel.AXIS`.
        dataset: The images and their classes.
        recipe: How.
        defense: Against what; `plain()` by default.
        hooks: What to do meanwhile, and where to begin; by default with random weights.

    Raises:
        InputError: A number in `recipe` is out of its range.
        Stopped: `hooks.stop` said so.
    """
    count = len(dataset.labels)
    check_recipe(recipe, count)
    steps = steps_of(recipe, count)
    optimizer = optimizer_of(recipe, steps)
    step_fn = train_step(
        model, optimizer, defense or plain(), recipe.seed,
        augment=augmentation(recipe.padding, recipe.flip), axis_name=parallel.AXIS,
    )  # fmt: skip
    on_devices = parallel.replicate(step_fn, parallel.devices_for(recipe.batch_size))
    own = parallel.own_part(recipe.batch_size)
    state = hooks.resume or initial_state(model, dataset.images.shape[1:], recipe, steps)
    begun = int(state.step)
    state = on_devices.put(state)

    def make(step: int) -> Batch:
        index = batch_indices(recipe.seed, step, count, recipe.batch_size)[own]
        numbers = index.astype(np.int32)
        return Batch(numbers, dataset.images[index], dataset.labels[index])  # type: ignore[arg-type]

    with contextlib.closing(prefetch(make, range(begun, steps))) as batches:
        for step, (batch, waited) in enumerate(batches, begun + 1):
            state, measures, stopped = on_devices.step(state, batch, hooks.stop())
            hooks.after_step(step, measures, waited)
            if step % (count // recipe.batch_size) == 0:
                hooks.after_epoch(step, functools.partial(_variables_of, on_devices, state))
            # Another process's wish to stop is only looked for where there is another: it waits.
            stopping = bool(stopped) if jax.process_count() > 1 else hooks.stop()
            if stopping or (step < steps and hooks.save_due(step)):
                hooks.save(on_devices.get(state))
            if stopping:
                raise Stopped
    return on_devices.get(state).variables


def _variables_of(on_devices: Any, state: TrainState) -> Variables:
    return on_devices.get(state).variables


def initial_state(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    recipe: Recipe,
    steps: int,
    start: Variables | None = None,
) -> TrainState:
    """The state that a training begins with."""
    state = initialise(model, optimizer_of(recipe, steps), image_shape, recipe.seed)
    return state if start is None else state._replace(variables=start)


# What came of it ----------------------------------------------------------------------------------


def accuracy(model: nn.Module, variables: Variables, dataset: RawDataset) -> float:
    """Return the share of a dataset's images whose largest logit is that of their class."""
    starts = range(0, len(dataset.labels), _EVALUATION_BATCH)
    batches = (dataset.images[start : start + _EVALUATION_BATCH] for start in starts)
    found = [_classify(model, variables, images) for images in batches]
    return float(np.mean(np.concatenate(found) == dataset.labels))


@functools.partial(jax.jit, static_argnames="model")
def _classify(model: Any, variables: Variables, images: Float[Array, "n h w c"]) -> Int[Array, "n"]:
    return jnp.argmax(model.apply(variables, to_unit_interval(images)), axis=-1)
