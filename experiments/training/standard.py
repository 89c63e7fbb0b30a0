"""The standard network of each dataset: trained on the first use, and kept."""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import wasserstein_adv
from experiments.harness.catalogue.datasets import DATASETS
from experiments.training.log import Meter, training_bar
from experiments.training.weights import Classifier, build_model, restore, save
from wasserstein_adv import parallel
from wasserstein_adv.data import available, prepare, published_sizes, read, resolve, split_sizes
from wasserstein_adv.errors import InputError
from wasserstein_adv.fitting import Hooks, train
from wasserstein_adv.recipes import Recipe, steps_of
from wasserstein_adv.training import Measures


def trained_or_cached(
    data: str, data_dir: Path | None, cache_dir: Path, seed: int = 0
) -> tuple[Classifier, str]:
    """Return the standard classifier of a dataset, trained now if it never was, and what it is.

    A training shows its progress on stderr. A network in the cache that cannot be read is reported
    there, trained again and replaced; a cache that cannot be written is reported, and the network
    returned all the same.

    Args:
        data: One of `DATASETS` or "auto".
        data_dir: TFDS data directory; None means TFDS's default.
        cache_dir: The cache, as by `cache_root()`; made if it is not there.
        seed: The training's seed.

    Raises:
        InputError: The dataset is not known or cannot be loaded, or the seed is out of range.
    """
    name = resolve(data, data_dir)
    recipe = dataclasses.replace(DATASETS[name].recipe, seed=seed)
    model = build_model(DATASETS[name].model, name, axis_name=parallel.AXIS)
    described = f"{type(model).__name__}, {recipe.epochs} epochs on {name}, seed {seed}"
    entry = cache_dir.expanduser() / "models" / _cache_key(name, recipe, _part(name, data_dir))
    if os.path.lexists(entry):
        try:
            return Classifier(model, restore(entry, model, name)), f"{described} (cached)"
        except InputError as error:
            _warn(f"{error}; training it again")
    started = time.perf_counter()
    dataset = read(name, "train", data_dir)
    with training_bar(f"training on {name}", steps_of(recipe, len(dataset.labels))) as show:
        variables = train(model, dataset, recipe, hooks=Hooks(after_step=_shown(show, recipe)))
    described += f" (trained in {time.perf_counter() - started:.0f} s)"
    try:
        _remove(entry)
        save(entry, variables)
    except (InputError, OSError) as error:
        # Another process may have finished the same network meanwhile.
        _warn(f"the trained network is not kept: {error}")
    return Classifier(model, variables), described


def _shown(show: Callable[..., None], recipe: Recipe) -> Callable[..., None]:
    """`Hooks.after_step` that shows the measures of every sixteenth step."""
    meter = Meter()

    def after_step(step: int, measures: Measures, waited: float) -> None:
        meter.add(measures, waited, recipe.batch_size)
        if step % 16 == 0:
            show(step, meter.read())

    return after_step


def _part(name: str, data_dir: Path | None) -> dict[str, int]:
    """How many training images a dataset has here, where it is but a part of what is published."""
    whole = published_sizes(name)
    if not whole or not available(name, data_dir):  # what is downloaded is whole
        return {}
    folder, _ = prepare(name, None, data_dir)
    count = split_sizes(folder)["train"]
    return {} if count == whole["train"] else {"training_images": count}


def _cache_key(name: str, recipe: Recipe, part: dict[str, int]) -> str:
    """Return the name of a cache entry: the dataset, the seed and a hash of all that counts."""
    parts = {
        "library": wasserstein_adv.__version__,
        "model": DATASETS[name].model,
        **dataclasses.asdict(recipe),
        **part,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{name}-seed{recipe.seed}-{digest[:12]}"


def _remove(entry: Path) -> None:
    """Remove a cache entry, if there is one: first its name, in one step, and then its content."""
    if not os.path.lexists(entry):
        return
    with tempfile.TemporaryDirectory(prefix=".removed.", dir=entry.parent) as folder:
        os.replace(entry, Path(folder) / entry.name)
        shutil.rmtree(Path(folder) / entry.name, ignore_errors=True)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
