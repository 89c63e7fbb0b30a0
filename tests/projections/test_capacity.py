"""What does not fit into a pixel stays where it came from: on explicit plans."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plainly import jit

from wasserstein_adv.projections.capacity import turn_away

PIXELS = 12


@jit
def shares(plan, cap):
    """`turn_away` for a dense plan."""
    moving = plan - jnp.diag(jnp.diag(plan))
    return turn_away(plan.sum(1), moving.sum(0), lambda theta: moving @ theta, cap)


def plan_of(x, seed, size=1.0, sparse=0.5):
    """A plan with row sums x, of which about `size` moves."""
    rng = np.random.default_rng(seed)
    n = len(x)
    weights = rng.exponential(size=(n, n)) * (rng.random((n, n)) < sparse)
    np.fill_diagonal(weights, 0)
    total = weights.sum(1, keepdims=True)
    moving = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    plan = size * x[:, None] * moving
    np.fill_diagonal(plan, x - plan.sum(1))
    return plan.astype(x.dtype)


def image(seed, pixels=PIXELS, top=1.5):
    """Pixels between 0 and 1, some of them 1."""
    return np.minimum(top * np.random.default_rng(seed).random(pixels), 1.0)


def fitted(plan, theta):
    """The plan of which pixel j keeps the share θ_j of what arrives."""
    moving = plan * np.asarray(theta, np.float64)
    np.fill_diagonal(moving, 0)
    np.fill_diagonal(moving, plan.sum(1) - moving.sum(1))
    return moving


def check(plan, cap, rtol):
    """The answer's claims, with everything about its plan computed from the plan itself."""
    theta, z = (np.asarray(a, np.float64) for a in shares(plan, cap))
    wide = plan.astype(np.float64)
    x = wide.sum(1)
    assert theta.min() >= 0 and theta.max() <= 1
    kept = fitted(wide, theta)
    assert kept.min() >= -rtol * cap
    np.testing.assert_allclose(kept.sum(1), x, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(z, kept.sum(0), rtol=0, atol=rtol * cap)
    assert z.min() >= 0 and z.max() <= cap * (1 + rtol) and kept.sum(0).max() <= cap * (1 + rtol)
    assert z.sum() == pytest.approx(x.sum(), rel=rtol * len(x))
    cost = np.abs(np.subtract.outer(np.arange(len(x)), np.arange(len(x))))
    assert (cost * kept).sum() <= (cost * wide).sum() * (1 + 1e-12)
    return theta, z, kept


def test_pixels_end_full_or_keep_everything(x64):
    # The limit of the passes: θ_j < 1 only where z_j = cap.
    for seed in range(10):
        plan = plan_of(image(seed, top=3.0), seed, 0.3)
        assert plan.sum(0).max() > 1.005  # or there is nothing to do
        theta, z, _ = check(plan, 1.0, 1e-14)
        assert (theta < 1).any()
        np.testing.assert_allclose(z[theta < 1], 1.0, rtol=1e-12)


def largest_shares(plan, cap):
    """θ of the linear program that turns away the least."""
    moving = plan - np.diag(np.diag(plan))
    theta = cp.Variable(len(plan))
    held = plan.sum(1) - moving @ theta + cp.multiply(moving.sum(0), theta)
    problem = cp.Problem(cp.Maximize(cp.sum(theta)), [theta >= 0, theta <= 1, held <= cap])
    problem.solve("CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return theta.value


def test_it_turns_away_as_little_as_possible(x64):
    # θ ↦ what fits is monotone, so its largest fixed point is the largest feasible θ of all.
    for seed in range(10):
        plan = plan_of(image(seed, top=3.0), seed, 0.3)
        theta, _, _ = check(plan, 1.0, 1e-14)
        np.testing.assert_allclose(theta, largest_shares(plan, 1.0), atol=1e-6)


def test_one_full_pixel_in_closed_form(x64):
    # 0.6 of room for the 0.8 that arrive, from pixels that stay below the cap.
    plan = np.array([[0.1, 0.5, 0.0], [0.0, 0.4, 0.0], [0.0, 0.3, 0.2]])
    theta, z = shares(plan, 1.0)
    np.testing.assert_allclose(theta, [1, 0.75, 1], rtol=1e-12)
    np.testing.assert_allclose(z, [0.1 + 0.125, 1.0, 0.2 + 0.075], rtol=1e-12)


def test_refusals_spread(x64):
    # 1 sends 0.5 to the full 2, which keeps nothing: then 0, that sent 0.5 to 1, keeps it too.
    plan = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    theta, z = shares(plan, 1.0)
    np.testing.assert_allclose(theta[1:], [0, 0], atol=1e-12)
    np.testing.assert_allclose(z, [1.0, 1.0, 1.0], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_plan_that_fits_is_left_alone(x64, dtype):
    for seed in range(5):
        x = 0.5 * image(seed).astype(dtype)
        plan = plan_of(x, seed)
        cap = dtype(1.001 * max(plan.sum(0).max(), x.max()))
        theta, z = shares(plan, cap)
        np.testing.assert_array_equal(theta, 1)
        np.testing.assert_allclose(z, plan.sum(0), rtol=20 * np.finfo(dtype).eps, atol=1e-7)
        free, same = shares(plan, dtype(np.inf))
        np.testing.assert_array_equal(free, 1)
        np.testing.assert_allclose(same, z, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-3, 0.5, 1.0])
@pytest.mark.parametrize("cap", [1.0, 0.3, 255.0])
def test_pixels_that_are_all_full(x64, size, cap):
    # Nothing can arrive but where as much leaves.
    for dtype, rtol in ((np.float64, 1e-13), (np.float32, 2e-6)):
        x = np.full(PIXELS, cap, dtype)
        for seed in range(3):
            check(plan_of(x, seed, size), dtype(cap), rtol)


@pytest.mark.parametrize("short", [0.0, 1e-6, 1e-3])
def test_cycles_of_full_pixels(short):
    # A ring sends all that it has one pixel on, with a little more from outside: what the ring
    # refuses goes round and round.
    n = PIXELS
    x = np.full(n, 1.0 - short, np.float32)
    plan = np.zeros((n, n), np.float32)
    for i in range(n - 1):
        plan[i, (i + 1) % (n - 1)] = x[i]
    plan[-1, 0], plan[-1, -1] = x[-1], 0
    _, z, _ = check(plan, np.float32(1), 2e-6)
    assert z[-1] > 0.99 - 20 * short


def test_whole_circulations_are_kept(x64):
    # All pixels full and everything moves, each to the next: it fits as it is.
    plan = np.roll(np.eye(PIXELS), 1, axis=1)
    theta, z = shares(plan, 1.0)
    np.testing.assert_array_equal(theta, 1)
    np.testing.assert_array_equal(z, 1)


def test_nothing_to_move_and_nothing_at_all():
    for x in (np.zeros(PIXELS, np.float32), np.ones(PIXELS, np.float32)):
        theta, z = shares(np.diag(x), np.float32(1))
        np.testing.assert_array_equal(z, x)
        assert np.isfinite(theta).all()


@pytest.mark.parametrize("precise", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-4, 0.03, 0.3, 1.0]),
    sparse=st.sampled_from([0.1, 0.3, 1.0]),
    top=st.sampled_from([0.5, 1.5, 20.0, 1e6]),
    cap=st.sampled_from([1e-2, 1.0, 255.0]),
)
def test_any_plan_is_made_to_fit(precise, seed, size, sparse, top, cap):
    with jax.enable_x64(True):
        dtype = np.float64 if precise else np.float32
        x = (cap * image(seed, top=top)).astype(dtype)
        plan = plan_of(np.minimum(x, dtype(cap)), seed + 1, size, sparse)
        check(plan, dtype(cap), 1e-13 if precise else 5e-6)


def test_under_vmap_every_plan_ends_by_itself(x64):
    plans = np.stack([plan_of(image(s), s, (0.01, 0.3, 1.0)[s % 3]) for s in range(6)])
    together = jax.vmap(shares, (0, None))(plans, 1.0)
    for k in range(6):
        for a, b in zip(shares(plans[k], 1.0), together, strict=True):
            np.testing.assert_allclose(a, b[k], atol=1e-13)
