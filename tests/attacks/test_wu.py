"""The attacks on couplings: their sets' maps against linear programming, and what they return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_array

from wasserstein_adv.attacks import (
    FrankWolfeProtocol,
    ProjectionProtocol,
    constant,
    couplings,
    first_order,
    frank_wolfe,
    last,
    linf_unit,
    pgd,
    wu_frank_wolfe,
    wu_projection,
)
from wasserstein_adv.attacks.wu import (
    FRANK_WOLFE_CIFAR10,
    FRANK_WOLFE_MNIST,
    PROJECTION_CIFAR10,
    PROJECTION_MNIST,
)
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import euclidean_power, local_grid
from wasserstein_adv.metrics import exact_distances
from wasserstein_adv.projections.dual_projection import (
    column_sums,
    coupling_cost,
    diagonal_plan,
)
from wasserstein_adv.projections.linear_oracle import linear_oracle

KEY = jax.random.key(3)
GRID, WINDOW, RADIUS, STEPS = (8, 8), 3, 0.15, 12
COST = euclidean_power(1)
GROUND = local_grid(GRID, COST, WINDOW)
TAPS = WINDOW**2
ATTACKS = {
    "projection": (
        wu_projection,
        ProjectionProtocol(RADIUS, STEPS, window=WINDOW),
        pgd(linf_unit(ProjectionProtocol().step_size)),
    ),
    "frank-wolfe": (
        wu_frank_wolfe,
        FrankWolfeProtocol(RADIUS, STEPS, window=WINDOW),
        frank_wolfe(),
    ),
}


# What the attacks return --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ATTACKS)
def attacked(request, problem, quick_jit):
    """An attack's answer for the shared problem."""
    attack, protocol, _ = ATTACKS[request.param]
    attack = attack(GRID, protocol)
    run = quick_jit(lambda key, x, y: attack(key, problem.logits, x, y))
    return jax.tree.map(np.asarray, run(KEY, problem.x, problem.y))


def test_every_image_is_an_image_of_its_ball(attacked, problem):
    assert attacked.image.min() >= 0 and attacked.image.max() <= 1
    mass, clean_mass = (images.sum((1, 2, 3)) for images in (attacked.image, problem.x))
    np.testing.assert_allclose(mass, clean_mass, rtol=1e-5)
    exact = exact_distances(problem.x, attacked.image, COST, WINDOW, workers=2)
    assert (exact.total <= attacked.distance * (1 + 1e-4) + 1e-6).all()
    assert (attacked.distance <= attacked.budget * (1 + 1e-4)).all()
    moved = (attacked.steps > 0) & problem.x.any((1, 2, 3))
    assert moved.sum() == 6 and (exact.total[moved] > 0.1 * RADIUS).all()


def test_success_means_that_the_very_image_is_misclassified(attacked, problem):
    wrong = problem.logits(attacked.image).argmax(-1) != problem.y
    np.testing.assert_array_equal(attacked.success, wrong)
    assert wrong.sum() >= 4
    reached = np.where(wrong, attacked.budget, np.inf)
    np.testing.assert_array_equal(attacked.radius, reached)
    np.testing.assert_array_equal(attacked.budget > 0, attacked.steps > 0)
    np.testing.assert_allclose(attacked.budget[attacked.steps > 0], RADIUS)


def test_first_and_last_image_stay(attacked, problem):
    # The first is misclassified as it is, the last is blank.
    assert attacked.radius[0] == attacked.steps[0] == attacked.distance[0] == 0
    assert np.isinf(attacked.radius[-1]) and attacked.distance[-1] == 0
    np.testing.assert_array_equal(attacked.image[[0, -1]], problem.x[[0, -1]])


def test_evidence_is_that_of_the_image(attacked):
    np.testing.assert_array_equal(attacked.evidence.point, attacked.image)
    np.testing.assert_array_equal(attacked.evidence.cost, attacked.distance)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(attacked.evidence))


def test_the_finished_image_is_the_one_that_is_judged(problem, quick_jit):
    # The last iterate is the answer, so that every step's is seen in turn.
    attack = wu_projection(GRID, ATTACKS["projection"][1], keep=last())
    ball = couplings(GROUND)
    x = np.minimum(2 * problem.x, 1)  # many pixels are full, so that images are too bright
    y = problem.logits(x).argmax(-1).astype(np.int32)

    @quick_jit
    def step(x, state):
        finished, _ = jax.vmap(ball.finish)(x, state.u, state.budget, state.memory)
        seen = jax.vmap(ball.decode)(x, state.u)
        return attack.step(problem.logits, x, y, state), finished, seen

    state, cut = attack.init(jax.random.split(KEY, 8), problem.logits, x, y), []
    for _ in range(4):
        state, finished, seen = jax.tree.map(np.asarray, step(x, state))
        np.testing.assert_array_equal(state.kept.image, finished)
        wrong = problem.logits(finished).argmax(-1) != y
        np.testing.assert_array_equal(state.kept.success, wrong)
        np.testing.assert_allclose(finished.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-5)
        cut.append(x.sum((1, 2, 3)) - seen.sum((1, 2, 3)))
    # The image that the gradient is taken at is another one: it has lost what was above white.
    assert np.max(cut[1:], axis=0)[:-1].min() > 0.05


# What the set's maps are --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gradient():
    """(x, y) ↦ the gradient of −yᵀz, z the image of a coupling, in the coupling."""
    ball = couplings(GROUND)

    def of(x, y):
        return jax.grad(lambda u: -jnp.sum(y * column_sums(GROUND, u)))(ball.init(x)[0])

    return of


def test_the_clean_coupling_is_the_image(problem, quick_jit):
    ball = couplings(GROUND)

    @quick_jit
    def clean(x):
        u, memory = ball.init(x)
        finished, after = ball.finish(x, u, jnp.zeros(()), memory)
        return ball.decode(x, u), finished, ball.distance(x, u, memory), after.cost

    for x in (problem.x[1], problem.x[-1], np.ones_like(problem.x[1])):
        decoded, finished, before, after = clean(x)
        np.testing.assert_array_equal(decoded, x)
        np.testing.assert_array_equal(finished, x)
        assert float(before) == float(after) == 0


def test_black_and_white_pixels_have_their_whole_gradient(problem):
    ball = couplings(GROUND)
    x = np.round(problem.x[1])
    u, _ = ball.init(jnp.asarray(x))
    gradient = jax.grad(lambda u: jnp.sum(ball.decode(x, u)))(u)
    inside = column_sums(GROUND, diagonal_plan(GROUND, jnp.ones_like(x)))
    assert set(x.ravel()) == {0.0, 1.0} and gradient.shape == u.shape
    np.testing.assert_array_equal(gradient.max(0), inside)
    np.testing.assert_array_equal(gradient.min(0)[1:-1, 1:-1], 1)


def linear_maximum(x, y, radius):
    """The largest yᵀz − yᵀx over the images z inside the budget: a linear program over plans."""
    row, col = np.divmod(np.arange(x.size), GRID[1])
    drow, dcol = row - row[:, None], col - col[:, None]
    near = np.maximum(abs(drow), abs(dcol)) <= WINDOW // 2
    i, j = np.nonzero((x.ravel() > 0)[:, None] & near)
    gain = y.ravel()[j].astype(float) - y.ravel()[i]
    sources = coo_array((np.ones(len(i)), (i, np.arange(len(i)))), (x.size, len(i)))
    cost, mass = np.hypot(drow, dcol)[i, j], x.astype(float).ravel()
    found = linprog(-gain, cost[None], [radius * mass.sum()], sources, mass)
    assert found.status == 0
    return -found.fun


CASES = [(0, 0.02), (1, 0.1), (2, 0.3), (3, 0.6)]


def case(seed):
    """An image that a pixel's neighbours cannot fill, and a direction."""
    rng = np.random.default_rng(seed)
    x = rng.random((*GRID, 1)) * (rng.random((*GRID, 1)) < 0.6)
    return (x / 10).astype(np.float32), rng.normal(size=x.shape).astype(np.float32)


@pytest.mark.parametrize("reg", [30.0, 1000.0])
def test_the_oracle_is_the_linear_maximum_but_for_its_entropy(reg, gradient, quick_jit):
    ball = couplings(GROUND, reg)

    @quick_jit
    def oracle(x, y, radius):
        u, memory = ball.init(x)
        plan, _ = ball.lmo(x, u, gradient(x, y), radius, memory)
        entropic = linear_oracle(GROUND, x, y, radius, reg / jnp.max(jnp.abs(y)), tolerance=1e-3)
        return plan, column_sums(GROUND, plan), coupling_cost(GROUND, plan), entropic.value

    for seed, radius in CASES:
        x, y = case(seed)
        plan, image, cost, entropic = jax.tree.map(np.asarray, oracle(x, y, np.float32(radius)))
        assert plan.min() >= 0
        np.testing.assert_allclose(plan.sum(0), x, rtol=1e-5)
        assert cost <= radius * x.sum() * (1 + 1e-5)
        gain, most = (y * (image - x)).sum(), linear_maximum(x, y, radius)
        assert gain <= most * (1 + 1e-5)
        np.testing.assert_allclose(gain, entropic - (y * x).sum(), rtol=1e-4, atol=1e-6)
        # Entropy is at most ln TAPS per unit of mass.
        assert gain >= 0.999 * most - x.sum() * abs(y).max() * np.log(TAPS) / reg


@pytest.mark.parametrize("name", ATTACKS)
def test_a_linear_loss_ends_near_its_maximum_in_the_ball(name, quick_jit):
    x, y = (np.stack(part) for part in zip(*(case(seed) for seed, _ in CASES), strict=True))
    # Of the two "logits", yᵀz of each image and 0, only the first counts.
    attack = first_order(
        couplings(GROUND), ATTACKS[name][2], radius=constant(0.05), steps=40,
        objective=lambda logits, label: logits[0], keep=last(),
    )  # fmt: skip

    def logits(images):
        return jnp.sum(y * images, axis=(1, 2, 3))[:, None] * jnp.array([1.0, 0.0])

    found = quick_jit(lambda x, labels: attack(KEY, logits, x, labels))(x, np.zeros(4, np.int32))
    gain = (y * (np.asarray(found.image) - x)).sum((1, 2, 3))
    most = np.array([linear_maximum(*pair, 0.05) for pair in zip(x, y, strict=True)])
    assert (gain <= most * (1 + 1e-4)).all() and (gain >= 0.99 * most).all()


def test_a_random_start_is_inside(problem, quick_jit):
    ball = couplings(GROUND)

    @quick_jit
    def starts(keys, x, radius):
        u, memory = jax.vmap(ball.random)(keys, x, radius)
        images, after = jax.vmap(ball.finish)(x, u, radius, memory)
        return u, jax.vmap(ball.distance)(x, u, memory), images, after.cost

    x = np.concatenate([problem.x[:4], np.ones((1, *GRID, 1), np.float32), problem.x[-1:]])
    radius = np.array([1e-3, 0.02, 0.1, 0.5, 0.1, 0.1], np.float32)
    plans, distance, images, cost = jax.tree.map(
        np.asarray, starts(jax.random.split(KEY, 6), x, radius)
    )
    assert plans.min() >= 0 and (distance <= radius * (1 + 1e-4)).all()
    np.testing.assert_allclose(plans.sum(1), x, rtol=1e-5)
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(images.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-5)
    exact = exact_distances(x, images, COST, WINDOW, workers=2)
    assert (exact.total <= cost * (1 + 1e-4) + 1e-6).all()
    assert (cost <= radius * (1 + 1e-4)).all()
    assert (exact.total[:4] > 0.05 * radius[:4]).all()
    np.testing.assert_allclose(images[4:], x[4:], atol=1e-5)  # white or blank: nowhere to go
    others = np.asarray(starts(jax.random.split(jax.random.key(4), 6), x, radius)[2])
    assert abs(others - images)[1:4].max((1, 2, 3)).min() > 1e-4


# What is refused ----------------------------------------------------------------------------------


def test_published_protocols():
    assert tuple(PROJECTION_MNIST) == (0.5, 300, 0.1, 5, 1.0)
    assert tuple(PROJECTION_CIFAR10) == (0.005, 300, 0.01, 5, 1.0)
    assert tuple(FRANK_WOLFE_MNIST) == (0.5, 300, 1000.0, 5, 1.0)
    assert tuple(FRANK_WOLFE_CIFAR10) == (0.005, 300, 1000.0, 5, 1.0)


BAD = (0.0, -1.0, float("nan"), float("inf"))


@pytest.mark.parametrize(
    "change",
    [
        *({name: value} for name in ("radius", "step_size", "reg") for value in BAD),
        {"steps": 0}, {"window": 4}, {"window": 0}, {"p": 0.0}, {"p": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_protocols_out_of_range_are_refused(change):
    name = next(iter(change))
    for attack, protocol, _ in ATTACKS.values():
        if name in protocol._fields:
            with pytest.raises(InputError, match=name) as refusal:
                attack(GRID, protocol._replace(**change))
            assert "\n" not in str(refusal.value)
