"""Training, what is kept of it, and what happens to weights that cannot be used."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _training, train_mnist
from experiments._cli import run_command
from experiments._training import (
    RECIPES,
    TrainConfig,
    accuracy,
    cache_root,
    check_free,
    load_weights,
    restore,
    save,
    train,
    trained_or_cached,
)
from wasserstein_adv.data import Dataset
from wasserstein_adv.errors import InputError
from wasserstein_adv.models import WongKolterCNN

QUICK = TrainConfig(epochs=3, batch_size=32, learning_rate=4e-3)
MODEL = WongKolterCNN()


def squares(count: int = 192) -> Dataset:
    """Noisy images with a bright square, whose place is the class."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.uniform(0, 0.2, (count, 28, 28, 1)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = 4 + 12 * (label // 2), 4 + 12 * (label % 2)
        image[row : row + 8, column : column + 8] += 0.7
    return Dataset("mnist", images, labels)


@pytest.fixture(scope="module")
def weights():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))


@pytest.fixture
def quick_recipe(monkeypatch) -> list[str]:
    """Make the standard model quick to train; the list fills with what is loaded for it."""
    loaded: list[str] = []

    def quick_load(name, split, data_dir=None):
        loaded.append(split)
        return squares()

    monkeypatch.setitem(RECIPES, "mnist", TrainConfig(1, 32, 1e-3))
    monkeypatch.setattr(_training, "load", quick_load)
    return loaded


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_loss_falls_and_the_same_arguments_give_the_same_weights():
    reports: list[_training.TrainProgress] = []
    first = train(MODEL, squares(), QUICK, reports.append)
    assert [report.step for report in reports] == [16, 18]
    assert {report.steps for report in reports} == {18}
    assert reports[-1].loss < 0.5 * reports[0].loss
    assert accuracy(MODEL, first, squares()) > 0.95
    assert_equal(first, train(MODEL, squares(), QUICK))


def test_seed_changes_the_weights():
    config = TrainConfig(1, 32, 1e-3)
    kernels = [
        train(MODEL, squares(), dataclasses.replace(config, seed=seed))["params"]["conv1"]
        for seed in (0, 1)
    ]
    assert not np.array_equal(kernels[0]["kernel"], kernels[1]["kernel"])


def test_shifts_move_whole_images():
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4] = 1
    moved = _training._shifted(jax.random.key(0), jnp.repeat(jnp.asarray(image), 300, axis=0), 2)
    np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)
    found = {(int(r), int(c)) for _, r, c, _ in np.argwhere(np.asarray(moved))}
    assert found == {(r, c) for r in range(2, 7) for c in range(2, 7)}


def test_accuracy_counts_every_image(weights):
    dataset = squares(501)  # one more than a batch
    answers = np.argmax(MODEL.apply(weights, dataset.images), axis=-1)
    assert accuracy(MODEL, weights, dataset) == pytest.approx(np.mean(answers == dataset.labels))


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 193},
        {"shift": -1},
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
    assert_equal(load_weights(path), weights)
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
        restore(tmp_path / "other")
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
            load_weights(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_pytorch_files_go_to_their_reader(monkeypatch, tmp_path):
    monkeypatch.setattr(_training, "load_wong_kolter", lambda path: {"from": path})
    assert load_weights(tmp_path / "a.PTH") == {"from": tmp_path / "a.PTH"}


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
    assert_equal(first, again)
    assert quick_recipe == ["train"]
    assert "trained in" in told
    assert told_again.endswith("(cached)")
    trained_or_cached("mnist", None, tmp_path, seed=1)
    monkeypatch.setitem(RECIPES, "mnist", TrainConfig(1, 32, 2e-3))
    trained_or_cached("mnist", None, tmp_path)
    monkeypatch.setattr(_training, "library_version", lambda: "99")
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
    assert_equal(first, again)
    assert_equal(first, trained_or_cached("mnist", None, tmp_path)[0])
    assert quick_recipe == ["train"] * 2
    assert list((tmp_path / "models").iterdir()) == [entry]


def test_cache_that_cannot_be_written_costs_only_a_warning(quick_recipe, tmp_path, capfd):
    (tmp_path / "file").touch()
    trained_or_cached("mnist", None, tmp_path / "file" / "cache")
    assert "warning: the trained network is not kept" in capfd.readouterr().err


def test_command_trains_saves_and_overwrites_nothing(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(train_mnist, "load", lambda *_: squares())
    arguments = ["--data", "mnist", "--epochs", "1", "--out", str(tmp_path / "run")]
    arguments += ["--batch-size", "32", "--learning-rate", "1e-3", "--seed", "3"]
    run = (train_mnist.main, train_mnist.TrainMnistConfig, arguments)
    assert run_command(*run) == 0
    shown = capfd.readouterr().out
    assert "train" in shown
    assert "test" in shown
    kept = load_weights(tmp_path / "run")
    assert run_command(*run) == 2
    assert "not empty" in capfd.readouterr().err
    recipe = dataclasses.replace(RECIPES["mnist"], epochs=1, batch_size=32, learning_rate=1e-3)
    assert_equal(kept, train(MODEL, squares(), dataclasses.replace(recipe, seed=3)))
