"""Check a finished run from what it left: distances measured again, figures worked out again.

python -m experiments.verify RUN_DIR
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.harness.arguments import check_count, run_command
from experiments.harness.evidence import measure
from experiments.harness.files import load_arrays, read_json
from experiments.harness.runs import EVIDENCE, RESULTS, SETTINGS
from wasserstein_adv import evidence
from wasserstein_adv.errors import InputError
from wasserstein_adv.evidence import Checked

_DISAGREES = 1  # the exit status


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
        console.print(claims_table(part))
    console.print(f"{config.run_dir}: {verdict}", soft_wrap=True)
    if wrong:
        raise SystemExit(_DISAGREES)


def check_run(folder: Path, images: int | None = None) -> list[Checked]:
    """Check a run of any command that evaluates, as `evidence.check`; its folder is only read.

    Raises:
        InputError: the folder holds no such run, or a damaged one.
    """
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
    parts = evidence.from_json(read_json(folder / EVIDENCE))
    settings = read_json(folder / SETTINGS)
    return evidence.check(results, settings, parts, _Files(folder), images, measure)


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


def claims_table(checked: Checked) -> Table:
    """Lay out claims for the terminal, those that do not agree in red."""
    table = Table(
        title=checked.title,
        caption=checked.note or None,
        box=SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("claim", no_wrap=True)
    for column in ("recorded", "recomputed"):
        table.add_column(column, justify="right")
    table.add_column("agrees", no_wrap=True)
    for claim in checked.claims:
        share = f", {claim.wrong} of {claim.values}" if claim.values > 1 else ""
        agrees = "yes" if claim.agrees else f"no{share}"
        style = None if claim.agrees else "bold red"
        table.add_row(claim.name, claim.recorded, claim.recomputed, agrees, style=style)
    return table


if __name__ == "__main__":
    sys.exit(run_command(main, VerifyConfig))
