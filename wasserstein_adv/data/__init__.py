"""Datasets: which there are, and how to prepare and load them.

Importing this package imports neither tensorflow_datasets nor mlxtend, and nothing in it ever needs
TensorFlow.
"""

from wasserstein_adv.data.prepared import prepare, split_sizes
from wasserstein_adv.data.sources import NAMES, SPLITS, Dataset, available, load, resolve

__all__ = [
    "NAMES",
    "SPLITS",
    "Dataset",
    "available",
    "load",
    "prepare",
    "resolve",
    "split_sizes",
]
