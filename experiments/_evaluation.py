"""What the commands that evaluate a classifier share: its data and weights, attacks, distances."""

import functools
import hashlib
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from experiments._attacks import Family
from experiments._cli import use_all_cores
from experiments._report import run_environment
from experiments._runs import (
    RunFolder,
    claim,
    default_folder,
    finish,
    load_checkpoint,
    save_checkpoint,
    show_finished,
)
from experiments._training import cache_root, trained_or_cached
from experiments._weights import Classifier, load_weights
from wasserstein_adv import parallel
from wasserstein_adv.attacks import AttackResult, FirstOrderAttack
from wasserstein_adv.checks import check_images
from wasserstein_adv.data import load, resolve
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import Cost
from wasserstein_adv.metrics import TransportDistance, exact_distances

_CHECKPOINT_SECONDS = 10.0
_BATCH = 500  # images classified at once


class Subject(NamedTuple):
    """The images and the classifier that a command evaluates."""

    data: str
    """The dataset's name."""
    x: Float[np.ndarray, "n h w c"]
    y: Int[np.ndarray, "n"]
    classifier: Classifier | None
    """None until `with_model`."""
    described: str
    """The classifier in one line."""


class Run(NamedTuple):
    """A command under way."""

    subject: Subject
    folder: RunFolder
    settings: dict[str, Any]
    """All that the results depend on."""
    console: Console


def begin(
    config: Any,
    command: str,
    settings: dict[str, Any],
    table: Callable[[Any], Table],
    model: str | None = None,
) -> Run | None:
    """Open a command's images, folder and model; show the results if they are there.

    Args:
        config: options `data`, `data_dir`, `checkpoint`, `num_images`, `seed` and `out`.
        command: what its default folder is called after.
        settings: what the results depend on besides dataset, weights, number of images and seed.
        table: lays out results for the terminal.
        model: the network that the checkpoint is of; None for what `load_weights` takes.

    Returns:
        The run to be made, or None where it is finished and has been shown.

    Raises:
        InputError: data, weights or folder cannot be used, or the seed is out of range.
    """
    check_seed(config.seed)
    use_all_cores()
    console = Console()
    subject = open_subject(
        config.data, config.data_dir, config.checkpoint, config.num_images, console, model
    )
    settings = {
        "data": subject.data,
        "weights": digest(subject.classifier),
        "num_images": config.num_images,
        "seed": config.seed,
        **settings,
    }
    folder = claim(config.out or default_folder(command, settings), settings)
    if show_finished(folder, table, console):
        return None
    # After the folder, as it may have to be trained: what cannot be used is said at once.
    subject = with_model(subject, config.data_dir, config.seed, console)
    return Run(subject, folder, settings, console)


def end(run: Run, results: dict[str, Any], table: Callable[[Any], Table]) -> None:
    """Write a run's results, which makes it finished, and show them."""
    finish(run.folder, results)
    run.console.print(table(results))
    run.console.print(f"results and pictures: {run.folder.path}", highlight=False, soft_wrap=True)


def open_subject(
    data: str,
    data_dir: Path | None,
    checkpoint: Path | None,
    num_images: int,
    console: Console,
    model: str | None = None,
) -> Subject:
    """Load a dataset's first test images, and the weights if they come from a file.

    Args:
        data: a name of `wasserstein_adv.data`, "auto" too.
        data_dir: TFDS data directory; None means TFDS's default.
        checkpoint: weights to read; None for the dataset's standard model, which `with_model`
            gets.
        num_images: how many images.
        console: where to say which dataset it is.
        model: the network that the checkpoint is of; None for what `load_weights` takes.

    Raises:
        InputError: there are not so many images; data or weights cannot be used.
    """
    if num_images < 1:
        raise InputError(f"--num-images must be 1 or more, got {num_images}")
    name = resolve(data, data_dir)
    dataset = load(name, "test", data_dir)
    console.print(f"data: {name}, {len(dataset.labels):,} test images", highlight=False)
    if num_images > len(dataset.labels):
        raise InputError(f"--num-images {num_images}: {name} has {len(dataset.labels):,} images")
    x, y = dataset.images[:num_images], dataset.labels[:num_images]
    check_images(x, "images")
    if checkpoint is None:
        if model is not None:
            raise InputError("--model is for --checkpoint")
        return Subject(name, x, y, None, "")
    return Subject(name, x, y, load_weights(checkpoint, name, model), f"weights of {checkpoint}")


def with_model(subject: Subject, data_dir: Path | None, seed: int, console: Console) -> Subject:
    """The subject with its dataset's standard model, trained now if it never was, where no weights
    were given."""
    if subject.classifier is None:
        classifier, described = trained_or_cached(subject.data, data_dir, cache_root(), seed)
        subject = subject._replace(classifier=classifier, described=described)
    console.print(f"model: {subject.described}", highlight=False, soft_wrap=True)
    return subject


def check_seed(seed: int) -> None:
    """Raise InputError unless a seed is in the range of JAX's."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, got {seed}")


def digest(classifier: Classifier | None) -> str:
    """16 hexadecimal digits that stand for a model's weights; "standard" where there are none."""
    if classifier is None:
        return "standard"
    leaves = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(classifier.variables))
    return hashlib.sha256(b"".join(leaves)).hexdigest()[:16]


def provenance(subject: Subject, command: str, seed: int) -> dict[str, Any]:
    """What every run's results say about where they come from."""
    return {
        "dataset": {"name": subject.data, "split": "test", "num_images": len(subject.x)},
        "model": {"description": subject.described, "weights": digest(subject.classifier)},
        "environment": run_environment(),
        "seed": seed,
        "command": shlex.join(["python", "-m", f"experiments.{command}", *sys.argv[1:]]),
    }


def progress_bar() -> Progress:
    """A progress bar on stderr whose tasks have a field `measured`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[measured]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def logits_of(classifier: Classifier) -> Callable[[jax.Array], jax.Array]:
    """The classifier as attacks take it."""
    return lambda images: classifier.model.apply(classifier.variables, images)


@functools.partial(jax.jit, static_argnames="model")
def _classes(model: Any, variables: Any, images: jax.Array) -> jax.Array:
    return jnp.argmax(model.apply(variables, images), axis=-1)


def predictions(
    classifier: Classifier, images: Float[np.ndarray, "n h w c"]
) -> Int[np.ndarray, "n"]:
    """The classifier's answers, a batch at a time."""
    parts = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return np.concatenate([np.asarray(_classes(*classifier, part)) for part in parts])


def run_attack(
    subject: Subject,
    attack: FirstOrderAttack,
    steps: int,
    *,
    batch_size: int | Literal["auto"],
    seed: int,
    folder: RunFolder | None = None,
    title: str = "attack",
    labels: Int[np.ndarray, "n"] | None = None,
) -> tuple[AttackResult, float]:
    """Run an attack on all devices, with a progress bar, from a folder's checkpoint if it has one.

    Args:
        subject: what to attack.
        attack: with what.
        steps: the attack's steps at most, for the bar.
        batch_size: images in one call, over all devices; "auto" takes what suits them.
        seed: of the random starts.
        folder: where to keep checkpoints; None for none.
        title: what stands before the bar.
        labels: the wanted labels of a targeted attack; by default the images' own.

    Returns:
        The result and the seconds it took, those before an interruption included.
    """
    x, y = subject.x, subject.y if labels is None else labels
    logits_fn = logits_of(subject.classifier)
    resume, before = None, 0.0
    if folder is not None:
        resumed = load_checkpoint(folder, parallel.progress_like(attack, logits_fn, x, y))
        resume, before = (None, 0.0) if resumed is None else resumed
    started = saved = time.perf_counter()
    latest = None
    with progress_bar() as bar:
        task = bar.add_task(title, total=steps * len(x) * attack.restarts, measured="compiling")

        def on_round(progress: parallel.Progress) -> None:
            nonlocal saved, latest
            latest = progress
            taken = np.where(progress.settled, steps, np.minimum(progress.state.step, steps))
            share = progress.state.kept.success.mean()
            now = f"accuracy now {1 - share:.1%}" if labels is None else f"{share:.1%} on target"
            measured = f"{progress.settled.sum()} of {len(x)} settled, {now}"
            done = steps * len(x) * int(progress.restart) + taken.sum()
            bar.update(task, completed=int(done), measured=measured)
            if time.perf_counter() - saved > _CHECKPOINT_SECONDS:
                keep()
                saved = time.perf_counter()

        def keep() -> None:
            if folder is not None:
                save_checkpoint(folder, latest, before + time.perf_counter() - started)

        try:
            result = parallel.evaluate(
                attack, jax.random.key(seed), logits_fn, x, y,
                batch_size=batch_size, resume=resume, on_round=on_round,
            )  # fmt: skip
        except KeyboardInterrupt:
            if latest is not None:
                keep()
            raise
    return result, before + time.perf_counter() - started


def measure_distances(
    x: Float[np.ndarray, "n h w c"],
    parts: dict[str, tuple[Float[np.ndarray, "n h w c"], Cost, int | None]],
    title: str = "exact distances",
) -> dict[str, TransportDistance]:
    """Exact distances of images from their clean ones, with a progress bar.

    Args:
        x: the clean images.
        parts: by name, what to measure: the images, the ground cost and the window, None for none.
        title: what stands before the bar.
    """
    found = {}
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(parts) * len(x), measured="")
        for number, (name, (z, cost, window)) in enumerate(parts.items()):
            offset = number * len(x)
            found[name] = exact_distances(
                x, z, cost, window,
                progress=lambda done, offset=offset: bar.update(task, completed=offset + done),
            )  # fmt: skip
    return found


def rulers(
    family: Family,
    settings: Any,
    x: Float[np.ndarray, "n h w c"],
    images: Float[np.ndarray, "n h w c"],
    before_clamp: Float[np.ndarray, "n h w c"],
) -> dict[str, tuple[Float[np.ndarray, "n h w c"], Cost, int | None]]:
    """How an attack's images are measured against the ball that it claims, for `measure_distances`.

    Args:
        family: the attack, one within a ball.
        settings: its settings.
        x: the clean images.
        images: the adversarial images.
        before_clamp: what they were before they were clamped.

    Returns:
        "window_distance", at the attack's cost and inside its window, where it has one;
        "window_before_clamp", the same before the clamp, where it clamps; "global_distance", at the
        same cost to anywhere.
    """
    cost, window = family.cost(settings, x.shape[1:3]), getattr(settings, "window", None)
    found = {}
    if window:
        found["window_distance"] = (images, cost, window)
    if family.ball.clamped:
        found["window_before_clamp"] = (before_clamp, cost, window)
    return {**found, "global_distance": (images, cost, None)}
