"""Every attack under JAX's transformations: what it gives alone, it gives inside all of them."""

import functools

import jax
import numpy as np
import optax
import pytest
from plainly import jit

import wasserstein_adv as wa
from wasserstein_adv.attacks import (
    FlowProtocol,
    FrankWolfeProtocol,
    HuProtocol,
    ProjectionProtocol,
    UnbalancedProtocol,
    WongProtocol,
)

SIDE, IMAGES, CLASSES, STEPS = 4, 2, 3, 3
GRID = (SIDE, SIDE)
ATTACKS = {
    "flow": lambda: wa.flow(GRID, FlowProtocol(steps=STEPS, start_radius=0.05)),
    "hu": lambda: wa.hu(GRID, HuProtocol(steps=STEPS, increment=0.05, window=3, reg=100.0)),
    "unbalanced": lambda: wa.unbalanced(GRID, UnbalancedProtocol(steps=STEPS)),
    "wong": lambda: wa.wong(GRID, WongProtocol(steps=STEPS, window=3, reg=100.0)),
    "wu_frank_wolfe": lambda: wa.wu_frank_wolfe(GRID, FrankWolfeProtocol(steps=STEPS, window=3)),
    "wu_projection": lambda: wa.wu_projection(GRID, ProjectionProtocol(steps=STEPS, window=3)),
}
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
# Two models of an ensemble, two sets of images.
WEIGHTS = RNG.normal(size=(2, SIDE * SIDE, CLASSES)).astype(np.float32)
X = RNG.uniform(0.05, 0.95, (2, IMAGES, SIDE, SIDE, 1)).astype(np.float32)
Y = RNG.integers(CLASSES, size=(2, IMAGES))


def logits(weights, images):
    return images.reshape(len(images), -1) @ weights


@functools.cache
def attacked(name):
    """One program for one model and one set of images: the reference."""
    attack = ATTACKS[name]()

    def run(weights, x, y):
        found = attack(KEY, functools.partial(logits, weights), x, y)
        return found.image, found.radius, found.success

    return jit(run), run


def assert_alike(found, expected):
    image, radius, success = jax.tree.map(np.asarray, found)
    np.testing.assert_array_equal(success, expected[2])
    np.testing.assert_allclose(radius, expected[1], rtol=1e-5)
    np.testing.assert_allclose(image, expected[0], atol=2e-3)


@pytest.mark.parametrize("name", ATTACKS)
def test_scan_of_an_ensemble_of_batches_in_training(name):
    """`scan` over models, in which `vmap` over image sets, in which a gradient: each answer is
    that of one model on one set, and the gradient that of a loss at the images found."""
    alone, run = attacked(name)

    def loss(weights, x, y):
        found = run(weights, x, y)
        answers = logits(weights, found[0])
        return optax.softmax_cross_entropy_with_integer_labels(answers, y).sum(), found

    def of_a_model(_, weights):
        step = jax.grad(loss, has_aux=True)
        return None, jax.vmap(step, in_axes=(None, 0, 0))(weights, X, Y)

    gradients, found = jit(lambda weights: jax.lax.scan(of_a_model, None, weights)[1])(WEIGHTS)
    for model, weights in enumerate(WEIGHTS):
        for images in range(len(X)):
            here = jax.tree.map(lambda leaf, at=(model, images): leaf[at], found)
            assert_alike(here, alone(weights, X[images], Y[images]))
            expected = jax.nn.softmax(logits(weights, here[0]))
            expected -= jax.nn.one_hot(Y[images], CLASSES)
            np.testing.assert_allclose(
                gradients[model, images], here[0].reshape(IMAGES, -1).T @ expected, atol=1e-4
            )


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("over", ["images", "models", "both", "devices"])
def test_every_other_way_to_map_is_traced(name, over):
    _, run = attacked(name)
    models, images = jax.vmap(run, (0, None, None)), jax.vmap(run, (None, 0, 0))
    mapped, arguments = {
        "images": (images, (WEIGHTS[0], X, Y)),
        "models": (models, (WEIGHTS, X[0], Y[0])),
        "both": (jax.vmap(models, (None, 0, 0)), (WEIGHTS, X, Y)),
        "devices": (jax.pmap(images), (WEIGHTS[:1], X[None], Y[None])),
    }[over]
    image, _, success = jax.eval_shape(mapped, *arguments)
    assert image.shape[-4:] == (IMAGES, SIDE, SIDE, 1)
    assert success.shape == image.shape[:-3]
    assert len(success.shape) == (3 if over in ("both", "devices") else 2)
