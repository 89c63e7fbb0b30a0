"""What can be chosen of a training, and the training that it makes: data, network, settings."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from flax import linen as nn
from rich.console import Console

from experiments.harness import arguments
from experiments.harness.catalogue.datasets import DATASETS, ModelName
from experiments.harness.catalogue.defenses import DEFENSES, DefenseName, defense_settings
from experiments.harness.progress import images_bar
from experiments.training import weights
from wasserstein_adv import parallel
from wasserstein_adv.data import RawDataset, describe, published_sizes, read, resolve
from wasserstein_adv.defenses import Defense
from wasserstein_adv.errors import InputError
from wasserstein_adv.models import MODELS
from wasserstein_adv.recipes import Recipe, check_recipe


@dataclass(frozen=True)
class TrainOptions:
    """What can be chosen of a training; the rest is the standard of dataset and defence."""

    data: str = "auto"
    """The dataset."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""

    defense: DefenseName = "plain"

    model: ModelName | None = None
    """The network. By default the one that the papers use with the dataset."""

    init: Path | None = None
    """Weights to start from, as --checkpoint of the attack commands takes them; by default random
    ones."""

    epochs: int | None = None
    """Passes over the training images. By default the paper's, or ours where the paper names none;
    so too the options below."""

    learning_rate: float | None = None
    """The highest learning rate."""

    schedule: Literal["one-cycle", "drop", "constant"] | None = None
    """The rate over time: up and down along a cosine; divided by ten half-way; constant."""

    batch_size: int | None = None
    """Images in a batch, over all devices of all processes."""

    num_images: int | None = None
    """How many training images to use, from the first; by default all."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What convolutions compute in; weights are float32 always. auto: bfloat16 for residual
    networks on a GPU or TPU, else float32."""

    seed: int = 0
    """Seed of the first weights, the order of the images, their changes and the attacks."""

    checkpoint_every: float = 120.0
    """Seconds between two checkpoints; 0 for one after every step."""

    host_devices: int | None = None
    """CPU devices; by default one per core."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where several processes train together; on TPU pods and under SLURM
    `auto`."""

    num_processes: int | None = None
    """How many processes train together; for --coordinator HOST:PORT."""

    process_id: int | None = None
    """Which of them this is, from 0; for --coordinator HOST:PORT."""

    settings: tyro.conf.Suppress[Any] = None
    """Of the defence's attack; None for its paper's."""

    choice: ClassVar[arguments.Choice] = arguments.Choice(
        "defense", ("defense", "data"), defense_settings, DEFENSES, {"attack_steps": "steps"}
    )

    out: Path | None = None
    """Folder of the run; by default one under runs/ named after the settings. A run that was
    interrupted, in whatever way, goes on where it stopped; a finished one is shown again."""


class Task(NamedTuple):
    """A training that has not begun."""

    name: str
    """The dataset's."""
    recipe: Recipe
    defense: Defense
    model_name: str
    model: nn.Module
    start: weights.Classifier | None
    """The weights to start from; None for random ones."""
    training: RawDataset
    test: RawDataset
    settings: dict[str, Any]
    """All that the weights depend on."""


def open_task(config: TrainOptions, console: Console) -> Task:
    """What the options are of, read and checked."""
    name = resolve(config.data, config.data_dir)
    recipe, attack, defense = _chosen(name, config)
    started = config.init and weights.trained_model(config.init)
    model_name = config.model or started or DATASETS[name].model
    dtype = _precision(config.precision, model_name)
    model = weights.build_model(model_name, name, dtype=dtype, axis_name=parallel.AXIS)
    start = None if config.init is None else weights.load_weights(config.init, name, model_name)
    training = _loaded(name, "train", config, console)
    if config.num_images is not None:
        if config.num_images > len(training.labels):
            raise InputError(
                f"--num-images {config.num_images}: {name} has {len(training.labels):,}"
            )
        training = first_of(training, config.num_images)
    test = _loaded(name, "test", config, console)
    check_recipe(recipe, len(training.labels))
    settings = {
        "data": name,
        "num_images": len(training.labels),
        "model": model_name,
        "defense": config.defense,
        "attack": attack and attack._asdict(),
        "precision": jnp.dtype(dtype).name,
        "init": start and weights.digest(start),
        **dataclasses.asdict(recipe),
    }
    return Task(name, recipe, defense, model_name, model, start, training, test, settings)


def _chosen(name: str, config: TrainOptions) -> tuple[Recipe, Any, Defense]:
    """The papers' recipe with the options that were given in its place, the settings of the
    defence's attack, and the defence; all checked."""
    entry = DEFENSES[config.defense]
    options = ("epochs", "learning_rate", "schedule", "batch_size", "seed")
    given = {option: getattr(config, option) for option in options}
    changes = {option: value for option, value in given.items() if value is not None}
    for option in ("epochs", "batch_size", "num_images"):
        if getattr(config, option) is not None:
            arguments.check_count(option, getattr(config, option))
    if config.learning_rate is not None:
        arguments.check_positive("learning_rate", config.learning_rate)
    if not config.checkpoint_every >= 0:
        raise InputError(f"--checkpoint-every must be 0 or more, got {config.checkpoint_every}")
    arguments.check_seed(config.seed)
    grid_size = describe(name).image_shape[:2]
    attack = entry.settings(name) if config.settings is None else config.settings
    if attack is not None:
        arguments.check_settings(attack, lambda settings: entry.build(grid_size, settings))
    recipe = dataclasses.replace(entry.recipe(name), **changes)
    return recipe, attack, entry.build(grid_size, attack)


def _precision(name: str, model: str) -> Any:
    """The type to compute in."""
    if name != "auto":
        return jnp.dtype(name)
    # Small networks spend their time in the attack; CPUs have no fast bfloat16.
    residual = "axis_name" in MODELS[model].__dataclass_fields__
    on_cpu = jax.local_devices()[0].platform == "cpu"
    return jnp.dtype("bfloat16" if residual and not on_cpu else "float32")


def _loaded(name: str, split: str, config: TrainOptions, console: Console) -> RawDataset:
    """A split of the dataset, with a progress bar where it takes long."""
    with images_bar(f"reading {name}, {split}", console.quiet) as show:
        dataset = read(name, split, config.data_dir, progress=show)
    count = len(dataset.labels)
    whole = published_sizes(name).get(split, count)
    of = "" if count == whole else f" of {whole:,}"
    console.print(f"{split}: {name}, {count:,}{of} images", highlight=False)
    return dataset


def first_of(dataset: RawDataset, count: int) -> RawDataset:
    """Its first images."""
    return RawDataset(dataset.name, dataset.images[:count], dataset.labels[:count])
