"""The Wasserstein attack: its claims, against other code and an exact solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from wasserstein_adv.attacks import (
    AttackResult,
    cross_entropy,
    first_order,
    growing,
    pgd,
    sign,
    wasserstein_ball,
    wong,
)
from wasserstein_adv.attacks.wong import MNIST, MNIST_TRAINING
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import dense_grid, euclidean_power, local_grid
from wasserstein_adv.metrics import exact_distances
from wasserstein_adv.projections import projected_sinkhorn

COST, WINDOW, REG, STEP, STEPS = euclidean_power(1), 3, 1000.0, 0.1, 20
START, FACTOR, EVERY = 0.05, 1.3, 2
RADII = (START * FACTOR ** (np.arange(STEPS) // EVERY)).astype(np.float32)


@pytest.fixture(scope="module")
def training_step(problem, quick_jit) -> tuple[AttackResult, dict]:
    """The attack inside a loss that is differentiated: (its result, the loss's gradient)."""
    attack = first_order(
        wasserstein_ball(local_grid((8, 8), COST, WINDOW), REG),
        pgd(sign(STEP)),
        radius=growing(START, FACTOR, EVERY),
        steps=STEPS,
    )

    def logits_fn(params, images):
        return images.reshape(len(images), -1) @ params["weights"] + params["bias"]

    def loss(params, x, y):
        found = attack(jax.random.key(0), functools.partial(logits_fn, params), x, y)
        logits = logits_fn(params, found.image)
        return jax.vmap(cross_entropy)(logits, y).mean(), found

    params = {"weights": jnp.asarray(problem.weights), "bias": jnp.asarray(problem.bias)}
    gradient, found = quick_jit(jax.grad(loss, has_aux=True))(params, problem.x, problem.y)
    return jax.tree.map(np.asarray, found), jax.tree.map(np.asarray, gradient)


@pytest.fixture(scope="module")
def found(training_step) -> AttackResult:
    return training_step[0]


def test_radii_are_those_of_the_schedule(found):
    stepped = found.steps > 0
    assert stepped.sum() == 7
    np.testing.assert_allclose(found.budget[stepped], RADII[found.steps[stepped] - 1], rtol=1e-5)
    reached = np.where(found.success, found.budget, np.inf)
    np.testing.assert_array_equal(found.radius, reached)


def test_success_means_misclassified(found, problem):
    wrong = problem.logits(found.image).argmax(-1) != problem.y
    np.testing.assert_array_equal(found.success, wrong)
    np.testing.assert_array_equal(wrong, [True] * 7 + [False])


def test_misclassified_image_is_returned_unchanged(found, problem):
    assert found.radius[0] == found.budget[0] == found.distance[0] == found.steps[0] == 0
    np.testing.assert_array_equal(found.image[0], problem.x[0])


def test_blank_image_is_never_fooled(found, problem):
    assert np.isinf(found.radius[-1])
    assert found.steps[-1] == STEPS
    np.testing.assert_array_equal(found.image[-1], problem.x[-1])


def test_evidence_stays_in_the_budget_by_its_own_account(found, problem):
    assert (found.evidence.cost <= found.budget * (1 + 1e-3)).all()
    np.testing.assert_array_equal(found.distance, found.evidence.cost)
    assert found.evidence.converged.all()
    assert found.image.min() >= 0
    assert found.image.max() <= 1
    np.testing.assert_array_equal(found.image, np.clip(found.evidence.point, 0, 1))
    masses = [found.evidence.point.sum((1, 2, 3)), problem.x.sum((1, 2, 3))]
    np.testing.assert_allclose(*masses, rtol=1e-4)


def test_evidence_stays_in_the_budget_by_an_exact_solver(found, problem):
    exact = exact_distances(problem.x, found.evidence.point, COST, WINDOW, workers=2)
    assert (exact.total <= found.budget * (1 + 1e-3) + 1e-6).all()
    assert (exact.total[1:-1] > 0.5 * found.budget[1:-1]).all()  # and the ball is made use of


def test_loop_in_numpy_over_a_dense_projection_gives_the_same_radii(found, problem, quick_jit):
    project = quick_jit(functools.partial(projected_sinkhorn, dense_grid((8, 8), COST, WINDOW)))
    for i in range(1, 7):
        x, label, radius = problem.x[i], problem.y[i], np.inf
        u = x
        for bound in RADII:
            probabilities = softmax(problem.logits(u[None])[0])
            ascent = problem.weights @ (probabilities - (np.arange(4) == label))
            stepped = u + np.float32(STEP) * np.sign(ascent).reshape(x.shape)
            u = np.clip(project(x, stepped, bound, REG).point, 0, 1)
            if problem.logits(u[None])[0].argmax() != label:
                radius = bound
                break
        assert found.radius[i] == pytest.approx(radius, rel=1e-5)


def test_gradient_is_that_of_a_loss_on_given_images(training_step, problem):
    found, gradient = training_step
    images = found.image.reshape(8, -1)
    error = softmax(problem.logits(found.image), axis=-1) - np.eye(4)[problem.y]
    np.testing.assert_allclose(gradient["weights"], images.T @ error / 8, atol=1e-5)
    np.testing.assert_allclose(gradient["bias"], error.mean(0), atol=1e-5)


def test_published_protocols():
    assert tuple(MNIST) == (0.3, 1.1, 10, 200, 0.1, 1000.0, 5, 1.0, "capped")
    assert tuple(MNIST_TRAINING)[:4] == (0.1, 1.4, 5, 50)
    assert MNIST_TRAINING.white == "clamped"


@pytest.mark.parametrize(
    "change",
    [{"window": 4}, {"window": 0}, {"reg": 0.0}, {"reg": -1.0}, {"p": 0.0}, {"steps": 0},
     {"reg": float("nan")}],
    ids=str,
)  # fmt: skip
def test_protocols_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=next(iter(change))):
        wong((8, 8), MNIST._replace(**change))
