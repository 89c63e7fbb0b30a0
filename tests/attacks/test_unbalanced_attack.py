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
    """(protocol, options) ↦ what the attack found on the problem, inside a differentiated loss.

    The second answer is the loss's gradient.
    """

    @functools.cache
    def run(protocol, **options):
        def loss(weights, y):
            def logits_fn(images):
                return images.reshape(len(images), -1) @ weights + problem.bias

            found = unbalanced(SIZE, protocol, **options)(
                jax.random.key(KEY), logits_fn, problem.x, y
            )
            return logits_fn(found.image).sum(), found

        slope, found = quick_jit(jax.grad(loss, has_aux=True))(
            jnp.asarray(problem.weights), labels(problem, **options)
        )
        return jax.tree.map(np.asarray, (found, slope))

    return run


def labels(problem, targeted=False, **_):
    """The labels; the wanted ones where the attack is targeted."""
    return (problem.y + 1) % 4 if targeted else problem.y


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
    assert stepped.any()
    np.testing.assert_array_equal(found.image, np.clip(found.evidence.point, 0, 1))
    np.testing.assert_array_equal(found.distance, found.evidence.cost)
    assert (found.evidence.cost >= 0).all()
    assert ((found.evidence.moved >= 0) & (found.evidence.moved <= 1)).all()
    assert (found.evidence.iterations[stepped] >= 1).all()
    np.testing.assert_array_equal(found.image[~stepped], problem.x[~stepped])


def loop(problem, protocol, i, project):
    """All steps on image i, in NumPy: gradient steps, `project` and clamping."""
    x, label = problem.x[i], problem.y[i]
    u = x
    for _ in range(protocol.steps):
        ascent = problem.weights @ (softmax(problem.logits(u[None])[0]) - (np.arange(4) == label))
        unit = ascent / np.linalg.norm(ascent) if protocol.norm == "l2" else np.sign(ascent)
        stepped = u + np.float32(protocol.step_size) * unit.reshape(x.shape)
        u = np.clip(project(x, stepped.astype(np.float32)), 0, 1)
    return u


VARIANTS = {
    "paper": BRIEF,
    "published": BRIEF._replace(variant="published", p=2.0),
    "transport": TRANSPORT._replace(steps=4, p=2.0, norm="l2", step_size=0.5),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_is_the_loop_that_it_claims_to_be(attack, problem, name, quick_jit):
    protocol = VARIANTS[name]
    found, _ = attack(protocol)
    check(found, problem, protocol.steps)
    assert (found.steps == protocol.steps).all() and found.success.sum() > 1
    unit = tuple(protocol.scale * u for u in unit_square(*SIZE))
    geometry = dense_grid(SIZE, minkowski(protocol.p), unit=unit)
    rule = exact if protocol.variant == "exact" else published(protocol.floor)
    solve = quick_jit(
        functools.partial(
            unbalanced_sinkhorn,
            geometry,
            rule=rule,
            tolerance=1e-3,
            max_iterations=protocol.iterations,
        )
    )
    penalties = protocol.eta, protocol.tau, protocol.gamma
    for i in (0, 2, 5, 7):
        image = loop(problem, protocol, i, lambda x, w: solve(x, w, *penalties).point)
        np.testing.assert_allclose(found.image[i], image, atol=2e-4)


def test_moved_says_whether_mass_is_transported(attack):
    (paper, _), (transport, _) = attack(BRIEF), attack(VARIANTS["transport"])
    assert paper.evidence.moved.max() < 1e-2 < transport.evidence.moved.max()


def test_without_a_price_it_is_clipped_sign_steps(attack, problem):
    protocol = BRIEF._replace(gamma=1e7, p=2.0)
    found, slope = attack(protocol)
    check(found, problem, protocol.steps)
    for i in range(8):
        image = loop(problem, protocol, i, lambda x, w: w)
        np.testing.assert_allclose(found.image[i], image, atol=1e-5)
    # The loss's gradient is that of a loss on given images.
    pixels = found.image.reshape(8, -1).sum(0)
    np.testing.assert_allclose(slope, np.repeat(pixels[:, None], 4, 1), rtol=1e-5, atol=1e-5)


def test_in_parallel_it_gives_the_same_answer(attack, problem):
    # Targeted, from random starts, the better of two: the keys belong to the images.
    options = {"targeted": True, "random_start": True, "restarts": 2}
    protocol = BRIEF._replace(p=2.0, step_size=0.1)
    found, _ = attack(protocol, **options)
    y = labels(problem, **options)
    check(found, problem, protocol.steps, wanted=y)
    assert found.success.any()
    spread = parallel.evaluate(
        unbalanced(SIZE, protocol, **options),
        jax.random.key(KEY),
        problem.logits,
        problem.x,
        y,
        batch_size=8,
        steps_per_round=3,
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_published_protocol():
    assert tuple(PAPER) == (
        10, 0.02, "linf", 10, 1e-3, 1e-2, 0.5, 1.0, 1.0, 0.2, "exact", 1e-10,
    )  # fmt: skip
    assert UnbalancedProtocol() == PAPER


@pytest.mark.parametrize(
    "change",
    [{"norm": "l1"}, {"variant": "newest"}, {"eta": 0.0}, {"tau": -1.0}, {"gamma": 0.0},
     {"gamma": float("nan")}, {"scale": 0.0}, {"scale": float("nan")}, {"p": 0.0}, {"p": -1.0},
     {"steps": 0}, {"variant": "published", "floor": 0.0}],
    ids=str,
)  # fmt: skip
def test_protocols_out_of_range_are_refused(change):
    with pytest.raises(InputError, match=list(change)[-1]):
        unbalanced(SIZE, PAPER._replace(**change))


@pytest.mark.parametrize("name", ["iterations", "step_size", "radius", "floor"])
def test_zeros_are_refused(name):
    with pytest.raises(InputError, match=name):
        unbalanced(SIZE, PAPER._replace(**{name: 0}))


@pytest.mark.parametrize("name", ["eta", "tau", "gamma"])
def test_penalties_must_be_positive(name):
    with pytest.raises(InputError, match=name):
        unbalanced_neighbourhood(separable_grid(SIZE), **{name: 0.0})
