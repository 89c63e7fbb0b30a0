"""Rotate and translate test images: a classifier's accuracy, and how far the images have moved.

python -m experiments.unbalanced.natural_perturbations

The experiment is that of tables V and VI of the unbalanced Sinkhorn attack's paper, which does not
say how an angle or a shift is chosen. The accuracies that it reports on MNIST are those of random
sizes *up to* the ones given, drawn as torchvision does, and so these are the default.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.evaluation import session
from experiments.evaluation.cells import Files
from experiments.evaluation.subjects import predictions
from experiments.harness.arguments import check_count, run_command
from experiments.harness.catalogue.attacks import GridSize, in_unit_square
from experiments.harness.files import file_name, load_arrays, save_arrays
from experiments.harness.pictures import COLOURS, draw_image, legend_below, new_figure, save_figure
from experiments.harness.progress import progress_bar
from experiments.harness.tables import Table, heading, number, percent, share
from wasserstein_adv.attacks.unbalanced import PAPER
from wasserstein_adv.data.perturbations import (
    Amount,
    Perturbation,
    perturb,
    procrustes_dissimilarity,
    random_draws,
)
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Distance, Ground, Part, distances, figure, mass_change

_WINDOW = 5  # pixels, of the local distance
_SHOWN = 5  # images in the picture
_WRONG = COLOURS[1]


@dataclass(frozen=True)
class NaturalPerturbationsConfig(session.ImagesOptions):
    """Measure a classifier's accuracy on rotated and translated images, and how far they moved.

    Images are interpolated bilinearly, keep their size and are filled up with zeros. The Procrustes
    dissimilarity takes an image's rows as points. Wasserstein distances are exact: global ones have
    the cost |Δrow| + |Δcol| in the unit square, local ones the Euclidean cost in pixels inside a
    5×5 window, over the images that have a plan there: their share is reported too.
    """

    checkpoint: Path | None = None
    """Weights of the model: a published PyTorch file (.pth) or the folder of a training. By default
    a standard model of the dataset, trained on the first run and cached."""

    num_images: int = 1000
    """How many test images to classify, from the first."""

    rotations: tuple[float, ...] = (10.0, 20.0, 30.0)
    """Rotations, in degrees; without a number, none."""

    translations: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    """Translations, in percent of the image's side; without a number, none."""

    amount: Amount = "up-to"
    """up-to: every image has its own angle, uniform up to the rotation either way, and its own
    shift along each axis, uniform up to the translation either way, in whole pixels. exact: every
    image is turned by just the rotation, either way, and shifted by just the translation, in one of
    the four directions."""

    distance_images: int = 200
    """On how many of the images, from the first, to measure exact distances; on all of them if
    there are fewer."""


def main(config: NaturalPerturbationsConfig) -> None:
    """Perturb, classify, measure, and write what was found, arrays and a picture.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    _check(config)
    settings = {
        "rotations": config.rotations,
        "translations": config.translations,
        "amount": config.amount,
        "distance_images": min(config.distance_images, config.num_images),
    }
    command, weights = "unbalanced.natural_perturbations", {"": config.checkpoint}
    run = session.begin_several(config, command, settings, weights)
    if run is None:
        return
    todo = [Perturbation("rotation", size) for size in config.rotations]
    todo += [Perturbation("translation", size) for size in config.translations]
    parts = {perturbation: part_of(perturbation, run.subject.grid_size) for perturbation in todo}
    draws = random_draws(config.seed, config.num_images)
    files = {session.CLEAN: session.clean_arrays(run), **_measure_all(run, parts, draws)}
    evidence = [*parts.values(), session.images_part(session.nominal())]
    results = session.gather(run, evidence, files)
    results["seconds"] = round(sum(part["seconds"] for part in results["cells"].values()), 3)
    _plot(run, todo, draws, files, results)
    session.end(run, results, [results_table(results)], evidence)


def _check(config: NaturalPerturbationsConfig) -> None:
    """Refuse options out of range, naming them."""
    for option in ("num_images", "distance_images"):
        check_count(option, getattr(config, option))
    for option, highest in (("rotations", 180.0), ("translations", 99.0)):
        sizes = getattr(config, option)
        for size in sizes:
            if not 0 < size <= highest:  # NaN fails too
                raise InputError(f"--{option} must be above 0, at most {highest:g}, got {size}")
        if len({f"{size:g}" for size in sizes}) < len(sizes):
            raise InputError(f"--{option} must all be different")
    if not (config.rotations or config.translations):
        raise InputError("--rotations and --translations must name one perturbation at least")


def part_of(perturbation: Perturbation, grid_size: GridSize) -> Part:
    """What is claimed of a perturbation, and how its images are measured."""
    place, file = f"cells/{perturbation.name}", file_name(perturbation.name)
    pair = (f"{file}/clean", f"{file}/image")
    answers = (f"{file}/prediction", f"{session.CLEAN}/label")
    figures = {
        "accuracy": figure("accuracy", *answers),
        "interval": figure("accuracy_interval", *answers),
        "procrustes": figure("summary", f"{file}/procrustes"),
        "global": figure("summary", f"{file}/anywhere"),
        "local": figure("summary", f"{file}/window"),
        "stranded": figure("mean", f"{file}/stranded"),
        "mass_change": figure("summary", f"{file}/mass_change"),
    }
    return Part(
        perturbation.name,
        {f"{place}/{name}": found for name, found in figures.items()},
        {
            f"{file}/anywhere": Distance(*pair, in_unit_square(PAPER, grid_size)),
            f"{file}/window": Distance(*pair, Ground("euclidean"), _WINDOW),
        },
        {f"{file}/mass_change": pair},
        {"image in [0, 1]": figure("in_unit_interval", pair[1])},
    )


def _measure_all(
    run: session.Run, parts: Mapping[Perturbation, Part], draws: Float[np.ndarray, "n 3"]
) -> Files:
    """Measure each perturbation, or take from the folder what was measured before."""
    found: Files = {}
    each = 2 * run.settings["distance_images"]
    with progress_bar() as bar:
        task = bar.add_task("perturbations", total=each * len(parts), measured="")
        for done, (perturbation, part) in enumerate(parts.items()):
            bar.update(task, completed=done * each, measured=perturbation.name)
            file = file_name(perturbation.name)
            path = run.folder.path / f"{file}.npz"
            try:
                found[file] = load_arrays(path)
            except InputError:  # not there, or cut off
                found[file] = _measure(perturbation, part, run, draws, lambda: bar.advance(task))
                save_arrays(path, **found[file])
        bar.update(task, completed=each * len(parts), measured="")
    return found


def _measure(
    perturbation: Perturbation,
    part: Part,
    run: session.Run,
    draws: Float[np.ndarray, "n 3"],
    advance: Callable[[], object],
) -> dict[str, np.ndarray]:
    """The answers and dissimilarities of all images; of the first, images and distances."""
    started, x = time.perf_counter(), run.subject.x
    count = run.settings["distance_images"]
    moved = perturb(perturbation, run.settings["amount"], x, draws)
    clean, image = x[:count], moved[:count]
    anywhere, window = (distances(clean, image, d, advance) for d in part.distances.values())
    mass = clean.sum((1, 2))
    return {
        "prediction": predictions(run.subject.classifier, moved),
        "procrustes": procrustes_dissimilarity(x, moved),
        "clean": clean,
        "image": image,
        "anywhere": anywhere.total,
        "window": window.total,
        # The channels' shares, weighted by their mass; a blank image strands nothing.
        "stranded": (window.stranded * mass).sum(-1)
        / np.maximum(mass.sum(-1), np.finfo(mass.dtype).tiny),
        "mass_change": mass_change(clean, image),
        "seconds": np.float64(time.perf_counter() - started),
    }


_COLUMNS = ("accuracy % (95 %)", "d", "global W", "local W", "stranded")
_SHORT = "d: Procrustes; local W: in pixels, over the images with a plan (their share)"
_NOTES = (
    "In brackets: the 95 % interval. d: Procrustes dissimilarity, the image's rows as points. "
    "Global W: cost |Δrow| + |Δcol| in the unit square. Local W: Euclidean, in pixels, inside "
    f"{_WINDOW}×{_WINDOW}, over the images that have a plan there (their share). Stranded: "
    "share of the mass that no plan inside the window can carry. All are means."
)


def titled(name: str) -> tuple[str, str]:
    """A perturbation's kind, and its size with the unit: ("rotation", "10°")."""
    kind, size = name.split(" ")
    return kind, size + ("°" if kind == "rotation" else " %")


def results_table(results: Mapping[str, Any]) -> Table:
    """A row for the clean images and for each perturbation."""
    settings = results["settings"]
    count = settings["distance_images"]

    def planned(part: Mapping[str, Any]) -> float:
        return 1.0 - part["left_out"] / count

    rows = [("nothing", share(results, "nominal_accuracy", "nominal_interval", 2), "", "", "", "")]
    for name, part in results["cells"].items():
        anywhere, local = part["global"], part["local"]
        blank = f" ({percent(planned(anywhere))})" if anywhere["left_out"] else ""
        rows.append(
            (
                " ".join(titled(name)),
                share(part, digits=2),
                number(part["procrustes"]["mean"], ".3f"),
                number(anywhere["mean"], ".3f") + blank,
                f"{number(local['mean'], '.3f')} ({percent(planned(local), 0)})",
                percent(part["stranded"]),
            )
        )
    notes = _NOTES
    if undefined := sum(part["procrustes"]["left_out"] for part in results["cells"].values()):
        notes += f" d is undefined, and left out, {undefined} times: all rows alike."
    by = "moved by up to" if settings["amount"] == "up-to" else "moved by"
    title = f"{heading(results)}, distances of {count:,}"
    return Table(title, (by, *_COLUMNS), rows, notes, _SHORT)


def _plot(
    run: session.Run,
    todo: list[Perturbation],
    draws: Float[np.ndarray, "n 3"],
    files: Files,
    results: Mapping[str, Any],
) -> None:
    """Draw images of different classes, a perturbation to a column, those mistaken framed."""
    x, y, amount = run.subject.x, run.subject.y, run.settings["amount"]
    shown = np.sort(np.unique(y, return_index=True)[1])[:_SHOWN]
    nothing = f"clean\n\n{percent(results['nominal_accuracy'])}\nW = 0"
    columns = [(nothing, x[shown], files[session.CLEAN])]
    for perturbation in todo:
        part = results["cells"][perturbation.name]
        kind, size = titled(perturbation.name)
        size = f"≤ {size}" if amount == "up-to" else size
        distance = number(part["global"]["mean"], ".3f")
        title = f"{kind}\n{size}\n{percent(part['accuracy'])}\nW = {distance}"
        images = perturb(perturbation, amount, x[shown], draws[shown])
        columns.append((title, images, files[file_name(perturbation.name)]))
    picture = new_figure(0.2 + 1.05 * len(columns), 1.2 + 1.05 * len(shown))
    grid = picture.subplots(len(shown), len(columns), squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        title, images, arrays = columns[column]
        answer = arrays["prediction"][shown[row]]
        wrong = answer != y[shown[row]]
        draw_image(axes, images[row], _WRONG if wrong else None, 2.0)
        if row == 0:
            axes.set_title(title, fontsize=8.5, linespacing=1.35)
        if wrong:
            right, top = _emptiest_corner(images[row])
            axes.text(
                0.94 if right else 0.06, 0.93 if top else 0.07, str(answer), color=_WRONG,
                fontsize=10, fontweight="bold", ha="right" if right else "left",
                va="top" if top else "bottom", transform=axes.transAxes,
            )  # fmt: skip
    legend = (
        "Accuracy, and mean exact Wasserstein distance W to the clean image, cost |Δrow| + |Δcol| "
        "in the unit square. Orange: mistaken, with the network's answer."
    )
    legend_below(picture, legend)
    save_figure(picture, run.folder.path / "perturbations.png")


def _emptiest_corner(image: Float[np.ndarray, "h w c"]) -> tuple[bool, bool]:
    """Whether the corner with the least light, a third of each side, is right, and is top."""
    height, width = image.shape[0] // 3, image.shape[1] // 3
    light = {
        (right, top): (part[:, -width:] if right else part[:, :width]).sum()
        for top, part in ((True, image[:height]), (False, image[-height:]))
        for right in (True, False)
    }
    return min(light, key=light.__getitem__)


if __name__ == "__main__":
    sys.exit(run_command(main, NaturalPerturbationsConfig))
