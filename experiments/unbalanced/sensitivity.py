"""What the parameters τ, η and γ of the unbalanced attack change, each by itself, in one picture.

python -m experiments.unbalanced.sensitivity
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from experiments.evaluation.cells import Cell, cell_of, sweep
from experiments.evaluation.session import begin, end
from experiments.evaluation.subjects import Subject
from experiments.harness.arguments import check_count, check_each, run_command
from experiments.harness.catalogue.attacks import ATTACKS
from experiments.harness.files import file_name
from experiments.harness.pictures import draw_image, legend_below, new_figure, save_figure
from experiments.harness.tables import Table, change, heading, number, percent, share
from experiments.unbalanced.sweep import SweepOptions, check_protocol, paper_ruler, short_distance
from wasserstein_adv.attacks.unbalanced import PAPER, UnbalancedProtocol
from wasserstein_adv.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOLERANCE = 1e-3  # of `unbalanced_neighbourhood`: the residual at which a projection stops
_LETTERS = {"tau": "τ", "eta": "η", "gamma": "γ"}
_FRAME = "red"


@dataclass(frozen=True)
class SensitivityConfig(SweepOptions):
    """Attack the same images by unbalanced transport, one of τ, η and γ at a time changed.

    The others are those of the paper: τ = 0.01, η = 0.001, γ = 0.5. Every image gets all steps.
    Distances are exact, to anywhere, at the cost |Δrow| + |Δcol| in the unit square, both images
    scaled to mass 1.
    """

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


def main(config: SensitivityConfig) -> None:
    """Attack, measure, and write what was found, the images and `sensitivity.png`.

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
        "distance_images": config.measured,
    }
    run = begin(config, "unbalanced.sensitivity", settings)
    if run is None:
        return
    cells = {
        name(parameter, value): _cell(parameter, value, protocol, run.subject)
        for parameter, values in lines(config).items()
        for value in values
    }
    found = sweep(run, cells, config)
    clean = run.subject.x[config.image]
    images = {key: found.files[file_name(key)]["image"][config.image] for key in cells}
    _plot(run.folder.path / "sensitivity.png", lines(config), clean, images, found.results)
    end(run, found.results, [results_table(found.results)], found.parts)


def _check(config: SensitivityConfig) -> UnbalancedProtocol:
    """The paper's settings with the options' variant and step size, all options checked."""
    check_count("distance_images", config.distance_images)
    if not 0 <= config.image < config.num_images:
        raise InputError(
            f"--image must be from 0 to --num-images - 1 = {config.num_images - 1}, "
            f"got {config.image}"
        )
    if not lines(config):
        raise InputError("--taus, --etas or --gammas must name at least one value")
    for parameter, values in lines(config).items():
        check_each(f"{parameter}s", values)
    protocol = PAPER._replace(variant=config.variant, step_size=config.step_size)
    check_protocol(protocol, config.data)
    return protocol


def lines(config: SensitivityConfig) -> dict[str, tuple[float, ...]]:
    """The picture's rows: the parameters of which there are values, and these."""
    values = {"tau": config.taus, "eta": config.etas, "gamma": config.gammas}
    return {parameter: line for parameter, line in values.items() if line}


def name(parameter: str, value: float) -> str:
    """What the arrays are called of one parameter's value, the others being the paper's."""
    return f"{parameter} {value:g}"


def _cell(parameter: str, value: float, protocol: UnbalancedProtocol, subject: Subject) -> Cell:
    protocol = protocol._replace(**{parameter: value})
    ruler = paper_ruler(subject.grid_size)
    return cell_of(ATTACKS["unbalanced"], protocol, subject, ruler, keep="last")


_COLUMNS = ("", "accuracy % (95 %)", "mass ±", "moved", "remade", "W", "residual")


def results_table(results: Mapping[str, Any]) -> Table:
    """A row for the clean images and each setting."""
    parts, convergence = results["cells"], _convergence(results)
    clean = ("clean", share(results, "nominal_accuracy", "nominal_interval"), "", "", "", "", "")
    rows = [
        (
            _title(key),
            share(part),
            change(part["mass_change"]["mean"]),
            percent(part["moved"]["mean"], 2),
            percent(part["unmatched"]["mean"]),
            number(part["distance"]["mean"], ".4f"),
            # Of all images: infinite if one of them is not a number.
            "inf" if part["residual"]["left_out"] else number(part["residual"]["max"], ".1g"),
        )
        for key, part in parts.items()
    ]
    notes = (
        "One parameter changed, the others the paper's (τ = 0.01, η = 0.001, γ = 0.5). In "
        "brackets: the 95 % interval. Moved: share of the plan's mass that leaves its pixel; "
        "remade: mass deleted and created, as a share of the clean image's; W: exact distance of "
        f"the first {results['settings']['distance_images']:,} images, both masses normalised; "
        "means. Residual: by how much the last projection misses its optimum, the largest of all "
        f"images. {convergence}"
    )
    if without := max(part["distance"]["left_out"] for part in parts.values()):
        notes += f" W leaves out images that went blank, {without} at most."
    short = (
        "remade: mass deleted and created; W: exact distance, masses normalised; "
        f"residual: largest of the last projections. {convergence}"
    )
    return Table(_heading(results), _COLUMNS, [clean, *rows], notes, short)


def _heading(results: Mapping[str, Any]) -> str:
    protocol = results["settings"]["protocol"]
    return f"{heading(results)}, {protocol['variant']}, α = {protocol['step_size']:g}"


def _title(key: str) -> str:
    """`τ = 0.1` of "tau 0.1"."""
    parameter, value = key.split(" ")
    return f"{_LETTERS[parameter]} = {value}"


def _convergence(results: Mapping[str, Any]) -> str:
    """One sentence on whether the last projections of all images converged."""
    iterations = results["settings"]["protocol"]["iterations"]
    within = f"within the tolerance of {_TOLERANCE:g} after {iterations} iterations"
    residuals = {_title(key): part["residual"] for key, part in results["cells"].items()}
    short = [title for title, r in residuals.items() if r["left_out"] or r["max"] > _TOLERANCE]
    if not short:
        return f"All projections are {within}."
    where = "every setting" if len(short) == len(residuals) else ", ".join(short)
    return f"Some projections are not {within} at {where}."


def _plot(
    path: Path,
    rows: Mapping[str, tuple[float, ...]],
    clean: Float[np.ndarray, "h w c"],
    images: Mapping[str, Float[np.ndarray, "h w c"]],
    results: Mapping[str, Any],
) -> None:
    """Draw one image at all settings, a parameter to a row, the clean one first in the first."""
    columns = max(len(values) + (not row) for row, values in enumerate(rows.values()))
    picture = new_figure(0.2 + 1.75 * columns, 0.8 + 2.1 * len(rows))
    picture.get_layout_engine().set(hspace=0.05)
    grid = picture.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    _draw(grid[0, 0], clean, "clean", results["nominal_accuracy"], 0.0, _FRAME)
    for row, (parameter, values) in enumerate(rows.items()):
        for axes, value in zip(grid[row, row == 0 :], values, strict=False):
            key = name(parameter, value)
            part = results["cells"][key]
            _draw(axes, images[key], _title(key), part["accuracy"], part["distance"]["mean"])
    dataset, settings = results["dataset"], results["settings"]
    protocol = settings["protocol"]
    legend = (
        f"acc: accuracy left of {dataset['num_images']:,} test images of {dataset['name']}; "
        f"W: mean exact Wasserstein distance of {settings['distance_images']:,}. "
        f"{protocol['variant'].capitalize()} projections, {protocol['steps']} sign steps of "
        f"{protocol['step_size']:g}; where nothing else is said, τ = {protocol['tau']:g}, "
        f"η = {protocol['eta']:g}, γ = {protocol['gamma']:g}. {_convergence(results)}"
    )
    legend_below(picture, legend)
    save_figure(picture, path)


def _draw(
    axes: "Axes",
    image: Float[np.ndarray, "h w c"],
    title: str,
    accuracy: float,
    distance: float | None,
    frame: str | None = None,
) -> None:
    axes.set_axis_on()
    draw_image(axes, image, frame)
    axes.set_title(title, fontsize=10, color=frame or "black", pad=4)
    measured = "" if distance is None else f", W {short_distance(distance)}"
    axes.set_xlabel(f"acc {100 * accuracy:.1f} %{measured}", fontsize=8.5, labelpad=4)


if __name__ == "__main__":
    sys.exit(run_command(main, SensitivityConfig))
