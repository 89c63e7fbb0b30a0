"""Where a run's figures come from: which of its arrays, and by which function.

A command does not compute a figure and then describe it: it describes it, and the figure is worked
out from the description. The descriptions stand beside the results, in `evidence.json`, and so
`verify` can work every figure out again from the arrays alone, whatever the command was.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.harness.progress import progress_bar
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import Cost, euclidean_power, minkowski
from wasserstein_adv.metrics import TransportDistance, exact_distances, figures, truths

Files = Mapping[str, Mapping[str, np.ndarray]]
"""The arrays of a run, by the file and the array's name."""


class Ground(NamedTuple):
    """A ground cost that can be written down; of a displacement in units of `row` and `col`."""

    form: str = "minkowski"
    """"minkowski": (|Δrow|^p + |Δcol|^p)^(1/p); "euclidean": (Δrow² + Δcol²)^(p/2)."""
    p: float = 1.0
    row: float = 1.0
    """Length of a pixel's step along the column of pixels,"""
    col: float = 1.0
    """and along the row."""

    @property
    def cost(self) -> Cost:
        """The cost of a displacement in pixels."""
        ground = _FORMS[self.form](self.p)
        if self.in_pixels:
            return ground
        return lambda drow, dcol: ground(drow * self.row, dcol * self.col)

    @property
    def in_pixels(self) -> bool:
        """Whether displacements are in pixels, and not in sides of the image."""
        return (self.row, self.col) == (1.0, 1.0)

    @property
    def words(self) -> str:
        """The cost, as people write it."""
        if self.form == "euclidean":
            formula = "√(Δrow² + Δcol²)"
            formula += f"^{self.p:g}" if self.p != 1 else ""
        elif self.p == 1:
            formula = "|Δrow| + |Δcol|"
        else:
            formula = f"(|Δrow|^{self.p:g} + |Δcol|^{self.p:g})^(1/{self.p:g})"
        return f"{formula} in {'pixels' if self.in_pixels else 'sides of the image'}"


_FORMS = {"minkowski": minkowski, "euclidean": euclidean_power}


class Figure(NamedTuple):
    """Something that follows from arrays of a run."""

    how: str
    """The function: of `figures` for a result, of `truths` for what holds of every image."""
    of: tuple[str, ...]
    """Its arrays, each FILE/NAME."""
    given: Mapping[str, Any] = {}
    """Its other arguments, as JSON has them."""
    where: tuple[tuple[str, str, float], ...] = ()
    """Conditions, (array, "=" or ">", number), on the images that it is over."""


class Distance(NamedTuple):
    """Arrays of exact distances, and how to measure them: FILE/NAME."""

    clean: str
    image: str
    ground: Ground
    window: int | None = None
    """Side of the window that mass stays in; None for none."""

    @property
    def words(self) -> str:
        """How it is measured, as people write it."""
        inside = f", inside {self.window}×{self.window}" if self.window else ""
        return f"{self.ground.words}{inside}"


class Part(NamedTuple):
    """What is claimed of one attack, or of all together."""

    title: str
    figures: Mapping[str, Figure]
    """By the place in the results that they have, its keys joined by slashes."""
    distances: Mapping[str, Distance] = {}
    """By the array that holds them."""
    masses: Mapping[str, tuple[str, str]] = {}
    """Changes of mass by the array that holds them: the clean image and the other."""
    holds: Mapping[str, Figure] = {}
    """What is true of every image, in words."""


def figure(
    how: str, *of: str, where: Sequence[tuple[str, str, float]] = (), **given: Any
) -> Figure:
    """A `Figure`, as one writes it."""
    return Figure(how, of, given, tuple(where))


# Working out --------------------------------------------------------------------------------------


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
        return vars(truths)[claim.how](*arrays, **claim.given)
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
    part: Part, files: Files, images: int, title: str = "exact distances"
) -> dict[str, Float[np.ndarray, "_"]]:
    """Measure a part's distances on the first images, with a progress bar, and all changes of mass.

    Args:
        part: what is to be measured.
        files: the run's images, n.
        images: of how many to measure distances, m.
        title: what stands before the bar.

    Returns:
        By the arrays' names; NaN for an image that has pixels no distance is defined for.
    """
    measured: dict[str, np.ndarray] = {}
    with progress_bar() as bar:
        task = bar.add_task(title, total=len(part.distances) * images, measured="")
        for name, distance in part.distances.items():
            pair = (lookup(files, distance.clean)[:images], lookup(files, distance.image)[:images])
            found = distances(*pair, distance, lambda: bar.update(task, advance=1))
            measured[name] = found.total
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

    return TransportDistance(*map(spread, found))


def mass_change(
    x: Float[np.ndarray, "n h w c"], z: Float[np.ndarray, "n h w c"]
) -> Float[np.ndarray, "n"]:
    """Mass after over mass before, less 1: 0 where both are blank, inf where only x is."""
    before, after = (side.sum((1, 2, 3), np.float64) for side in (x, z))
    fallback = np.where(after > 0, np.inf, 1.0)
    return np.divide(after, before, out=fallback, where=before > 0) - 1.0


# On disk ------------------------------------------------------------------------------------------


def to_json(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Parts as JSON has them."""
    return [
        {
            "title": part.title,
            "figures": {place: found._asdict() for place, found in part.figures.items()},
            "distances": {
                name: {**distance._asdict(), "ground": distance.ground._asdict()}
                for name, distance in part.distances.items()
            },
            "masses": dict(part.masses),
            "holds": {words: claim._asdict() for words, claim in part.holds.items()},
        }
        for part in parts
    ]


def from_json(entry: Any) -> list[Part]:
    """The parts that `to_json` wrote.

    Raises:
        InputError: the entry is none of its.
    """

    def figure_of(stored: Mapping[str, Any]) -> Figure:
        how, of, given, where = (stored[field] for field in Figure._fields)
        texts = [how, *of, *given, *(condition[0] for condition in where)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a name is no text")
        for _, relation, value in where:
            if relation not in ("=", ">") or isinstance(value, str):
                raise TypeError(f"no condition: {relation} {value}")
        return Figure(how, tuple(of), dict(given), tuple(map(tuple, where)))

    def distance_of(stored: Mapping[str, Any]) -> Distance:
        distance = Distance(**{**stored, "ground": Ground(**stored["ground"])})
        if distance.ground.form not in _FORMS:
            raise TypeError(f"no ground cost {distance.ground.form!r}")
        distance.ground.cost(np.ones(1), np.ones(1))
        return distance

    try:
        return [
            Part(
                str(part["title"]),
                {place: figure_of(found) for place, found in part["figures"].items()},
                {name: distance_of(stored) for name, stored in part["distances"].items()},
                {name: (str(x), str(z)) for name, (x, z) in part["masses"].items()},
                {words: figure_of(claim) for words, claim in part["holds"].items()},
            )
            for part in entry
        ]
    except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"evidence.json: does not say where figures come from ({error})") from None
