"""The unbalanced attack as published, solved exactly, and where mass moves; and plain sign steps.

python -m experiments.unbalanced.table
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from experiments.evaluation.cells import Cell, cell_of, sweep
from experiments.evaluation.session import begin, end
from experiments.evaluation.subjects import Subject
from experiments.harness.arguments import check_count, check_each, check_positive, run_command
from experiments.harness.catalogue.attacks import ATTACKS
from experiments.harness.pictures import COLOURS, new_figure, plain_axes, save_figure
from experiments.harness.tables import Table, change, heading, number, percent, share
from experiments.unbalanced.sweep import SweepOptions, paper_ruler
from wasserstein_adv.attacks import constant, first_order, last, linf_ball, pgd, sign
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT

_ROWS = ("no projection", "published", "exact", "exact, transport")


@dataclass(frozen=True)
class TableConfig(SweepOptions):
    """Attack the same images four ways, at several lengths of the sign step.

    no projection: sign steps clamped to [0, 1], nothing else. published: the paper's iteration at
    its settings. exact: the problem that it states, solved, at the same settings. exact,
    transport: the preset at which mass is moved instead of deleted and created. Every image gets
    all steps. Distances are exact, to anywhere, at the cost |Δrow| + |Δcol| in the unit square,
    both images scaled to mass 1.
    """

    num_images: int = 500
    """How many test images to attack, from the first."""

    step_sizes: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05)
    """Lengths of the sign step."""

    floor: float = PAPER.floor
    """What stands for a zero pixel under the published iteration's logarithm."""

    distance_images: int = 500
    """On how many of the images, from the first, to measure exact distances."""


def main(config: TableConfig) -> None:
    """Attack, measure, and write what was found, the images and `tradeoff.png`.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    check_count("distance_images", config.distance_images)
    check_each("step_sizes", config.step_sizes)
    check_positive("floor", config.floor)
    settings = {
        "step_sizes": config.step_sizes,
        "floor": config.floor,
        "distance_images": config.measured,
        "paper": PAPER._asdict(),
        "transport": TRANSPORT._asdict(),
    }
    run = begin(config, "unbalanced.table", settings)
    if run is None:
        return
    cells, about = {}, {}
    for attack, size in product(_ROWS, config.step_sizes):
        name = f"{attack} {size:g}"
        cells[name] = _cell(attack, size, config.floor, run.subject)
        about[name] = {"attack": attack, "step_size": f"{size:g}"}
    found = sweep(run, cells, config, about=about)
    _plot(run.folder.path / "tradeoff.png", found.results)
    end(run, found.results, [results_table(found.results)], found.parts)


def _cell(attack: str, size: float, floor: float, subject: Subject) -> Cell:
    protocols = {
        "published": PAPER._replace(variant="published", floor=floor),
        "exact": PAPER,
        "exact, transport": TRANSPORT,
    }
    ruler = paper_ruler(subject.grid_size)
    if attack in protocols:
        protocol = protocols[attack]._replace(step_size=size)
        return cell_of(ATTACKS["unbalanced"], protocol, subject, ruler, keep="last")
    # A radius of 1 does not bind: images are in [0, 1].
    plain = first_order(
        linf_ball(), pgd(sign(size)), radius=constant(1.0), steps=PAPER.steps, keep=last()
    )
    return Cell(lambda: plain, PAPER.steps, ruler, first_success=False)


_COLUMNS = ("attack", "α", "accuracy % (95 %)", "mass ±", "moved", "remade", "W", "seconds")
_SHORT = "remade: mass deleted and created; W: exact distance, masses normalised"
_NOTES = (
    "moved: share of the plan's mass that leaves its pixel; remade: mass deleted and created, "
    "as a share of the clean image's; W: exact distance, both masses normalised; means."
)


def results_table(results: Mapping[str, Any]) -> Table:
    """A row for each attack and step size."""
    rows = [
        (
            part["attack"],
            part["step_size"],
            share(part),
            change(part["mass_change"]["mean"]),
            percent(part["moved"]["mean"], 2) if "moved" in part else "",
            percent(part["unmatched"]["mean"]) if "unmatched" in part else "",
            number(part["distance"]["mean"], ".4f"),
            f"{part['seconds']:.0f}",
        )
        for part in results["cells"].values()
    ]
    title = f"{heading(results)}, {percent(results['nominal_accuracy'])} nominal"
    return Table(title, _COLUMNS, rows, _NOTES, _SHORT, grouped=True)


def _plot(path: Path, results: Mapping[str, Any]) -> None:
    """Draw accuracy against the exact distance, a line for each attack, marked by step size."""
    picture = new_figure(6.4, 4.2)
    axes = picture.add_subplot()
    for colour, name in zip(COLOURS, _ROWS, strict=False):
        parts = [part for part in results["cells"].values() if part["attack"] == name]
        at = [part["distance"]["mean"] for part in parts]
        left = [100 * part["accuracy"] for part in parts]
        axes.plot(at, left, "o-", color=colour, ms=4, lw=1.4, label=name)
        for part, w, accuracy in zip(parts, at, left, strict=True):
            if accuracy >= 1.0:  # below, the labels of all attacks lie on one line
                axes.annotate(
                    part["step_size"], (w, accuracy), xytext=(5, 5), fontsize=7,
                    textcoords="offset points", color=colour,
                )  # fmt: skip
    axes.set(xlabel="exact Wasserstein distance W, mean", ylabel="accuracy left (%)")
    axes.set(ylim=(-3, 105), xlim=(0, None))
    plain_axes(axes)
    axes.legend(frameon=False, fontsize=9)
    dataset = results["dataset"]
    title = f"{dataset['name']}: {dataset['num_images']:,} images, by length α of the sign step"
    axes.set_title(title, loc="left", fontsize=11)
    save_figure(picture, path)


if __name__ == "__main__":
    sys.exit(run_command(main, TableConfig))
