"""Training the networks that the commands attack: recipes, the loop, and the standard models.

Nothing here is printed except by `trained_or_cached`, which may have to train for a while.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments._report import library_version
from experiments._weights import STANDARD_MODEL, Classifier, build_model, restore, save
from wasserstein_adv import parallel
from wasserstein_adv.data import (
    RawDataset,
    available,
    batch_indices,
    prefetch,
    prepare,
    published_sizes,
    random_crop,
    random_flip,
    read,
    resolve,
    split_sizes,
)
from wasserstein_adv.defenses import Defense, plain
from wasserstein_adv.errors import InputError
from wasserstein_adv.training import (
    Augment,
    Batch,
    Measures,
    TrainState,
    Variables,
    initialise,
    to_unit_interval,
    train_step,
)

_EVALUATION_BATCH = 500


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


STANDARD = {
    "mnist": Recipe(epochs=6, learning_rate=4e-3, padding=2),
    "fashion_mnist": Recipe(epochs=6, learning_rate=4e-3, padding=1),
    "mnist-5k": Recipe(epochs=20, learning_rate=4e-3, batch_size=64, padding=2),
    "cifar10": Recipe(30, 0.1, "sgd", padding=4, flip=True),
    "cifar100": Recipe(30, 0.1, "sgd", padding=4, flip=True),
    "svhn": Recipe(15, 0.05, "sgd", padding=4),
    "tiny_imagenet": Recipe(50, 1e-3, padding=8, flip=True),
}
"""The standard recipe of each dataset, without a defence."""


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


# The loop -----------------------------------------------------------------------------------------


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
        model: As of `build_model` with `axis_name=parallel.AXIS`.
        dataset: The images and their classes.
        recipe: How.
        defense: Against what; `plain()` by default.
        hooks: What to do meanwhile, and where to begin; by default with random weights.

    Returns:
        The trained variables, NumPy arrays.

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
        return Batch(index.astype(np.int32), dataset.images[index], dataset.labels[index])

    with contextlib.closing(prefetch(make, range(begun, steps))) as batches:
        for step, (batch, waited) in enumerate(batches, begun + 1):
            state, measures, stopped = on_devices.step(state, batch, hooks.stop())
            hooks.after_step(step, measures, waited)
            if step % (count // recipe.batch_size) == 0:
                hooks.after_epoch(step, lambda at=state: on_devices.get(at).variables)
            # Another process's wish to stop is only looked for where there is another: it waits.
            stopping = bool(stopped) if jax.process_count() > 1 else hooks.stop()
            if stopping or (step < steps and hooks.save_due(step)):
                hooks.save(on_devices.get(state))
            if stopping:
                raise Stopped
    return on_devices.get(state).variables


def steps_of(recipe: Recipe, images: int) -> int:
    """How many steps a recipe takes on so many images."""
    return images // recipe.batch_size * recipe.epochs


def initial_state(
    model: nn.Module,
    image_shape: tuple[int, ...],
    recipe: Recipe,
    steps: int,
    start: Variables | None = None,
) -> TrainState:
    """The state that a training begins with."""
    state = initialise(model, optimizer_of(recipe, steps), tuple(image_shape), recipe.seed)
    return state if start is None else state._replace(variables=start)


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


# What came of it ----------------------------------------------------------------------------------


def accuracy(model: nn.Module, variables: Variables, dataset: RawDataset) -> float:
    """Return the share of a dataset's images whose largest logit is that of their class.

    Args:
        model: As for `train`.
        variables: Its variables.
        dataset: At least one image.

    Returns:
        A number from 0 to 1.
    """
    starts = range(0, len(dataset.labels), _EVALUATION_BATCH)
    batches = (dataset.images[start : start + _EVALUATION_BATCH] for start in starts)
    found = [_classify(model, variables, images) for images in batches]
    return float(np.mean(np.concatenate(found) == dataset.labels))


@functools.partial(jax.jit, static_argnames="model")
def _classify(
    model: nn.Module, variables: Variables, images: Float[Array, "n h w c"]
) -> Int[Array, "n"]:
    return jnp.argmax(model.apply(variables, to_unit_interval(images)), axis=-1)


class Meter:
    """A training's measures over the steps since they were last read."""

    def __init__(self) -> None:
        self._recent: list[Measures] = []
        self._waited, self._images = 0.0, 0
        self._since = time.perf_counter()

    def add(self, measures: Measures, waited: float, images: int) -> None:
        """Take in one step, of so many images, that waited so many seconds for them."""
        self._recent.append(measures)
        self._waited += waited
        self._images += images

    def read(self) -> dict[str, float]:
        """Means over the steps since the last call, rates per second; waits for the devices."""
        loss, clean, adversarial = np.mean(np.asarray(jax.device_get(self._recent)), axis=0)
        seconds = time.perf_counter() - self._since
        found = {
            "loss": float(loss),
            "clean_accuracy": float(clean),
            "adversarial_accuracy": None if np.isnan(adversarial) else float(adversarial),
            "images_per_second": self._images / seconds,
            "input_wait": self._waited / seconds,
        }
        self.__init__()
        return found


@contextlib.contextmanager
def progress_bar(title: str, steps: int, begun: int = 0) -> Iterator[Callable[..., None]]:
    """Show a training's progress on stderr while the block runs.

    Args:
        title: What stands before the bar.
        steps: Steps in all.
        begun: Steps taken before.

    Yields:
        (steps taken, what `Meter.read` found) ↦ None.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[measured]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=steps, completed=begun, measured="compiling")

        def show(step: int, found: dict[str, Any]) -> None:
            measured = f"loss {found['loss']:.3f}  clean {found['clean_accuracy']:.1%}"
            if found["adversarial_accuracy"] is not None:
                measured += f"  adversarial {found['adversarial_accuracy']:.1%}"
            measured += f"  {found['images_per_second']:,.0f} images/s"
            measured += f"  waiting {found['input_wait']:.0%}"
            bar.update(task, completed=step, measured=measured)

        yield show


# Standard models ----------------------------------------------------------------------------------


def cache_root() -> Path:
    """Return where trained networks are kept between runs, whether it is there or not.

    Returns:
        $WASSERSTEIN_ADV_CACHE, or else $XDG_CACHE_HOME/wasserstein_adv, or else
        ~/.cache/wasserstein_adv; a variable that is empty counts as unset.
    """
    if own := os.environ.get("WASSERSTEIN_ADV_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wasserstein_adv"


def trained_or_cached(
    data: str, data_dir: Path | None, cache_dir: Path, seed: int = 0
) -> tuple[Classifier, str]:
    """Return the standard classifier of a dataset, trained now if it never was.

    A training shows its progress on stderr. A network in the cache that cannot be read is reported
    there, trained again and replaced; a cache that cannot be written is reported, and the network
    returned all the same.

    Args:
        data: One of `STANDARD` or "auto", which is resolved as by `wasserstein_adv.data.resolve`.
        data_dir: TFDS data directory; None means TFDS's default.
        cache_dir: The cache, as by `cache_root()`; made if it is not there.
        seed: The training's seed.

    Returns:
        The classifier, and one line that says what it is, fit for a report.

    Raises:
        InputError: The dataset is not known or cannot be loaded, or the seed is out of range.
    """
    name = resolve(data, data_dir)
    recipe = dataclasses.replace(STANDARD[name], seed=seed)
    model = build_model(STANDARD_MODEL[name], name, axis_name=parallel.AXIS)
    described = f"{type(model).__name__}, {recipe.epochs} epochs on {name}, seed {seed}"
    entry = cache_dir.expanduser() / "models" / _cache_key(name, recipe, _part(name, data_dir))
    if os.path.lexists(entry):
        try:
            return Classifier(model, restore(entry, model, name)), f"{described} (cached)"
        except InputError as error:
            _warn(f"{error}; training it again")
    started = time.perf_counter()
    dataset = read(name, "train", data_dir)
    with progress_bar(f"training on {name}", steps_of(recipe, len(dataset.labels))) as show:
        variables = train(model, dataset, recipe, hooks=Hooks(after_step=_shown(show, recipe)))
    described += f" (trained in {time.perf_counter() - started:.0f} s)"
    try:
        _remove(entry)
        save(entry, variables)
    except (InputError, OSError) as error:
        # Another process may have finished the same network meanwhile.
        _warn(f"the trained network is not kept: {error}")
    return Classifier(model, variables), described


def _shown(show: Callable[..., None], recipe: Recipe) -> Callable[..., None]:
    """`Hooks.after_step` that shows the measures of every sixteenth step."""
    meter = Meter()

    def after_step(step: int, measures: Measures, waited: float) -> None:
        meter.add(measures, waited, recipe.batch_size)
        if step % 16 == 0:
            show(step, meter.read())

    return after_step


def _part(name: str, data_dir: Path | None) -> dict[str, int]:
    """How many training images a dataset has here, where it is but a part of what is published."""
    whole = published_sizes(name)
    if not whole or not available(name, data_dir):  # what is downloaded is whole
        return {}
    folder, _ = prepare(name, None, data_dir)
    count = split_sizes(folder)["train"]
    return {} if count == whole["train"] else {"training_images": count}


def _cache_key(name: str, recipe: Recipe, part: dict[str, int]) -> str:
    """Return the name of a cache entry: the dataset, the seed and a hash of all that counts."""
    parts = {
        "library": library_version(),
        "model": STANDARD_MODEL[name],
        **dataclasses.asdict(recipe),
        **part,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{name}-seed{recipe.seed}-{digest[:12]}"


def _remove(entry: Path) -> None:
    """Remove a cache entry, if there is one: first its name, in one step, and then its content."""
    if not os.path.lexists(entry):
        return
    with tempfile.TemporaryDirectory(prefix=".removed.", dir=entry.parent) as folder:
        os.replace(entry, Path(folder) / entry.name)
        shutil.rmtree(Path(folder) / entry.name, ignore_errors=True)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
