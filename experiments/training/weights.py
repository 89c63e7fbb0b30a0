"""Classifiers: which network goes with a dataset, and weights on disk."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from experiments.harness.catalogue.datasets import DATASETS
from experiments.harness.files import INCOMPLETE
from wasserstein_adv.data import describe
from wasserstein_adv.errors import InputError
from wasserstein_adv.models import MODELS, load_torch
from wasserstein_adv.training import Variables

WEIGHTS = "weights"
"""The folder of a training run that holds the weights."""
MODEL_NAME = "model.json"
"""The file of a training run that says which network they are of."""

_PYTORCH = (".pth", ".pt")


class Classifier(NamedTuple):
    """A network and its weights."""

    model: nn.Module
    variables: Variables


def digest(classifier: Classifier | None) -> str:
    """16 hexadecimal digits that stand for a model's weights; "standard" where there are none."""
    if classifier is None:
        return "standard"
    leaves = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(classifier.variables))
    return hashlib.sha256(b"".join(leaves)).hexdigest()[:16]


def build_model(name: str, data: str, **attributes: Any) -> nn.Module:
    """Make a network of `MODELS` for a dataset's images and classes.

    `attributes` are its `dtype`, and `axis_name`, which those without batch statistics ignore.

    Raises:
        InputError: the network does not take such images.
    """
    module, spec = MODELS[name], describe(data)
    if "axis_name" not in module.__dataclass_fields__:
        attributes.pop("axis_name", None)
    model = module(classes=spec.classes, **attributes)
    try:
        abstract_variables(model, data)
    except (InputError, ZeroDivisionError, ValueError, TypeError) as error:
        shape = "×".join(map(str, spec.image_shape))
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(f"{name} does not take {data}'s images of {shape} ({reason})") from error
    return model


def abstract_variables(model: nn.Module, data: str) -> Variables:
    """The shapes and types of a network's variables for a dataset's images."""
    image = jax.ShapeDtypeStruct((1, *describe(data).image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def save(path: Path, variables: Variables) -> None:
    """Write variables as an Orbax checkpoint, a folder that appears whole or not at all.

    Raises:
        InputError: As `check_free`, or the folder cannot be written.
    """
    check_free(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=INCOMPLETE, dir=path.parent) as folder:
            written = Path(folder).resolve() / "weights"
            with _orbax() as checkpointer:
                checkpointer.save(written, variables)
            os.replace(written, path)  # over an empty folder too
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def check_free(path: Path) -> None:
    """Raise InputError where something is at a path, other than an empty folder."""
    if path.is_dir() and not path.is_symlink():
        if any(path.iterdir()):
            raise InputError(f"{path}: the folder is not empty, and nothing is overwritten")
    elif os.path.lexists(path):
        raise InputError(f"{path}: is there already, and nothing is overwritten")


def restore(path: Path, model: nn.Module, data: str) -> Variables:
    """Read weights of a network, for a dataset's images, that `save` wrote.

    Raises:
        InputError: There is no such folder, it is not an Orbax checkpoint or is damaged, or its
            arrays are not the network's by name, shape and type, or are not finite.
    """
    if not path.is_dir():
        raise InputError(f"{path}: {'not a folder' if path.exists() else 'no such folder'}")
    expected = abstract_variables(model, data)
    try:
        with _orbax() as checkpointer:
            found = checkpointer.restore(path.resolve())
    except Exception as error:  # a damaged checkpoint raises whatever its parser meets
        reason = next(iter(str(error).splitlines()), "")[:120] or type(error).__name__
        raise InputError(f"{path}: not a checkpoint, or damaged ({reason})") from error
    check_weights(found, expected, path)
    return jax.tree.map(jnp.asarray, found)


def load_weights(path: Path, data: str, model: str | None = None) -> Classifier:
    """Read weights: published ones, or those of a training command.

    Args:
        path: A PyTorch checkpoint, `.pth` or `.pt`; the folder of a training run; or an Orbax
            checkpoint's folder.
        data: The dataset whose images the network takes.
        model: The network, one of `MODELS`; None for the one that the run says, or else the
            dataset's of `DATASETS`.

    Raises:
        InputError: As `load_torch` or `restore`, or nothing of the kind is there.
    """
    if path.suffix.lower() in _PYTORCH and not path.is_dir():
        network = _network(model or DATASETS[data].model, data, path)
        return Classifier(network, load_torch(network, path, describe(data).image_shape))
    if path.is_file():
        raise InputError(f"{path}: neither a {' or '.join(_PYTORCH)} file nor a folder")
    if (path / MODEL_NAME).is_file():
        if not (path / WEIGHTS).is_dir():
            raise InputError(f"{path}: its training is not finished, the same command goes on")
        model, path = model or trained_model(path), path / WEIGHTS
    network = _network(model or DATASETS[data].model, data, path)
    return Classifier(network, restore(path, network, data))


def _network(name: str, data: str, path: Path) -> nn.Module:
    try:
        return build_model(name, data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def trained_model(folder: Path) -> str | None:
    """The network that a training run says it is of; None where a folder is of no such run."""
    path = folder / MODEL_NAME
    if not path.is_file():
        return None
    try:
        name = json.loads(path.read_text("utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: does not name a network ({error})") from error
    if name not in MODELS:
        raise InputError(f"{path}: {name!r} is none of the networks, {', '.join(MODELS)}")
    return name


def check_weights(found: Any, expected: Any, path: Path) -> None:
    """Raise InputError unless two trees have the same arrays, and those found are finite."""
    have, want = leaves_by_name(found), leaves_by_name(expected)
    for name in sorted(have.keys() | want.keys()):
        if name not in want or name not in have:
            problem = "is missing" if name not in have else "is not the network's"
            raise InputError(f"{path}: {name} {problem}")
        shape = getattr(have[name], "shape", None)
        if shape != want[name].shape or have[name].dtype != want[name].dtype:
            there = "no array" if shape is None else f"{have[name].dtype} {shape}"
            raise InputError(
                f"{path}: {name} is {there}, expected {want[name].dtype} {want[name].shape}"
            )
        if not np.isfinite(have[name]).all():
            raise InputError(f"{path}: {name} holds weights that are not finite")


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by the keys that lead to them, joined by dots."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


@contextlib.contextmanager
def quiet_orbax() -> Iterator[Any]:
    """Orbax, which says nothing, neither in logs nor in warnings, while the block runs."""
    import orbax.checkpoint as ocp  # here, because it takes seconds to import

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # Orbax warns that it reads the sharding from the file, which is what is meant.
        with warnings.catch_warnings(action="ignore"):
            yield ocp
    finally:
        logger.setLevel(level)


def of_this_process(ocp: Any) -> Any:
    """Orbax's options to read and write in this process by itself, and wait for no other."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    with quiet_orbax() as ocp:
        alone = {"multiprocessing_options": of_this_process(ocp)}
        handler = ocp.PyTreeCheckpointHandler(**alone)
        with ocp.Checkpointer(handler, **alone) as checkpointer:
            yield checkpointer
