"""The attack loop, on the ℓ∞ ball: nothing to compile, and answers in closed form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from wasserstein_adv import parallel
from wasserstein_adv.attacks import (
    closest,
    constant,
    cross_entropy,
    first_order,
    growing,
    highest_objective,
    l2_unit,
    linear,
    linf_ball,
    margin,
    pgd,
    sign,
)
from wasserstein_adv.attacks.schedules import growing as schedule
from wasserstein_adv.errors import InputError

KEY = jax.random.key(3)


def linf(step=None, radius=None, steps=40, **options):
    step = sign(0.1) if step is None else step
    radius = growing(0.02, 1.2, 2) if radius is None else radius
    return first_order(linf_ball(), pgd(step), radius=radius, steps=steps, **options)


@pytest.fixture(scope="module")
def attacked(problem, quick_jit):
    """Returns a function that attacks the shared problem."""

    def run(attack, logits_fn=problem.logits, x=problem.x, y=problem.y, key=KEY):
        return jax.tree.map(
            np.asarray, quick_jit(lambda key, x, y: attack(key, logits_fn, x, y))(key, x, y)
        )

    return run


def test_success_radius_of_a_linear_classifier_is_the_closed_form(attacked):
    # Two classes, images far from 0 and 1: fooled once radius · ‖w₀ − w₁‖₁ exceeds the margin.
    rng = np.random.default_rng(5)
    weights = rng.normal(size=(16, 2)).astype(np.float32)
    x = rng.uniform(0.45, 0.55, (40, 4, 4, 1)).astype(np.float32)
    logits = x.reshape(40, -1) @ weights
    logits -= logits.mean(0)  # half of the images on either side
    bias = -(x.reshape(40, -1) @ weights).mean(0)
    y = logits.argmax(-1).astype(np.int32)
    needed = np.abs(logits[:, 0] - logits[:, 1]) / np.abs(weights[:, 0] - weights[:, 1]).sum()
    attack = linf(sign(1.0), linear(needed.max() / 30), steps=40)
    found = attacked(attack, lambda z: z.reshape(len(z), -1) @ weights + bias, x, y)
    increment = needed.max() / 30
    expected = increment * np.ceil(needed / increment)
    borderline = np.abs(needed / increment - np.round(needed / increment)) < 1e-2
    assert borderline.sum() < 5
    np.testing.assert_allclose(found.radius[~borderline], expected[~borderline], rtol=1e-4)
    np.testing.assert_allclose(found.distance, found.radius, atol=1e-6)
    np.testing.assert_array_equal(found.steps, np.round(found.radius / increment))
    assert found.success.all()


def test_what_was_found_is_what_it_claims(attacked, problem):
    found = attacked(linf())
    wrong = problem.logits(found.image).argmax(-1) != problem.y
    np.testing.assert_array_equal(found.success, wrong)
    moved = np.abs(found.image - problem.x).max((1, 2, 3))
    assert (moved <= found.budget + 1e-6).all()
    np.testing.assert_allclose(found.distance, moved, atol=1e-6)
    assert found.radius[0] == found.budget[0] == found.steps[0] == 0
    np.testing.assert_array_equal(found.image[0], problem.x[0])
    radii = np.asarray(schedule(0.02, 1.2, 2)(np.arange(40)))
    later = found.steps > 0
    np.testing.assert_allclose(found.budget[later], radii[found.steps[later] - 1], rtol=1e-6)
    np.testing.assert_allclose(
        found.objective, jax.vmap(cross_entropy)(problem.logits(found.image), problem.y), rtol=1e-3,
        atol=1e-5,
    )  # fmt: skip


def test_failure_says_inf_and_returns_the_last_iterate(attacked, problem):
    found = attacked(linf(radius=constant(1e-4), steps=3))
    failed = ~found.success
    assert failed[1:].any()
    assert np.isinf(found.radius[failed]).all()
    np.testing.assert_array_equal(found.steps[failed], 3)
    np.testing.assert_allclose(found.budget[failed], 1e-4)
    assert not np.array_equal(found.image[failed], problem.x[failed])


def test_targeted_reaches_its_target(attacked, problem):
    wanted = ((problem.logits(problem.x).argmax(-1) + 2) % 4).astype(np.int32)
    found = attacked(linf(targeted=True), y=wanted)
    reached = problem.logits(found.image).argmax(-1) == wanted
    np.testing.assert_array_equal(found.success, reached)
    assert reached.sum() >= 6
    untargeted = attacked(linf(), y=problem.logits(problem.x).argmax(-1).astype(np.int32))
    assert (found.radius >= untargeted.radius).sum() >= 6
    there = attacked(linf(targeted=True), y=problem.logits(problem.x).argmax(-1).astype(np.int32))
    np.testing.assert_array_equal(there.radius, 0)


def test_margin_objective(attacked, problem):
    found = attacked(linf(objective=margin))
    np.testing.assert_array_equal(found.success, found.objective > 0)
    assert found.success.all()


@pytest.mark.parametrize(
    "step",
    [optax.adam(0.02), optax.sgd(0.02, momentum=0.9), l2_unit(0.3)],
    ids=["adam", "momentum", "l2"],
)
def test_any_optax_transformation_serves(attacked, step):
    found = attacked(linf(step, growing(0.05, 1.2, 2)))
    assert found.success.sum() >= 6
    assert (found.distance <= found.budget + 1e-6).all()


def test_more_restarts_never_need_a_larger_radius(attacked):
    options = {"radius": growing(0.01, 1.1, 1), "step": sign(0.02), "random_start": True}
    radii = [attacked(linf(**options, restarts=n)).radius for n in (1, 2, 5)]
    assert (radii[1] <= radii[0]).all()
    assert (radii[2] <= radii[1]).all()


def test_random_start_stays_in_the_first_ball(problem):
    attack = linf(random_start=True)
    keys = jax.random.split(KEY, 8)
    state = attack.init(keys, problem.logits, problem.x, problem.y)
    moved = np.abs(state.u - problem.x).max((1, 2, 3))
    np.testing.assert_allclose(state.budget, 0.02, rtol=1e-6)
    assert (moved <= 0.02 + 1e-6).all()
    assert (moved > 0.01).all()


def test_highest_objective_keeps_the_best_iterate(problem):
    attack = linf(optax.sgd(5.0), constant(0.3), steps=6, keep=highest_objective())
    state = attack.init(jax.random.split(KEY, 8), problem.logits, problem.x, problem.y)
    step = jax.jit(lambda state: attack.step(problem.logits, problem.x, problem.y, state))
    seen = []
    while attack.unsettled(state).any():
        seen.append(jax.vmap(cross_entropy)(problem.logits(np.asarray(state.u)), problem.y))
        state = step(state)
    assert len(seen) == 7
    found = attack.result(state)
    np.testing.assert_allclose(found.objective, np.max(seen, 0), rtol=1e-5)
    np.testing.assert_array_equal(
        found.success, problem.logits(np.asarray(found.image)).argmax(-1) != problem.y
    )


def test_closest_keeps_the_nearest_success(attacked):
    options = {"radius": linear(0.02), "steps": 12}
    near = attacked(linf(sign(0.01), **options, keep=closest()))
    first = attacked(linf(sign(0.01), **options))
    assert (near.distance[first.success] <= first.distance[first.success] + 1e-6).all()
    np.testing.assert_array_equal(near.success, first.success)


def test_settled_images_do_not_move(problem):
    attack = linf()
    state = attack.init(jax.random.split(KEY, 8), problem.logits, problem.x, problem.y)
    step = jax.jit(lambda state: attack.step(problem.logits, problem.x, problem.y, state))
    frozen = {}
    for _ in range(45):
        settled = ~np.asarray(attack.unsettled(state))
        for i in np.flatnonzero(settled):
            frozen.setdefault(i, jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), state))
        state = step(state)
    assert len(frozen) == 8
    for i, then in frozen.items():
        now = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), state)
        jax.tree.map(np.testing.assert_array_equal, now, then)


def test_an_image_is_attacked_alike_in_any_company(attacked, problem):
    attack = linf(random_start=True, restarts=2)
    everyone = attacked(attack)
    few = attacked(attack, x=problem.x[:3], y=problem.y[:3])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:3], b, atol=1e-5), everyone, few)
    x, y = problem.x.copy(), problem.y.copy()
    x[4:] = x[4:, ::-1]  # others in the same batch
    others = attacked(attack, x=x, y=y)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:4], b[:4]), everyone, others)


def test_keys_decide_the_random_start_and_nothing_else(attacked):
    random = [attacked(linf(random_start=True), key=jax.random.key(k)).image for k in (1, 1, 2)]
    np.testing.assert_array_equal(random[0], random[1])
    assert not np.array_equal(random[0], random[2])
    plain = [attacked(linf(), key=jax.random.key(k)).image for k in (1, 2)]
    np.testing.assert_array_equal(*plain)


def test_models_of_every_kind(attacked, problem):
    dense = nn.Dense(4)
    params = {"params": {"kernel": jnp.asarray(problem.weights), "bias": jnp.asarray(problem.bias)}}
    module = nnx.Linear(64, 4, rngs=nnx.Rngs(0))
    module.kernel[...], module.bias[...] = params["params"]["kernel"], params["params"]["bias"]
    expected = attacked(linf())
    for logits_fn in (
        lambda z: dense.apply(params, z.reshape(len(z), -1)),
        lambda z: module(z.reshape(len(z), -1)),
    ):
        found = attacked(linf(), logits_fn)
        np.testing.assert_array_equal(found.radius, expected.radius)
        np.testing.assert_allclose(found.image, expected.image, atol=1e-6)


def test_no_jit_needed(attacked, problem):
    found = linf()(KEY, problem.logits, problem.x, problem.y)
    expected = attacked(linf())
    np.testing.assert_array_equal(found.radius, expected.radius)
    np.testing.assert_allclose(found.image, expected.image, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"restarts": 0},
        {"restarts": 2},
        {"restarts": -1, "random_start": True},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=r"steps|restarts"):
        linf(**options)


@pytest.mark.parametrize(
    ("x_shape", "y"),
    [
        ((8, 8, 1), np.zeros(8, np.int32)),
        ((2, 8, 8, 1), np.zeros(3, np.int32)),
        ((2, 8, 8, 1), np.zeros((2, 1), np.int32)),
        ((2, 8, 8, 1), np.zeros(2, np.float32)),
    ],
)
def test_batches_that_do_not_agree_are_refused(problem, x_shape, y):
    with pytest.raises(InputError, match=r"\bx\b|\by\b"):
        linf()(KEY, problem.logits, jnp.zeros(x_shape), jnp.asarray(y))


# The border ---------------------------------------------------------------------------------------


def answers(images):
    return images.reshape(len(images), -1)[:, :4]


GOOD = np.full((2, 4, 4, 1), 0.5, np.float32)
LABELS = np.array([0, 3])


def with_value(value):
    images = GOOD.copy()
    images[1, 2, 3, 0] = value
    return images


@pytest.mark.parametrize(
    ("key", "logits_fn", "x", "y", "message"),
    [
        (KEY, answers, 255 * GOOD, LABELS, r"x must lie in \[0, 1\].*: divide by 255"),
        (KEY, answers, (255 * GOOD).astype(np.uint8), LABELS, "x must be floating.*divide by 255"),
        (KEY, answers, with_value(-0.5), LABELS, r"x must lie in \[0, 1\], got values from -0.5"),
        (KEY, answers, with_value(np.nan), LABELS, "x must be finite, 1 values are not"),
        (KEY, answers, GOOD[:0], LABELS[:0], "x must have shape .*none of them 0"),
        (KEY, answers, GOOD.tolist(), LABELS, "x must be an array, got list"),
        (KEY, answers, GOOD, np.array([0, 4]), "y must be labels from 0 to 3.*got 4"),
        (KEY, answers, GOOD, np.array([-1, 0]), "y must be labels from 0 to 3.*got -1"),
        (KEY, answers, GOOD, np.array([0.0, 1.0]), "y must be 2 integer labels"),
        (0, answers, GOOD, LABELS, r"key must be a random key such as jax.random.key\(0\), got 0"),
        (
            KEY,
            lambda images: images[:, 0, 0, 0],
            GOOD,
            LABELS,
            r"logits_fn must return .*got \(2,\)",
        ),
    ],
)
@pytest.mark.parametrize("through", ["attack", "evaluate"])
def test_what_is_no_batch_is_refused_in_one_line(through, key, logits_fn, x, y, message):
    attack = linf(steps=1)
    with pytest.raises(InputError, match=message) as refused:
        if through == "attack":
            attack(key, logits_fn, x, y)
        else:
            parallel.evaluate(attack, key, logits_fn, x, y)
    assert "\n" not in str(refused.value)


def test_concrete_images_and_labels_beside_a_traced_model_are_looked_at_all_the_same():
    x, y, attack = jnp.asarray(GOOD), jnp.asarray(LABELS), linf(steps=1)

    def run(weights, x):
        return attack(KEY, lambda images: answers(images) * weights, x, y).radius

    assert jax.jit(lambda weights: run(weights, x))(jnp.ones(4)).shape == (2,)
    wrong = jnp.asarray(255 * GOOD)
    with pytest.raises(InputError, match="divide by 255"):
        jax.jit(lambda weights: run(weights, wrong))(jnp.ones(4))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_images_of_half_precision_are_attacked_in_single(dtype, quick_jit):
    x, attack = jnp.asarray(GOOD, dtype), linf(steps=2)
    found = quick_jit(lambda x: attack(KEY, answers, x, LABELS))(x)
    assert found.image.dtype == jnp.float32


def test_logits_that_are_nan_leave_the_clean_image(quick_jit):
    def broken(images):
        logits = answers(images)
        moved = jnp.any(images != 0.5, axis=(1, 2, 3))[:, None]
        return jnp.where(moved, jnp.nan, logits)

    found = quick_jit(lambda x: linf(steps=5)(KEY, broken, x, LABELS))(GOOD)
    np.testing.assert_array_equal(found.image, GOOD)
    assert not np.asarray(found.success)[0]
