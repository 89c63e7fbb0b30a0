"""Defences and the training step, against NumPy and SciPy, and on parts of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from plainly import OPTIONS, jit
from scipy.special import log_softmax, softmax
from scipy.stats import entropy

from wasserstein_adv.attacks import constant, first_order, growing, linf_ball, pgd, sign
from wasserstein_adv.attacks.unbalanced import PAPER, TRAINING
from wasserstein_adv.attacks.wong import MNIST_TRAINING, wong
from wasserstein_adv.defenses import (
    ADVERSARIAL,
    CLEAN,
    adversarial_training,
    consistency,
    linf_training,
    plain,
    unbalanced_training,
    wong_training,
)
from wasserstein_adv.training import Batch, initialise, train_step

N, SHAPE, CLASSES = 12, (6, 6, 1), 4
RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, (N, *SHAPE)).astype(np.float32)
Y = (np.arange(N) % CLASSES).astype(np.int32)
LINF = first_order(linf_ball(), pgd(sign(0.02)), radius=constant(0.1), steps=3, random_start=True)


class Linear(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


WEIGHTS = RNG.standard_normal((36, CLASSES)).astype(np.float32)


def logits_fn(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def views_of(defense):
    return jit(lambda keys, x, y: defense.views(keys, logits_fn, x, y))


def keys(count=N):
    return jax.vmap(jax.random.key)(jnp.arange(count))


def test_plain_defence_is_the_cross_entropy_of_clean_images():
    defense = plain()
    views = defense.views(keys(), logits_fn, X, Y)
    assert list(views) == [CLEAN]
    np.testing.assert_array_equal(views[CLEAN], X)
    logits = np.asarray(logits_fn(X))
    found = defense.loss({CLEAN: logits}, Y)
    np.testing.assert_allclose(found, -log_softmax(logits, -1)[np.arange(N), Y], rtol=1e-5)


def test_adversarial_training_shows_what_the_attack_finds_for_each_image_by_itself():
    defense = adversarial_training(LINF)
    views = views_of(defense)(keys(), X, Y)
    assert list(views) == [ADVERSARIAL]
    whole = views[ADVERSARIAL]
    parts = [
        views_of(defense)(keys()[part], X[part], Y[part])[ADVERSARIAL]
        for part in (slice(0, 6), slice(6, N))
    ]
    np.testing.assert_allclose(whole, np.concatenate(parts), atol=1e-6)
    assert np.max(np.abs(whole - X)) <= 0.1 + 1e-6
    logits = np.asarray(logits_fn(whole))
    expected = -log_softmax(logits, -1)[np.arange(N), Y]
    np.testing.assert_allclose(defense.loss({ADVERSARIAL: logits}, Y), expected, rtol=1e-5)


def test_consistency_weighs_cross_entropy_and_divergence():
    clean, adversarial = RNG.standard_normal((2, N, CLASSES)).astype(np.float32)
    found = consistency(LINF, weight=0.9).loss({CLEAN: clean, ADVERSARIAL: adversarial}, Y)
    divergence = entropy(softmax(clean, -1), softmax(adversarial, -1), axis=-1)
    expected = -0.9 * log_softmax(clean, -1)[np.arange(N), Y] + 0.1 * divergence
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_consistency_attacks_the_noisy_image():
    many = 400
    x = np.full((many, *SHAPE), 0.5, np.float32)
    views = views_of(consistency(LINF, noise=0.05))(keys(many), x, np.zeros(many, np.int32))
    noise = np.asarray(views[CLEAN]) - x
    assert noise.std() == pytest.approx(0.05, rel=0.03)
    assert np.abs(noise.mean()) < 0.003
    assert np.abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.5
    assert np.max(np.abs(views[ADVERSARIAL] - views[CLEAN])) <= 0.1 + 1e-6
    edge = views_of(consistency(LINF, noise=0.5))(keys(), X, Y)[CLEAN]
    assert edge.min() >= 0 and edge.max() <= 1


def test_wongs_defence_is_the_first_adversarial_image_on_the_papers_schedule():
    defense = wong_training(SHAPE[:2])
    attack = wong(SHAPE[:2], MNIST_TRAINING, max_iterations=5)
    # Equal to the bit only as XLA writes its loops for users.
    views, found = (
        jax.jit(lambda keys, x, y, f=f: f(keys, logits_fn, x, y), compiler_options=OPTIONS)(
            keys(), X, Y
        )
        for f in (defense.views, attack)
    )
    np.testing.assert_array_equal(views[ADVERSARIAL], found.image)
    right = np.argmax(logits_fn(X), -1) == Y
    assert found.success[right].sum() >= 3
    schedule = growing(0.1, 1.4, every=5)
    for image in np.flatnonzero(found.success & right):
        at = schedule(np.asarray(found.steps[image]) - 1)
        assert found.radius[image] == pytest.approx(float(at), rel=1e-5)
    assert MNIST_TRAINING.steps == 50
    np.testing.assert_array_equal(found.steps[~right], 0)


def test_the_papers_settings():
    assert PAPER._replace(steps=20) == TRAINING
    unbalanced = unbalanced_training(SHAPE[:2], TRAINING._replace(steps=1))
    assert set(views_of(unbalanced)(keys(), X, Y)) == {CLEAN, ADVERSARIAL}
    moved = views_of(linf_training())(keys(), X, Y)[ADVERSARIAL] - X
    assert 0.25 < np.max(np.abs(moved)) <= 0.3 + 1e-6


def test_a_step_is_gradient_descent():
    model, optimizer = Linear(), optax.sgd(0.5)
    state = initialise(model, optimizer, SHAPE, seed=3)
    images = np.round(255 * X).astype(np.uint8)
    batch = Batch(np.arange(N), images, Y)
    new, measures = jax.jit(train_step(model, optimizer, plain(), 0))(state, batch)
    dense = jax.tree.map(np.asarray, state.variables["params"]["Dense_0"])
    flat = (images / 255).reshape(N, -1)
    logits = flat @ dense["kernel"] + dense["bias"]
    error = (softmax(logits, -1) - np.eye(CLASSES)[Y]) / N
    expected = {"kernel": dense["kernel"] - 0.5 * flat.T @ error, "bias": -0.5 * error.sum(0)}
    for name, value in expected.items():
        np.testing.assert_allclose(new.variables["params"]["Dense_0"][name], value, atol=1e-6)
    assert int(new.step) == 1
    assert float(measures.loss) == pytest.approx(
        -log_softmax(logits, -1)[np.arange(N), Y].mean(), rel=1e-5
    )
    assert float(measures.clean_accuracy) == pytest.approx((logits.argmax(-1) == Y).mean())
    assert np.isnan(measures.adversarial_accuracy)


def test_no_gradient_flows_through_the_attack():
    """The step of the frozen adversarial images is that of training on them as they are."""
    model, optimizer = Linear(), optax.sgd(1.0)
    state = initialise(model, optimizer, SHAPE, seed=3)
    batch = Batch(np.arange(N), X, Y)
    defense = adversarial_training(LINF)

    seen = []

    def spy(keys, logits_fn, x, y):
        found = defense.views(keys, logits_fn, x, y)
        jax.debug.callback(seen.append, found[ADVERSARIAL])
        return found

    step = train_step(model, optimizer, defense._replace(views=spy), 0)
    new, _ = jax.block_until_ready(jit(step)(state, batch))
    jax.effects_barrier()
    frozen = batch._replace(images=np.asarray(seen[0]))
    expected, _ = train_step(model, optimizer, plain(), 0)(state, frozen)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.variables, expected.variables
    )


def test_randomness_is_of_the_examples_number_and_the_step():
    drawn = []

    def augment(key, image):
        return image + 0.001 * jax.random.normal(key)

    def shown(index, step):
        def views(keys, logits_fn, x, y):
            drawn.append(np.asarray(x)[:, 0, 0, 0] - 0.5)
            return {CLEAN: x}

        state = initialise(Linear(), optax.sgd(1.0), SHAPE, 0)._replace(step=jnp.asarray(step))
        step_fn = train_step(
            Linear(), optax.sgd(1.0), plain()._replace(views=views), 7, augment=augment
        )
        index = np.asarray(index)
        images = np.full((len(index), *SHAPE), 0.5, np.float32)
        step_fn(state, Batch(index, images, np.zeros(len(index), np.int32)))
        return drawn.pop()

    together = shown([4, 9, 2], 5)
    assert len(set(together.tolist())) == 3
    np.testing.assert_array_equal(together[[2, 0]], shown([2, 4], 5))
    assert not np.isin(together, shown([4, 9, 2], 6)).any()
