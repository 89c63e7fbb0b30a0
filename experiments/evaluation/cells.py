"""Cells of a table: an attack on a model, run, measured and kept as they come."""

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from experiments.evaluation.session import (
    CLEAN,
    CONVERGED,
    Run,
    answer_name,
    clean_arrays,
    gather,
    images_part,
    nominal,
)
from experiments.evaluation.subjects import Subject, logits_of, predictions
from experiments.harness.catalogue.attacks import KEEPS, Attack
from experiments.harness.evidence import measure
from experiments.harness.files import file_name, load_arrays, save_arrays
from experiments.harness.progress import progress_bar
from experiments.harness.runs import RunFolder, load_checkpoint, save_checkpoint
from wasserstein_adv import parallel
from wasserstein_adv.attacks import AttackResult, FirstOrderAttack
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Distance, Figure, Ground, Part, figure

_CHECKPOINT_SECONDS = 10.0
_MASS = ("moved", "unmatched", "residual")  # what an unbalanced plan tells


class Ruler(NamedTuple):
    """How images are measured."""

    ground: Ground
    window: int | None = None
    """Side of the window that mass stays in; None for none."""
    image: str = "image"
    """Which of a cell's arrays: "image", or "before_clamp"."""


class Cell(NamedTuple):
    """An attack on one of a run's models."""

    build: Callable[[], FirstOrderAttack]
    steps: int
    rulers: Mapping[str, Ruler]
    """The distances to measure, by the arrays' names."""
    largest: float | None = None
    """The largest radius that it may claim; None for an attack in no ball."""
    model: str = ""
    """The model's name."""
    first_success: bool = True
    """Whether it keeps an image's first success."""
    pairs: Mapping[str, np.ndarray] = MappingProxyType({})
    """For an attack towards labels: the images, "clean", their labels, and the wanted, "target"."""


Files = dict[str, dict[str, np.ndarray]]


def cell_of(
    attack: Attack,
    settings: Any,
    subject: Subject,
    rulers: Mapping[str, Ruler],
    keep: str = "first-success",
    **options: Any,
) -> Cell:
    """An attack of the catalogue as a cell; `keep` of `KEEPS`, other options of `first_order`."""

    def build() -> FirstOrderAttack:
        return attack.build(subject.grid_size, settings, keep=KEEPS[keep](), **options)

    largest = attack.largest and attack.largest(settings)
    return Cell(build, settings.steps, rulers, largest, first_success=keep == "first-success")


class Swept(NamedTuple):
    """What was found of all cells."""

    results: dict[str, Any]
    """Of each cell under "cells", by its name."""
    parts: list[Part]
    files: Files


def sweep(
    run: Run,
    cells: Mapping[str, Cell],
    options: Any,
    shared: Mapping[str, Figure] | None = None,
    *,
    figures: Callable[[str, Cell, Files], Mapping[str, Figure]] | None = None,
    about: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> Swept:
    """Run and measure cells, and work out what follows.

    Args:
        run: the command under way.
        cells: the attacks by name.
        options: the command's, of which `batch_size` and, where there is one, `distance_images`.
        shared: figures of the run as a whole; by default the accuracy without an attack.
        figures: those of each cell, of its name, itself and all arrays; by default `figures_of`.
        about: words that the results say of each cell.
    """
    files = run_cells(
        run, cells, clean_arrays(run), batch_size=options.batch_size,
        distance_images=getattr(options, "distance_images", None),
    )  # fmt: skip
    chosen = figures or figures_of
    parts = [part_of(name, cell, chosen(name, cell, files)) for name, cell in cells.items()]
    parts.append(images_part(nominal() if shared is None else shared))
    results = gather(run, parts, files)
    for name, words in about.items():
        results["cells"][name] |= words
    return Swept(results, parts, files)


def run_cells(
    run: Run,
    cells: Mapping[str, Cell],
    clean: dict[str, np.ndarray],
    *,
    batch_size: int | Literal["auto"],
    distance_images: int | None = None,
) -> Files:
    """Run each attack, or take from the run's folder what was run before.

    Args:
        run: the command under way.
        cells: the attacks by name.
        clean: the images as they are, as `clean_arrays` returns them.
        batch_size: images in one call, over all devices; "auto" takes what suits them.
        distance_images: on how many images, from the first, to measure distances; None for all.

    Returns:
        The arrays by file: `CLEAN`, and of each cell "image", "before_clamp", "success",
        "prediction", "radius", "budget", "steps", "plan_cost", "converged" and, of unbalanced
        attacks, "moved", "unmatched" and "residual"; its distances and "mass_change"; "seconds",
        the attack's, and "measuring".
    """
    files: Files = {CLEAN: clean}
    for number, (name, cell) in enumerate(cells.items()):
        path = run.folder.path / f"{file_name(name)}.npz"
        count = len(cell.pairs.get("target", clean["label"]))
        arrays = _stored(path, count, cell)
        if arrays is None:
            title = f"{number + 1}/{len(cells)} {name}" if len(cells) > 1 else "attack"
            arrays = _run(
                run, name, cell, clean, batch_size, min(distance_images or count, count), title
            )
            save_arrays(path, **arrays)
        files[file_name(name)] = arrays
    return files


def _stored(path: Any, images: int, cell: Cell) -> dict[str, np.ndarray] | None:
    """What was kept of a cell; None where there is nothing usable."""
    try:
        arrays = load_arrays(path)
    except InputError:
        return None
    needed = {"success", "image", "converged", "mass_change", *cell.rulers}
    return arrays if needed <= arrays.keys() and len(arrays["success"]) == images else None


def _run(
    run: Run,
    name: str,
    cell: Cell,
    clean: dict[str, np.ndarray],
    batch_size: int | Literal["auto"],
    measured: int,
    title: str,
) -> dict[str, np.ndarray]:
    subject = run.subjects[cell.model]
    if cell.pairs:
        subject = subject._replace(x=cell.pairs["clean"], y=cell.pairs["label"])
    result, seconds = run_attack(
        subject, cell.build(), cell.steps, batch_size=batch_size, seed=run.settings["seed"],
        folder=run.folder, name=name, title=title, labels=cell.pairs.get("target"),
    )  # fmt: skip
    started = time.perf_counter()
    evidence = result.evidence
    arrays = {
        **cell.pairs,
        "image": result.image,
        "before_clamp": getattr(evidence, "point", result.image),
        "success": result.success,
        "prediction": predictions(subject.classifier, result.image),
        "radius": result.radius,
        "budget": result.budget,
        "steps": result.steps,
        "plan_cost": result.distance,
        "converged": getattr(evidence, "converged", np.ones(len(result.image), bool)),
        **{name: getattr(evidence, name) for name in _MASS if hasattr(evidence, "moved")},
    }
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    part = part_of(name, cell, {})
    images = "exact distances" if title == "attack" else f"{title}: distances"
    found = measure(part, {CLEAN: clean, file_name(name): arrays}, measured, images)
    arrays |= {key.partition("/")[2]: values for key, values in found.items()}
    return {
        **arrays,
        "seconds": np.float64(seconds),
        "measuring": np.float64(time.perf_counter() - started),
    }


def part_of(name: str, cell: Cell, figures: Mapping[str, Figure]) -> Part:
    """What is claimed of a cell: its figures, its distances, and what holds of its images."""
    file = file_name(name)

    def at(*arrays: str) -> tuple[str, ...]:
        return tuple(f"{file}/{array}" for array in arrays)

    clean, label = (f"{CLEAN}/image", f"{CLEAN}/label") if not cell.pairs else at("clean", "label")
    aim = ("answered", label) if not cell.pairs else ("reached", *at("target"))
    relation = "≠ label" if not cell.pairs else "= target"
    holds = {
        "image in [0, 1]": figure("in_unit_interval", *at("image")),
        "image = clamped before_clamp": figure("clamped", *at("before_clamp", "image")),
        f"success where prediction {relation}": figure(
            aim[0], *at("success", "prediction"), aim[1]
        ),
        "radius = budget of a success": figure("kept", *at("radius", "budget", "success")),
        "no budget, no change": figure("unchanged", clean, *at("image", "budget")),
    }
    if cell.largest is not None:
        words = "budget ≤ the attack's largest radius"
        holds[words] = figure("bounded", *at("budget"), largest=cell.largest)
    if cell.first_success and not cell.pairs:
        # An image that needs no attack keeps radius 0. Other rules may prefer a later iterate.
        words = "without a budget where it was wrong as it is"
        answer = f"{CLEAN}/{answer_name(cell.model)}"
        holds[words] = figure("nominal", answer, label, *at("success", "budget"))
    distances = {
        f"{file}/{ruler}": Distance(clean, f"{file}/{how.image}", how.ground, how.window)
        for ruler, how in cell.rulers.items()
    }
    return Part(name, figures, distances, {f"{file}/mass_change": (clean, f"{file}/image")}, holds)


def figures_of(name: str, cell: Cell, files: Files) -> dict[str, Figure]:
    """The figures that every cell has, as entries of the results' `cells`.

    The accuracy left; summaries of distances and of what became of the mass; medians over the
    images fooled; of an attack in a ball the radius claimed and the share of images inside it.
    """
    place, file = f"cells/{name}", file_name(name)
    over = {"where": fooled(name)}
    names = ("distance", "mass_change", "moved", "unmatched", "plan_cost", "residual")
    found = {
        "accuracy": figure("left", f"{file}/success"),
        "interval": figure("left_interval", f"{file}/success"),
        CONVERGED: figure("mean", f"{file}/converged"),
        **{array: figure("summary", f"{file}/{array}") for array in names if array in files[file]},
        **{f"median_{array}": figure("median", f"{file}/{array}", **over) for array in cell.rulers},
        "median_mass_change": figure("median", f"{file}/mass_change", **over),
    }
    if cell.largest is not None:
        ruler = "window" if "window" in cell.rulers else "distance"
        found["claimed"] = figure("median", f"{file}/budget", **over)
        found["inside"] = figure("inside", f"{file}/{ruler}", f"{file}/budget")
    return {f"{place}/{key}": value for key, value in found.items()}


def fooled(name: str) -> tuple[tuple[str, str, float], ...]:
    """The condition that an image of a cell was fooled by the attack, and not wrong as it is."""
    file = file_name(name)
    return ((f"{file}/success", "=", 1), (f"{file}/budget", ">", 0))


def run_attack(
    subject: Subject,
    attack: FirstOrderAttack,
    steps: int,
    *,
    batch_size: int | Literal["auto"],
    seed: int,
    folder: RunFolder | None = None,
    name: str = "",
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
        folder: where to keep checkpoints, of `name`; None for none.
        name: what the checkpoint is of.
        title: what stands before the bar.
        labels: the wanted labels of a targeted attack; by default the images' own.

    Returns:
        The result and the seconds it took, those before an interruption included.
    """
    x, y = subject.x, subject.y if labels is None else labels
    logits_fn = logits_of(subject.classifier)
    resume, before = None, 0.0
    if folder is not None:
        like = parallel.progress_like(attack, logits_fn, x, y)
        resume, before = load_checkpoint(folder, name, like) or (None, 0.0)
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
                save_checkpoint(folder, name, latest, before + time.perf_counter() - started)

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
