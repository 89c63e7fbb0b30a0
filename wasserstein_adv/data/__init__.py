"""Datasets: which there are, how to prepare and load them, and how to feed them to training.

Importing this package imports neither tensorflow_datasets nor mlxtend, and nothing in it ever needs
TensorFlow.
"""

from wasserstein_adv.data.augment import random_crop, random_flip
from wasserstein_adv.data.batches import batch_indices, prefetch
from wasserstein_adv.data.prepared import prepare, split_sizes
from wasserstein_adv.data.recipes import Spec
from wasserstein_adv.data.sources import (
    NAMES,
    SPLITS,
    Dataset,
    RawDataset,
    available,
    class_names,
    describe,
    load,
    published_sizes,
    read,
    resolve,
)

__all__ = [
    "NAMES",
    "SPLITS",
    "Dataset",
    "RawDataset",
    "Spec",
    "available",
    "batch_indices",
    "class_names",
    "describe",
    "load",
    "prefetch",
    "prepare",
    "published_sizes",
    "random_crop",
    "random_flip",
    "read",
    "resolve",
    "split_sizes",
]
