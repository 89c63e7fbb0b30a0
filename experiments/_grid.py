"""Many attacks on the same images, side by side: one row of measures each, kept as they come."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments._attacks import INSIDE
from experiments._evaluation import Subject, measure_distances, predictions, run_attack
from experiments._runs import RunFolder, save_arrays
from wasserstein_adv.attacks import AttackResult, FirstOrderAttack
from wasserstein_adv.attacks.unbalanced import UnbalancedEvidence
from wasserstein_adv.geometry import Cost
from wasserstein_adv.metrics import wilson_interval


class Cell(NamedTuple):
    """One attack among several."""

    build: Callable[[], FirstOrderAttack]
    steps: int
    cost: Cost
    """By which the images are measured, of displacements in pixels."""
    others: Mapping[str, tuple[Cost, int | None]] = MappingProxyType({})
    """More costs and windows, None for none, to measure them by: under which name."""


def run_cells(
    folder: RunFolder,
    subject: Subject,
    cells: Mapping[str, Cell],
    *,
    batch_size: int | Literal["auto"],
    seed: int,
    distance_images: int,
    shown: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Run each attack on a subject, or take from the folder what was run before.

    Args:
        folder: keeps an `.npz` of every attack, named after it.
        subject: what to attack.
        cells: the attacks by name.
        batch_size: images in one call, over all devices; "auto" takes what suits them.
        seed: of random starts.
        distance_images: on how many images, from the first, to measure exact distances.
        shown: of how many, from the first, to keep the image.

    Returns:
        By name, the arrays "success", "prediction", "radius", "budget" and "steps" of N images;
        "distance",
        the cell's others, "mass_change" and, of an unbalanced attack, "plan_cost", "moved",
        "unmatched" and "residual"; "image" of those shown; "seconds", the attack's.
    """
    found = {}
    count = min(distance_images, len(subject.x))
    for number, (name, cell) in enumerate(cells.items()):
        path = folder.path / f"{file_name(name)}.npz"
        arrays = _load(path, len(subject.x))
        if arrays is None:
            title = f"{number + 1}/{len(cells)} {name}"
            arrays = _run(subject, cell, batch_size, seed, count, shown, title)
            save_arrays(path, **arrays)
        found[name] = arrays
    return found


def _run(
    subject: Subject,
    cell: Cell,
    batch_size: int | Literal["auto"],
    seed: int,
    count: int,
    shown: int,
    title: str,
) -> dict[str, np.ndarray]:
    result, seconds = run_attack(
        subject, cell.build(), cell.steps, batch_size=batch_size, seed=seed, title=title
    )
    started = time.perf_counter()
    first = result.image[:count]
    parts = {"distance": (first, cell.cost, None)}
    parts |= {name: (first, *ruler) for name, ruler in cell.others.items()}
    found = measure_distances(subject.x[:count], parts, f"{title}: distances")
    distance = found.pop("distance")
    before, after = (images.sum((1, 2, 3), np.float64) for images in (subject.x, result.image))
    ratio = np.divide(after, before, out=np.where(after > 0, np.inf, 1.0), where=before > 0)
    measures = {"distance": distance.total, "mass_change": ratio - 1.0}
    if isinstance(result.evidence, UnbalancedEvidence):
        measures = transport_measures(result, distance.total, ratio)
        measures["residual"] = result.evidence.residual
    return {
        "success": result.success,
        "prediction": predictions(subject.classifier, result.image),
        "radius": result.radius,
        "budget": result.budget,
        "steps": result.steps,
        **measures,
        **{name: other.total for name, other in found.items()},
        "image": result.image[:shown],
        "seconds": np.float64(seconds),
        "measuring": np.float64(time.perf_counter() - started),
    }


def file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-.=" else "-" for c in name)


def _load(path: Path, images: int) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except Exception:  # a damaged archive raises almost any
        return None
    return arrays if len(arrays.get("success", ())) == images else None


def row(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What `results.json` holds of one attack's arrays."""
    right = ~arrays["success"]
    names = ("distance", "mass_change", "moved", "unmatched", "plan_cost", "residual")
    return {
        "accuracy": float(right.mean()),
        "interval": list(wilson_interval(int(right.sum()), len(right))),
        **transport_summary({name: arrays[name] for name in names if name in arrays}),
        "seconds": round(float(arrays["seconds"]), 3),
    }


def share_inside(arrays: Mapping[str, np.ndarray]) -> float | None:
    """Share of images inside the radius that they claim, fooled or not; None where none claims one.

    Args:
        arrays: of an attack within a ball, as `run_cells` has them: by "window", the distance at
            the cost and inside the window that the claim is made in, where there is one, else by
            "distance"; of the images measured.
    """
    measured = arrays["window" if "window" in arrays else "distance"]
    budget = arrays["budget"][: len(measured)].astype(np.float64)
    claims = budget > 0
    inside = measured[claims] <= budget[claims] * (1.0 + INSIDE)
    return float(inside.mean()) if claims.any() else None


def transport_measures(
    result: AttackResult, distance: np.ndarray, mass_ratio: np.ndarray
) -> dict[str, np.ndarray]:
    """What became of each image's mass.

    Args:
        result: of an attack in an `unbalanced_neighbourhood`.
        distance: exact distances of its images from the clean ones, masses normalised.
        mass_ratio: mass after over mass before.

    Returns:
        "distance", "mass_change", and of the last projection's plan "plan_cost" ⟨Π, C⟩/ΣΠ, "moved",
        the share of its mass that leaves its pixel, and "unmatched", the mass deleted and created
        as a share of the clean image's.
    """
    evidence = result.evidence
    return {
        "distance": distance,
        "mass_change": mass_ratio - 1.0,
        "plan_cost": evidence.cost,
        "moved": evidence.moved,
        "unmatched": evidence.unmatched,
    }


def transport_summary(measures: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean, median and maximum of each measure over the images where it is finite, and how many
    images that leaves out."""
    summary = {}
    for name, values in measures.items():
        finite = values[np.isfinite(values)].astype(np.float64)
        summary[name] = {
            "mean": float(finite.mean()) if len(finite) else None,
            "median": float(np.median(finite)) if len(finite) else None,
            "max": float(finite.max()) if len(finite) else None,
            "left_out": len(values) - len(finite),
        }
    return summary
