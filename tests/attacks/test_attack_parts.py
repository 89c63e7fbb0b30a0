"""Objectives, schedules, step rules and keep rules, each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax

from wasserstein_adv.attacks import (
    Candidate,
    closest,
    constant,
    cross_entropy,
    first_success,
    growing,
    highest_objective,
    l2_unit,
    last,
    linear,
    margin,
    sign,
    targeted,
)

LOGITS = np.random.default_rng(1).normal(0, 3, (50, 5)).astype(np.float32)
LABELS = np.arange(50, dtype=np.int32) % 5


def test_cross_entropy_is_scipys():
    found = jax.vmap(cross_entropy)(LOGITS, LABELS)
    expected = -log_softmax(LOGITS.astype(np.float64), axis=-1)[np.arange(50), LABELS]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_cross_entropy_survives_large_logits():
    found = cross_entropy(jnp.array([1e4, 0.0, -1e4]), jnp.int32(2))
    np.testing.assert_allclose(found, 2e4)


def test_margin_is_positive_exactly_when_misclassified():
    found = np.asarray(jax.vmap(margin)(LOGITS, LABELS))
    np.testing.assert_array_equal(found > 0, LOGITS.argmax(-1) != LABELS)
    others = np.where(np.arange(5) == LABELS[:, None], -np.inf, LOGITS).max(-1)
    np.testing.assert_allclose(found, others - LOGITS[np.arange(50), LABELS], rtol=1e-6)


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_targeted_negates(objective):
    found = jax.vmap(targeted(objective))(LOGITS, LABELS)
    np.testing.assert_array_equal(found, -jax.vmap(objective)(LOGITS, LABELS))


def test_growing_is_the_papers_schedule():
    steps = np.arange(200)
    found = growing(0.3, 1.1, 10)(steps)
    np.testing.assert_allclose(found, 0.3 * 1.1 ** (steps // 10), rtol=1e-5)
    assert float(found[-1]) == pytest.approx(1.835, abs=5e-4)
    assert len(np.unique(found)) == 20


def test_growing_grows_on_time_for_every_period():
    steps = np.arange(400)
    for every in (1, 3, 5, 7):
        found = np.asarray(growing(0.1, 2 ** (1 / 16), every)(steps))
        np.testing.assert_array_equal(np.diff(found) > 0, np.diff(steps // every) > 0)


def test_linear_and_constant():
    np.testing.assert_allclose(linear(0.02)(np.arange(3)), [0.02, 0.04, 0.06])
    assert [float(constant(0.7)(t)) for t in (0, 5, 100)] == [0.7] * 3


def test_step_rules():
    gradient = jnp.array([[3.0, 0.0], [-4.0, 0.0]])
    for rule, expected in (
        (sign(0.1), [[-0.1, 0], [0.1, 0]]),
        (l2_unit(2.0), [[-1.2, 0], [1.6, 0]]),
    ):
        updates, _ = rule.update(gradient, rule.init(gradient))
        np.testing.assert_allclose(updates, expected, rtol=1e-6)
        still, _ = rule.update(jnp.zeros(3), rule.init(jnp.zeros(3)))
        np.testing.assert_array_equal(still, 0)
        assert isinstance(rule, optax.GradientTransformation)


def candidate(success=False, budget=1.0, distance=0.5, objective=0.0) -> Candidate:
    nothing = jnp.zeros((1, 1, 1))
    return Candidate(
        nothing, (), jnp.float32(objective), jnp.bool_(success), jnp.float32(budget),
        jnp.float32(distance), jnp.int32(0),
    )  # fmt: skip


def better(keep, new: dict, kept: dict) -> bool:
    return bool(keep.better(candidate(**new), candidate(**kept)))


HIT, MISS = {"success": True}, {"success": False}


def test_first_success_takes_the_newest_until_there_is_one():
    keep = first_success()
    assert better(keep, MISS, MISS)
    assert better(keep, HIT, MISS)
    assert not better(keep, MISS, HIT)
    assert not better(keep, {**HIT, "objective": 9.0, "distance": 0.0}, HIT)  # no smaller radius
    assert better(keep, {**HIT, "budget": 0.9}, HIT)  # of another restart
    assert bool(keep.settled(candidate(success=True)))
    assert not bool(keep.settled(candidate()))


def test_highest_objective_looks_at_nothing_else():
    keep = highest_objective()
    assert better(keep, {**MISS, "objective": 1.0}, HIT)
    assert not better(keep, HIT, MISS)
    assert not bool(keep.settled(candidate(success=True)))


def test_closest_compares_distances_of_successes():
    keep = closest()
    assert better(keep, {**MISS, "distance": 9.0}, MISS)
    assert better(keep, {**HIT, "distance": 9.0}, MISS)
    assert better(keep, {**HIT, "distance": 0.4, "budget": 2.0}, HIT)
    assert not better(keep, HIT, HIT)
    assert not better(keep, {**MISS, "distance": 0.0}, HIT)
    assert not bool(keep.settled(candidate(success=True)))
    assert bool(keep.settled(candidate(success=True, budget=0.0)))


def test_last_takes_every_step_and_across_restarts_the_better():
    keep = last()
    assert better(keep, MISS, HIT)
    assert not bool(keep.settled(candidate(success=True)))
    across = keep._replace(better=keep.across)
    assert better(across, HIT, {**MISS, "objective": 9.0})
    assert not better(across, {**MISS, "objective": 9.0}, HIT)
    assert better(across, {**MISS, "objective": 1.0}, MISS)
    assert not better(across, HIT, HIT)
