"""A run checked from its descriptions and its arrays: measured, worked out, compared."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import working_out
from wasserstein_adv.evidence.claims import (
    Claim,
    different,
    each_equal,
    entries,
    entries_as_one,
    holds,
)
from wasserstein_adv.evidence.described import Part
from wasserstein_adv.evidence.working_out import Files, entry_of, lookup, work_out

_IMAGE_AXES = 4
_MANY = 12  # entries, which are shown as one
# Entries of the results that no array tells: where they come from, how long it took, what is shown.
_TAKEN = {"environment", "command", "seconds", "tables", "images_per_second"}

Measure = Callable[[Part, Files, int], Mapping[str, np.ndarray]]


class Checked(NamedTuple):
    """What a part of a run claims, beside what it should be."""

    title: str
    claims: list[Claim]
    note: str = ""
    """How its distances are measured."""


def check(
    results: Mapping[str, Any],
    settings: Any,
    parts: Sequence[Part],
    files: Files,
    images: int | None = None,
    measure: Measure = working_out.measure,
) -> list[Checked]:
    """Check what a run found, without what made it.

    Args:
        results: what it found, its "settings" among it.
        settings: what it was told to do, as it wrote down when it began.
        parts: where the figures come from.
        files: its arrays.
        images: on how many images, from the first, to measure distances; None for all.
        measure: how, as `evidence.measure`.

    Returns:
        All that the run claims, part by part, and of its settings.

    Raises:
        InputError: there are no such arrays, or they are not of such a kind.
    """
    checked, measured = [], _Measured(files)
    for part in parts:
        claims = [holds(words, working_out.holds(c, files)) for words, c in part.holds.items()]
        claims += _measure(part, files, measured, images, measure)
        rulers = (f"{name.partition('/')[2]}: {d.words}" for name, d in part.distances.items())
        checked.append(Checked(part.title, claims, "; ".join(rulers)))
    # After all of the distances, as a figure may be of several parts'.
    for (_, claims, _), part in zip(checked, parts, strict=True):
        for place, figure in part.figures.items():
            found, recorded = work_out(figure, measured), entry_of(results, place)
            name = place.removeprefix(f"cells/{part.title}/").replace("/", ".")
            one = isinstance(found, Mapping) and (len(parts) > 2 or len(found) > _MANY)
            claims += (
                [entries_as_one(name, recorded, found)] if one else entries(name, recorded, found)
            )
    return [*checked, Checked("settings", list(_settings(results, settings, parts)))]


class _Measured(dict[str, dict[str, np.ndarray]]):
    """The same arrays, with what was measured in the place of what was stored."""

    def __init__(self, files: Files):
        super().__init__()
        self.files = files

    def __missing__(self, file: str) -> dict[str, np.ndarray]:
        self[file] = dict(self.files[file])
        return self[file]


def _measure(
    part: Part, files: Files, measured: _Measured, images: int | None, measure: Measure
) -> Iterator[Claim]:
    """Measure a part's distances again, and compare them with what is stored."""
    stored = {name: lookup(files, name) for name in (*part.distances, *part.masses)}
    if not stored:
        return
    pairs = [*((d.clean, d.image) for d in part.distances.values()), *part.masses.values()]
    shapes = {name: lookup(files, name).shape for pair in pairs for name in pair}
    one, *others = dict.fromkeys(shapes.values())
    if others or len(one) != _IMAGE_AXES or 0 in one:
        raise InputError(f"{', '.join(shapes)} are no images of one shape")
    for name, values in stored.items():
        fewest = 1 if name in part.distances else one[0]
        if values.ndim != 1 or not fewest <= len(values) <= one[0]:
            raise InputError(f"{name} is not a number for each image")
    least = min((len(stored[name]) for name in part.distances), default=0)
    found = measure(part, files, min(images or least, least))
    for name, values in found.items():
        file, _, array = name.partition("/")
        yield each_equal(array, stored[name][: len(values)], values)
        rest = stored[name][len(values) :]
        # The values of all images, as stored where they were not measured again.
        measured[file][array] = np.concatenate([values, rest])


def _settings(results: Mapping[str, Any], kept: Any, parts: Sequence[Part]) -> Iterator[Claim]:
    """The claims that the results have the same settings, and that every number is described."""
    recorded = results.get("settings")
    if not isinstance(kept, Mapping) or not isinstance(recorded, Mapping):
        raise InputError("the settings, or those in the results, have no entries")
    elsewhere = {"data": "dataset/name", "num_images": "dataset/num_images", "seed": "seed"}
    if kept.get("weights") != "standard":  # which is known when it has been trained
        elsewhere["weights"] = "model/weights"
    pairs = {f"settings.{key}": (recorded.get(key), kept.get(key)) for key in {**kept, **recorded}}
    pairs |= {
        place.replace("/", "."): (entry_of(results, place), kept[key])
        for key, place in elsewhere.items()
        if key in kept
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    words = f"{len(pairs) - len(differing)} entries"
    yield Claim("results.json as settings.json", f"{len(pairs)} entries", words, len(differing), 1)
    for name, pair in differing.items():
        yield different(name, *pair)
    described = {place for part in parts for place in part.figures}
    missing = sorted(set(_numbers(results, described)))
    yield Claim(
        "figures are described",
        "all",
        f"{missing[0]} is not" if missing else "all",
        len(missing),
        1,
    )


def _numbers(entry: Any, described: set[str], place: str = "") -> Iterator[str]:
    """The places of numbers in the results that no description leads to."""
    if place in described or place in _TAKEN or place.startswith(("settings", "seed")):
        return
    if isinstance(entry, Mapping):
        for key, value in entry.items():
            if key != "seconds":
                yield from _numbers(value, described, f"{place}/{key}".removeprefix("/"))
    elif isinstance(entry, list):
        for value in entry:
            yield from _numbers(value, described, place)
    elif isinstance(entry, (int, float)) and not isinstance(entry, bool):
        yield place
