"""Attacks on balls of images: what they return is inside, by an exact solver, and is what fools."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog
from scipy.sparse import coo_array, vstack

from wasserstein_adv.attacks import (
    FeasibleSet,
    FlowProtocol,
    HuProtocol,
    Moves,
    capped_ball,
    constant,
    first_order,
    flow,
    flow_ball,
    frank_wolfe,
    growing,
    hu,
    l2_unit,
    linear,
    linf_unit,
    pgd,
    wong,
)
from wasserstein_adv.attacks.flow import MNIST as FLOW_MNIST
from wasserstein_adv.attacks.hu import CIFAR10
from wasserstein_adv.attacks.hu import MNIST as HU_MNIST
from wasserstein_adv.attacks.wong import MNIST as WONG_MNIST
from wasserstein_adv.errors import InputError
from wasserstein_adv.geometry import euclidean_power, local_grid
from wasserstein_adv.metrics import exact_distances

KEY = jax.random.key(3)
GRID, WINDOW, INCREMENT, FACTOR, STEPS = (8, 8), 3, 0.02, 1.06, 50


def manhattan(drow, dcol):
    return abs(drow) + abs(dcol)


# name ↦ (attack, its set, its radii, its ground cost, its window)
ATTACKS = {
    "hu": (
        hu(GRID, HuProtocol(INCREMENT, STEPS, window=WINDOW)),
        capped_ball(local_grid(GRID, euclidean_power(1), WINDOW)),
        linear(INCREMENT),
        euclidean_power(1),
        WINDOW,
    ),
    "flow": (
        flow(GRID, FlowProtocol(INCREMENT, FACTOR, STEPS)),
        flow_ball(),
        growing(INCREMENT, FACTOR, 1),
        manhattan,
        None,
    ),
}


@pytest.fixture(scope="module", params=ATTACKS)
def attacked(request, problem, quick_jit):
    """(the attack's answer for the shared problem, its radii, its ground cost and window)."""
    attack, _, *rest = ATTACKS[request.param]
    run = quick_jit(lambda key, x, y: attack(key, problem.logits, x, y))
    return jax.tree.map(np.asarray, run(KEY, problem.x, problem.y)), *rest


def test_every_image_is_an_image_of_its_ball(attacked, problem):
    found, _, *ground = attacked
    assert found.image.min() >= 0 and found.image.max() <= 1
    np.testing.assert_allclose(found.image.sum((1, 2, 3)), problem.x.sum((1, 2, 3)), rtol=1e-5)
    exact = exact_distances(problem.x, found.image, *ground, workers=2)
    assert (exact.total <= found.budget * (1 + 1e-3)).all()
    assert (exact.total <= found.distance * (1 + 1e-3)).all()
    assert (found.distance <= found.budget * (1 + 1e-3)).all()
    stepped = (found.steps > 0) & problem.x.any((1, 2, 3))
    assert stepped.sum() == 6 and (exact.total[stepped] > 0.5 * found.budget[stepped]).all()


def test_success_means_that_the_very_image_is_misclassified(attacked, problem):
    found, *_ = attacked
    wrong = problem.logits(found.image).argmax(-1) != problem.y
    np.testing.assert_array_equal(found.success, wrong)
    assert wrong.sum() >= 6
    np.testing.assert_array_equal(np.isfinite(found.radius), found.success)


def test_radii_are_those_of_the_schedule(attacked):
    found, radii, *_ = attacked
    expected = np.where(found.steps > 0, radii(np.maximum(found.steps - 1, 0)), 0)
    np.testing.assert_allclose(found.budget, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.radius[found.success], found.budget[found.success])
    assert (found.steps[~found.success] == STEPS).all()
    assert len(set(found.steps.tolist())) > 3


def test_first_and_last_image_stay(attacked, problem):
    found, *_ = attacked
    # The first is misclassified as it is, the last is blank.
    assert found.radius[0] == found.steps[0] == found.distance[0] == 0
    assert np.isinf(found.radius[-1]) and found.distance[-1] == 0
    np.testing.assert_array_equal(found.image[[0, -1]], problem.x[[0, -1]])


def test_evidence_is_that_of_the_image(attacked, problem):
    found, *_ = attacked
    np.testing.assert_array_equal(found.distance, found.evidence.cost)
    np.testing.assert_allclose(found.image, found.evidence.point, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.evidence))
    if hasattr(found.evidence, "state"):
        m = found.evidence.state.flow
        arrived = problem.x.copy()
        arrived[:, :-1] -= m[:, 0, :-1]
        arrived[:, 1:] += m[:, 0, :-1]
        arrived[:, :, :-1] -= m[:, 1, :, :-1]
        arrived[:, :, 1:] += m[:, 1, :, :-1]
        np.testing.assert_allclose(found.image, arrived, atol=2e-6)


def least_radius(x, ascent, missing, cost, window):
    """The least radius of a ball of images that holds a z with ascent·z ≥ missing: a linear
    program over all plans that the window allows."""
    row, col = np.divmod(np.arange(x.size), GRID[1])
    drow, dcol = row - row[:, None], col - col[:, None]
    allowed = (x > 0)[:, None] & (np.maximum(abs(drow), abs(dcol)) <= (window or 99) // 2)
    i, j = np.nonzero(allowed)
    arcs, n = np.arange(len(i)), x.size
    sources, targets = (coo_array((np.ones(len(i)), (k, arcs)), (n, len(i))) for k in (i, j))
    found = linprog(
        cost(drow, dcol)[i, j],
        A_ub=vstack([targets, coo_array(-ascent[None, j])]), b_ub=np.append(np.ones(n), -missing),
        A_eq=sources, b_eq=x,
    )  # fmt: skip
    return found.fun / x.sum() if found.status == 0 else np.inf


def test_radii_are_near_the_least_of_a_linear_program(attacked, problem):
    found, radii, *ground = attacked
    ratios = []
    for k in range(1, 7):
        label = problem.y[k]
        needed = [
            least_radius(
                problem.x[k].ravel().astype(float),
                (problem.weights[:, other] - problem.weights[:, label]).astype(float),
                float(problem.bias[label] - problem.bias[other]),
                *ground,
            )
            for other in set(range(4)) - {label}
        ]
        # Nothing smaller is possible, and the steps of the radius are the attack's resolution.
        assert found.radius[k] >= min(needed) * (1 - 1e-3)
        before = radii(found.steps[k] - 2) if found.steps[k] > 1 else 0.0
        ratios.append(before / min(needed))
    assert np.median(ratios) < 1.2


@pytest.mark.parametrize("name", ATTACKS)
def test_a_random_start_is_inside(name, problem, quick_jit):
    _, ball, _, *ground = ATTACKS[name]

    @quick_jit
    def starts(keys, x, radius):
        u, memory = jax.vmap(ball.random)(keys, x, radius)
        return jax.vmap(ball.decode)(x, u), jax.vmap(ball.distance)(x, u, memory), memory

    x = np.concatenate([problem.x[:4], np.ones((1, *GRID, 1), np.float32), problem.x[-1:]])
    radius = np.array([1e-3, 0.02, 0.1, 0.5, 0.1, 0.1], np.float32)
    images, distance, memory = jax.tree.map(np.asarray, starts(jax.random.split(KEY, 6), x, radius))
    assert images.min() >= 0 and images.max() <= 1
    np.testing.assert_allclose(images.sum((1, 2, 3)), x.sum((1, 2, 3)), rtol=1e-5)
    exact = exact_distances(x, images, *ground, workers=2)
    assert (exact.total <= radius * (1 + 1e-3)).all()
    assert (exact.total <= distance * (1 + 1e-3) + 1e-6).all()
    assert (exact.total[:4] > 0.2 * radius[:4]).all()
    np.testing.assert_allclose(images[4:], x[4:], atol=1e-5)  # white or blank: nowhere to go
    np.testing.assert_allclose(images, memory.point, atol=1e-6)
    others = np.asarray(starts(jax.random.split(jax.random.key(4), 6), x, radius)[0])
    assert abs(others - images)[1:4].max((1, 2, 3)).min() > 1e-3


def test_the_capped_balls_variable_is_a_share_of_the_mass(problem):
    ball = ATTACKS["hu"][1]
    for x in (problem.x[1], problem.x[-1]):
        u, memory = ball.init(x)
        assert float(u.sum()) == pytest.approx(float(x.any()), rel=1e-5)
        np.testing.assert_allclose(ball.decode(x, u), x, rtol=1e-6)
        assert float(ball.distance(x, u, memory)) == 0
    # What rounding puts above white is taken off, and the gradient does not see it.
    x = problem.x[1]
    over = np.asarray(ball.init(x)[0]) + np.float32(2 / x.sum()) * (x == x.max())
    assert float(ball.decode(x, over).max()) == 1
    slope = jax.grad(lambda u: ball.decode(x, u).sum())(over)
    np.testing.assert_allclose(slope, x.sum(), rtol=1e-6)


def run_method(method, lmo, slope, u, steps):
    """The iterates from u, and the memory of each step."""
    state, iterates, memories = method.init(u), [u], []
    for _ in range(steps):
        moves = Moves(lambda stepped: (stepped, None), lmo)
        u, memory, state = method.update(slope(u), state, u, moves)
        iterates.append(u)
        memories.append(memory)
    return iterates, memories


def test_frank_wolfe_on_a_polytope():
    rng = np.random.default_rng(0)
    corners = rng.normal(size=(7, 3)).astype(np.float32)

    def lmo(gradient):
        best = jnp.argmin(corners @ gradient)
        return jnp.asarray(corners)[best], best

    start = jnp.asarray(corners.mean(0))
    # A linear function: the best corner, at the first step.
    direction = rng.normal(size=3).astype(np.float32)
    iterates, memories = run_method(frank_wolfe(), lmo, lambda u: direction, start, 3)
    best = (corners @ direction).argmin()
    for iterate, memory in zip(iterates[1:], memories, strict=True):
        np.testing.assert_allclose(iterate, corners[best], rtol=1e-5, atol=1e-6)
        assert int(memory) == best
    # The nearest point to one outside: within Jaggi's bound 2·diameter²/(t + 2), inside the hull.
    target = corners.mean(0) + np.float32(1.0) * direction
    weights = cp.Variable(7, nonneg=True)
    nearest = cp.Problem(
        cp.Minimize(cp.sum_squares(corners.T @ weights - target) / 2), [cp.sum(weights) == 1]
    )
    nearest.solve("CLARABEL")
    iterates, memories = run_method(frank_wolfe(), lmo, lambda u: u - target, start, 60)
    diameter = max(np.linalg.norm(a - b) for a in corners for b in corners)
    shares = np.zeros(7)
    for t, iterate in enumerate(iterates):
        if t:
            share = 2 / (t + 1)
            shares = (1 - share) * shares + share * (np.arange(7) == int(memories[t - 1]))
            assert shares.min() >= 0 and shares.sum() == pytest.approx(1)
            np.testing.assert_allclose(iterate, shares @ corners, atol=1e-5)
            excess = 0.5 * float(((iterate - target) ** 2).sum()) - nearest.value
            assert -1e-5 <= excess <= 2 * diameter**2 / (t + 2)
    assert excess < 0.05 * (0.5 * float(((start - target) ** 2).sum()) - nearest.value)


def box_by_corners() -> FeasibleSet:
    """The ℓ∞ ball with a linear oracle; its memory is (projections, oracle calls)."""

    def init(x):
        return x, jnp.zeros(2, jnp.int32)

    def lmo(x, u, gradient, radius, memory):
        corner = jnp.where(gradient > 0, x - radius, x + radius)
        return jnp.clip(corner, 0, 1), memory + jnp.array([0, 1])

    def project(x, u, stepped, radius, memory):
        return jnp.clip(stepped, x - radius, x + radius), memory + jnp.array([1, 0])

    return FeasibleSet(
        init, lambda key, x, radius: init(x), lambda x, u: u, project,
        lambda x, u, memory: jnp.abs(u - x).max(), lmo,
    )  # fmt: skip


def test_frank_wolfe_attacks_a_set_with_an_oracle(problem, quick_jit):
    # A linear objective over a box has its maximum at a corner, in closed form.
    slope = np.random.default_rng(0).normal(size=4).astype(np.float32)
    attack = first_order(
        box_by_corners(), frank_wolfe(), radius=constant(0.1), steps=5,
        objective=lambda logits, y: slope @ logits,
    )  # fmt: skip
    state = attack.init(jax.random.split(KEY, 8), problem.logits, problem.x, problem.y)
    step = quick_jit(lambda state: attack.step(problem.logits, problem.x, problem.y, state))
    ascent = (problem.weights @ slope).reshape(problem.x.shape[1:])
    corner = np.clip(problem.x + 0.1 * np.sign(ascent), 0, 1)
    for t in range(5):
        state = step(state)
        moved = np.asarray(attack.unsettled(state))
        np.testing.assert_allclose(state.u[moved], corner[moved], atol=1e-6)
        np.testing.assert_array_equal(state.memory[moved], [[0, t + 1]] * moved.sum())
    assert moved.any()


def rounded_set() -> FeasibleSet:
    """Any image, judged as what is left of it in black and white; memory is (events, radius).

    A projection counts 100, and finishing counts 1.
    """

    def init(x):
        return x, (jnp.zeros((), jnp.int32), jnp.zeros((), x.dtype))

    def project(x, u, stepped, radius, memory):
        return stepped, (memory[0] + 100, memory[1])

    def finish(x, u, radius, memory):
        return (u > 0.5).astype(u.dtype), (memory[0] + 1, radius)

    return FeasibleSet(
        init, lambda key, x, radius: init(x), lambda x, u: u, project,
        lambda x, u, memory: memory[1], None, finish,
    )  # fmt: skip


def test_the_finished_image_is_the_one_that_is_judged(problem, quick_jit):
    attack = first_order(rounded_set(), pgd(linf_unit(0.047)), radius=linear(0.1), steps=12)
    run = quick_jit(lambda key, x, y: attack(key, problem.logits, x, y))
    found = jax.tree.map(np.asarray, run(KEY, problem.x, problem.y))
    wrong = problem.logits(found.image).argmax(-1) != problem.y
    np.testing.assert_array_equal(found.success, wrong)
    later = found.steps > 0
    assert later.any() and found.success.any()
    assert np.isin(found.image[later], [0.0, 1.0]).all()
    np.testing.assert_array_equal(found.image[0], problem.x[0])  # the clean image is not finished
    # Every step hands on what finishing left: t projections, and t + 1 images finished.
    events, radius = found.evidence
    np.testing.assert_array_equal(events[later], 101 * found.steps[later] + 1)
    np.testing.assert_allclose(radius, found.budget, rtol=1e-6)
    np.testing.assert_allclose(found.distance, found.budget, rtol=1e-6)
    # The same in NumPy: gradients at the image that is not finished, judged as finished.
    for k in np.flatnonzero(later):
        u = problem.x[k].ravel()
        for t in range(13):
            seen = (u > 0.5).astype(np.float32)
            if t and problem.logits(seen[None]).argmax() != problem.y[k]:
                break
            logits = problem.logits(u[None])[0].astype(float)
            shares = np.exp(logits - logits.max())
            shares = shares / shares.sum() - (np.arange(4) == problem.y[k])
            ascent = problem.weights @ shares
            u = u + np.float32(0.047) * (ascent / abs(ascent).max()).astype(np.float32)
        assert min(t, 12) == found.steps[k]
        assert (seen == found.image[k].ravel()).all()


@pytest.mark.parametrize(("rule", "order"), [(linf_unit, np.inf), (l2_unit, 2)])
def test_unit_steps(rule, order):
    step = rule(0.3)
    assert isinstance(step, optax.GradientTransformation)
    rng = np.random.default_rng(0)
    for scale in (1e-12, 1.0, 1e12):
        gradient = (scale * rng.normal(size=(4, 5))).astype(np.float32)
        update, _ = step.update(gradient, step.init(gradient))
        length = np.linalg.norm(gradient.ravel().astype(float), order)
        np.testing.assert_allclose(update, -0.3 * gradient / length, rtol=1e-5)
        assert np.linalg.norm(np.ravel(update), order) == pytest.approx(0.3, rel=1e-5)
    # One length for all leaves together.
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[-4.0]])}
    updates, _ = step.update(tree, step.init(tree))
    length = 4.0 if order == np.inf else 5.0
    np.testing.assert_allclose(updates["a"], [-0.9 / length, 0], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], [[1.2 / length]], rtol=1e-6)
    # A gradient that vanishes moves nothing, alone or in a batch.
    still, _ = step.update(jnp.zeros((2, 2)), step.init(jnp.zeros((2, 2))))
    np.testing.assert_array_equal(still, 0)
    batch = jnp.array([[0.0, 0.0], [0.0, -2.0]])
    both = jax.vmap(lambda g: step.update(g, step.init(g))[0])(batch)
    np.testing.assert_allclose(both, [[0, 0], [0, 0.3]], rtol=1e-6)


def test_published_protocols():
    assert tuple(HU_MNIST) == (0.01, 200, 0.06, 1000.0, 5, 1.0)
    assert tuple(CIFAR10) == (0.001, 400, 0.02, 3000.0, 5, 1.0)


BAD = (0.0, -1.0, float("nan"), float("inf"))


@pytest.mark.parametrize(
    "change",
    [
        *(
            {name: value}
            for name in ("increment", "start", "factor", "step_size", "reg")
            for value in BAD
        ),
        {"steps": 0}, {"every": 0}, {"window": 4}, {"window": 0}, {"p": 0.0}, {"p": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_protocols_out_of_range_are_refused(change):
    name = next(iter(change))
    for attack, protocol in ((hu, HU_MNIST), (flow, FLOW_MNIST), (wong, WONG_MNIST)):
        if name in protocol._fields:
            with pytest.raises(InputError, match=name) as refusal:
                attack(GRID, protocol._replace(**change))
            assert "\n" not in str(refusal.value)


def test_stopping_rules_out_of_range_are_refused(problem):
    for options, name in (({"tolerance": 0.0}, "tolerance"), ({"max_iterations": 0}, "max_iter")):
        ball = flow_ball(**options)
        u, memory = ball.init(problem.x[1])
        with pytest.raises(InputError, match=name):
            ball.project(problem.x[1], u, u, 0.1, memory)
