"""The standard networks: trained once, kept, and trained again where what was kept is damaged."""

import os

import jax
import numpy as np
import pytest

import wasserstein_adv
from experiments.harness.catalogue.datasets import DATASETS, DataEntry
from experiments.training import standard
from experiments.training.standard import trained_or_cached
from experiments.training.weights import abstract_variables
from wasserstein_adv.data import RawDataset
from wasserstein_adv.recipes import Recipe


@pytest.fixture
def quick_recipe(monkeypatch) -> list[str]:
    """Train the standard model in no time; the list fills with what is loaded for it."""
    loaded: list[str] = []

    def quick_train(model, dataset, recipe, hooks):
        rng = np.random.default_rng(recipe.seed)
        shapes = abstract_variables(model, "mnist")
        return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)

    def quick_load(name, split, data_dir=None):
        loaded.append(split)
        return RawDataset(name, np.zeros((64, 28, 28, 1), np.uint8), np.zeros(64, np.int32))

    entry = DataEntry("wong-kolter", Recipe(1, 1e-3, batch_size=32))
    monkeypatch.setitem(DATASETS, "mnist", entry)
    monkeypatch.setattr(standard, "read", quick_load)
    monkeypatch.setattr(standard, "train", quick_train)
    return loaded


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_cache_trains_once_for_each_seed_and_recipe(quick_recipe, monkeypatch, tmp_path):
    first, told = trained_or_cached("mnist", None, tmp_path)
    again, told_again = trained_or_cached("mnist", None, tmp_path)
    assert_equal(first.variables, again.variables)
    assert quick_recipe == ["train"]
    assert "trained in" in told
    assert told_again.endswith("(cached)")
    trained_or_cached("mnist", None, tmp_path, seed=1)
    entry = DataEntry("wong-kolter", Recipe(1, 2e-3, batch_size=32))
    monkeypatch.setitem(DATASETS, "mnist", entry)
    trained_or_cached("mnist", None, tmp_path)
    monkeypatch.setattr(wasserstein_adv, "__version__", "99")
    trained_or_cached("mnist", None, tmp_path)
    assert quick_recipe == ["train"] * 4
    assert len(os.listdir(tmp_path / "models")) == 4


def test_damaged_cache_entry_is_reported_and_replaced(quick_recipe, tmp_path, capfd):
    first, _ = trained_or_cached("mnist", None, tmp_path)
    (entry,) = (tmp_path / "models").iterdir()
    for file in entry.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    capfd.readouterr()
    again, _ = trained_or_cached("mnist", None, tmp_path)
    assert f"warning: {entry}" in capfd.readouterr().err
    assert_equal(first.variables, again.variables)
    assert_equal(first.variables, trained_or_cached("mnist", None, tmp_path)[0].variables)
    assert quick_recipe == ["train"] * 2
    assert list((tmp_path / "models").iterdir()) == [entry]


def test_cache_that_cannot_be_written_costs_only_a_warning(quick_recipe, tmp_path, capfd):
    (tmp_path / "file").touch()
    trained_or_cached("mnist", None, tmp_path / "file" / "cache")
    assert "warning: the trained network is not kept" in capfd.readouterr().err
