"""Check finished attacks from what they left: distances measured again, claims worked out again.

python -m experiments.verify RUN_DIR
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from jaxtyping import Bool, Float
from rich.console import Console

from experiments._attack import distance_summary
from experiments._attacks import FAMILIES, INSIDE, Family, check_count, check_settings
from experiments._claims import Claim, claims_table, each_equal, entries, entries_as_one, holds
from experiments._cli import run_command
from experiments._evaluation import measure_distances, rulers
from experiments._grid import Cell, file_name, transport_summary
from experiments._runs import RunFolder, stored_results
from experiments.compare import Entry, accuracy_at_distances, cell_of, row_of
from experiments.robustness_table import cell_of as cell_of_table
from experiments.robustness_table import cell_results, distances_of
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import Cost
from wasserstein_adv.metrics import accuracy_at, wilson_interval

_ROUNDING = 1e-6  # of a pixel, in float32
_IMAGES = ("clean", "adversarial", "before_clamp", "image")
_OF_ALL = ("seconds", "measuring")  # one number, not one per image
_DISAGREES = 1  # the exit status


@dataclass(frozen=True)
class VerifyConfig:
    """Check finished attacks from their folder alone, without the dataset or the classifier.

    The exact distances are measured again on the stored images, and what `results.json` says of
    distances, accuracies and mass is worked out again from them and from the stored arrays. What
    only the classifier could tell, its answers to the images, is taken as recorded; so are times.
    Nothing is written. The exit status is 0 where all agrees, 1 where something does not, and 2
    where the folder cannot be checked.
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run of attack_mnist or its like, compare or robustness_table."""

    images: int | None = None
    """Measure the distances of so many images only, from the first. By default of all."""


class Arrays(dict[str, np.ndarray]):
    """Arrays by name; one that is asked for and not there is an `InputError`."""

    def __init__(self, where: Path, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.where = where

    def __missing__(self, name: str) -> np.ndarray:
        raise InputError(f"{self.where}: holds no array {name}")


def main(config: VerifyConfig) -> None:
    """Check a run and print what it claims, a table for each of its attacks.

    Args:
        config: the command's options.

    Raises:
        InputError: an option is out of range, or the folder holds no run that can be checked.
        SystemExit: with status 1, where something does not agree.
    """
    if config.images is not None:
        check_count("images", config.images)
    tables = check_run(config.run_dir, config.images)
    claims = [claim for _, part in tables for claim in part]
    wrong = sum(not claim.agrees for claim in claims)
    verdict = f"{wrong} of {len(claims)} do not agree" if wrong else f"all {len(claims)} agree"
    # No markup: names can come from the file that is being checked.
    console = Console(markup=False, highlight=False)
    for title, part in tables:
        console.print(claims_table(title, part))
    console.print(f"{config.run_dir}: {verdict}", soft_wrap=True)
    if wrong:
        raise SystemExit(_DISAGREES)


def check_run(folder: Path, images: int | None = None) -> list[tuple[str, list[Claim]]]:
    """Check a run of attack_mnist or its like, of compare or of robustness_table.

    Args:
        folder: the run's; only read.
        images: on how many images, from the first, to measure distances; None for all.

    Returns:
        All that the run claims, under a title for each attack, and in a table for each model under
        each.

    Raises:
        InputError: the folder holds no such run, or a damaged one.
    """
    results = _results(folder)
    if "cells" in results:
        return _check_table(folder, results, images)
    check = _check_comparison if "accuracy_at_distance" in results else _check_one
    return check(folder, results, images)


def _check_one(
    folder: Path, results: Mapping[str, Any], images: int | None
) -> list[tuple[str, list[Claim]]]:
    """Check a run of a single attack."""
    recorded = results.get("attack")
    if not isinstance(recorded, Mapping) or "name" not in recorded:
        raise InputError(f"{folder}: is a run of another command, its results name no attack")
    family = _family(recorded.get("name"), folder)
    settings = _settings(family, recorded, f"{folder}: attack")
    measures = "measures.npz" if family.ball is None else "radii.npz"
    images_file, measures_file = (_load(folder / name) for name in ("adversarial.npz", measures))
    _check_shapes(images_file["clean"], images_file, measures_file)
    arrays = Arrays(folder, images_file | measures_file)
    count = len(arrays["clean"])

    claims = [*_num_images(results, count)]
    for name in sorted(images_file.keys() & measures_file.keys()):
        claims.append(each_equal(f"{name}, in both files", images_file[name], measures_file[name]))
    claims += check_attack(family, settings, arrays, results, min(images or count, count))
    if family.ball is not None and recorded.get("keep") == "first-success":
        # An image that needs no attack keeps radius 0. Other rules may prefer a later iterate.
        claims += _shares(results, "nominal", arrays["radius"] > 0)
    return [(family.title, claims)]


def _check_comparison(
    folder: Path, results: Mapping[str, Any], images: int | None
) -> list[tuple[str, list[Claim]]]:
    """Check a run of compare: each of its attacks, then what it says of all of them."""
    clean_file = _load_clean(folder)
    clean = clean_file["clean"]
    runs = _runs_compared(results, folder)
    tables, found, right = [], {}, []
    for entry, row in runs:
        cell = cell_of(entry, clean.shape[1:3])
        stored, measured, arrays = _remeasured(
            folder, entry.name, cell, clean_file, len(clean), images
        )
        right.append((arrays["budget"] > 0) | ~arrays["success"])
        claims = [
            *_check_cell(FAMILIES[entry.family], entry.settings, arrays, stored, measured),
            holds("right without an attack as in the first run", right[-1] == right[0]),
            entries_as_one("row", row, row_of(entry, arrays)),
        ]
        tables.append((entry.name, claims))
        found[entry.name] = arrays
    curves = accuracy_at_distances([entry for entry, _ in runs], found)
    claims = [
        *_num_images(results, len(clean)),
        _is_image("clean", clean),
        *entries("nominal_accuracy", results.get("nominal_accuracy"), np.mean(right[0])),
        entries_as_one("accuracy_at_distance", results["accuracy_at_distance"], curves),
    ]
    return [*tables, ("all attacks", claims)]


def _check_table(
    folder: Path, results: Mapping[str, Any], images: int | None
) -> list[tuple[str, list[Claim]]]:
    """Check a run of robustness_table: each of its models under each attack, then the images."""
    clean_file = _load_clean(folder)
    clean = clean_file["clean"]
    count, colour = len(clean), clean.shape[-1] > 1
    kept = _part(results, "settings").get("distance_images")
    if type(kept) is not int or not 1 <= kept <= count:
        raise InputError(f"{folder}: settings.distance_images is {kept!r} in its results")
    models, tables, right = _part(results, "models"), [], {}
    for cell in _cells(results, folder):
        family, attack = FAMILIES[cell.attack], cell.attack
        name = f"{cell.model} {attack}"
        ground = cell_of_table(attack, cell.settings, clean.shape[1:3])
        stored, measured, arrays = _remeasured(folder, name, ground, clean_file, kept, images)
        found = cell_results(
            arrays, attack, cell.settings.steps, distances_of(attack, colour=colour)
        )
        recorded = {key: cell.recorded.get(key) for key in found}
        needless = arrays["success"] & (arrays["steps"] == 0)
        first = right.setdefault(cell.model, ~needless)
        claims = [
            *_check_cell(family, cell.settings, arrays, stored, measured),
            holds("right without an attack as under the first", first == ~needless),
            entries_as_one("cell", recorded, found),
        ]
        tables.append((name, claims))
    claims = [*_num_images(results, count), _is_image("clean", clean)]
    for model, hits in right.items():
        nominal = {f"models.{model}.{key}": value for key, value in _part(models, model).items()}
        claims += _shares(nominal, f"models.{model}.nominal", hits)
    return [*tables, ("all cells", claims)]


def check_attack(
    family: Family,
    settings: Any,
    arrays: Mapping[str, np.ndarray],
    recorded: Mapping[str, Any],
    images: int,
) -> list[Claim]:
    """Check the arrays that one attack left, and the results that were drawn from them.

    Args:
        family: the attack.
        settings: its settings.
        arrays: "clean", "adversarial", "before_clamp", "label", "prediction" and "success" of N
            images, and what `radii.npz` holds of an attack in a ball or `measures.npz` of the
            unbalanced one.
        recorded: the results, as `results.json` has them.
        images: on how many images, from the first, to measure distances, from 1 to N.

    Returns:
        The claims: of the images, of each array of distances, of each entry of the results.

    Raises:
        InputError: the results have no accuracies, or arrays hold what no attack leaves there.
    """
    check = _check_unbalanced if family.ball is None else _check_ball
    return [*_check_images(arrays), *check(family, settings, arrays, recorded, images)]


# What the claims are ------------------------------------------------------------------------------


def _num_images(results: Mapping[str, Any], count: int) -> Iterator[Claim]:
    yield from entries("dataset.num_images", _part(results, "dataset").get("num_images"), count)


def _check_images(arrays: Mapping[str, np.ndarray]) -> Iterator[Claim]:
    for name in ("clean", "adversarial"):
        yield _is_image(name, arrays[name])
    off = np.abs(np.clip(arrays["before_clamp"], 0, 1) - arrays["adversarial"])
    yield holds("adversarial = clamped before_clamp", _throughout(off <= _ROUNDING))
    yield _is_answered(arrays)


def _is_image(name: str, images: Float[np.ndarray, "n h w c"]) -> Claim:
    return holds(f"{name} in [0, 1]", _throughout((images >= 0) & (images <= 1)))


def _is_answered(arrays: Mapping[str, np.ndarray]) -> Claim:
    fooled = arrays["prediction"] != arrays["label"]
    return holds("success where prediction ≠ label", arrays["success"] == fooled)


def _check_budgets(
    family: Family,
    settings: Any,
    arrays: Mapping[str, np.ndarray],
    images: Float[np.ndarray, "n h w c"],
) -> Iterator[Claim]:
    """The claims of the radii at which the images were found."""
    budget = arrays["budget"]
    reached = np.where(arrays["success"], budget, np.inf)
    yield holds("radius = budget of a success", arrays["radius"] == reached)
    if family.ball is not None:
        largest = family.ball.largest(settings) * (1 + INSIDE)
        yield holds("budget ≤ the attack's largest radius", (budget >= 0) & (budget <= largest))
    seen = len(images)
    unchanged = _throughout(np.abs(images - arrays["clean"][:seen]) <= _ROUNDING)
    yield holds("no budget, no change", unchanged | (budget[:seen] > 0))


def _check_ball(
    family: Family,
    settings: Any,
    arrays: Mapping[str, np.ndarray],
    recorded: Mapping[str, Any],
    images: int,
) -> Iterator[Claim]:
    clean, adversarial = arrays["clean"], arrays["adversarial"]
    yield from _check_budgets(family, settings, arrays, adversarial)

    radius = arrays["radius"]
    accuracies = _part(recorded, "adversarial_accuracy")
    curve = accuracy_at(radius, _positions(accuracies))
    ends = zip(curve.low, curve.high, strict=True)
    parts = rulers(family, settings, clean, adversarial, arrays["before_clamp"])
    stored = {name: arrays[name] for name in (*parts, "mass_change")}
    found = _measure(clean, parts, "global_distance", images)
    for name, values in found.items():
        yield each_equal(name, stored[name][:images], values)
    results = {
        "adversarial_accuracy": dict(zip(accuracies, curve.accuracy, strict=True)),
        "adversarial_interval": dict(zip(accuracies, ends, strict=True)),
        "median_radius": np.median(radius),
        "projections_converged": np.mean(arrays["converged"]),
        "distance_check": distance_summary(_with_the_rest(found, stored), arrays["budget"]),
    }
    for name, value in results.items():
        yield from entries(name, recorded.get(name), value)


def _check_unbalanced(
    family: Family,
    settings: Any,
    arrays: Mapping[str, np.ndarray],
    recorded: Mapping[str, Any],
    images: int,
) -> Iterator[Claim]:
    clean, adversarial = arrays["clean"], arrays["adversarial"]
    cost = family.cost(settings, clean.shape[1:3])
    stored = {name: arrays[name] for name in ("distance", "mass_change")}
    plans = {name: arrays[name] for name in ("plan_cost", "moved", "unmatched")}
    found = _measure(clean, {"distance": (adversarial, cost, None)}, "distance", images)
    for name, values in found.items():
        yield each_equal(name, stored[name][:images], values)

    success = arrays["success"].astype(bool)
    yield from _shares(recorded, "attack", ~success)
    transport = {
        **transport_summary({**_with_the_rest(found, stored), **plans}),
        "within_budget": np.mean(plans["plan_cost"] <= settings.radius),
        "budget": settings.radius,
        "residual": np.max(arrays["residual"]),
    }
    yield from entries("transport", recorded.get("transport"), transport)
    if "accuracy_after_steps" in recorded:
        after = _part(recorded, "accuracy_after_steps")
        needed = np.where(success, arrays["steps"], np.inf)
        curve = accuracy_at(needed, np.arange(len(after)))
        shares = [after.get(str(step)) for step in range(len(after))]
        kept = np.array([share if isinstance(share, float) else np.nan for share in shares])
        yield each_equal("accuracy_after_steps", kept, curve.accuracy, "step")


def _check_cell(
    family: Family,
    settings: Any,
    arrays: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    measured: Mapping[str, Float[np.ndarray, "m"]],
) -> Iterator[Claim]:
    """The claims of one attack among several: `stored` is its file, `measured` anew."""
    yield _is_image("image", arrays["image"])
    yield _is_answered(arrays)
    yield from _check_budgets(family, settings, arrays, arrays["image"])
    for name, values in measured.items():
        yield each_equal(name, stored[name][: len(values)], values)


def _shares(recorded: Mapping[str, Any], name: str, hits: Bool[np.ndarray, "n"]) -> Iterator[Claim]:
    """The claims of an accuracy and its interval."""
    found = {
        f"{name}_accuracy": np.mean(hits),
        f"{name}_interval": wilson_interval(int(np.sum(hits)), len(hits)),
    }
    for entry, value in found.items():
        yield from entries(entry, recorded.get(entry), value)


# Distances ----------------------------------------------------------------------------------------


def _measure(
    clean: Float[np.ndarray, "n h w c"],
    parts: Mapping[str, tuple[Float[np.ndarray, "n h w c"], Cost, int | None]],
    of_mass: str,
    images: int,
    title: str = "exact distances",
) -> dict[str, Float[np.ndarray, "m"]]:
    """Exact distances of the first images and, as "mass_change", what became of their mass.

    Args:
        clean: the clean images.
        parts: what to measure, as for `measure_distances`.
        of_mass: the part whose images' mass is meant.
        images: how many, m.
        title: what stands before the progress bar.

    Returns:
        By name; NaN for an image that has pixels no distance is defined for.
    """
    sides = [clean, *(part[0] for part in parts.values())]
    measurable = np.all([_throughout(np.isfinite(z) & (z >= 0)) for z in sides], axis=0)[:images]
    chosen = np.flatnonzero(measurable)
    found = measure_distances(
        clean[chosen],
        {name: (z[chosen], cost, window) for name, (z, cost, window) in parts.items()},
        title,
    )
    values = {name: distance.total for name, distance in found.items()}
    values["mass_change"] = found[of_mass].mass_ratio - 1.0
    measured = {name: np.full(len(measurable), np.nan) for name in values}
    for name in values:
        measured[name][chosen] = values[name]
    return measured


def _remeasured(
    folder: Path, name: str, cell: Cell, clean: Arrays, kept: int, images: int | None
) -> tuple[Arrays, dict[str, Float[np.ndarray, "m"]], Arrays]:
    """One attack among several, measured again on at most so many of its images; None for all.

    Args:
        folder: the run's.
        name: the attack's, after which its file is called.
        cell: how it is measured.
        clean: of `_load_clean`.
        kept: of how many images, from the first, there are the image and its distances.
        images: on how many to measure them.

    Returns:
        Its file; what was measured; and all of its arrays, with that in the place of what the file
        has.
    """
    stored = _load(folder / f"{file_name(name)}.npz")
    _check_shapes(
        clean["clean"], stored, kept=dict.fromkeys(("image", "distance", *cell.others), kept)
    )
    arrays = Arrays(stored.where, stored | clean)
    measured = _measure_cell(cell, name, arrays, min(images or kept, kept))
    arrays.update(_with_the_rest(measured, arrays))
    return stored, measured, arrays


def _measure_cell(
    cell: Cell, name: str, arrays: Mapping[str, np.ndarray], images: int
) -> dict[str, Float[np.ndarray, "m"]]:
    """`_measure` of one attack among several; an image that no distance is defined for is
    infinitely far, so that it counts as one that fools nobody."""
    image = arrays["image"]
    clean = arrays["clean"][: len(image)]
    ground = {"distance": (cell.cost, None), **cell.others}
    parts = {name: (image, cost, window) for name, (cost, window) in ground.items()}
    measured = _measure(clean, parts, "distance", images, f"{name}: distances")
    return {name: np.where(np.isnan(values), np.inf, values) for name, values in measured.items()}


def _with_the_rest(
    found: Mapping[str, Float[np.ndarray, "m"]], stored: Mapping[str, Float[np.ndarray, "n"]]
) -> dict[str, Float[np.ndarray, "n"]]:
    """The values of all images, as stored where they were not measured again."""
    return {
        name: np.concatenate([values, stored[name][len(values) :]])
        for name, values in found.items()
    }


def _throughout(pixels: Bool[np.ndarray, "n h w c"]) -> Bool[np.ndarray, "n"]:
    """Which images have something in all pixels."""
    return pixels.all((1, 2, 3))


# Reading ------------------------------------------------------------------------------------------


def _results(folder: Path) -> Mapping[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder")
    if not (folder / "results.json").is_file():
        raise InputError(f"{folder}: has no results.json, so it holds no finished run")
    results = stored_results(RunFolder(folder, True))
    if not isinstance(results, Mapping):
        raise InputError(f"{folder / 'results.json'}: does not hold a run's results")
    return results


def _part(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry of the results that has entries itself."""
    found = results.get(name)
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"results.json: has nothing under {name}")
    return found


def _positions(entry: Mapping[str, Any]) -> Float[np.ndarray, "k"]:
    """The radii that an entry's keys are."""
    try:
        return np.array([float(key) for key in entry])
    except ValueError as error:
        raise InputError(f"results.json: has an accuracy at no number ({error})") from error


def _runs_compared(
    results: Mapping[str, Any], folder: Path
) -> list[tuple[Entry, Mapping[str, Any]]]:
    """The runs of a comparison, each with its row of the results."""
    where = folder / "results.json"
    runs, rows = _part(results, "settings").get("runs"), results.get("rows")
    if not (isinstance(runs, list) and isinstance(rows, list) and len(runs) == len(rows) > 0):
        raise InputError(f"{where}: does not have one of its rows for each of its runs")
    found = []
    for number, (run, row) in enumerate(zip(runs, rows, strict=True)):
        if not (isinstance(run, Mapping) and isinstance(row, Mapping)):
            raise InputError(f"{where}: run {number} or its row has no entries")
        family = _family(run.get("family"), folder)
        settings = _settings(family, _part(run, "settings"), f"{folder}: run {number}")
        entry = Entry(row.get("attack"), run["family"], settings, row.get("setting"))
        if entry.name != run.get("name"):
            raise InputError(f"{where}: row {number} is of {entry.name!r}, not {run.get('name')!r}")
        found.append((entry, row))
    return found


class _TableCell(NamedTuple):
    """A model under an attack, as a run of robustness_table has it."""

    model: str
    attack: str
    settings: Any
    recorded: Mapping[str, Any]


def _cells(results: Mapping[str, Any], folder: Path) -> list[_TableCell]:
    """The cells of a table: one for each of its models under each of its attacks."""
    where = folder / "results.json"
    attacks, models = (_part(_part(results, "settings"), key) for key in ("attacks", "checkpoints"))
    cells = results["cells"]
    wanted = [(attack, model) for attack in attacks for model in models]
    if not isinstance(cells, list) or not all(isinstance(cell, Mapping) for cell in cells):
        raise InputError(f"{where}: cells is not a list of entries")
    if [(cell.get("attack"), cell.get("model")) for cell in cells] != wanted:
        raise InputError(f"{where}: does not have a cell for each model under each attack")
    settings = {
        name: _settings(_family(name, folder), _part(attacks, name), f"{folder}: {name}")
        for name in attacks
    }
    return [
        _TableCell(model, attack, settings[attack], cell)
        for (attack, model), cell in zip(wanted, cells, strict=True)
    ]


def _family(name: Any, folder: Path) -> Family:
    family = FAMILIES.get(str(name))
    if family is None:
        raise InputError(f"{folder}: is a run of an unknown attack, {name!r}")
    return family


def _settings(family: Family, recorded: Mapping[str, Any], where: str) -> Any:
    """An attack's settings, from what the results say of it."""
    preset = next(iter(family.presets.values()))
    for field, usual in preset._asdict().items():
        if type(recorded.get(field)) is not type(usual):
            raise InputError(f"{where}.{field} is {recorded.get(field)!r} in its results")
    settings = type(preset)(*(recorded[field] for field in preset._fields))
    check_settings(family, settings)
    return settings


def _load(path: Path) -> Arrays:
    try:
        with np.load(path) as stored:
            return Arrays(path, {name: stored[name] for name in stored.files})
    except Exception as error:  # a damaged archive raises almost any
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from error


def _load_clean(folder: Path) -> Arrays:
    """The clean images of several attacks, and their labels."""
    arrays = _load(folder / "clean.npz")
    _check_shapes(arrays["clean"], arrays)
    return arrays


def _check_shapes(clean: np.ndarray, *files: Arrays, kept: Mapping[str, int] = {}) -> None:
    """Raise InputError unless all arrays are numbers, of as many images as there are, or as `kept`
    says by name."""
    if clean.ndim != 4 or 0 in clean.shape:
        raise InputError(f"{files[0].where}: clean has shape {clean.shape}, not (n, h, w, c)")
    for file in files:
        for name, array in file.items():
            images = clean[: kept.get(name)].shape
            shape = () if name in _OF_ALL else images[: None if name in _IMAGES else 1]
            if array.shape != shape:
                raise InputError(f"{file.where}: {name} has shape {array.shape}, not {shape}")
            if array.dtype.kind not in "biuf":
                raise InputError(f"{file.where}: {name} does not hold numbers")


if __name__ == "__main__":
    sys.exit(run_command(main, VerifyConfig))
