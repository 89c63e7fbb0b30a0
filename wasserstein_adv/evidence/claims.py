"""Claims: what a run recorded, beside what it should be."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

# How far apart two numbers may be that agree.
_RELATIVE = 1e-6
_LONG = 30  # letters of an entry that is shown
_ABSOLUTE = 1e-7  # the solver's digits, in pixels, and float32's, in shares of the mass


class Claim(NamedTuple):
    """Something that a run recorded, beside what it should be."""

    name: str
    """An array, an entry of `results.json` by its keys, or a sentence about the arrays."""
    recorded: str
    recomputed: str
    wrong: int
    """In how many of its values the two differ."""
    values: int

    @property
    def agrees(self) -> bool:
        """Whether they differ in none."""
        return self.wrong == 0


def _close(recorded: np.ndarray, found: np.ndarray) -> Bool[np.ndarray, "..."]:
    return np.isclose(recorded, found, _RELATIVE, _ABSOLUTE, equal_nan=True)


def holds(name: str, where: Bool[np.ndarray, "n"]) -> Claim:
    """The claim that something is true of every image."""
    failing = np.flatnonzero(~where)
    everywhere = f"{len(where)} images"
    found = f"not image {failing[0]}" if len(failing) else everywhere
    return Claim(name, everywhere, found, len(failing), len(where))


def each_equal(
    name: str, recorded: Float[np.ndarray, "n"], found: Float[np.ndarray, "n"], unit: str = "image"
) -> Claim:
    """The claim that two arrays are equal; it shows the first values that are not."""
    differing = np.flatnonzero(~_close(recorded, found))
    if len(differing):
        first = differing[0]
        shown, again = (f"{unit} {first}: {values[first]:.10g}" for values in (recorded, found))
    else:
        shown = again = f"{len(found)} {unit}s"
    return Claim(name, shown, again, len(differing), len(found))


def entries(name: str, recorded: Any, found: Any) -> Iterator[Claim]:
    """The claims of an entry of the results: one for each number, or interval, in it."""
    if isinstance(found, Mapping):
        recorded = recorded if isinstance(recorded, Mapping) else {}
        for key in {**found, **recorded}:
            yield from entries(f"{name}.{key}", recorded.get(key), found.get(key))
        return
    sides = _numbers(recorded), _numbers(found)
    agrees = sides[0].shape == sides[1].shape and bool(np.all(_close(*sides)))
    if found is None:
        agrees = recorded is None
    digits = 4 if agrees else 10
    shown, again = ("–".join(f"{value:.{digits}g}" for value in side) for side in sides)
    yield Claim(name, shown, again, int(not agrees), 1)


def entries_as_one(name: str, recorded: Any, found: Mapping[str, Any]) -> Claim:
    """The claims of an entry of the results as one; it shows the first that does not agree."""
    claims = list(entries(name, recorded, found))
    differing = [claim for claim in claims if not claim.agrees]
    if differing:
        first = differing[0]
        key = first.name.removeprefix(f"{name}.")
        shown, again = (f"{key}: {side}" for side in (first.recorded, first.recomputed))
    else:
        shown = again = f"{len(claims)} entries"
    return Claim(name, shown, again, len(differing), len(claims))


def different(name: str, recorded: Any, found: Any) -> Claim:
    """The claim, which is wrong, that two entries are the same."""
    texts = ("–" if side is None else str(side) for side in (recorded, found))
    shown, again = (text if len(text) < _LONG else f"{text[:_LONG]}…" for text in texts)
    return Claim(name, shown, again, 1, 1)


def _numbers(entry: Any) -> Float[np.ndarray, "k"]:
    """The numbers of an entry, NaN for one that is not a number or not there."""
    try:
        return np.atleast_1d(np.asarray(entry, np.float64)).ravel()
    except (TypeError, ValueError, OverflowError):
        return np.array([np.nan])
