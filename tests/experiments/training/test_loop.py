"""Training, what is kept of it, and what happens to weights that cannot be used."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wasserstein_adv
from experiments.harness.catalogue.datasets import DATASETS, DataEntry
from experiments.harness.files import cache_root
from experiments.training import standard
from experiments.training import weights as weights_module
from experiments.training.standard import trained_or_cached
from experiments.training.weights import check_free, load_weights, restore, save
from wasserstein_adv.data import RawDataset
from wasserstein_adv.errors import InputError
from wasserstein_adv.fitting import Hooks, Stopped, accuracy, train
from wasserstein_adv.models import WongKolterCNN
from wasserstein_adv.recipes import Recipe, learning_rates, optimizer_of
from wasserstein_adv.training import TrainState

QUICK = Recipe(epochs=3, batch_size=32, learning_rate=4e-3, padding=2)
MODEL = WongKolterCNN()


def squares(count: int = 192) -> RawDataset:
    """Noisy images with a bright square, whose place is the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 50, (count, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 + 12 * (label // 2), 4 + 12 * (label % 2)
        image[row : row + 8, column : column + 8] += 180
    return RawDataset("mnist", images, labels)


@pytest.fixture(scope="module")
def weights():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


@pytest.fixture
def quick_recipe(monkeypatch) -> list[str]:
    """Train the standard model in no time; the list fills with what is loaded for it."""
    loaded: list[str] = []

    def quick_train(model, dataset, recipe, hooks):
        return model.init(jax.random.key(recipe.seed), jnp.zeros((1, 28, 28, 1)))

    def quick_load(name, split, data_dir=None):
        loaded.append(split)
        return squares()

    entry = DataEntry("wong-kolter", Recipe(1, 1e-3, batch_size=32))
    monkeypatch.setitem(DATASETS, "mnist", entry)
    monkeypatch.setattr(standard, "read", quick_load)
    monkeypatch.setattr(standard, "train", quick_train)
    return loaded


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def trained() -> tuple[Any, list[float]]:
    """The weights of `QUICK`, and the loss of every step."""
    losses: list[float] = []
    hooks = Hooks(after_step=lambda step, measures, waited: losses.append(float(measures.loss)))
    return train(MODEL, squares(), QUICK, hooks=hooks), losses


def test_loss_falls(trained):
    found, losses = trained
    assert len(losses) == 18
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert accuracy(MODEL, found, squares()) > 0.95


@pytest.mark.parametrize("last", [7, 18])
def test_stopping_saves_and_going_on_gives_the_same_weights(trained, last):
    saved: list[TrainState] = []
    taken: list[int] = []
    hooks = Hooks(
        after_step=lambda step, measures, waited: taken.append(step),
        save=saved.append,
        stop=lambda: len(taken) == last,
    )
    with pytest.raises(Stopped):
        train(MODEL, squares(), QUICK, hooks=hooks)
    assert [int(state.step) for state in saved] == [last]
    assert_equal(train(MODEL, squares(), QUICK, hooks=Hooks(resume=saved[0])), trained[0])


def test_seed_changes_the_weights(trained):
    found = train(MODEL, squares(), dataclasses.replace(QUICK, epochs=1, seed=1))
    first = trained[0]["params"]["conv1"]["kernel"]
    assert not np.allclose(found["params"]["conv1"]["kernel"], first, atol=0.01)


def test_schedules():
    one_cycle = learning_rates(Recipe(1, 0.5, schedule="one-cycle"), 100)
    assert float(one_cycle(20)) == pytest.approx(0.5)
    assert float(one_cycle(0)) == pytest.approx(0.02)
    assert float(one_cycle(100)) < 1e-4
    drop = learning_rates(Recipe(1, 0.5, schedule="drop"), 9)
    np.testing.assert_allclose([float(drop(step)) for step in range(9)], [0.5] * 5 + [0.05] * 4)
    constant = learning_rates(Recipe(1, 0.5, schedule="constant"), 9)
    assert {float(constant(step)) for step in range(9)} == {0.5}


def test_sgd_is_pytorchs():
    """v ← 0.9 v + g + 0.0005 w, w ← w − rate · v."""
    optimizer = optimizer_of(Recipe(1, 0.1, "sgd", "constant"), 10)
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    params = jnp.asarray(w)
    state = optimizer.init(params)
    for gradient in np.random.default_rng(0).standard_normal((5, 2)):
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = params + updates
        v = 0.9 * v + gradient + 5e-4 * w
        w = w - 0.1 * v
    np.testing.assert_allclose(params, w, rtol=1e-5)


def test_accuracy_counts_every_image(weights):
    dataset = squares(501)  # one more than a batch
    answers = np.argmax(MODEL.apply(weights, dataset.images / np.float32(255)), axis=-1)
    assert accuracy(MODEL, weights, dataset) == pytest.approx(np.mean(answers == dataset.labels))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 193},
        {"padding": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"seed": -1},
    ],
)
def test_numbers_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        train(MODEL, squares(), dataclasses.replace(QUICK, **change))


def test_weights_survive_a_round_trip(weights, tmp_path, caplog, capfd):
    path = tmp_path / "new" / "weights"
    save(path, weights)
    assert_equal(load_weights(path, "mnist").variables, weights)
    assert os.listdir(path.parent) == ["weights"]
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_save_takes_an_empty_folder_and_overwrites_nothing(weights, tmp_path):
    save(tmp_path / "run", weights)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="not empty"):
        save(tmp_path / "run", weights)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", weights)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="there already"):
        check_free(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("dense2"), "dense2.bias is missing"),
        (lambda p: p.update(extra=jnp.zeros(2)), "extra is not the network's"),
        (lambda p: p["conv1"].update(bias=jnp.zeros(3)), "conv1.bias is float32 .3,., expected"),
        (lambda p: p["conv1"].update(bias=jnp.zeros(16, jnp.int32)), "conv1.bias is int32"),
        (lambda p: p["conv1"].update(bias=jnp.full(16, jnp.nan)), "conv1.bias .* not finite"),
    ],
)
def test_other_networks_are_refused(weights, tmp_path, change, message):
    other = jax.tree.map(lambda leaf: leaf, weights)
    change(other["params"])
    save(tmp_path / "other", other)
    with pytest.raises(InputError, match=message) as caught:
        restore(tmp_path / "other", MODEL, "mnist")
    assert "\n" not in str(caught.value)


def damage(path: Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")


def test_what_is_no_checkpoint_is_refused_in_one_line(weights, tmp_path):
    (tmp_path / "notes.txt").touch()
    save(tmp_path / "damaged", weights)
    damage(tmp_path / "damaged")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "missing.pth", "missing.pt", "notes.txt", "empty", "damaged"):
        with pytest.raises(InputError) as caught:
            load_weights(tmp_path / name, "mnist")
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_pytorch_files_go_to_their_reader(monkeypatch, tmp_path):
    monkeypatch.setattr(weights_module, "load_torch", lambda model, path, shape: (path, shape))
    found = load_weights(tmp_path / "a.PTH", "mnist", "carlini-wagner")
    assert type(found.model).__name__ == "CarliniWagnerCNN"
    assert found.variables == (tmp_path / "a.PTH", (28, 28, 1))


def test_cache_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WASSERSTEIN_ADV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == tmp_path / ".cache" / "wasserstein_adv"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "wasserstein_adv"
    monkeypatch.setenv("WASSERSTEIN_ADV_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"


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
    damage(entry)
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
