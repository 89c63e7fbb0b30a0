"""From which settings on the unbalanced attack moves mass, instead of deleting and creating it.

python -m experiments.unbalanced.onset
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evaluation.cells import cell_of, sweep
from experiments.evaluation.session import begin, end
from experiments.harness.arguments import check_count, check_each, check_positive, run_command
from experiments.harness.catalogue.attacks import ATTACKS
from experiments.harness.pictures import new_figure, save_figure
from experiments.harness.tables import Table, change, number, percent
from experiments.unbalanced.sweep import SweepOptions, paper_ruler
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT

_ITERATIONS = 300


@dataclass(frozen=True)
class OnsetConfig(SweepOptions):
    """Attack the same images at several prices of mass (τ) and units of cost (scale).

    Moving mass by a pixel costs scale/27 on a 28×28 image, deleting and creating it about 2τ: the
    plan moves what is cheaper moved. The other settings are the paper's, but for up to 300
    iterations a projection; the largest residual is in the table. Distances are exact, at the cost
    |Δrow| + |Δcol| in the unit square.
    """

    taus: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Prices τ of mass that appears or disappears."""

    scales: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1)
    """Lengths of the image's side in units of cost."""

    step_size: float = TRANSPORT.step_size
    """Length of the sign step."""


def main(config: OnsetConfig) -> None:
    """Attack, measure, and write what was found, the images and `onset.png`.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    check_count("distance_images", config.distance_images)
    check_each("taus", config.taus)
    check_each("scales", config.scales)
    check_positive("step_size", config.step_size)
    paper = PAPER._replace(iterations=_ITERATIONS)
    settings = {
        "taus": config.taus,
        "scales": config.scales,
        "step_size": config.step_size,
        "paper": paper._asdict(),
        "distance_images": config.measured,
    }
    run = begin(config, "unbalanced.onset", settings)
    if run is None:
        return
    ruler = paper_ruler(run.subject.grid_size)
    cells, about = {}, {}
    for tau, scale in product(config.taus, config.scales):
        name = f"tau={tau:g} scale={scale:g}"
        protocol = paper._replace(tau=tau, scale=scale, step_size=config.step_size)
        cells[name] = cell_of(ATTACKS["unbalanced"], protocol, run.subject, ruler, keep="last")
        about[name] = {"tau": f"{tau:g}", "scale": f"{scale:g}"}
    found = sweep(run, cells, config, about=about)
    _plot(run.folder.path / "onset.png", found.results)
    end(run, found.results, [results_table(found.results)], found.parts)


_COLUMNS = ("τ", "scale", "moved", "remade", "accuracy %", "W", "mass ±", "residual")
_NOTES = "remade: mass deleted and created; W: exact distance, masses normalised"


def results_table(results: Mapping[str, Any]) -> Table:
    """A row for each τ and scale."""
    rows = [
        (
            part["tau"],
            part["scale"],
            percent(part["moved"]["mean"], 2),
            percent(part["unmatched"]["mean"]),
            percent(part["accuracy"], sign=""),
            number(part["distance"]["mean"], ".4f"),
            change(part["mass_change"]["mean"]),
            number(part["residual"]["max"], ".0e"),
        )
        for part in results["cells"].values()
    ]
    return Table(_title(results), _COLUMNS, rows, _NOTES)


def _title(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    return (
        f"{dataset['name']}: {dataset['num_images']:,} images, "
        f"sign steps of {results['settings']['step_size']:g}"
    )


def _plot(path: Path, results: Mapping[str, Any]) -> None:
    """Draw four maps over τ and the scale, with the numbers in them."""
    taus, scales = results["settings"]["taus"], results["settings"]["scales"]
    parts = results["cells"].values()

    def map_of(values: list[float | None], unit: float = 100.0) -> np.ndarray:
        return unit * np.array(values, np.float64).reshape(len(taus), len(scales))

    panels = (
        ("mass moved (% of the plan)", map_of([p["moved"]["mean"] for p in parts]), "{:.1f}"),
        ("mass deleted and created (%)", map_of([p["unmatched"]["mean"] for p in parts]), "{:.0f}"),
        ("accuracy left (%)", map_of([p["accuracy"] for p in parts]), "{:.0f}"),
        ("exact distance W", map_of([p["distance"]["mean"] for p in parts], 1.0), "{:.3f}"),
    )
    picture = new_figure(1.6 + 1.5 * len(scales), 2.0 + 1.1 * len(taus))
    picture.suptitle(_title(results), x=0.02, ha="left", fontsize=11)
    for axes, (title, values, form) in zip(
        picture.subplots(2, 2, sharex=True, sharey=True).flat, panels, strict=True
    ):
        shown = axes.imshow(values, cmap="cividis", aspect="auto", vmin=0)
        middle = shown.norm.vmax / 2
        for (i, j), value in np.ndenumerate(values):
            colour = "black" if value > middle else "white"
            axes.text(j, i, form.format(value), ha="center", va="center", color=colour, fontsize=8)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xticks(range(len(scales)), [f"{s:g}" for s in scales])
        axes.set_yticks(range(len(taus)), [f"{t:g}" for t in taus])
        axes.tick_params(length=0, labelsize=8)
    picture.supxlabel("image side in units of cost", fontsize=9)
    picture.supylabel("τ, price of mass", fontsize=9)
    save_figure(picture, path)


if __name__ == "__main__":
    sys.exit(run_command(main, OnsetConfig))
