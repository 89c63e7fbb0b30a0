"""Training the networks that the commands attack, and keeping what was trained.

Nothing here is printed except by `trained_or_cached`, which may have to train for a while.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments._report import library_version
from wasserstein_adv.data import Dataset, load, resolve
from wasserstein_adv.errors import InputError
from wasserstein_adv.models import WongKolterCNN, load_wong_kolter

Variables = dict[str, Any]
"""What `model.apply` takes first: a pytree of arrays."""

_PYTORCH = (".pth", ".pt")
_EVALUATION_BATCH = 500
_ADAM = optax.scale_by_adam()
_REPORT_EVERY = 16  # steps; reading a loss waits for the device


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained: Adam on the cross-entropy, in shuffled batches.

    Attributes:
        epochs: Passes over the images; the last images of a pass that do not fill a batch wait
            for the next, which has another order.
        batch_size: Images in a batch; at most as many as there are.
        learning_rate: The highest rate. It rises to it over the first fifth of the steps and falls
            to nearly zero over the rest, both along a cosine.
        shift: Every image is moved by up to so many pixels along either axis, at random and filled
            up with zeros; 0 for none.
        seed: Of the first weights, the order of the images and their shifts.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    shift: int = 2
    seed: int = 0


RECIPES = {
    "mnist": TrainConfig(epochs=6, batch_size=128, learning_rate=4e-3),
    "fashion_mnist": TrainConfig(epochs=6, batch_size=128, learning_rate=4e-3, shift=1),
    "mnist-5k": TrainConfig(epochs=20, batch_size=64, learning_rate=4e-3),
}
"""The standard recipe of each dataset."""


class TrainProgress(NamedTuple):
    """Where a training stands.

    Attributes:
        step: Steps taken, 1 to `steps`.
        steps: Steps in all.
        loss: Mean cross-entropy (nats) of the batches since the report before.
        accuracy: Share of their images that the network got right while it trained on them.
    """

    step: int
    steps: int
    loss: float
    accuracy: float


class _State(NamedTuple):
    """What a step changes."""

    variables: Variables
    moments: optax.OptState


# Training -----------------------------------------------------------------------------------------


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    progress: Callable[[TrainProgress], object] | None = None,
) -> Variables:
    """Minimise the mean cross-entropy of a classifier over a dataset.

    The batches and shifts of a step are functions of the seed and the step alone, so that the same
    arguments on the same machine give the same weights, bit for bit.

    Args:
        model: Takes (N, H, W, C) images in [0, 1] to (N, K) logits, with parameters only (no
            batch statistics, no dropout).
        dataset: The images and their classes, 0 to K - 1.
        config: The recipe.
        progress: Called every few steps and after the last.

    Returns:
        The trained variables.

    Raises:
        InputError: A number in `config` is out of its range.
    """
    count = len(dataset.labels)
    _check_config(config, count)
    per_epoch = count // config.batch_size
    steps = per_epoch * config.epochs
    weights_key, order_key, shift_key = jax.random.split(jax.random.key(config.seed), 3)
    rates = _learning_rates(config.learning_rate, steps)
    images, labels = jnp.asarray(dataset.images), jnp.asarray(dataset.labels)
    variables = _initialise(model, weights_key, images[:1])
    state = _State(variables, _ADAM.init(variables))

    recent = []
    for step in range(steps):
        epoch, batch = divmod(step, per_epoch)
        if batch == 0:
            order = jax.random.permutation(jax.random.fold_in(order_key, epoch), count)
            batches = np.asarray(order)[: per_epoch * config.batch_size].reshape(per_epoch, -1)
        key = jax.random.fold_in(shift_key, step)
        state, *measured = _step(
            model, config.shift, state, rates[step], key, images, labels, batches[batch]
        )
        recent.append(measured)
        if len(recent) == _REPORT_EVERY or step + 1 == steps:
            loss, accuracy = np.mean(recent, axis=0)
            recent.clear()
            if progress is not None:
                progress(TrainProgress(step + 1, steps, float(loss), float(accuracy)))
    return state.variables


def accuracy(model: nn.Module, variables: Variables, dataset: Dataset) -> float:
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


def _check_config(config: TrainConfig, images: int) -> None:
    for name, lowest in (("epochs", 1), ("batch_size", 1), ("shift", 0)):
        if getattr(config, name) < lowest:
            raise InputError(f"{name} must be at least {lowest}, got {getattr(config, name)}")
    if config.batch_size > images:
        raise InputError(f"batch_size must be at most the {images} images, got {config.batch_size}")
    if not 0 < config.learning_rate < float("inf"):
        raise InputError(f"learning_rate must be positive and finite, got {config.learning_rate}")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed must be from 0 to 2^32 - 1, got {config.seed}")


def _learning_rates(peak: float, steps: int) -> Float[np.ndarray, "steps"]:
    """One cycle: from peak/25 up to `peak` in a fifth of the steps, then down to almost zero."""
    if steps < 5:  # the cycle would have a part without steps
        return np.full(steps, peak, np.float32)
    schedule = optax.cosine_onecycle_schedule(steps, peak, pct_start=0.2)
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps)), np.float32)


@functools.partial(jax.jit, static_argnames="model")
def _initialise(model: nn.Module, key: PRNGKeyArray, images: Float[Array, "n h w c"]) -> Variables:
    return model.init(key, images)


@functools.partial(jax.jit, static_argnames="model")
def _classify(
    model: nn.Module, variables: Variables, images: Float[Array, "n h w c"]
) -> Int[Array, "n"]:
    return jnp.argmax(model.apply(variables, images), axis=-1)


# One step to a call, not a scan over several: on CPU, XLA runs convolutions in a loop's body ten
# times slower, and calls are queued without waiting for their results.
@functools.partial(jax.jit, static_argnames=("model", "shift"), donate_argnames="state")
def _step(
    model: nn.Module,
    shift: int,
    state: _State,
    rate: Float[Array, ""],
    key: PRNGKeyArray,
    images: Float[Array, "n h w c"],
    labels: Int[Array, "n"],
    batch: Int[Array, "b"],
) -> tuple[_State, Float[Array, ""], Float[Array, ""]]:
    """Take one step of Adam, at a learning rate, on the images numbered `batch`.

    Returns:
        The state after it, and the batch's mean cross-entropy and accuracy before it.
    """
    x, y = _shifted(key, images[batch], shift), labels[batch]

    def loss_fn(variables: Variables) -> tuple[Float[Array, ""], Float[Array, ""]]:
        logits = model.apply(variables, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, (jnp.argmax(logits, axis=-1) == y).mean()

    (loss, right), gradient = jax.value_and_grad(loss_fn, has_aux=True)(state.variables)
    direction, moments = _ADAM.update(gradient, state.moments)
    variables = jax.tree.map(lambda v, d: v - rate * d, state.variables, direction)
    return _State(variables, moments), loss, right


def _shifted(
    key: PRNGKeyArray, images: Float[Array, "b h w c"], reach: int
) -> Float[Array, "b h w c"]:
    """Move each image by whole pixels, uniform on [-reach, reach]², and fill up with zeros."""
    if reach == 0:
        return images
    padded = jnp.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    corners = jax.random.randint(key, (images.shape[0], 2), 0, 2 * reach + 1)

    def crop(image: Float[Array, "hp wp c"], corner: Int[Array, "2"]) -> Float[Array, "h w c"]:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[TrainProgress], None]]:
    """Show a training's progress, loss and accuracy on stderr while the block runs.

    Args:
        title: What stands before the bar.

    Yields:
        The function to pass to `train` as `progress`.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[measured]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, measured="compiling")

        def show(report: TrainProgress) -> None:
            measured = f"loss {report.loss:.4f}  accuracy {report.accuracy:6.2%}"
            bar.update(task, completed=report.step, total=report.steps, measured=measured)

        yield show


# Weights on disk ----------------------------------------------------------------------------------


def save(path: Path, variables: Variables) -> None:
    """Write variables as an Orbax checkpoint that appears whole or not at all.

    Args:
        path: The checkpoint's folder to be: not there yet, or empty. Its parents are made.
        variables: The arrays.

    Raises:
        InputError: As `check_free`, or the folder cannot be written.
    """
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incomplete.", dir=path.parent) as folder:
            written = Path(folder).resolve() / "weights"
            with _orbax() as checkpointer:
                checkpointer.save(written, variables)
            os.replace(written, path)  # over an empty folder too
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def check_free(path: Path) -> None:
    """Check that weights may be saved at a path.

    Args:
        path: The folder to be.

    Raises:
        InputError: Something is there, other than an empty folder.
    """
    if path.is_dir() and not path.is_symlink():
        if any(path.iterdir()):
            raise InputError(f"{path}: the folder is not empty, and nothing is overwritten")
    elif os.path.lexists(path):
        raise InputError(f"{path}: is there already, and nothing is overwritten")


def restore(path: Path) -> Variables:
    """Read weights of `WongKolterCNN`, for 28×28×1 images and ten classes, that `save` wrote.

    Args:
        path: The checkpoint's folder.

    Returns:
        The variables.

    Raises:
        InputError: There is no such folder, it is not an Orbax checkpoint or is damaged, or its
            arrays are not the network's by name, shape and type, or are not finite.
    """
    if not path.is_dir():
        raise InputError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    expected = _abstract_weights()
    try:
        with _orbax() as checkpointer:
            found = checkpointer.restore(path.resolve())
    except Exception as error:  # a damaged checkpoint raises whatever its parser meets
        reason = next(iter(str(error).splitlines()), "")[:120] or type(error).__name__
        raise InputError(f"{path}: not a checkpoint, or damaged ({reason})") from error
    _check_weights(found, expected, path)
    return jax.tree.map(jnp.asarray, found)


def load_weights(path: Path) -> Variables:
    """Read weights of `WongKolterCNN`: published ones, or those of `train_mnist`.

    Args:
        path: A PyTorch checkpoint, `.pth` or `.pt`, or an Orbax checkpoint's folder.

    Returns:
        The variables.

    Raises:
        InputError: As `wasserstein_adv.models.load_wong_kolter` or `restore`, or nothing of the
            kind is there.
    """
    if path.suffix.lower() in _PYTORCH and not path.is_dir():
        return load_wong_kolter(path)
    if path.is_file():
        raise InputError(f"{path}: neither a {' or '.join(_PYTORCH)} file nor a folder")
    return restore(path)


def _abstract_weights() -> Variables:
    """The shapes and types of the network's weights."""
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    return jax.eval_shape(WongKolterCNN().init, jax.random.key(0), image)


def _check_weights(found: Any, expected: Variables, path: Path) -> None:
    """Raise InputError unless two trees have the same arrays, and those found are finite."""
    have, want = _leaves(found), _leaves(expected)
    for name in sorted(have.keys() | want.keys()):
        if name not in want or name not in have:
            problem = "is missing" if name not in have else "is not the network's"
            raise InputError(f"{path}: {name} {problem}")
        shape = getattr(have[name], "shape", None)
        if shape != want[name].shape or have[name].dtype != want[name].dtype:
            there = "no array" if shape is None else f"{have[name].dtype} {shape}"
            raise InputError(
                f"{path}: {name} is {there}, expected {want[name].dtype} {want[name].shape}"
            )
        if not np.isfinite(have[name]).all():
            raise InputError(f"{path}: {name} holds weights that are not finite")


def _leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the keys that lead to them, joined by dots."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Open an Orbax checkpointer that says nothing, neither in logs nor in warnings."""
    import orbax.checkpoint as ocp  # here, because it takes seconds to import

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # Orbax warns that it reads the sharding from the file, which is what is meant.
        with warnings.catch_warnings(action="ignore"), ocp.PyTreeCheckpointer() as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(level)


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
) -> tuple[Variables, str]:
    """Return the standard `WongKolterCNN` of a dataset, trained now if it never was.

    A training shows its progress on stderr. A network in the cache that cannot be read is reported
    there, trained again and replaced; a cache that cannot be written is reported, and the network
    returned all the same.

    Args:
        data: One of `RECIPES` or "auto", which is resolved as by `wasserstein_adv.data.resolve`.
        data_dir: TFDS data directory; None means TFDS's default.
        cache_dir: The cache, as by `cache_root()`; made if it is not there.
        seed: The training's seed.

    Returns:
        The variables, and one line that says what they are, fit for a report.

    Raises:
        InputError: The dataset is not known or cannot be loaded, or the seed is out of range.
    """
    name = resolve(data, data_dir)
    config = dataclasses.replace(RECIPES[name], seed=seed)
    described = f"WongKolterCNN, {config.epochs} epochs on {name}, seed {seed}"
    entry = cache_dir.expanduser() / "models" / _cache_key(name, config)
    if os.path.lexists(entry):
        try:
            return restore(entry), f"{described} (cached)"
        except InputError as error:
            _warn(f"{error}; training it again")
    start = time.perf_counter()
    dataset = load(name, "train", data_dir)
    with progress_bar(f"training on {name}") as show:
        variables = train(WongKolterCNN(), dataset, config, show)
    described += f" (trained in {time.perf_counter() - start:.0f} s)"
    try:
        _remove(entry)
        save(entry, variables)
    except (InputError, OSError) as error:
        # Another process may have finished the same network meanwhile.
        _warn(f"the trained network is not kept: {error}")
    return variables, described


def _cache_key(name: str, config: TrainConfig) -> str:
    """Return the name of a cache entry: the dataset, the seed and a hash of all that counts."""
    recipe = {"library": library_version(), "model": "WongKolterCNN", **dataclasses.asdict(config)}
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    return f"{name}-seed{config.seed}-{digest[:12]}"


def _remove(entry: Path) -> None:
    """Remove a cache entry, if there is one: first its name, in one step, and then its content."""
    if not os.path.lexists(entry):
        return
    with tempfile.TemporaryDirectory(prefix=".removed.", dir=entry.parent) as folder:
        os.replace(entry, Path(folder) / entry.name)
        shutil.rmtree(Path(folder) / entry.name, ignore_errors=True)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
