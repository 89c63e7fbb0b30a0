"""The three blocks of Algorithm 2, each against the equation it solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import wrightomega

from wasserstein_adv.geometry import dense_grid, euclidean_power
from wasserstein_adv.projections import (
    Duals,
    alpha_step,
    beta_step,
    block_ascent,
    dual_objective,
    psi_step,
)
from wasserstein_adv.projections.kernel import log_domain
from wasserstein_adv.projections.projected_sinkhorn import Problem, State

REGS = [1.0, 30.0, 1e3, 1e4, 1e5]


def beta_inputs(reg, count=4000):
    """(w, ln q) of solutions with z as in an image and |β| ≤ 10."""
    rng = np.random.default_rng(int(reg))
    z = 10.0 ** rng.uniform(-9, -1.3, count)
    beta = rng.uniform(-10, 10, count)
    w = z + beta / reg
    return w.astype(np.float32), (np.log(z) - beta).astype(np.float32), z, beta


@pytest.mark.parametrize("reg", REGS)
def test_beta_step_keeps_float32s_digits(reg):
    w, log_q, _, _ = beta_inputs(reg)
    beta, z = beta_step(w, log_q, jnp.float32(reg))
    with jax.enable_x64(True):
        exact_beta, exact_z = beta_step(w.astype(np.float64), log_q.astype(np.float64), reg)
    assert beta.dtype == jnp.float32 and exact_beta.dtype == jnp.float64
    np.testing.assert_allclose(beta, exact_beta, atol=3e-6, rtol=0)
    np.testing.assert_allclose(z, exact_z, atol=1e-6 / max(1.0, reg / 1e3), rtol=1e-5)


@pytest.mark.parametrize("reg", REGS)
def test_beta_step_solves_equation_10(x64, reg):
    w, log_q, z_true, beta_true = beta_inputs(reg)
    w, log_q = z_true + beta_true / reg, np.log(z_true) - beta_true
    beta, z = beta_step(w, log_q, reg)
    np.testing.assert_allclose(z, z_true, rtol=1e-9)
    np.testing.assert_allclose(beta, beta_true, atol=1e-9)
    np.testing.assert_allclose(z, w - beta / reg, atol=1e-12)
    np.testing.assert_allclose(np.exp(beta + log_q), z, rtol=1e-10)  # the column sum of the plan
    omega = wrightomega(np.log(reg) + reg * w + log_q)
    np.testing.assert_allclose(z, omega / reg, rtol=1e-12)


@pytest.mark.parametrize("reg", REGS)
def test_beta_step_where_no_mass_can_come(reg):
    w = jnp.array([-0.5, 0.0, 0.01, 1.0])
    beta, z = beta_step(w, jnp.full(4, -jnp.inf), jnp.float32(reg))
    np.testing.assert_array_equal(z, 0.0)
    np.testing.assert_allclose(beta, reg * w, rtol=1e-6)


def test_beta_step_is_differentiable(x64):
    def step(w, log_q, reg):
        return beta_step(w, log_q, reg)

    jacobian = jax.jit(jax.jacobian(step, (0, 1, 2)))
    for w, log_q, reg in [
        (0.02, -3.0, 1e3),
        (0.02, -40.0, 1e3),
        (0.5, -1.0, 1.0),
        (-0.1, 2.0, 50.0),
    ]:
        (beta_w, beta_q, beta_reg), (z_w, z_q, z_reg) = jacobian(w, log_q, reg)
        omega = wrightomega(np.log(reg) + reg * w + log_q)
        assert float(z_w) == pytest.approx(omega / (1 + omega), rel=1e-9)
        assert float(z_q) == pytest.approx(omega / (1 + omega) / reg, rel=1e-9)
        assert float(beta_w) == pytest.approx(reg / (1 + omega), rel=1e-9)
        assert float(beta_q) == pytest.approx(-omega / (1 + omega), rel=1e-9)
        h = 1e-5 * reg
        up, down = step(w, log_q, reg + h), step(w, log_q, reg - h)
        assert float(beta_reg) == pytest.approx(
            float(up[0] - down[0]) / (2 * h), rel=1e-6, abs=1e-9
        )
        assert float(z_reg) == pytest.approx(float(up[1] - down[1]) / (2 * h), rel=1e-6, abs=1e-9)
    assert np.isfinite(jax.tree.leaves(jacobian(0.3, -jnp.inf, 1e3))).all()


def test_alpha_step_gives_the_row_sums(x64):
    rng = np.random.default_rng(0)
    x, exponents = rng.random(6), rng.normal(size=(6, 6))
    x[2] = 0.0
    with np.errstate(divide="ignore"):
        alpha = np.asarray(alpha_step(np.log(x), np.log(np.exp(exponents).sum(1))))
    assert alpha[2] == -np.inf
    np.testing.assert_allclose(np.exp(alpha[:, None] + exponents - 1).sum(1), x, rtol=1e-12)


def test_psi_step_moves_towards_the_budget_and_rests_there():
    psi = jnp.array([0.0, 0.3, 2.0, 50.0])
    np.testing.assert_array_equal(psi_step(psi, 0.5, 1.0, 0.5), psi)
    assert (psi_step(psi, 0.6, 1.0, 0.5) > psi).all()
    lower = psi_step(psi, 0.4, 1.0, 0.5)
    assert lower[0] == 0 and (lower[1:] < psi[1:]).all()
    assert (psi_step(psi, 0.0, 1e-3, 5.0) >= 0).all()
    # Newton where it is short, bounded where it is not.
    np.testing.assert_allclose(psi_step(2.0, 0.6, 0.5, 0.5), 2.2, rtol=1e-6)
    assert float(psi_step(2.0, 0.6, 1e-9, 0.5)) <= 5.0


def test_psi_step_where_nothing_can_move():
    assert float(psi_step(3.0, 0.6, 0.0, 0.5)) == 3.0
    assert float(psi_step(3.0, 0.1, 0.0, 0.5)) == 0.0
    assert np.isfinite(jax.grad(psi_step, (0, 1, 2, 3))(3.0, 0.1, 0.0, 0.5)).all()


@pytest.mark.parametrize(("reg", "radius"), [(50.0, 0.3), (1e3, 0.5), (1e4, 0.1)])
def test_block_ascent_climbs_the_dual(x64, reg, radius):
    geometry = dense_grid((6, 6), euclidean_power(1), 5)
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.random((6, 6, 1)) * (rng.random((6, 6, 1)) < 0.6))
    x /= x.sum()
    w = x + 0.02 * jnp.asarray(rng.normal(size=x.shape))

    kernel = log_domain(geometry)
    problem = Problem(x, w, jnp.asarray(radius), jnp.asarray(reg))

    @jax.jit
    def climb():
        def body(state, _):
            new = block_ascent(kernel, problem, state)
            value = dual_objective(geometry, x, w, radius, reg, Duals(new.beta, new.psi))
            return new, (value, new.residual, jnp.abs(new.z - (w - new.beta / reg)).max(), new.psi)

        psi = jnp.asarray(1.0)
        inf = jnp.asarray(jnp.inf)
        start = State(jnp.zeros_like(x), w, psi, psi, inf, jnp.asarray(True))
        return jax.lax.scan(body, start, None, length=1500)[1]

    values, residuals, gaps, psis = map(np.asarray, climb())
    assert (np.diff(values) > -1e-9 * np.abs(values[1:])).all()
    assert values[-1] > values[0] + 1e-3
    assert (psis >= 0).all() and gaps.max() < 1e-12
    assert residuals[-1] < 0.05 * residuals[1]
