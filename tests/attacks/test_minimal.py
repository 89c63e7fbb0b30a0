"""Attacks of least norm: against closed forms of linear models, and against a plain loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plainly import jit

from wasserstein_adv import parallel
from wasserstein_adv.attacks import (
    CarliniWagnerProtocol,
    DeepFoolProtocol,
    carlini_wagner,
    deepfool,
)
from wasserstein_adv.attacks.minimal import linearise
from wasserstein_adv.errors import InputError

SIDE, CLASSES, COUNT = 5, 4, 6
RNG = np.random.default_rng(0)
X = RNG.uniform(0.3, 0.7, (COUNT, SIDE, SIDE, 1)).astype("f4")  # far from black and white
WEIGHTS = RNG.normal(size=(SIDE * SIDE, CLASSES)).astype("f4")
KEY = jax.random.key(0)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def curved(images):
    return jnp.tanh(3.0 * images.reshape(len(images), -1) - 1.5) @ WEIGHTS


def answers(logits_fn, x):
    return np.argmax(np.asarray(logits_fn(x)), axis=1).astype(np.int32)


def attacked(attack, logits_fn, x, y):
    return jit(lambda key, x, y: attack(key, logits_fn, x, y))(KEY, x, y)


def nearest(x, y, norm):
    """The least norm that takes a linear model to another answer, where no bound is met."""
    logits = x.reshape(len(x), -1).astype(np.float64) @ WEIGHTS
    found = np.full(len(x), np.inf)
    for k in range(CLASSES):
        way = WEIGHTS[:, k][None] - WEIGHTS.T[y]
        size = np.sqrt((way**2).sum(1)) if norm == "l2" else abs(way).sum(1)
        far = (logits[np.arange(len(x)), y] - logits[:, k]) / np.where(size > 0, size, 1)
        found = np.minimum(found, np.where(y == k, np.inf, far))
    return found


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_linear_model_takes_one_step_to_the_boundary(norm):
    y = answers(linear, X)
    found = attacked(deepfool(DeepFoolProtocol(norm)), linear, X, y)
    truth = nearest(X, y, norm)
    assert found.success.all() and (found.steps == 1).all()
    np.testing.assert_allclose(found.radius, 1.02 * (truth + 1e-4), rtol=1e-4)
    change = np.asarray(found.image) - X
    size = np.sqrt((change**2).sum((1, 2, 3))) if norm == "l2" else abs(change).max((1, 2, 3))
    np.testing.assert_allclose(found.radius, size, rtol=1e-5)
    assert (answers(linear, found.image) != y).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_is_the_plain_loop(norm):
    x = np.array(X)
    x[:, ::2] = 0.0  # pixels that can go one way only
    y = answers(curved, x)
    found = attacked(deepfool(DeepFoolProtocol(norm, classes=CLASSES)), curved, x, y)
    jacobian = jax.jit(jax.jacrev(lambda image: curved(image[None])[0]))
    for i in range(COUNT):
        total, image, steps = np.zeros(X[i].shape), x[i].astype(np.float64), 0
        while answers(curved, image[None].astype("f4"))[0] == y[i]:
            logits = np.asarray(curved(image[None].astype("f4")))[0]
            slopes = np.asarray(jacobian(image.astype("f4")), np.float64)
            best = None
            for k in set(range(CLASSES)) - {y[i]}:
                way = slopes[k] - slopes[y[i]]
                size = np.sqrt((way**2).sum()) if norm == "l2" else abs(way).sum()
                far = abs(logits[k] - logits[y[i]]) / size
                if best is None or far < best[0]:
                    best = (far, way / size if norm == "l2" else np.sign(way))
            total = total + (best[0] + 1e-4) * best[1]
            image = np.clip(x[i] + 1.02 * total, 0, 1)
            steps += 1
        assert steps == int(found.steps[i]) > 0
        np.testing.assert_allclose(found.image[i], image, atol=1e-4)


def test_carlini_and_wagner_come_near_the_nearest_image_of_a_linear_model():
    y = answers(linear, X)
    x = np.array(X)
    found = attacked(
        carlini_wagner(CarliniWagnerProtocol(searches=12, steps=200, weight=0.1)), linear, x, y
    )
    truth = nearest(x, y, "l2")
    assert found.success.all() and (answers(linear, found.image) != y).all()
    assert (found.radius >= truth * (1 - 1e-4)).all()
    # It goes to the class that is the likeliest on the way, which need not be the nearest.
    near = np.asarray(found.radius) < 1.02 * truth
    assert near.sum() >= COUNT - 1


def test_black_and_white_pixels_move():
    x = np.round(X)
    y = answers(linear, x)
    found = attacked(
        carlini_wagner(CarliniWagnerProtocol(searches=2, steps=1500, weight=10.0)), linear, x, y
    )
    assert found.success.all()
    assert abs(np.asarray(found.image) - x).max((1, 2, 3)).min() > 0.01


def test_confidence_is_kept():
    y = answers(linear, X)
    protocol = CarliniWagnerProtocol(searches=4, steps=100, weight=1.0, confidence=0.5)
    found = attacked(carlini_wagner(protocol), linear, X, y)
    logits = np.asarray(linear(np.asarray(found.image)))
    own = logits[np.arange(COUNT), y]
    logits[np.arange(COUNT), y] = -np.inf
    assert found.success.all() and (logits.max(1) - own > 0.5).all()


@pytest.mark.parametrize(
    "attack",
    [deepfool(), carlini_wagner(CarliniWagnerProtocol(searches=2, steps=20, weight=10.0))],
    ids=["deepfool", "carlini-wagner"],
)
def test_an_evaluation_gives_the_same_and_wrong_images_need_nothing(attack):
    y = answers(curved, X)
    y[0] = (y[0] + 1) % CLASSES
    alone = attacked(attack, curved, X, y)
    together = parallel.evaluate(attack, KEY, curved, X, y, batch_size=4)
    np.testing.assert_array_equal(together.success, alone.success)
    np.testing.assert_allclose(together.radius, alone.radius, rtol=1e-3)
    assert alone.success[0] and float(alone.radius[0]) == 0
    np.testing.assert_array_equal(alone.image[0], X[0])
    image = np.asarray(alone.image)
    assert image.min() >= 0 and image.max() <= 1


@pytest.mark.parametrize("logits", ["flat", "nan"])
def test_models_that_say_nothing_are_survived(logits):
    def model(images):
        level = 0.0 * images.reshape(len(images), -1)[:, :CLASSES]
        return level + jnp.array([1.0, 0, 0, 0]) if logits == "flat" else level + jnp.nan

    y = np.zeros(COUNT, np.int32)
    for attack in (deepfool(), carlini_wagner(CarliniWagnerProtocol(searches=2, steps=10))):
        found = attacked(attack, model, X, y)
        assert not found.success.any() and np.isinf(found.radius).all()
        assert np.isfinite(found.image).all()


def test_linearisations_are_jacobians():
    classes = np.argsort(RNG.random((COUNT, CLASSES)), axis=1)[:, :3].astype(np.int32)
    logits, slopes = linearise(curved, jnp.asarray(X), classes)
    np.testing.assert_allclose(logits, curved(X), rtol=1e-6)
    for i in range(COUNT):
        truth = jax.jacrev(lambda image: curved(image[None])[0])(X[i])
        np.testing.assert_allclose(slopes[i], truth[classes[i]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: deepfool(DeepFoolProtocol(norm="l1")), "norm must be linf or l2"),
        (lambda: deepfool(DeepFoolProtocol(steps=0)), "steps must be 1"),
        (lambda: deepfool(DeepFoolProtocol(overshoot=-1.0)), "overshoot must not be negative"),
        (lambda: deepfool(DeepFoolProtocol(classes=1)), "classes must be 2"),
        (lambda: carlini_wagner(CarliniWagnerProtocol(searches=0)), "searches must be 1"),
        (lambda: carlini_wagner(CarliniWagnerProtocol(weight=0.0)), "weight must be positive"),
        (lambda: carlini_wagner(CarliniWagnerProtocol(confidence=-1.0)), "confidence must not"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()
