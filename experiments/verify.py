"""Check a finished run from what it left: distances measured again, figures worked out again.

python -m experiments.verify RUN_DIR
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tyro
from rich.console import Console

from experiments.harness import evidence
from experiments.harness.arguments import check_count, run_command
from experiments.harness.claims import (
    Claim,
    claims_table,
    different,
    each_equal,
    entries,
    entries_as_one,
    holds,
)
from experiments.harness.evidence import Part
from experiments.harness.files import load_arrays, read_json
from experiments.harness.runs import EVIDENCE, RESULTS, SETTINGS
from wasserstein_adv.errors import InputError

_DISAGREES = 1  # the exit status
_IMAGE_AXES = 4
_MANY = 12  # entries, which are shown as one line
# Entries of the results that no array tells: where they come from, how long it took, what is shown.
_TAKEN = {"environment", "command", "seconds", "tables", "images_per_second"}


@dataclass(frozen=True)
class VerifyConfig:
    """Check a finished run from its folder alone, without the dataset or the classifier.

    The exact distances are measured again on the stored images, and every figure of `results.json`
    is worked out again from them and from the stored arrays, as `evidence.json` says. The settings
    in both files are compared. What only the classifier could tell, its answers to the images, is
    taken as recorded; so are times. Nothing is written. The exit status is 0 where all agrees, 1
    where something does not, and 2 where the folder cannot be checked.
    """

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run of any command that evaluates."""

    images: int | None = None
    """Measure the distances of so many images only, from the first. By default of all."""


def main(config: VerifyConfig) -> None:
    """Check a run and print what it claims, a table for each of its attacks.

    Raises:
        InputError: an option is out of range, or the folder holds no run that can be checked.
        SystemExit: with status 1, where something does not agree.
    """
    if config.images is not None:
        check_count("images", config.images)
    checked = check_run(config.run_dir, config.images)
    claims = [claim for part in checked for claim in part.claims]
    wrong = sum(not claim.agrees for claim in claims)
    verdict = f"{wrong} of {len(claims)} do not agree" if wrong else f"all {len(claims)} agree"
    # No markup: names can come from the file that is being checked.
    console = Console(markup=False, highlight=False)
    for part in checked:
        console.print(claims_table(*part))
    console.print(f"{config.run_dir}: {verdict}", soft_wrap=True)
    if wrong:
        raise SystemExit(_DISAGREES)


class Checked(NamedTuple):
    """What a part of a run claims, beside what it should be."""

    title: str
    claims: list[Claim]
    note: str = ""
    """How its distances are measured."""


def check_run(folder: Path, images: int | None = None) -> list[Checked]:
    """Check a run of any command that evaluates; its folder is only read.

    Args:
        folder: the run's.
        images: on how many images, from the first, to measure distances; None for all.

    Returns:
        All that the run claims, part by part, and of its settings.

    Raises:
        InputError: the folder holds no such run, or a damaged one.
    """
    results, parts = _opened(folder)
    files = _Files(folder)
    checked, measured = [], _Measured(files)
    for part in parts:
        claims = [holds(words, evidence.holds(c, files)) for words, c in part.holds.items()]
        claims += _measure(part, files, measured, images)
        rulers = (f"{name.partition('/')[2]}: {d.words}" for name, d in part.distances.items())
        checked.append(Checked(part.title, claims, "; ".join(rulers)))
    # After all of the distances, as a figure may be of several parts'.
    for (_, claims, _), part in zip(checked, parts, strict=True):
        for place, figure in part.figures.items():
            found, recorded = evidence.work_out(figure, measured), evidence.entry_of(results, place)
            name = place.removeprefix(f"cells/{part.title}/").replace("/", ".")
            one = isinstance(found, Mapping) and (len(parts) > 2 or len(found) > _MANY)
            claims += (
                [entries_as_one(name, recorded, found)] if one else entries(name, recorded, found)
            )
    return [*checked, Checked("settings", list(_settings(folder, results, parts)))]


def _opened(folder: Path) -> tuple[Mapping[str, Any], list[Part]]:
    """The results of a run, and where they come from."""
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder")
    if not (folder / RESULTS).is_file():
        raise InputError(f"{folder}: has no {RESULTS}, so it holds no finished run")
    results = read_json(folder / RESULTS)
    if not isinstance(results, Mapping):
        raise InputError(f"{folder / RESULTS}: does not hold a run's results")
    if not (folder / EVIDENCE).is_file():
        raise InputError(
            f"{folder}: has no {EVIDENCE}, so it is of a command that attacks nothing, or of an "
            "earlier version"
        )
    return results, evidence.from_json(read_json(folder / EVIDENCE))


class _Files(dict[str, Mapping[str, np.ndarray]]):
    """The arrays of a run's files, each read when it is first asked for."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def __missing__(self, file: str) -> Mapping[str, np.ndarray]:
        if Path(file).name != file:
            raise InputError(f"{EVIDENCE}: {file!r} is no file's name")
        path = self.folder / f"{file}.npz"
        arrays = load_arrays(path)
        for name, array in arrays.items():
            if array.dtype.kind not in "biuf":
                raise InputError(f"{path}: {name} does not hold numbers")
        self[file] = arrays
        return arrays


class _Measured(dict[str, Mapping[str, np.ndarray]]):
    """The same arrays, with what was measured in the place of what was stored."""

    def __init__(self, files: _Files):
        super().__init__()
        self.files = files

    def __missing__(self, file: str) -> Mapping[str, np.ndarray]:
        self[file] = dict(self.files[file])
        return self[file]


def _measure(part: Part, files: _Files, measured: _Measured, images: int | None) -> Iterator[Claim]:
    """Measure a part's distances again, and compare them with what is stored."""
    stored = {name: evidence.lookup(files, name) for name in (*part.distances, *part.masses)}
    if not stored:
        return
    of = [name for d in part.distances.values() for name in (d.clean, d.image)]
    shapes = {evidence.lookup(files, name).shape for name in of}
    if len(shapes) > 1 or any(len(shape) != _IMAGE_AXES or 0 in shape for shape in shapes):
        raise InputError(f"{files.folder}: {', '.join(of)} are no images of one shape")
    least = min((len(stored[name]) for name in part.distances), default=0)
    found = evidence.measure(part, files, min(images or least, least), f"{part.title}: distances")
    for name, values in found.items():
        file, _, array = name.partition("/")
        yield each_equal(array, stored[name][: len(values)], values)
        rest = stored[name][len(values) :]
        # The values of all images, as stored where they were not measured again.
        measured[file][array] = np.concatenate([values, rest])


# Settings, and what is not described --------------------------------------------------------------


def _settings(folder: Path, results: Mapping[str, Any], parts: list[Part]) -> Iterator[Claim]:
    """The claims that both files have the same settings, and that every number is described."""
    kept, recorded = read_json(folder / SETTINGS), results.get("settings")
    if not isinstance(kept, Mapping) or not isinstance(recorded, Mapping):
        raise InputError(f"{folder}: its {SETTINGS} or {RESULTS} holds no settings")
    elsewhere = {"data": "dataset/name", "num_images": "dataset/num_images", "seed": "seed"}
    if kept.get("weights") != "standard":  # which is known when it has been trained
        elsewhere["weights"] = "model/weights"
    pairs = {f"settings.{key}": (recorded.get(key), kept.get(key)) for key in {**kept, **recorded}}
    pairs |= {
        place.replace("/", "."): (evidence.entry_of(results, place), kept[key])
        for key, place in elsewhere.items()
        if key in kept
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    words = f"{len(pairs) - len(differing)} entries"
    yield Claim(f"{RESULTS} as {SETTINGS}", f"{len(pairs)} entries", words, len(differing), 1)
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


if __name__ == "__main__":
    sys.exit(run_command(main, VerifyConfig))
