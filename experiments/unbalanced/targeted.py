"""Every class of images attacked towards every other class, by unbalanced transport.

python -m experiments.unbalanced.targeted
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.evaluation import session
from experiments.evaluation.cells import Files, cell_of, part_of, run_cells
from experiments.harness.arguments import check_count, run_command
from experiments.harness.catalogue.attacks import ATTACKS
from experiments.harness.pictures import COLOURS, draw_image, legend_below, new_figure, save_figure
from experiments.harness.tables import Table, number, percent, share
from experiments.unbalanced.sweep import check_protocol, paper_ruler, short_distance
from wasserstein_adv.attacks.unbalanced import UnbalancedProtocol
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Figure, figure, work_out

_CLASSES = 10
_CLEAN, _FAILED = "red", COLOURS[4]  # frames
_PAIRS = "pairs"  # the file of the attack's arrays


@dataclass(frozen=True)
class TargetedConfig(session.ModelOptions):
    """Attack images of every class towards each of the others, by unbalanced transport.

    Of every class the first images that the classifier gets right. An attack ends at the first
    step whose image gets the wanted answer. Distances are exact, to anywhere, at the cost
    |Δrow| + |Δcol| in the unit square, both images scaled to mass 1.
    """

    num_images: int = 1000
    """Among how many test images, from the first, to look for them."""

    per_class: int = 10
    """How many images of every class to attack, each towards every other class."""

    preset: Literal["paper", "transport"] = "paper"
    """The settings of the paper, or those at which mass is moved instead of deleted and created."""

    variant: Literal["exact", "published"] = "exact"
    """The problem that the paper states, solved; or its iteration as published."""

    steps: int = 40
    """Steps at most. The paper's 10 are for untargeted attacks; these need more."""

    step_size: float | None = None
    """Length of the sign step; by default the preset's."""


class Pairs(NamedTuple):
    """What is attacked: images and where to."""

    index: Int[np.ndarray, "n"]
    """Which image."""
    label: Int[np.ndarray, "n"]
    """Its class."""
    target: Int[np.ndarray, "n"]
    """The class that it is to be taken for."""


def main(config: TargetedConfig) -> None:
    """Attack, measure, and write what was found, the images and `targeted.png`.

    Raises:
        InputError: an option is out of range; data, weights or folder cannot be used; no image
            is classified correctly.
    """
    protocol = _check(config)
    settings = {"per_class": config.per_class, "protocol": protocol._asdict()}
    run = session.begin(config, "unbalanced.targeted", settings)
    if run is None:
        return
    clean, x = session.clean_arrays(run), run.subject.x
    pairs = choose_pairs(clean["label"], clean["prediction"], config.per_class)
    if len(pairs.index) == 0:
        raise InputError(f"no image of {config.num_images:,} is classified correctly")
    cell = cell_of(
        ATTACKS["unbalanced"], protocol, run.subject, paper_ruler(run.subject.grid_size),
        targeted=True,
    )._replace(pairs={"clean": x[pairs.index], **pairs._asdict()})  # fmt: skip
    files = run_cells(run, {_PAIRS: cell}, clean, batch_size=config.batch_size)
    arrays = files[_PAIRS]
    parts = [part_of(_PAIRS, cell, all_figures()), session.images_part(session.nominal())]
    seconds = {"attack": arrays["seconds"], "distances": arrays["measuring"]}
    results = session.gather(run, parts, files) | {
        "seconds": {name: round(float(value), 3) for name, value in seconds.items()}
    }
    _plot(run.folder.path / "targeted.png", x, files, results)
    session.end(run, results, [results_table(results)], parts)


def _check(config: TargetedConfig) -> UnbalancedProtocol:
    """The attack's settings, all options checked."""
    check_count("per_class", config.per_class)
    protocol = ATTACKS["unbalanced"].presets[config.preset]
    protocol = protocol._replace(variant=config.variant, steps=config.steps)
    if config.step_size is not None:
        protocol = protocol._replace(step_size=config.step_size)
    check_protocol(protocol, config.data)
    return protocol


def choose_pairs(
    labels: Int[np.ndarray, "m"], answers: Int[np.ndarray, "m"], per_class: int
) -> Pairs:
    """Choose what to attack: the first correctly classified images of each class, towards all
    other classes.

    Args:
        labels: the images' classes.
        answers: the classifier's.
        per_class: how many images of each class, or as many as there are.

    Returns:
        The pairs, by class, then image, then target.
    """
    right = labels == answers
    chosen = [np.flatnonzero(right & (labels == k))[:per_class] for k in range(_CLASSES)]
    index = np.repeat(np.concatenate(chosen), _CLASSES)
    target = np.resize(np.arange(_CLASSES), len(index))
    other = target != labels[index]
    index, target = index[other], target[other]
    return Pairs(index, labels[index].astype(int), target)


def figures(*of: tuple[str, int]) -> dict[str, Figure]:
    """The figures of the pairs that have given classes, "label" or "target"; the distance and what
    follows it over the successes."""
    where = tuple((f"{_PAIRS}/{name}", "=", value) for name, value in of)
    success = f"{_PAIRS}/success"
    reached = (*where, (success, "=", 1))
    return {
        "pairs": figure("count", success, where=where),
        "success_rate": figure("reached", success, where=where),
        "interval": figure("reached_interval", success, where=where),
        **{
            # Of those that are finite: a blank image has no distance.
            name: figure("summary", f"{_PAIRS}/{name}", where=reached)
            for name in ("distance", "steps", "moved", "unmatched")
        },
        "residual": figure("largest", f"{_PAIRS}/residual", where=reached),
    }


def all_figures() -> dict[str, Figure]:
    """The figures of each class's pairs, under "sources", and of all of them, under "total"."""
    of = {f"sources/{k}": figures(("label", k)) for k in range(_CLASSES)} | {"total": figures()}
    return {f"{place}/{key}": found for place, part in of.items() for key, found in part.items()}


_COLUMNS = ("class", "images", "success % (95 %)", "W", "steps", "moved", "remade", "residual")
_NOTES = (
    "By the images' own class; each image is attacked towards the nine others. Success: the "
    "wanted class is the answer, with the 95 % interval of as many independent pairs. Over "
    "the successes: W, the mean exact distance, both masses normalised; the mean number of "
    "steps; the share of the plan's mass that leaves its pixel; the mass deleted and created, "
    "as a share of the clean image's; the largest residual of the last projections (their "
    "tolerance is 0.001)."
)
_SHORT = (
    "W: exact distance, masses normalised; remade: mass deleted and created; "
    "residual: the largest; all but the success over the successes"
)


def results_table(results: Mapping[str, Any]) -> Table:
    """A row for each class and one for all."""
    rows = [
        (
            name,
            f"{part['pairs'] // (_CLASSES - 1):,}",
            share(part, "success_rate") if part["pairs"] else "–",
            number(part["distance"]["mean"], ".4f"),
            number(part["steps"]["mean"], ".1f"),
            percent(part["moved"]["mean"], 2),
            percent(part["unmatched"]["mean"]),
            number(part["residual"], ".1g"),
        )
        for name, part in {**results["sources"], "all": results["total"]}.items()
    ]
    return Table(_heading(results), _COLUMNS, rows, _NOTES, _SHORT)


def _heading(results: Mapping[str, Any]) -> str:
    protocol = results["settings"]["protocol"]
    return (
        f"{results['dataset']['name']} test, {results['total']['pairs']:,} pairs, "
        f"{protocol['variant']}, {protocol['steps']} steps of {protocol['step_size']:g} at most"
    )


def _plot(
    path: Path, x: Float[np.ndarray, "m h w c"], files: Files, results: Mapping[str, Any]
) -> None:
    """Draw the first image of each class, a row to a class, a column to a target."""
    arrays = files[_PAIRS]
    picture = new_figure(10.4, 12.2)
    for (source, target), axes in np.ndenumerate(picture.subplots(_CLASSES, _CLASSES)):
        pairs = np.flatnonzero(arrays["label"] == source)
        if len(pairs) == 0:
            axes.set(xticks=[], yticks=[], frame_on=False)
        elif source == target:
            draw_image(axes, x[arrays["index"][pairs[0]]], _CLEAN)
        else:
            pair = pairs[arrays["target"][pairs] == target][0]
            draw_image(axes, arrays["image"][pair], None if arrays["success"][pair] else _FAILED)
            axes.set_xlabel(measured(files, source, target), fontsize=7.5, labelpad=3)
        if source == 0:
            axes.set_title(f"→ {target}", fontsize=11)
        if target == 0:
            axes.set_ylabel(str(source), fontsize=11, rotation=0, labelpad=10, va="center")
    legend = (
        f"{_heading(results)}. Rows: the images' class, columns: the class wanted. Red: clean; "
        f"orange: not reached. Below each: how many of {results['settings']['per_class']} such "
        "images are taken for the class wanted, and the mean exact Wasserstein distance W of those."
    )
    legend_below(picture, legend, 8.5)
    save_figure(picture, path)


def measured(files: Files, source: int, target: int) -> str:
    """What became of the images of one class on the way to another, such as "90 %, W .013"."""
    found = figures(("label", source), ("target", target))
    rate, distance = (work_out(found[name], files) for name in ("success_rate", "distance"))
    text = f"{100 * rate:.0f} %"
    mean = distance["mean"]
    return text if mean is None else f"{text}, W {short_distance(mean)}"


if __name__ == "__main__":
    sys.exit(run_command(main, TargetedConfig))
