"""The unbalanced attack: its claims on a small linear classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from wasserstein_adv import parallel
from wasserstein_adv.attacks import UnbalancedProtocol, unbalanced, unbalanced_neighbourhood
from wasserstein_adv.attacks.unbalanced import PAPER, TRANSPORT
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import dense_grid, minkowski, separable_grid, unit_square
from wasserstein_adv.projections import exact, published, unbalanced_sinkhorn

SIZE, KEY = (8, 8), 3
BRIEF = PAPER._replace(steps=4, step_size=0.05)


@pytest.fixture(scope="module")
def attack(problem, quick_jit):
    """(protocol, options) ↦ the attack's result on the problem, NumPy arrays."""

    @functools.cache
    def run(protocol, **options):
        called = quick_jit(
            lambda key, x, y: unbalanced(SIZE, protocol, **options)(key, problem.logits, x, y)
        )
        # The labels wanted, where the attack is targeted.
        y = (problem.y + 1) % 4 if options.get("targeted") else problem.y
        return jax.tree.map(np.asarray, called(jax.random.key(KEY), problem.x, y))

    return run


def check(found, problem, steps, wanted=None):
    """What holds of every result."""
    for leaf in jax.tree.leaves(found._replace(radius=0.0)):
        assert np.isfinite(leaf).all()
    assert found.image.min() >= 0 and found.image.max() <= 1
    label = problem.logits(found.image).argmax(-1)
    success = label != problem.y if wanted is None else label == wanted
    np.testing.assert_array_equal(found.success, success)
    np.testing.assert_array_equal(np.isinf(found.radius), ~success)
    assert found.steps.max() <= steps
    stepped = found.steps > 0
    np.testing.assert_array_equal(found.image, np.clip(found.evidence.point, 0, 1))
    np.testing.assert_array_equal(found.distance, found.evidence.cost)
    assert (found.evidence.cost >= 0).all()
    assert ((found.evidence.moved >= 0) & (found.evidence.moved <= 1)).all()
    assert (found.evidence.iterations[stepped] >= 1).all()
    np.testing.assert_array_equal(found.image[~stepped], problem.x[~stepped])


def loop(problem, protocol, i, project):
    """Image i's attack in NumPy: (the image, the steps), by gradient steps and `project`."""
    x, label = problem.x[i], problem.y[i]
    u = x
    for count in range(protocol.steps + 1):
        if problem.logits(u[None])[0].argmax() != label or count == protocol.steps:
            return u, count
        ascent = problem.weights @ (softmax(problem.logits(u[None])[0]) - (np.arange(4) == label))
        if protocol.norm == "linf":
            move = np.sign(ascent)
        else:
            move = ascent / np.linalg.norm(ascent)
        stepped = u + np.float32(protocol.step_size) * move.reshape(x.shape)
        u = np.clip(project(x, stepped.astype(np.float32)), 0, 1)


VARIANTS = [
    BRIEF,
    BRIEF._replace(variant="published"),
    BRIEF._replace(norm="l2", step_size=0.5),
    TRANSPORT._replace(steps=4, step_size=0.05, p=2.0),
]


@pytest.mark.parametrize("protocol", VARIANTS, ids=["paper", "published", "l2", "transport p=2"])
def test_is_the_loop_that_it_claims_to_be(attack, problem, protocol, quick_jit):
    found = attack(protocol)
    check(found, problem, protocol.steps)
    assert 1 < found.success.sum() < 8 or protocol is VARIANTS[1]
    unit = tuple(protocol.scale * u for u in unit_square(*SIZE))
    geometry = dense_grid(SIZE, minkowski(protocol.p), unit=unit)
    rule = exact if protocol.variant == "exact" else published(protocol.floor)
    project = quick_jit(
        functools.partial(
            unbalanced_sinkhorn, geometry, rule=rule, max_iterations=protocol.iterations
        )
    )
    penalties = protocol.eta, protocol.tau, protocol.gamma
    for i in (0, 2, 5, 7):
        image, steps = loop(problem, protocol, i, lambda x, w: project(x, w, *penalties).point)
        np.testing.assert_allclose(found.image[i], image, atol=2e-4)
        if found.success[i]:
            assert found.steps[i] == steps


def test_moved_says_whether_mass_is_transported(attack):
    paper, transport = attack(BRIEF), attack(VARIANTS[3])
    assert paper.evidence.moved.max() < 1e-2 < transport.evidence.moved.max()


def test_without_a_price_it_is_clipped_sign_steps(attack, problem):
    protocol = BRIEF._replace(gamma=1e7)
    found = attack(protocol)
    check(found, problem, protocol.steps)
    for i in range(8):
        image, steps = loop(problem, protocol, i, lambda x, w: w)
        np.testing.assert_allclose(found.image[i], image, atol=1e-5)
        assert found.steps[i] == steps or not found.success[i]


def test_targeted(attack, problem):
    protocol = BRIEF._replace(step_size=0.1, steps=8)
    found = attack(protocol, targeted=True)
    check(found, problem, protocol.steps, wanted=(problem.y + 1) % 4)
    assert found.success[:-1].any()


def test_in_parallel_it_gives_the_same_answer(attack, problem):
    # A random start and restarts as well: the keys belong to the images.
    options = {"random_start": True, "restarts": 2}
    found = attack(BRIEF, **options)
    check(found, problem, BRIEF.steps)
    spread = parallel.evaluate(
        unbalanced(SIZE, BRIEF, **options),
        jax.random.key(KEY),
        problem.logits,
        problem.x,
        problem.y,
        batch_size=8,
        steps_per_round=3,
    )
    np.testing.assert_array_equal(found.success, spread.success)
    np.testing.assert_array_equal(found.steps, spread.steps)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_loss_is_differentiated_around_it(problem, quick_jit):
    def loss(weights):
        def logits_fn(images):
            return images.reshape(len(images), -1) @ weights + problem.bias

        found = unbalanced(SIZE, BRIEF._replace(steps=1))(
            jax.random.key(KEY), logits_fn, problem.x, problem.y
        )
        return logits_fn(found.image).sum(), found.image

    slope, image = quick_jit(jax.grad(loss, has_aux=True))(jnp.asarray(problem.weights))
    expected = np.repeat(image.reshape(8, -1).sum(0)[:, None], 4, 1)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-5)


def test_published_protocols():
    assert tuple(PAPER) == (
        10, 0.02, "linf", 10, 1e-3, 1e-2, 0.5, 1.0, 1.0, 0.2, "exact", 1e-10,
    )  # fmt: skip
    assert PAPER._replace(scale=0.1, tau=0.1, iterations=100) == TRANSPORT
    assert UnbalancedProtocol() == PAPER


@pytest.mark.parametrize(
    "change",
    [{"norm": "l1"}, {"variant": "newest"}, {"eta": 0.0}, {"tau": -1.0}, {"gamma": 0.0},
     {"gamma": float("nan")}, {"scale": 0.0}, {"scale": float("nan")}, {"p": 0.0}, {"p": -1.0},
     {"iterations": 0}, {"steps": 0}, {"variant": "published", "floor": 0.0},
     {"radius": -0.1}, {"step_size": 0.0}],
    ids=str,
)  # fmt: skip
def test_protocols_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=list(change)[-1]):
        unbalanced(SIZE, PAPER._replace(**change))


@pytest.mark.parametrize("name", ["eta", "tau", "gamma"])
def test_penalties_must_be_positive(name):
    with pytest.raises(InputError, match=name):
        unbalanced_neighbourhood(separable_grid(SIZE), **{name: 0.0})
