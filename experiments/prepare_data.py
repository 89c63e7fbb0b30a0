"""Prepare a dataset on this machine, from its published files or by downloading them.

python -m experiments.prepare_data mnist --source DIR
python -m experiments.prepare_data tiny_imagenet --source tiny-imagenet-200.zip
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from experiments.harness.arguments import run_command
from experiments.harness.progress import images_bar
from wasserstein_adv.data import prepare, published_sizes, split_sizes


@dataclass(frozen=True)
class PrepareConfig:
    """Prepare a dataset, so that the other commands find it; a prepared one is left as it is."""

    name: tyro.conf.Positional[
        Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "tiny_imagenet"]
    ]
    """The dataset."""

    source: Path | None = None
    """Its published files: their folder, or the tar, tar.gz or zip file that they came in. By
    default they are downloaded."""

    data_dir: Path | None = None
    """TFDS data directory. By default $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""


def main(config: PrepareConfig) -> None:
    """Prepare the dataset and print where it is and what is in it."""
    with images_bar(config.name) as show:
        folder, made = prepare(config.name, config.source, config.data_dir, progress=show)
    if not made:
        print(f"{config.name}: already prepared at {folder}, nothing to do")
        return
    whole = published_sizes(config.name)
    sizes = ", ".join(
        f"{size:,} {f'of {whole[split]:,} ' if size != whole[split] else ''}{split}"
        for split, size in split_sizes(folder).items()
    )
    print(f"{config.name}: prepared at {folder} ({sizes} images)")


if __name__ == "__main__":
    sys.exit(run_command(main, PrepareConfig))
