"""Every attack on the same images of the same model, by one independent ruler.

python -m experiments.compare
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from experiments.evaluation import session
from experiments.evaluation.cells import Cell, Files, Ruler, cell_of, sweep
from experiments.evaluation.subjects import Subject
from experiments.harness.arguments import check_each, run_command
from experiments.harness.catalogue.attacks import ATTACKS, attacks_named
from experiments.harness.files import file_name
from experiments.harness.pictures import draw_accuracy, new_figure, plain_axes, save_figure
from experiments.harness.tables import Table, change, heading, number, percent
from wasserstein_adv.data import describe
from wasserstein_adv.evidence import Figure, Ground, figure, lookup
from wasserstein_adv.evidence.figures import least_distance

_AT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SHOWN = (0.003, 10.0)
_RULERS = {"distance": "|Δrow| + |Δcol|", "euclidean": "Euclidean"}
_LETTERS = {"radius": "ε", "step_size": "α"}


@dataclass(frozen=True)
class CompareConfig(session.ModelOptions):
    """Attack the same images in every way there is, and measure what came of it exactly.

    Every attack has its paper's settings, and stops at an image's first misclassification. Those
    within one ball, dual projection and Frank-Wolfe, are run at several radii, and unbalanced
    transport with several steps; an image then counts with the least distance at which it was
    fooled. Distances are those of what the attacks produced, whatever they claim: by a network
    simplex, to anywhere, both images scaled to mass 1, in pixels.
    """

    num_images: int = 100
    """How many test images to attack, from the first."""

    attacks: tuple[str, ...] = tuple(ATTACKS)
    """The attacks, by the names that attack_mnist has for them."""

    radii: tuple[float, ...] = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5)
    """Radii of those within one ball; 0.5 is Wu's."""

    step_sizes: tuple[float, ...] = (0.02, 0.05)
    """Lengths of unbalanced transport's sign steps; 0.02 is its paper's."""


class Entry(NamedTuple):
    """One run of one attack."""

    group: str
    """The attack, as the figure calls it."""
    attack: str
    settings: Any
    setting: str
    """What the entries of a group differ in."""

    @property
    def name(self) -> str:
        """Of the run's arrays."""
        return f"{self.group} {self.setting}".strip()


def entries(config: CompareConfig) -> list[Entry]:
    """The runs of a comparison, in the order of the table."""
    values = {
        "radius": config.radii,
        "step_size": config.step_sizes,
        "variant": ("published", "exact"),
    }
    found = []
    colour = describe(config.data).colour
    for name, attack in attacks_named(config.attacks).items():
        usual = attack.settings("paper", colour=colour)
        for chosen in product(*(values[field] for field in attack.varied)):
            changes = dict(zip(attack.varied, chosen, strict=True))
            group = ", ".join([name, *(v for v in chosen if isinstance(v, str))])
            letters = [f"{_LETTERS[f]} = {v:g}" for f, v in changes.items() if f in _LETTERS]
            found.append(Entry(group, name, usual._replace(**changes), ", ".join(letters)))
    return found


def main(config: CompareConfig) -> None:
    """Attack, measure, and write what was found, the images and `compare.png`.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    check_each("radii", config.radii)
    check_each("step_sizes", config.step_sizes)
    runs = entries(config)
    settings = {
        "runs": [{"name": e.name, "attack": e.attack, **e.settings._asdict()} for e in runs]
    }
    run = session.begin(config, "compare", settings)
    if run is None:
        return
    cells = {entry.name: cell_for(entry, run.subject) for entry in runs}
    found = sweep(run, cells, config, {**session.nominal(), **curves(runs)})
    _plot(run.folder.path / "compare.png", found.results, runs, found.files)
    session.end(run, found.results, tables(found.results, runs), found.parts)


def cell_for(entry: Entry, subject: Subject) -> Cell:
    """How a run attacks a subject, and how its images are measured."""
    attack = ATTACKS[entry.attack]
    rulers = {"distance": Ruler(Ground()), "euclidean": Ruler(Ground("euclidean"))}
    if window := attack.window(entry.settings):
        ground = attack.ground(entry.settings, subject.grid_size)
        rulers["window"] = Ruler(ground, window)
    return cell_of(attack, entry.settings, subject, rulers)


def curves(runs: list[Entry]) -> dict[str, Figure]:
    """By ruler and attack, the accuracy that is left at distances."""
    return {
        f"accuracy_at_distance/{ruler}/{group}": figure(
            "at_distances", *of(runs, group, ruler), at=_AT
        )
        for ruler in _RULERS
        for group in groups(runs)
    }


def groups(runs: list[Entry]) -> list[str]:
    """The attacks, as the figure calls them."""
    return list(dict.fromkeys(entry.group for entry in runs))


def of(runs: list[Entry], group: str, ruler: str) -> list[str]:
    """The arrays of a group's runs that say at which distance they fooled an image."""
    chosen = [file_name(entry.name) for entry in runs if entry.group == group]
    return [f"{file}/{array}" for file in chosen for array in (ruler, "success", "budget")]


_COLUMNS = ("attack", "", "left %", "claim", "W ¹", "W ²", "W ³", "mass %", "inside %", "s/image")
_NOTE = (
    "Medians over the images fooled. claim: radius ε; W: exact distance, at ¹ |Δrow| + |Δcol|, "
    "² Euclidean, ³ the attack's cost inside its window; inside: share of images that lie within "
    "the radius they claim, by ³, or ¹ where there is no window."
)


def tables(results: Mapping[str, Any], runs: list[Entry]) -> list[Table]:
    """A row for each run, and the accuracy left at given distances by either ruler."""
    count = results["dataset"]["num_images"]
    rows = [
        (
            entry.group,
            entry.setting,
            percent(part["accuracy"], sign=""),
            number(part.get("claimed"), ".3f"),
            *(number(part.get(f"median_{name}"), ".3f") for name in (*_RULERS, "window")),
            change(part["median_mass_change"], ""),
            percent(part.get("inside"), sign=""),
            f"{part['seconds'] / count:.3f}",
        )
        for entry, part in zip(runs, results["cells"].values(), strict=True)
    ]
    title = f"{heading(results)}, {percent(results['nominal_accuracy'])} nominal"
    found = [Table(title, _COLUMNS, rows, _NOTE, grouped=True)]
    for ruler, name in _RULERS.items():
        header = (f"accuracy left at W, {name}", *(f"{r:g}" for r in _AT))
        curves = results["accuracy_at_distance"][ruler]
        rows = [(group, *map(percent, curve.values())) for group, curve in curves.items()]
        found.append(Table("", header, rows))
    return found


def _plot(path: Path, results: Mapping[str, Any], runs: list[Entry], files: Files) -> None:
    """Draw the accuracy left against the exact distance, a curve for each attack, by each ruler."""
    picture = new_figure(10.4, 4.0)
    panels = picture.subplots(1, len(_RULERS), sharey=True)
    for axes, (ruler, name) in zip(panels, _RULERS.items(), strict=True):
        for place, group in enumerate(groups(runs)):
            arrays = [lookup(files, name) for name in of(runs, group, ruler)]
            draw_accuracy(axes, least_distance(*arrays), _SHOWN, group, place, band=False)
        axes.set(xscale="log", xlim=_SHOWN, ylim=(0, 105))
        axes.set(xlabel=f"exact distance W, {name}, pixels")
        plain_axes(axes)
    panels[0].set(ylabel="accuracy left (%)")
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panels[0].set_title(heading(results), loc="left", fontsize=11)
    save_figure(picture, path)


if __name__ == "__main__":
    sys.exit(run_command(main, CompareConfig))
