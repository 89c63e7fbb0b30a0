"""What a command evaluates: images and a classifier, and what that answers."""

import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console

from experiments.harness.files import cache_root, file_name
from experiments.training.standard import trained_or_cached
from experiments.training.weights import Classifier, load_weights
from wasserstein_adv.checks import check_images
from wasserstein_adv.data import load, resolve
from wasserstein_adv.errors import InputError

_BATCH = 500  # images classified at once


class Subject(NamedTuple):
    """The images and the classifier that a command evaluates."""

    data: str
    """The dataset's name."""
    x: Float[np.ndarray, "n h w c"]
    y: Int[np.ndarray, "n"]
    classifier: Classifier | None
    """None until `with_model`."""
    described: str
    """The classifier in one line."""

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return self.x.shape[1:3]


def open_images(data: str, data_dir: Path | None, num_images: int, console: Console) -> Subject:
    """Load the first test images of a dataset ("auto" too), without a classifier.

    Raises:
        InputError: there are not so many images, or the data cannot be used.
    """
    if num_images < 1:
        raise InputError(f"--num-images must be 1 or more, got {num_images}")
    name = resolve(data, data_dir)
    dataset = load(name, "test", data_dir)
    console.print(f"data: {name}, {len(dataset.labels):,} test images", highlight=False)
    if num_images > len(dataset.labels):
        raise InputError(f"--num-images {num_images}: {name} has {len(dataset.labels):,} images")
    x, y = dataset.images[:num_images], dataset.labels[:num_images]
    check_images(x, "images")
    return Subject(name, x, y, None, "")


def with_weights(subject: Subject, checkpoint: Path | None, model: str | None = None) -> Subject:
    """The subject with weights from a file or folder; as it is where there is none.

    Raises:
        InputError: the weights cannot be used, or a network is named without any.
    """
    if checkpoint is None:
        if model is not None:
            raise InputError("--model is for --checkpoint")
        return subject
    classifier = load_weights(checkpoint, subject.data, model)
    return subject._replace(classifier=classifier, described=f"weights of {checkpoint}")


def with_model(subject: Subject, data_dir: Path | None, seed: int, console: Console) -> Subject:
    """The subject with its dataset's standard model, trained now if it never was, where no weights
    were given."""
    if subject.classifier is None:
        classifier, described = trained_or_cached(subject.data, data_dir, cache_root(), seed)
        subject = subject._replace(classifier=classifier, described=described)
    console.print(f"model: {subject.described}", highlight=False, soft_wrap=True)
    return subject


def named_paths(checkpoints: Sequence[str]) -> dict[str, Path]:
    """The paths of `--checkpoints` by name.

    Args:
        checkpoints: each NAME=PATH, or PATH, of which the name is that of the file, without its
            ending, or of the folder. What has a slash before the = is a path.

    Raises:
        InputError: a name or a path is empty; a name begins with something else than a letter or a
            digit, or has more in it than these, blanks and -_.+=; or two are alike, as files are
            called after them.
    """
    found: dict[str, Path] = {}
    files: set[str] = set()
    for text in checkpoints:
        name, equals, path = text.partition("=")
        if not equals or "/" in name or os.sep in name:
            name, path = Path(os.path.abspath(text)).name, text
            name = name.removesuffix(".pth").removesuffix(".pt")
        name = name.strip()
        if not path or not name:
            raise InputError(f"--checkpoints must be NAME=PATH or PATH, got {text!r}")
        if not re.fullmatch(r"[^\W_][\w .=+-]*", name):
            raise InputError(
                f"--checkpoints: {name!r} cannot be a name: letters, digits, blanks, -_.+="
            )
        if (file := file_name(name).casefold()) in files:
            raise InputError(f"--checkpoints must all have different names, got {name!r} again")
        files.add(file)
        found[name] = Path(path)
    return found


def logits_of(classifier: Classifier) -> Callable[[jax.Array], jax.Array]:
    """The classifier as attacks take it."""
    return lambda images: classifier.model.apply(classifier.variables, images)


@functools.partial(jax.jit, static_argnames="model")
def _classes(model: Any, variables: Any, images: jax.Array) -> jax.Array:
    return jnp.argmax(model.apply(variables, images), axis=-1)


def predictions(
    classifier: Classifier, images: Float[np.ndarray, "n h w c"]
) -> Int[np.ndarray, "n"]:
    """The classifier's answers, a batch at a time."""
    parts = (images[start : start + _BATCH] for start in range(0, len(images), _BATCH))
    return np.concatenate([np.asarray(_classes(*classifier, part)) for part in parts])
