"""Descriptions applied to a run's arrays: figures worked out, distances measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import figures, truths
from wasserstein_adv.evidence.described import Distance, Figure, Part
from wasserstein_adv.metrics import TransportDistance, exact_distances

Files = Mapping[str, Mapping[str, np.ndarray]]
"""The arrays of a run, by the file and the array's name."""


def lookup(files: Files, name: str) -> np.ndarray:
    """The array that FILE/NAME stands for; raise InputError where there is none."""
    file, _, array = name.partition("/")
    try:
        return files[file][array]
    except KeyError as error:
        raise InputError(f"{file}.npz: holds no array {array}") from error


def work_out(found: Figure, files: Files) -> Any:
    """A figure's value: a number, a list or a dictionary of numbers; None where nothing is.

    Raises:
        InputError: there are no such arrays, or the function takes no such.
    """
    arrays = [lookup(files, name) for name in found.of]
    functions = vars(figures)
    if found.how not in figures.__all__:
        raise InputError(f"evidence.json: there is no figure {found.how!r}")
    try:
        if found.where:
            shortest = min(len(array) for array in arrays)
            chosen = _chosen(found, files)[:shortest]
            arrays = [array[:shortest][chosen] for array in arrays]
        return functions[found.how](*arrays, **found.given)
    except InputError:
        raise
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{', '.join(found.of)}: no {found.how} can be had ({error})") from error


def holds(claim: Figure, files: Files) -> Bool[np.ndarray, "n"]:
    """Of which images a claim is true.

    Raises:
        InputError: as `work_out`.
    """
    if claim.how not in truths.__all__:
        raise InputError(f"evidence.json: there is no claim {claim.how!r}")
    arrays = [lookup(files, name) for name in claim.of]
    try:
        found = vars(truths)[claim.how](*arrays, **claim.given)
        if found.ndim != 1:
            raise ValueError("not one answer an image")
        return found
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{', '.join(claim.of)}: {claim.how} cannot be told ({error})") from error


def _chosen(found: Figure, files: Files) -> Bool[np.ndarray, "n"]:
    relations = {"=": np.equal, ">": np.greater}
    conditions = [
        relations[relation](lookup(files, name), value) for name, relation, value in found.where
    ]
    shortest = min(len(condition) for condition in conditions)
    return np.all([condition[:shortest] for condition in conditions], axis=0)


def results_of(parts: Sequence[Part], files: Files) -> dict[str, Any]:
    """All figures of a run, as entries of its results: of "a/b", the entry b of the entry a."""
    results: dict[str, Any] = {}
    for part in parts:
        for place, found in part.figures.items():
            *above, last = place.split("/")
            entry = results
            for key in above:
                entry = entry.setdefault(key, {})
            entry[last] = work_out(found, files)
    return results


def entry_of(results: Any, place: str) -> Any:
    """What results have at a place, keys joined by slashes; None where they have nothing."""
    for key in place.split("/"):
        results = results.get(key) if isinstance(results, Mapping) else None
    return results


# Measuring ----------------------------------------------------------------------------------------


def measure(
    part: Part, files: Files, images: int, advance: Callable[[], object] = lambda: None
) -> dict[str, Float[np.ndarray, "_"]]:
    """Measure a part's distances on the first images, and all changes of mass.

    Args:
        part: what is to be measured.
        files: the run's images, n.
        images: of how many to measure distances, m.
        advance: called after every distance.

    Returns:
        By the arrays' names; NaN for an image that has pixels no distance is defined for.
    """
    measured: dict[str, np.ndarray] = {}
    for name, distance in part.distances.items():
        pair = (lookup(files, distance.clean)[:images], lookup(files, distance.image)[:images])
        measured[name] = np.asarray(distances(*pair, distance, advance).total)
    for name, (clean, image) in part.masses.items():
        measured[name] = mass_change(lookup(files, clean), lookup(files, image))
    return measured


def distances(
    x: Float[np.ndarray, "n h w c"],
    z: Float[np.ndarray, "n h w c"],
    distance: Distance,
    advance: Callable[[], object] = lambda: None,
) -> TransportDistance:
    """Exact distances of the pairs that have one, NaN for others: not finite, or negative."""
    whole = [np.isfinite(side) & (side >= 0) for side in (x, z)]
    chosen = np.flatnonzero(np.all([part.all((1, 2, 3)) for part in whole], axis=0))
    found = exact_distances(
        x[chosen], z[chosen], distance.ground.cost, distance.window, progress=lambda _: advance()
    )

    def spread(values: np.ndarray) -> np.ndarray:
        every = np.full((len(x), *values.shape[1:]), np.nan)
        every[chosen] = values
        return every

    return TransportDistance(*(spread(np.asarray(field)) for field in found))


def mass_change(
    x: Float[np.ndarray, "n h w c"], z: Float[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n"]:
    """Mass after over mass before, less 1: 0 where both are blank, inf where only x is."""
    before, after = (side.sum((1, 2, 3), np.float64) for side in (x, z))
    fallback = np.where(after > 0, np.inf, 1.0)
    return np.divide(after, before, out=fallback, where=before > 0) - 1.0
