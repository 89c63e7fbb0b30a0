"""Descriptions of where a run's figures come from, which can be written down as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry.costs import Cost, euclidean_power, minkowski


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


# As JSON ------------------------------------------------------------------------------------------


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
        names = (distance.clean, distance.image)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
        window = distance.window
        if window is not None and not (type(window) is int and window > 0 and window % 2):
            raise TypeError(f"no window {window!r}")
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
