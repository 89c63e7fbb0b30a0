"""The loop of training: what it learns, that it can be stopped, and how it is measured."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from wasserstein_adv.data import RawDataset
from wasserstein_adv.errors import InputError
from wasserstein_adv.fitting import Hooks, Stopped, accuracy, train
from wasserstein_adv.models import WongKolterCNN
from wasserstein_adv.recipes import Recipe
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


def test_accuracy_counts_every_image(trained):
    weights, dataset = trained[0], squares(501)  # one more than a batch
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
